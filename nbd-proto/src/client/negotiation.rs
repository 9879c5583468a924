//! The handshake, from the greeting to the export (section "Handshake"): what the next bytes are, and which option the
//! machine sends by itself. Only this file changes the step.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::take;

use super::export::{self, Agreed, EnteredExport};
use super::option_reply::{Agreement, Outcome};
use super::progress::{Progress, collect, drop_front, missing};
use super::question::{Awaited, Description, Question, Selecting};
use super::script::{Move, Script, Tried};
use super::send::put_option;
use super::{Config, Event, Goal, OptionError, TlsMode};
use crate::outbound::{Outbound, Tail};
use crate::scratch::Scratch;
use crate::wire::{
    ClientFlags, EXPORT_NAME_PADDING, ExportInfoReply, ExportNameReply, Greeting, HandshakeFlags,
    OptionCode, OptionReplyHeader, OptionReplyType as Rep,
};
use crate::{ContextRefusal, Error, NoSession, OrderlyEnd, PauseReason, PeerMisbehaved, Wants};

/// The connection before an export is entered.
#[derive(Debug)]
pub(super) struct Negotiation {
    pub(super) agreed: Agreed,
    pub(super) tried: Tried,
    /// The contexts that were selected last, even if that failed.
    pub(super) selection: Option<Selecting>,
    /// Why the script's selection failed.
    contexts_refused: Option<ContextRefusal>,
    /// What is negotiated without the embedder's doing; `None` when the embedder does it.
    pub(super) script: Option<Script>,
    /// The export that the script enters.
    pub(super) export: String,
    /// The embedder wants to disconnect once it is the client's turn.
    disconnect: bool,
    step: Step,
    /// Data of the option reply at hand, or the rest of an oldstyle greeting.
    collected: Vec<u8>,
}

/// What the next bytes of the stream are.
#[derive(Debug)]
enum Step {
    Greeting,
    HandshakeFlags,
    OldstyleRest,
    /// It is the embedder's turn.
    AwaitingOption,
    Reply(Awaited),
    ExportName(Option<String>),
    ExportNamePadding {
        description: Description,
        remaining: usize,
    },
    /// STARTTLS was acknowledged.
    Tls,
}

/// What follows the magics of an oldstyle greeting: size, flags, padding.
const OLDSTYLE_REST: usize = 12 + EXPORT_NAME_PADDING;

