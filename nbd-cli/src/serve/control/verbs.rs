//! The verbs that a control socket knows.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::end::Unanswered;
use super::protocol::{self, Answer, Request};
use crate::serve::Timed;

/// Gives the answer to the arguments of a request.
type AnswerTo = dyn Fn(Value) -> Result<Value, String> + Send + Sync;

/// Says more than an answer.
type ConverseOn = dyn Fn(Value, &Conversation<'_>) -> io::Result<()> + Send + Sync;

/// How often a client that waits for its answer gets a sign of life.
const SIGN: Duration = Duration::from_secs(5);

/// How long a client may take to receive an answer that it has waited for.
const ANSWERING: Duration = Duration::from_secs(10);

/// What answers the requests of one verb.
enum Handler {
    Answer(Box<AnswerTo>),
    Converse(Box<ConverseOn>),
}

/// A client with which there may be more to talk about than one request.
pub(super) struct Conversation<'a> {
    stream: &'a UnixStream,
    keep: &'a dyn Fn(),
    unanswered: Unanswered,
    end: Cell<Instant>,
}

impl<'a> Conversation<'a> {
    /// With the client of `stream`, until `end`. `keep` has it keep its connection whatever others want.
    pub(super) fn new(
        stream: &'a UnixStream,
        keep: &'a dyn Fn(),
        unanswered: Unanswered,
        end: Instant,
    ) -> Self {
        Self { stream, keep, unanswered, end: Cell::new(end) }
    }

    /// The other side has taken over: nothing that others ask for is carried out any more.
    pub(super) fn replaced(&self) {
        self.unanswered.replaced();
    }

    /// How many other clients have no answer.
    pub(super) fn others(&self) -> usize {
        self.unanswered.others()
    }

    /// Gives it so much time from now on, in which it keeps its connection.
    pub(super) fn allow(&self, time: Duration) -> &'a UnixStream {
        (self.keep)();
        self.end.set(Instant::now() + time);
        self.stream
    }

    /// When its time is over.
    pub(super) fn end(&self) -> Instant {
        self.end.get()
    }

    /// Does something that may take long, for which the client then has as much time again to receive the answer. Meanwhile
    /// it gets spaces, which an answer may begin with, as signs of life.
    fn while_working<T>(&self, work: impl FnOnce() -> T) -> T {
        let (stream, began) = (self.stream, Instant::now());
        let (working, signs) = mpsc::channel::<()>();
        let give_signs = move || {
            while signs.recv_timeout(SIGN) == Err(RecvTimeoutError::Timeout) {
                let mut timed = Timed::new(stream, Instant::now() + SIGN);
                if timed.write_all(b" ").is_err() {
                    return;
                }
            }
        };
        let done = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("nbd-control-signs".into());
            // Without a thread there are no signs, and an answer all the same.
            let _started = thread.spawn_scoped(scope, give_signs);
            let done = work();
            drop(working);
            done
        });
        if began.elapsed() > SIGN {
            self.allow(ANSWERING);
        }
        done
    }

    /// Says the last thing, and waits until the client has received it.
    pub(super) fn answer(&self, answer: &Answer) -> io::Result<()> {
        let mut timed = Timed::new(self.stream, self.end());
        let sent = protocol::send(&mut timed, answer);
        self.unanswered.answered();
        sent?;
        self.stream.shutdown(Shutdown::Write)?;
        // Unread bytes of a socket that is closed would take the answer away from a client that has not read it yet.
        io::copy(&mut timed, &mut io::sink())?;
        Ok(())
    }

    /// The same with an error.
    pub(super) fn refuse(&self, text: &str) -> io::Result<()> {
        self.answer(&Answer::Error(text.into()))
    }
}

/// The arguments of a verb that has none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serve) struct NoArguments {}

