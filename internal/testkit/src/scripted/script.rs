//! Scripts.

use core::time::Duration;

use super::answer::{Answer, OptionAnswer};
use super::export::Export;
use crate::raw::{Cmd, Opt, handshake, magic};

/// What a server does on one connection, from the first byte to the last. At its end the connection is closed.
#[derive(Clone, Debug)]
pub struct Script {
    pub(super) export: Export,
    pub(super) steps: Vec<Step>,
    pub(super) cut_after: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Receives the client's flags.
    ClientFlags,
    /// Answers options properly, until the given one arrives, which is for the next steps.
    Until(Opt),
    /// Answers options properly, until an export is entered.
    Enter,
    /// Answers the last option.
    AnswerOption(OptionAnswer),
    /// Receives a request without its payload.
    Header(Cmd),
    /// Receives the payload of the last request.
    Payload,
    /// Answers a request.
    Answer(Answer),
    /// Answers the last request properly.
    Obey,
    /// Answers requests properly, until the client leaves.
    Serve,
    /// Sends what a step sends until the client has gone.
    Endlessly(Box<Step>),
    /// The same one byte at a time, with a pause after each.
    Dripping(Box<Step>, Duration),
    /// Reads, but says nothing until the client has gone.
    Silence,
    /// Neither reads nor says anything until the test lets it go on.
    Hold,
    /// Neither reads nor says anything until the client has gone.
    Deaf,
}

impl Script {
    /// Nothing yet.
    pub fn new(export: Export) -> Self {
        Self { export, steps: Vec::new(), cut_after: None }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Sends bytes, whatever they are.
    pub fn send(self, bytes: &[u8]) -> Self {
        self.then(Step::Send(bytes.to_vec()))
    }

    /// Greets as a fixed newstyle server, and receives the client's flags.
    pub fn greet(self) -> Self {
        let flags = (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) as u16;
        let mut greeting = magic::INIT.to_be_bytes().to_vec();
        greeting.extend_from_slice(&magic::IHAVEOPT.to_be_bytes());
        greeting.extend_from_slice(&flags.to_be_bytes());
        self.then(Step::Send(greeting)).then(Step::ClientFlags)
    }

    /// Greets, and answers options properly until this one arrives.
    pub fn until(self, option: Opt) -> Self {
        self.greet().then(Step::Until(option))
    }

    /// Greets, and answers options properly until the client is in transmission.
    pub fn enter(self) -> Self {
        self.greet().then(Step::Enter)
    }

    /// Answers further options properly until this one arrives.
    pub fn then_until(self, option: Opt) -> Self {
        self.then(Step::Until(option))
    }

    /// Answers the last option.
    pub fn answer_option(self, answer: OptionAnswer) -> Self {
        self.then(Step::AnswerOption(answer))
    }

    /// Answers further options properly until the client is in transmission.
    pub fn go_on(self) -> Self {
        self.then(Step::Enter)
    }

    /// Receives a request, which must be this one, with its payload.
    pub fn request(self, command: Cmd) -> Self {
        self.then(Step::Header(command)).then(Step::Payload)
    }

    /// Receives a request without its payload.
    pub fn header(self, command: Cmd) -> Self {
        self.then(Step::Header(command))
    }

    /// Receives the payload of the last request.
    pub fn payload(self) -> Self {
        self.then(Step::Payload)
    }

    /// Answers a request, in part or in whole.
    pub fn answer(self, answer: Answer) -> Self {
        self.then(Step::Answer(answer))
    }

    /// Answers the last request properly.
    pub fn obey(self) -> Self {
        self.then(Step::Obey)
    }

    /// Answers requests properly until the client leaves, by a word or without.
    pub fn serve(self) -> Self {
        self.then(Step::Serve)
    }

    /// Repeats the last step, which must be one that sends, until the client has gone.
    pub fn endlessly(self) -> Self {
        self.last(Step::Endlessly)
    }

    /// Repeats the last step, which must be one that sends, until the client has gone, one byte at a time.
    pub fn dripping(self, pause: Duration) -> Self {
        self.last(|step| Step::Dripping(step, pause))
    }

    #[track_caller]
    fn last(mut self, change: impl FnOnce(Box<Step>) -> Step) -> Self {
        let step = self.steps.pop().expect("there is a step to be repeated");
        self.then(change(Box::new(step)))
    }

    /// Reads what comes and says nothing until the client has gone.
    pub fn silence(self) -> Self {
        self.then(Step::Silence)
    }

    /// Neither reads nor says anything until the test [lets it](super::ScriptedServer::release).
    pub fn hold(self) -> Self {
        self.then(Step::Hold)
    }

    /// Neither reads nor says anything until the client has gone. For Unix sockets: on TCP a close travels behind all that
    /// was sent before it, which is never read.
    pub fn deaf(self) -> Self {
        self.then(Step::Deaf)
    }

    /// Closes the connection once so many bytes were sent, wherever that is.
    pub fn cut_after(mut self, bytes: u64) -> Self {
        self.cut_after = Some(bytes);
        self
    }
}