impl Negotiation {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            agreed: Agreed::default(),
            tried: Tried::default(),
            selection: None,
            contexts_refused: None,
            script: match config.goal {
                Goal::Manual => None,
                Goal::Prepare => Some(Script::Prepare),
                Goal::Enter => Some(Script::Enter { give_up: true }),
            },
            export: config.export.clone(),
            disconnect: false,
            step: Step::Greeting,
            collected: Vec::new(),
        }
    }

    pub(super) const fn is_embedders_turn(&self) -> bool {
        matches!(self.step, Step::AwaitingOption)
    }

    pub(super) const fn awaits_tls(&self) -> bool {
        matches!(self.step, Step::Tls)
    }

    /// Whether the session is being ended.
    pub(super) const fn is_closing(&self) -> bool {
        let aborting =
            matches!(self.step, Step::Reply(Awaited { question: Question::Abort { .. }, .. }));
        self.disconnect || aborting
    }

    /// What the next bytes are.
    pub(super) fn wants(&self, filled: usize, unsent: bool) -> Wants {
        let (total, have) = match &self.step {
            Step::AwaitingOption => return Wants::Nothing(PauseReason::YourTurn),
            Step::Tls if unsent => return Wants::Nothing(PauseReason::Unsent),
            Step::Tls => return Wants::Tls,
            Step::Greeting => (Greeting::SIZE, filled),
            Step::HandshakeFlags => (2, filled),
            Step::OldstyleRest => (OLDSTYLE_REST, self.collected.len()),
            Step::Reply(Awaited { header: None, .. }) => (OptionReplyHeader::SIZE, filled),
            Step::Reply(Awaited { header: Some(header), .. }) => {
                (header.length as usize, self.collected.len())
            }
            Step::ExportName(_) => (ExportNameReply::EXPORT_NAME_SIZE, filled),
            Step::ExportNamePadding { remaining, .. } => (*remaining, 0),
        };
        missing(total, have)
    }

    /// Handles the front of `input`, as far as it is one step.
    pub(super) fn receive(
        &mut self,
        config: &Config,
        scratch: &mut Scratch,
        out: &mut Outbound,
        input: &mut &[u8],
    ) -> Result<Progress, Error> {
        /// The next message of fixed size, or nothing yet.
        macro_rules! take {
            () => {
                match scratch.take(input) {
                    Some(bytes) => bytes,
                    None => return Ok(Progress::Stuck),
                }
            };
        }
        match &mut self.step {
            Step::AwaitingOption => Ok(Progress::Stuck),
            Step::Tls if input.is_empty() => Ok(Progress::Stuck),
            // The same later than with the acknowledgement.
            Step::Tls => Err(PeerMisbehaved::PlaintextAfterStartTls.into()),
            Step::Greeting => {
                let greeting = Greeting::decode(&take!())?;
                self.greeting(config, greeting)
            }
            Step::HandshakeFlags => {
                let flags = u16::from_be_bytes(take!());
                self.handshake_flags(config, out, flags)
            }
            Step::OldstyleRest => {
                if !collect(&mut self.collected, input, OLDSTYLE_REST) {
                    return Ok(Progress::Stuck);
                }
                let rest = self.collected.first_chunk();
                let rest = rest.ok_or(Error::Internal("an oldstyle greeting of no length"))?;
                let greeting = Greeting::decode_oldstyle(rest)?;
                let info = ExportInfoReply { size: greeting.size, flags: greeting.flags };
                self.enter_export(Description { info: Some(info), ..Description::default() })
            }
            Step::Reply(awaited) => {
                let Some(header) = awaited.header else {
                    awaited.begin(OptionReplyHeader::decode(&take!())?, &config.limits)?;
                    self.collected.clear();
                    return Ok(Progress::Continue);
                };
                if !collect(&mut self.collected, input, header.length as usize) {
                    return Ok(Progress::Stuck);
                }
                awaited.header = None;
                let collected = &mut self.collected;
                let outcome = awaited.question.reply(header.reply, collected, &config.limits)?;
                let progress = self.reply(config, out, header.code, outcome)?;
                match self.step {
                    // Somebody injects plain text (C-TLS-27).
                    Step::Tls if !input.is_empty() => {
                        Err(PeerMisbehaved::PlaintextAfterStartTls.into())
                    }
                    _ => Ok(progress),
                }
            }
            Step::ExportName(export) => {
                let info = ExportNameReply::decode_export_name(&take!())?;
                let export = take(export);
                let description =
                    Description { export, info: Some(info), ..Description::default() };
                if self.agreed.no_zeroes {
                    return self.enter_export(description);
                }
                // C-OPT-EN-07.
                self.step = Step::ExportNamePadding { description, remaining: EXPORT_NAME_PADDING };
                Ok(Progress::Continue)
            }
            Step::ExportNamePadding { description, remaining } => {
                match remaining.checked_sub(drop_front(input, *remaining)) {
                    Some(rest @ 1..) => {
                        *remaining = rest;
                        Ok(Progress::Stuck)
                    }
                    _ => {
                        let description = take(description);
                        self.enter_export(description)
                    }
                }
            }
        }
    }

    fn greeting(&mut self, config: &Config, greeting: Greeting) -> Result<Progress, Error> {
        self.step = match greeting {
            Greeting::Newstyle => Step::HandshakeFlags,
            Greeting::Oldstyle if !config.oldstyle => return Err(NoSession::Oldstyle.into()),
            Greeting::Oldstyle if config.tls == TlsMode::Required => {
                return Err(NoSession::NoTls.into());
            }
            Greeting::Oldstyle => Step::OldstyleRest,
        };
        Ok(Progress::Continue)
    }

    /// Answers the handshake flags, unknown ones of which are ignored.
    // (C-HS-13 to C-HS-16)
    fn handshake_flags(
        &mut self,
        config: &Config,
        out: &mut Outbound,
        bits: u16,
    ) -> Result<Progress, Error> {
        let offered = HandshakeFlags::from_bits_retain(bits);
        let fixed = offered.contains(HandshakeFlags::FIXED_NEWSTYLE) && config.fixed_newstyle;
        let no_zeroes = offered.contains(HandshakeFlags::NO_ZEROES) && config.no_zeroes;
        (self.agreed.fixed, self.agreed.no_zeroes) = (fixed, no_zeroes);
        let mut flags = ClientFlags::empty();
        flags.set(ClientFlags::FIXED_NEWSTYLE, fixed);
        flags.set(ClientFlags::NO_ZEROES, no_zeroes);
        out.put(&flags.bits().to_be_bytes());
        out.seal(Tail::None, None);
        let by_hand = self.script.is_none();
        match self.proceed(config, out)? {
            Progress::Continue if by_hand && self.is_embedders_turn() => {
                Ok(Progress::Event(Event::YourTurn))
            }
            progress => Ok(progress),
        }
    }

    /// An option has been dealt with (or none was sent yet): sends the next one, or makes it the embedder's turn.
    pub(super) fn proceed(
        &mut self,
        config: &Config,
        out: &mut Outbound,
    ) -> Result<Progress, Error> {
        if self.disconnect {
            return self.abort(out, None);
        }
        // C-TLS-20.
        if config.tls == TlsMode::Required && !self.agreed.fixed {
            return Err(NoSession::NoTls.into());
        }
        let sent = match self.next_move(config) {
            Move::AwaitOption => {
                self.step = Step::AwaitingOption;
                return Ok(Progress::Continue);
            }
            Move::HandOver => {
                self.script = None;
                self.step = Step::AwaitingOption;
                return Ok(Progress::Event(Event::YourTurn));
            }
            Move::StartTls => self.send_start_tls(out),
            Move::ExtendedHeaders => self.send_extended_headers(out),
            Move::StructuredReplies => self.send_structured_reply(out),
            Move::Contexts => {
                self.send_set_meta_context(out, self.export.clone(), &config.contexts)
            }
            Move::Go => self.send_info(out, OptionCode::GO, self.export.clone(), &config.info),
            Move::ExportName => self.send_export_name(out, self.export.clone()),
        };
        sent.map_err(|_| Error::Internal("an option of the configuration is too long"))?;
        Ok(Progress::Continue)
    }

    /// Enters an export for an embedder that has chosen it.
    pub(super) fn enter(
        &mut self,
        config: &Config,
        out: &mut Outbound,
        export: String,
    ) -> Result<Progress, Error> {
        self.export = export;
        self.contexts_refused = None;
        self.script = Some(Script::Enter { give_up: false });
        self.proceed(config, out)
    }

    /// An option reply was understood.
    fn reply(
        &mut self,
        config: &Config,
        out: &mut Outbound,
        code: OptionCode,
        outcome: Outcome,
    ) -> Result<Progress, Error> {
        match outcome {
            Outcome::More(Some(event)) if self.script.is_none() => {
                return Ok(Progress::Event(event));
            }
            Outcome::More(_) => return Ok(Progress::Continue),
            Outcome::Failed { reply, message } => {
                return self.option_failed(config, out, code, reply, message);
            }
            Outcome::Aborted(Some(refusal)) => return Err(refusal.into()),
            Outcome::Aborted(None) => return Ok(Progress::Close(OrderlyEnd::Aborted)),
            Outcome::Done(Agreement::Enter(description)) => return self.enter_export(description),
            Outcome::Done(Agreement::StartTls) => {
                self.step = Step::Tls;
                return Ok(Progress::Event(Event::StartTls));
            }
            Outcome::Done(Agreement::Nothing) => {}
            Outcome::Done(Agreement::StructuredReplies) => self.agreed.structured = true,
            Outcome::Done(Agreement::ExtendedHeaders) => self.agreed.extended = true,
            Outcome::Done(Agreement::Selection(selecting)) => self.selection = Some(selecting),
        }
        self.option_over(config, out, Event::OptionDone { code })
    }

    /// Goes on after an option; the event is raised if it was the embedder's own.
    fn option_over(
        &mut self,
        config: &Config,
        out: &mut Outbound,
        event: Event,
    ) -> Result<Progress, Error> {
        if self.script.is_some() {
            return self.proceed(config, out);
        }
        match self.proceed(config, out)? {
            Progress::Close(reason) => Ok(Progress::EventAndClose(event, reason)),
            _ => Ok(Progress::Event(event)),
        }
    }

    /// Falls back where the specification has something older to fall back to; otherwise ends the session,
    /// or lets the embedder choose.
    // (C-OPT-19)
    fn option_failed(
        &mut self,
        config: &Config,
        out: &mut Outbound,
        code: OptionCode,
        reply: Rep,
        message: String,
    ) -> Result<Progress, Error> {
        let event = Event::OptionFailed { code, reply, message };
        let needs_tls = code == OptionCode::STARTTLS && config.tls == TlsMode::Required;
        // C-TRM-06, C-TLS-22.
        let fatal = reply == Rep::ERR_SHUTDOWN || needs_tls;
        let falls_back = !fatal
            && reply != Rep::ERR_TLS_REQD
            && match code {
                OptionCode::STARTTLS
                | OptionCode::EXTENDED_HEADERS
                | OptionCode::STRUCTURED_REPLY
                | OptionCode::SET_META_CONTEXT => true,
                // Only GO works with extended headers (C-OPT-EN-06, C-OPT-GO-22).
                OptionCode::GO => reply == Rep::ERR_UNSUP && !self.agreed.extended,
                _ => false,
            };
        match self.script {
            _ if fatal => {}
            None => return self.option_over(config, out, event),
            Some(_) if falls_back => {
                self.tried.go |= code == OptionCode::GO;
                if code == OptionCode::SET_META_CONTEXT && reply != Rep::ERR_UNSUP {
                    let Event::OptionFailed { message, .. } = event else {
                        return Err(Error::Internal("the event of an option that failed"));
                    };
                    self.contexts_refused = Some(ContextRefusal { reply, message });
                }
                return self.proceed(config, out);
            }
            Some(Script::Enter { give_up: false }) => {
                self.script = None;
                return self.option_over(config, out, event);
            }
            Some(_) => {}
        }
        // Softly, since the server broke no rule (C-OPT-AB-04). It uses fixed newstyle, or it had no option to
        // refuse.
        self.abort(out, Some(NoSession::Option { code, reply }))?;
        Ok(Progress::Event(event))
    }

    /// The embedder wants to disconnect: now, or as soon as it is the client's turn.
    pub(super) fn disconnect(&mut self, out: &mut Outbound) -> Result<Progress, Error> {
        if self.is_closing() {
            return Ok(Progress::Continue);
        }
        self.disconnect = true;
        if self.is_embedders_turn() { self.abort(out, None) } else { Ok(Progress::Continue) }
    }

    /// Sends ABORT. It must not be sent to a server without fixed newstyle.
    // (C-HS-18)
    fn abort(&mut self, out: &mut Outbound, because: Option<NoSession>) -> Result<Progress, Error> {
        self.script = None;
        if self.agreed.fixed {
            self.send(out, Question::Abort { because }, &[])
                .map_err(|_| Error::Internal("an option without data is too long"))?;
            return Ok(Progress::Continue);
        }
        match because {
            Some(refusal) => Err(refusal.into()),
            None => Ok(Progress::Close(OrderlyEnd::Aborted)),
        }
    }

    /// The TLS handshake succeeded. What was negotiated before is forgotten.
    // (C-TLS-26)
    pub(super) fn tls_established(
        &mut self,
        config: &Config,
        out: &mut Outbound,
    ) -> Result<Progress, Error> {
        self.agreed = self.agreed.within_tls();
        self.tried = Tried { tls: true, ..Tried::default() };
        (self.selection, self.contexts_refused) = (None, None);
        self.proceed(config, out)
    }

    /// Transmission begins.
    fn enter_export(&mut self, description: Description) -> Result<Progress, Error> {
        let Description { export, info, block_size, canonical_name, description } = description;
        let info = info.ok_or(PeerMisbehaved::NoExportInfo(OptionCode::GO))?;
        let block_size = block_size.as_ref().map(export::block_size).transpose();
        let block_size = block_size.map_err(PeerMisbehaved::BadBlockSize)?;
        // A selection holds for the export that it was made for (C-OPT-SM-14).
        let selection = self.selection.take();
        let selection = selection.filter(|made| export.is_some() && made.export == export);
        Ok(Progress::Enter(Box::new(EnteredExport {
            info,
            block_size,
            name: canonical_name,
            description,
            contexts: selection.map_or_else(Vec::new, |selection| selection.contexts),
            contexts_refused: self.contexts_refused.take(),
            agreed: self.agreed,
            disconnect: self.disconnect,
        })))
    }

    /// Why the machine ends the session, if it does.
    pub(super) const fn refusal(&self) -> Option<NoSession> {
        match &self.step {
            Step::Reply(Awaited { question: Question::Abort { because }, .. }) => *because,
            _ => None,
        }
    }

    /// What it means that the stream ends now. A server may close instead of answering an ABORT.
    // (C-OPT-AB-05)
    pub(super) fn end_of_stream(&self, filled: usize) -> Result<OrderlyEnd, Error> {
        let inside = match &self.step {
            Step::Reply(Awaited { question: Question::Abort { because: None }, .. }) => {
                return Ok(OrderlyEnd::Aborted);
            }
            Step::Reply(Awaited {
                question: Question::Abort { because: Some(refusal) }, ..
            }) => return Err((*refusal).into()),
            Step::ExportName(_) if filled == 0 => return Err(NoSession::ExportName.into()),
            Step::Greeting | Step::HandshakeFlags | Step::OldstyleRest => "the greeting",
            Step::Tls => "the TLS handshake",
            Step::AwaitingOption
            | Step::Reply(_)
            | Step::ExportName(_)
            | Step::ExportNamePadding { .. } => "the negotiation",
        };
        Err(Error::UnexpectedEnd(inside))
    }

    // What is sent, once it may be.

    pub(super) fn send_export_name(
        &mut self,
        out: &mut Outbound,
        export: String,
    ) -> Result<(), OptionError> {
        put_option(out, OptionCode::EXPORT_NAME, export.as_bytes())?;
        self.step = Step::ExportName(Some(export));
        Ok(())
    }

    /// Sends an option with data of any kind.
    pub(super) fn send_raw(
        &mut self,
        out: &mut Outbound,
        code: OptionCode,
        data: &[u8],
    ) -> Result<(), OptionError> {
        if code == OptionCode::EXPORT_NAME {
            put_option(out, code, data)?;
            let export = core::str::from_utf8(data).ok().map(String::from);
            self.step = Step::ExportName(export);
            return Ok(());
        }
        if code == OptionCode::SET_META_CONTEXT {
            self.selection = None;
        }
        self.send(out, Question::raw(code, data), data)
    }

    /// Queues an option; its reply is what comes next.
    pub(super) fn send(
        &mut self,
        out: &mut Outbound,
        question: Question,
        data: &[u8],
    ) -> Result<(), OptionError> {
        put_option(out, question.code(), data)?;
        if question.code() == OptionCode::SET_META_CONTEXT {
            self.contexts_refused = None;
        }
        self.step = Step::Reply(Awaited::new(question));
        Ok(())
    }
}