/// Verbs, each with what answers it. Requests are answered on several threads at a time.
#[derive(Default)]
pub(in crate::serve) struct Verbs(BTreeMap<&'static str, Handler>);

impl Verbs {
    /// None at all.
    pub(in crate::serve) fn new() -> Self {
        Self::default()
    }

    /// One more. `answer` gets the arguments of a request, of which it knows all (`deny_unknown_fields`); what it gives
    /// is the answer, or the text of the error for the client.
    #[must_use]
    pub(in crate::serve) fn with<A: DeserializeOwned, R: Serialize>(
        mut self,
        verb: &'static str,
        answer: impl Fn(A) -> Result<R, String> + Send + Sync + 'static,
    ) -> Self {
        let handler = move |arguments| {
            let arguments = serde_json::from_value(arguments)
                .map_err(|error| format!("the arguments of {verb} are malformed: {error}"))?;
            let answer = answer(arguments)?;
            serde_json::to_value(answer).map_err(|error| format!("the answer is lost: {error}"))
        };
        self.add(verb, Handler::Answer(Box::new(handler)));
        self
    }

    /// One more, whose requests begin a conversation.
    #[must_use]
    pub(super) fn with_conversation<A: DeserializeOwned>(
        mut self,
        verb: &'static str,
        converse: impl Fn(A, &Conversation<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let handler = move |arguments, conversation: &Conversation<'_>| match serde_json::from_value(
            arguments,
        ) {
            Ok(arguments) => converse(arguments, conversation),
            Err(error) => {
                conversation.refuse(&format!("the arguments of {verb} are malformed: {error}"))
            }
        };
        self.add(verb, Handler::Converse(Box::new(handler)));
        self
    }

    fn add(&mut self, verb: &'static str, handler: Handler) {
        let earlier = self.0.insert(verb, handler);
        debug_assert!(earlier.is_none(), "{verb} is there twice");
    }

    /// Carries out a request; gives the answer, or nothing after a conversation.
    pub(super) fn carry_out(
        &self,
        request: Request,
        conversation: &Conversation<'_>,
    ) -> Result<Option<Value>, String> {
        let Request { verb, arguments, .. } = request;
        let Some(handler) = self.0.get(&*verb) else {
            let known = self.0.keys().copied().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "'{verb}' is unknown to this server, which may be of another version; it knows {known}"
            ));
        };
        let logged = arguments.to_string();
        match handler {
            Handler::Answer(answer) => {
                let result = conversation.while_working(|| answer(arguments));
                let error = result.as_ref().err();
                tracing::info!(verb, arguments = logged, error, "control");
                result.map(Some)
            }
            Handler::Converse(converse) => {
                tracing::info!(verb, arguments = logged, "control");
                if let Err(error) = converse(arguments, conversation) {
                    tracing::info!(%error, verb, "a client of the control socket is gone");
                }
                Ok(None)
            }
        }
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Double {
        number: u32,
    }

    #[test]
    fn a_verb_gets_its_arguments_and_no_others() {
        let verbs = Verbs::new()
            .with("double", |Double { number }| number.checked_mul(2).ok_or("too large".into()))
            .with("nothing", |NoArguments {}| Ok(()));
        let (_client, server) = UnixStream::pair().unwrap();
        let ask = |verb: &str, arguments: Value| {
            let conversation = Conversation::new(
                &server,
                &|| {},
                Unanswered::new(&Arc::default()),
                Instant::now(),
            );
            verbs.carry_out(Request::new(verb, &arguments), &conversation)
        };
        assert_eq!(ask("double", json!({"number": 4})), Ok(Some(json!(8))));
        assert_eq!(ask("double", json!({"number": u32::MAX})), Err("too large".into()));
        assert_eq!(ask("nothing", json!({})), Ok(Some(Value::Null)));
        for (verb, arguments, says) in [
            ("double", json!({}), "missing field `number`"),
            ("double", json!({"number": -1}), "arguments of double are malformed"),
            ("double", json!({"number": 1, "more": 1}), "unknown field `more`"),
            ("nothing", json!({"more": 1}), "unknown field `more`"),
            ("dance", json!({}), "'dance' is unknown to this server"),
            ("dance", json!({}), "it knows double, nothing"),
        ] {
            let error = ask(verb, arguments).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
