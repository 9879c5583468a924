//! How options are answered (section "Option types").

use alloc::vec::Vec;

use super::handshake::{Handshake, Shared, Shutdown, State, Step};
use super::question::{InfoQuestion, NoQuestion, Question, valid_name};
use super::transmission::Entered;
use super::{Config, TlsMode};
use crate::export::MAX_SIZE;
use crate::outbound::Tail;
use crate::wire::{
    BlockSizeInfo, ClientFlags, EXPORT_NAME_PADDING, ExportInfoReply, InfoType, OptionCode,
    OptionReplyType as Rep, TransmissionFlags, is_valid_string,
};
use crate::{
    BlockSize, Error, ExportInfo, Misuse, NoSession, NotServed, OrderlyEnd, PeerMisbehaved,
};

/// An export as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "built by embedders; the protocol has no more fields"
)]
pub struct Listing<'a> {
    /// The name to ask for it by: at most 4096 bytes without NUL, or it can't be listed.
    pub name: &'a str,
    /// A text for people; empty for none.
    pub description: &'a str,
}

/// Why a client can't have an export. Clients see the text up to its first NUL, at most 4096 bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupRefusal<'a> {
    /// There is no such export.
    Unknown,
    /// There is, but not for this client; the text says why.
    Policy(&'a str),
    /// The server is shutting down; the text says more.
    ShuttingDown(&'a str),
}

/// What an answer to [`Event::Lookup`](super::Event::Lookup) led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupOutcome {
    /// The negotiation goes on, or the connection ends because the export was refused.
    Negotiating,
    /// Transmission begins, with the export that was just described.
    Entered,
}

/// What an answer to a question leads to.
pub(super) enum Answered {
    Negotiating,
    Entered(Entered),
    /// The client can't have what it named by EXPORT_NAME.
    Refused(NotServed),
}

/// What can be said without a look at an option's data.
struct EarlyRefusal {
    reply: Rep,
    text: &'static str,
    reason: NotServed,
}

impl Handshake {
    const fn fixed_newstyle(&self) -> bool {
        self.agreed.client_flags.contains(ClientFlags::FIXED_NEWSTYLE)
    }

    /// How to say that TLS is needed. Without fixed newstyle on both sides there is no TLS, and nothing may be said of
    /// it, so that a server which requires it has nothing to offer.
    // S-TLS-02, S-TLS-N-02
    const fn needs_tls(&self) -> Rep {
        if self.fixed_newstyle() { Rep::ERR_TLS_REQD } else { Rep::ERR_POLICY }
    }

    /// Answers that do not depend on the data: TLS first, shutting down.
    fn refuse_early(&self, shared: &Shared<'_>, code: OptionCode) -> Option<EarlyRefusal> {
        let before_tls = shared.config.tls == TlsMode::Required && !self.agreed.tls;
        if before_tls && !matches!(code, OptionCode::STARTTLS | OptionCode::ABORT) {
            let (reply, text) = (self.needs_tls(), "this server requires TLS");
            Some(EarlyRefusal { reply, text, reason: NotServed::TlsRequired })
        } else if shared.shutdown != Shutdown::No && code != OptionCode::ABORT {
            let (reply, text) = (Rep::ERR_SHUTDOWN, "the server is shutting down");
            Some(EarlyRefusal { reply, text, reason: NotServed::ShuttingDown })
        } else {
            None
        }
    }

    /// Carries out the [early refusal](Self::refuse_early), if there is one. `true` when the option was answered.
    fn refused_early(&self, shared: &mut Shared<'_>, code: OptionCode) -> Result<bool, Error> {
        match self.refuse_early(shared, code) {
            None => Ok(false),
            // An answer to EXPORT_NAME has no room for an error (S-OPT-EN-02, S-TLS-F-02).
            Some(refusal) if code == OptionCode::EXPORT_NAME => {
                Err(NoSession::NotServed(refusal.reason).into())
            }
            Some(EarlyRefusal { reply, text, .. }) => {
                shared.out.option_error(code, reply, text);
                Ok(true)
            }
        }
    }

    /// The data of a long option has been skipped.
    pub(super) fn option_too_big(
        &mut self,
        shared: &mut Shared<'_>,
        code: OptionCode,
    ) -> Result<Step, Error> {
        if self.refused_early(shared, code)? {
            return Ok(Step::Again);
        }
        match code {
            OptionCode::EXPORT_NAME => return Err(NoSession::NotServed(NotServed::BadName).into()),
            OptionCode::ABORT => return Ok(abort(shared)),
            OptionCode::SET_META_CONTEXT => self.agreed.selection = Default::default(),
            _ => {}
        }
        if code.name().is_some() && code != OptionCode::PEEK_EXPORT {
            shared.out.option_error(code, Rep::ERR_TOO_BIG, "the option's data is too long");
        } else {
            shared.out.option_error(code, Rep::ERR_UNSUP, "the option is not supported");
        }
        Ok(Step::Again)
    }

    /// An option has arrived.
    pub(super) fn option(
        &mut self,
        shared: &mut Shared<'_>,
        code: OptionCode,
        data: &mut Vec<u8>,
    ) -> Result<Step, Error> {
        if self.refused_early(shared, code)? {
            return Ok(Step::Again);
        }
        let config = shared.config;
        match code {
            OptionCode::ABORT => return Ok(abort(shared)),
            OptionCode::EXPORT_NAME => {
                if self.agreed.extended {
                    return Err(PeerMisbehaved::ExportNameAfterExtendedHeaders.into());
                }
                let name = valid_name(data).ok_or(NoSession::NotServed(NotServed::BadName))?;
                return Ok(self.ask(Question::ExportName { name }));
            }
            OptionCode::INFO | OptionCode::GO => {
                let question = Question::info(code == OptionCode::GO, data);
                return Ok(self.ask_if_well_formed(shared, code, question));
            }
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                return Ok(self.meta_context(shared, code, data));
            }
            OptionCode::STRUCTURED_REPLY if !config.structured_replies => {}
            OptionCode::EXTENDED_HEADERS if !config.extended_headers => {}
            OptionCode::LIST
            | OptionCode::STARTTLS
            | OptionCode::STRUCTURED_REPLY
            | OptionCode::EXTENDED_HEADERS => {
                if !data.is_empty() {
                    shared.out.option_error(code, Rep::ERR_INVALID, "this option takes no data");
                    return Ok(Step::Again);
                }
                match code {
                    OptionCode::LIST => return Ok(self.ask(Question::List)),
                    OptionCode::STARTTLS => return Ok(self.start_tls(shared)),
                    OptionCode::STRUCTURED_REPLY if self.agreed.extended => {
                        let text = "extended headers are in force";
                        shared.out.option_error(code, Rep::ERR_EXT_HEADER_REQD, text);
                        return Ok(Step::Again);
                    }
                    OptionCode::STRUCTURED_REPLY => self.agreed.structured = true,
                    _ => self.agreed.extended = true,
                }
                shared.out.option_ack(code);
                return Ok(Step::Again);
            }
            _ => {}
        }
        shared.out.option_error(code, Rep::ERR_UNSUP, "the option is not supported");
        Ok(Step::Again)
    }

    fn start_tls(&mut self, shared: &mut Shared<'_>) -> Step {
        let code = OptionCode::STARTTLS;
        let (reply, text) = if self.agreed.tls {
            (Rep::ERR_INVALID, "TLS is running already")
        } else if shared.config.tls == TlsMode::Off {
            (Rep::ERR_UNSUP, "this server does not do TLS")
        } else if !self.fixed_newstyle() {
            (Rep::ERR_POLICY, "TLS needs fixed newstyle negotiation")
        } else {
            shared.out.option_ack(code);
            self.state = State::Tls;
            return Step::Event(super::Event::StartTls);
        };
        shared.out.option_error(code, reply, text);
        Step::Again
    }

    fn ask(&mut self, question: Question) -> Step {
        let event = question.event();
        self.state = State::Asked(question);
        Step::Event(event)
    }

    pub(super) fn ask_if_well_formed(
        &mut self,
        shared: &mut Shared<'_>,
        code: OptionCode,
        question: Result<Question, NoQuestion>,
    ) -> Step {
        match question {
            Ok(question) => return self.ask(question),
            Err(NoQuestion::Malformed(error)) => shared.out.option_malformed(code, &error),
            // A name that is no valid string is that of no export (S-CONV-07).
            Err(NoQuestion::BadName) => {
                shared.out.option_error(code, Rep::ERR_UNKNOWN, "there is no such export");
            }
        }
        Step::Again
    }

    pub(super) fn answer_list<'e>(
        &mut self,
        shared: &mut Shared<'_>,
        exports: impl IntoIterator<Item = Listing<'e>>,
    ) -> Result<(), Misuse> {
        if !matches!(&self.state, State::Asked(Question::List)) {
            return Err(Misuse::NoSuchQuestion);
        }
        self.state = State::Header;
        let mut listed = 0_u32;
        for Listing { name, description } in exports {
            if is_valid_string(name.as_bytes()) {
                let valid = is_valid_string(description.as_bytes());
                shared.out.option_server(name, if valid { description } else { "" });
                listed = listed.saturating_add(1);
            }
        }
        self.listed = self.listed.max(listed);
        shared.out.option_ack(OptionCode::LIST);
        Ok(())
    }

    pub(super) fn refuse_list(
        &mut self,
        shared: &mut Shared<'_>,
        refusal: LookupRefusal<'_>,
    ) -> Result<(), Misuse> {
        if !matches!(&self.state, State::Asked(Question::List)) {
            return Err(Misuse::NoSuchQuestion);
        }
        self.state = State::Header;
        refuse(shared, OptionCode::LIST, refusal);
        Ok(())
    }

    pub(super) fn answer_lookup(
        &mut self,
        shared: &mut Shared<'_>,
        answer: Result<&ExportInfo, LookupRefusal<'_>>,
    ) -> Result<Answered, Misuse> {
        match core::mem::replace(&mut self.state, State::Header) {
            State::Asked(Question::ExportName { name }) => {
                Ok(self.answer_export_name(shared, &name, answer))
            }
            State::Asked(Question::Info(question)) => {
                Ok(self.answer_info(shared, &question, answer))
            }
            State::Asked(Question::Contexts(question)) => {
                let code = question.code();
                match answer {
                    // Before TLS an export that needs it is as good as unknown to these options (S-TLS-S-02).
                    Ok(info) if info.tls_required && !self.agreed.tls => {
                        shared.out.option_error(code, Rep::ERR_UNKNOWN, "this export requires TLS");
                    }
                    Ok(info) => self.answer_contexts(shared, question, info),
                    Err(refusal) => refuse(shared, code, refusal),
                }
                Ok(Answered::Negotiating)
            }
            state => {
                self.state = state;
                Err(Misuse::NoSuchQuestion)
            }
        }
    }

    fn answer_export_name(
        &mut self,
        shared: &mut Shared<'_>,
        name: &str,
        answer: Result<&ExportInfo, LookupRefusal<'_>>,
    ) -> Answered {
        let info = match answer {
            Ok(info) if info.tls_required && !self.agreed.tls => {
                return Answered::Refused(NotServed::TlsRequired);
            }
            Ok(info) if info.block_size_required && info.block_size.minimum() > 1 => {
                return Answered::Refused(NotServed::BlockSizeRequired);
            }
            Ok(info) => info,
            Err(LookupRefusal::Unknown) => return Answered::Refused(NotServed::Unknown),
            Err(LookupRefusal::Policy(_)) => return Answered::Refused(NotServed::Policy),
            Err(LookupRefusal::ShuttingDown(_)) => {
                return Answered::Refused(NotServed::ShuttingDown);
            }
        };
        let entered = self.enter(shared.config, info, name);
        let reply = ExportInfoReply { size: entered.rules.size, flags: entered.rules.flags };
        shared.out.put(&reply.encode_export_name());
        if !self.agreed.client_flags.contains(ClientFlags::NO_ZEROES) {
            shared.out.put(&[0; EXPORT_NAME_PADDING]);
        }
        shared.out.seal(Tail::None, None);
        Answered::Entered(entered)
    }

    /// Answers INFO and GO.
    // S-OPT-GO-01
    fn answer_info(
        &mut self,
        shared: &mut Shared<'_>,
        question: &InfoQuestion,
        answer: Result<&ExportInfo, LookupRefusal<'_>>,
    ) -> Answered {
        let code = question.code();
        let info = match answer {
            Ok(info) => info,
            Err(refusal) => {
                refuse(shared, code, refusal);
                return Answered::Negotiating;
            }
        };
        if info.tls_required && !self.agreed.tls {
            shared.out.option_error(code, self.needs_tls(), "this export requires TLS");
            return Answered::Negotiating;
        }
        let block_size = block_size(shared.config, info);
        let sizes = BlockSizeInfo::from(block_size).encode();
        if info.block_size_required && block_size.minimum() > 1 && !question.wants_block_size {
            shared.out.option_reply(code, Rep::INFO, &[&sizes]);
            let text = "this export needs a client that heeds NBD_INFO_BLOCK_SIZE";
            shared.out.option_error(code, Rep::ERR_BLOCK_SIZE_REQD, text);
            return Answered::Negotiating;
        }
        let flags = self.transmission_flags(info, &question.name);
        let export = ExportInfoReply { size: info.size.min(MAX_SIZE), flags };
        shared.out.option_reply(code, Rep::INFO, &[&export.encode()]);
        let shown = |wanted: bool, text: &Option<alloc::string::String>| {
            text.clone().filter(|text| wanted && is_valid_string(text.as_bytes()))
        };
        let name = shown(question.wants_name, &info.name);
        let description = shown(question.wants_description, &info.description);
        for (item, text) in [(InfoType::NAME, &name), (InfoType::DESCRIPTION, &description)] {
            if let Some(text) = text {
                let parts = [&item.0.to_be_bytes()[..], text.as_bytes()];
                shared.out.option_reply(code, Rep::INFO, &parts);
            }
        }
        if question.wants_block_size {
            shared.out.option_reply(code, Rep::INFO, &[&sizes]);
        }
        shared.out.option_ack(code);
        if !question.enter {
            return Answered::Negotiating;
        }
        let mut entered = self.enter(shared.config, info, &question.name);
        entered.block_size_advertised = question.wants_block_size;
        entered.name = name;
        entered.description = description;
        Answered::Entered(entered)
    }

    /// What is advertised: what the export says, less what contradicts, plus what was negotiated (section
    /// "Transmission flags").
    fn transmission_flags(&self, info: &ExportInfo, name: &str) -> TransmissionFlags {
        use TransmissionFlags as Flags;
        let own = Flags::READ_ONLY
            | Flags::SEND_FLUSH
            | Flags::SEND_FUA
            | Flags::ROTATIONAL
            | Flags::SEND_TRIM
            | Flags::SEND_WRITE_ZEROES
            | Flags::CAN_MULTI_CONN
            | Flags::SEND_RESIZE
            | Flags::SEND_CACHE
            | Flags::SEND_FAST_ZERO;
        let mut flags = (info.flags & own) | Flags::HAS_FLAGS;
        if flags.contains(Flags::READ_ONLY) {
            flags.remove(Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES | Flags::SEND_RESIZE);
        }
        if !flags.contains(Flags::SEND_WRITE_ZEROES) {
            flags.remove(Flags::SEND_FAST_ZERO);
        }
        flags.set(Flags::SEND_DF, self.agreed.structured || self.agreed.extended);
        let payload = self.agreed.extended && self.agreed.selection.is_for(name);
        flags.set(Flags::BLOCK_STATUS_PAYLOAD, payload);
        flags
    }

    /// The export as it is used from now on.
    pub(super) fn enter(&mut self, config: &Config, info: &ExportInfo, name: &str) -> Entered {
        let flags = self.transmission_flags(info, name);
        let selection = if self.agreed.selection.is_for(name) {
            core::mem::take(&mut self.agreed.selection)
        } else {
            Default::default()
        };
        let block_size = block_size(config, info);
        Entered::new(info.size.min(MAX_SIZE), flags, block_size, &self.agreed, selection)
    }
}

fn refuse(shared: &mut Shared<'_>, code: OptionCode, refusal: LookupRefusal<'_>) {
    let (reply, text) = match refusal {
        LookupRefusal::Unknown => (Rep::ERR_UNKNOWN, "there is no such export"),
        LookupRefusal::Policy(text) => (Rep::ERR_POLICY, text),
        LookupRefusal::ShuttingDown(text) => (Rep::ERR_SHUTDOWN, text),
    };
    shared.out.option_error(code, reply, text);
}

fn abort(shared: &mut Shared<'_>) -> Step {
    shared.out.option_ack(OptionCode::ABORT);
    Step::Closing(OrderlyEnd::Aborted)
}

/// Chunk headers have 32 bits for lengths, and a chunk is a little longer than its content.
const MAX_PAYLOAD: u32 = 1 << 31;

fn block_size(config: &Config, info: &ExportInfo) -> BlockSize {
    info.block_size.with_payload_at_most(config.limits.max_payload.min(MAX_PAYLOAD))
}
