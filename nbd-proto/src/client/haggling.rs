//! The greeting and the replies to options: everything that is received up to the start of transmission (section
//! "Handshake"), and what the machine does about it by itself.

use alloc::string::String;
use alloc::vec::Vec;

use super::connection::{Connection, Leaving, State};
use super::event::displayable;
use super::validate::{self, Rules};
use super::view::{Entered, SelectedContext};
use super::{Event, Goal, Info, TlsMode};
use crate::outbound::Tail;
use crate::wire::{
    BlockSizeInfo, ClientFlags, DecodeError, EXPORT_NAME_PADDING, ExportInfoReply, ExportNameReply,
    Greeting, HandshakeFlags, InfoReply, MetaContextReply, OptionCode, OptionReplyHeader,
    OptionReplyType, ServerReply,
};
use crate::{BlockSize, Error, LimitExceeded, PeerMisbehaved, Refusal};

use OptionReplyType as Rep;

/// What the machine negotiates by itself, in the order of [`Connection::proceed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// TLS and headers.
    Prepare,
    /// And contexts and the export. When that is refused, `give_up` tells whether to leave, or to let the embedder
    /// choose.
    Enter { give_up: bool },
}

/// What was agreed so far. TLS voids all but the first two (C-TLS-26).
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    /// Both sides speak fixed newstyle.
    pub(super) fixed: bool,
    pub(super) no_zeroes: bool,
    pub(super) tls: bool,
    pub(super) structured: bool,
    pub(super) extended: bool,
    pub(super) tried: Tried,
    /// The export that the selection was made for.
    pub(super) selection_for: String,
    pub(super) selection: Vec<SelectedContext>,
}

/// What need not be asked again (C-OPT-15).
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) tls: bool,
    pub(super) extended: bool,
    pub(super) structured: bool,
    pub(super) contexts: bool,
    /// `NBD_OPT_GO` turned out to be unknown to the server.
    pub(super) go: bool,
}

impl Negotiation {
    pub(super) fn forget_for_tls(&mut self) {
        let &mut Self { fixed, no_zeroes, .. } = self;
        let tried = Tried { tls: true, ..Tried::default() };
        *self = Self { fixed, no_zeroes, tls: true, tried, ..Self::default() };
    }

    pub(super) const fn chunked(&self) -> bool {
        self.structured || self.extended
    }
}

/// The option that awaits its reply, and what was told in reply so far.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// The export that the option names.
    pub(super) name: String,
    /// How many queries the option makes.
    pub(super) queries: usize,
    replies: u32,
    export: Option<ExportInfoReply>,
    block_size: Option<BlockSizeInfo>,
    canonical_name: Option<String>,
    description: Option<String>,
    contexts: Vec<SelectedContext>,
}

impl<C> Connection<C> {
    pub(super) fn greeting(&mut self, greeting: Greeting) -> Result<(), Error> {
        match greeting {
            Greeting::Newstyle => self.state = State::HandshakeFlags,
            Greeting::Oldstyle if !self.config.oldstyle => return Err(Refusal::Oldstyle.into()),
            Greeting::Oldstyle if self.config.tls == TlsMode::Required => {
                return Err(Refusal::NoTls.into());
            }
            Greeting::Oldstyle => {
                self.collected.clear();
                self.state = State::OldstyleRest;
            }
        }
        Ok(())
    }

    /// The rest of an oldstyle greeting is in `collected`.
    pub(super) fn oldstyle(&mut self) -> Result<Option<Event<C>>, Error> {
        if let Some(rest) = self.collected.first_chunk() {
            let greeting = Greeting::decode_oldstyle(rest)?;
            let (size, flags) = (greeting.size, greeting.flags);
            self.asked.export = Some(ExportInfoReply { size, flags });
        }
        self.enter_export().map(Some)
    }

    /// Answers the handshake flags, unknown ones of which are ignored (C-HS-13 to C-HS-16).
    pub(super) fn handshake_flags(&mut self, bits: u16) -> Result<Option<Event<C>>, Error> {
        let offered = HandshakeFlags::from_bits_retain(bits);
        let fixed = offered.contains(HandshakeFlags::FIXED_NEWSTYLE) && self.config.fixed_newstyle;
        let no_zeroes = offered.contains(HandshakeFlags::NO_ZEROES) && self.config.no_zeroes;
        self.negotiation.fixed = fixed;
        self.negotiation.no_zeroes = no_zeroes;
        let mut flags = ClientFlags::empty();
        flags.set(ClientFlags::FIXED_NEWSTYLE, fixed);
        flags.set(ClientFlags::NO_ZEROES, no_zeroes);
        self.out.put(&flags.bits().to_be_bytes());
        self.out.seal(Tail::None, None);
        self.script = match self.config.goal {
            Goal::Manual => None,
            Goal::Prepare => Some(Script::Prepare),
            Goal::Enter => Some(Script::Enter { give_up: true }),
        };
        let event = self.proceed()?;
        let your_turn = matches!(self.state, State::Idle);
        Ok(event.or_else(|| your_turn.then_some(Event::Haggling)))
    }

    /// An option has been dealt with (or none was sent yet): sends the next one, or makes it the embedder's turn.
    pub(super) fn proceed(&mut self) -> Result<Option<Event<C>>, Error> {
        if self.leaving != Leaving::No {
            self.leave_haggling();
            return Ok(None);
        }
        let &Negotiation { fixed, tls, structured, extended, .. } = &self.negotiation;
        if self.config.tls == TlsMode::Required && !fixed {
            return Err(Refusal::NoTls.into());
        }
        let Some(script) = self.script else {
            self.state = State::Idle;
            return Ok(None);
        };
        let tried = &self.negotiation.tried;
        if fixed && self.config.tls != TlsMode::Off && !tls && !tried.tls {
            self.send_start_tls();
        } else if fixed && self.config.extended_headers && !extended && !tried.extended {
            self.send_extended_headers();
        } else if fixed
            && self.config.structured_replies
            && !(extended || structured || tried.structured)
        {
            self.send_structured_reply();
        } else if script == Script::Prepare {
            self.script = None;
            self.state = State::Idle;
            return Ok(Some(Event::Haggling));
        } else if !self.config.contexts.is_empty() && (structured || extended) && !tried.contexts {
            let (name, queries) = (self.config.export.clone(), self.config.contexts.clone());
            self.send_set_meta_context(name, &queries);
        } else if fixed && !tried.go {
            let (name, items) = (self.config.export.clone(), self.config.info.clone());
            self.send_info(OptionCode::GO, name, &items);
        } else {
            self.send_export_name(self.config.export.clone());
        }
        Ok(None)
    }

    /// An option reply begins (C-OPT-16, C-OPT-17).
    pub(super) fn option_reply_header(
        &mut self,
        sent: OptionCode,
        header: OptionReplyHeader,
    ) -> Result<(), Error> {
        let OptionReplyHeader { code, length, .. } = header;
        if code != sent {
            return Err(PeerMisbehaved::WrongOption { sent, found: code }.into());
        }
        if length > self.config.limits.max_option_reply {
            return Err(LimitExceeded::OptionReply { code, length }.into());
        }
        let limit = self.config.limits.max_option_replies;
        self.asked.replies = self.asked.replies.saturating_add(1);
        if self.asked.replies > limit {
            return Err(LimitExceeded::OptionReplies { code, limit }.into());
        }
        self.collected.clear();
        self.state = State::OptionReplyData(header);
        Ok(())
    }

    /// An option reply has arrived, its data in `collected`.
    pub(super) fn option_reply(
        &mut self,
        header: &OptionReplyHeader,
    ) -> Result<Option<Event<C>>, Error> {
        use OptionCode as Opt;
        let &OptionReplyHeader { code, reply, .. } = header;
        self.state = State::OptionReply(code);
        match (reply, code) {
            (Rep::ACK, _) => self.acknowledged(code),
            _ if reply.is_error() => self.option_failed(code, reply),
            (Rep::SERVER, Opt::LIST) => {
                let ServerReply { name, description } = ServerReply::decode(&self.collected)?;
                let (name, description) = (name.into(), displayable(description.as_bytes()));
                Ok(Some(Event::Server { name, description }))
            }
            (Rep::INFO, Opt::INFO | Opt::GO) => self.info_reply(),
            (Rep::META_CONTEXT, Opt::LIST_META_CONTEXT | Opt::SET_META_CONTEXT) => {
                self.context_reply(code)
            }
            _ if code.name().is_none() => {
                let data = core::mem::take(&mut self.collected);
                Ok(Some(Event::OptionReply { code, reply, data }))
            }
            _ => Err(PeerMisbehaved::UnexpectedOptionReply { code, reply }.into()),
        }
    }

    fn info_reply(&mut self) -> Result<Option<Event<C>>, Error> {
        let asked = &mut self.asked;
        let info = match InfoReply::decode(&self.collected)? {
            InfoReply::Export(export) => {
                asked.export = Some(export);
                Info::Export { size: export.size, flags: export.flags }
            }
            InfoReply::Name(name) => {
                asked.canonical_name = Some(name.into());
                Info::Name(name.into())
            }
            InfoReply::Description(text) => {
                let text = displayable(text.as_bytes());
                asked.description = Some(text.clone());
                Info::Description(text)
            }
            InfoReply::BlockSize(sizes) => {
                asked.block_size = Some(sizes);
                Info::BlockSize(sizes)
            }
            InfoReply::Unknown(_) => return Ok(None),
        };
        Ok(self.script.is_none().then_some(Event::Info(info)))
    }

    fn context_reply(&mut self, code: OptionCode) -> Result<Option<Event<C>>, Error> {
        let MetaContextReply { id, name } = MetaContextReply::decode(&self.collected)?;
        if code == OptionCode::LIST_META_CONTEXT {
            // The number means nothing here (C-OPT-SM-12).
            return Ok(Some(Event::MetaContext { id: 0, name: name.into() }));
        }
        let contexts = &mut self.asked.contexts;
        if contexts.iter().any(|earlier| earlier.id == id) {
            return Err(PeerMisbehaved::DuplicateContext(id).into());
        }
        let most = self.config.limits.max_contexts;
        if contexts.len() >= (most as usize).max(self.asked.queries) {
            return Err(LimitExceeded::Contexts(most).into());
        }
        contexts.push(SelectedContext { id, name: name.into() });
        let event = Event::MetaContext { id, name: name.into() };
        Ok(self.script.is_none().then_some(event))
    }

    fn acknowledged(&mut self, code: OptionCode) -> Result<Option<Event<C>>, Error> {
        if !self.collected.is_empty() {
            return Err(DecodeError::LeftOver(self.collected.len()).into());
        }
        match code {
            OptionCode::ABORT => return self.aborted(),
            OptionCode::STARTTLS => {
                self.state = State::Tls;
                return Ok(Some(Event::StartTls));
            }
            OptionCode::STRUCTURED_REPLY => self.negotiation.structured = true,
            OptionCode::EXTENDED_HEADERS => self.negotiation.extended = true,
            OptionCode::SET_META_CONTEXT => {
                self.negotiation.selection = core::mem::take(&mut self.asked.contexts);
                self.negotiation.selection_for = core::mem::take(&mut self.asked.name);
            }
            OptionCode::INFO | OptionCode::GO if self.asked.export.is_none() => {
                return Err(PeerMisbehaved::NoExportInfo(code).into());
            }
            OptionCode::GO => return self.enter_export().map(Some),
            _ => {}
        }
        self.option_over(Event::OptionDone { code })
    }

    /// Goes on after an option; the event is told if it was the embedder's own.
    fn option_over(&mut self, event: Event<C>) -> Result<Option<Event<C>>, Error> {
        let told = self.script.is_none();
        let next = self.proceed()?;
        Ok(if told { Some(event) } else { next })
    }

    /// Falls back where the specification has something older to fall back to (C-OPT-19), and leaves or lets the
    /// embedder choose where it has not.
    fn option_failed(
        &mut self,
        code: OptionCode,
        reply: OptionReplyType,
    ) -> Result<Option<Event<C>>, Error> {
        if code == OptionCode::ABORT {
            return self.aborted();
        }
        let text = displayable(&self.collected);
        let event = Event::OptionFailed { code, reply, text };
        let needs_tls = code == OptionCode::STARTTLS && self.config.tls == TlsMode::Required;
        let Some(script) = self.script.filter(|_| reply != Rep::ERR_SHUTDOWN && !needs_tls) else {
            if reply == Rep::ERR_SHUTDOWN || needs_tls {
                self.give_up(code, reply);
                return Ok(Some(event));
            }
            return self.option_over(event);
        };
        let falls_back = reply != Rep::ERR_TLS_REQD
            && match code {
                OptionCode::STARTTLS
                | OptionCode::EXTENDED_HEADERS
                | OptionCode::STRUCTURED_REPLY
                | OptionCode::SET_META_CONTEXT => true,
                // Only GO works with extended headers (C-OPT-EN-06, C-OPT-GO-22).
                OptionCode::GO => reply == Rep::ERR_UNSUP && !self.negotiation.extended,
                _ => false,
            };
        if falls_back {
            self.negotiation.tried.go |= code == OptionCode::GO;
            return self.proceed();
        }
        if script == (Script::Enter { give_up: false }) {
            self.script = None;
            return self.option_over(event);
        }
        self.give_up(code, reply);
        Ok(Some(event))
    }

    /// Leaves because of the server: softly, since it broke no rule (C-OPT-AB-04, C-TRM-06).
    fn give_up(&mut self, code: OptionCode, reply: OptionReplyType) {
        self.refusal = Some(Refusal::Option { code, reply });
        self.leave_haggling();
    }

    /// Sends ABORT. A server that does not speak fixed newstyle must not be sent one (C-HS-18).
    pub(super) fn leave_haggling(&mut self) {
        self.script = None;
        if self.negotiation.fixed {
            self.send_abort();
        } else {
            self.state = State::Ended;
            self.tell_disconnected();
        }
    }

    /// Our ABORT was answered, by whatever.
    fn aborted(&mut self) -> Result<Option<Event<C>>, Error> {
        if let Some(refusal) = self.refusal {
            return Err(refusal.into());
        }
        self.state = State::Ended;
        self.tell_disconnected();
        Ok(self.ready.pop_front())
    }

    /// Raises [`Event::Disconnected`], once.
    pub(super) fn tell_disconnected(&mut self) {
        if self.leaving != Leaving::Told {
            self.leaving = Leaving::Told;
            self.ready.push_back(Event::Disconnected);
        }
    }

    /// `NBD_OPT_EXPORT_NAME` was answered; padding follows unless both sides agreed to do without (C-OPT-EN-07).
    pub(super) fn export_name_reply(
        &mut self,
        reply: ExportNameReply,
    ) -> Result<Option<Event<C>>, Error> {
        self.asked.export = Some(reply);
        if self.negotiation.no_zeroes {
            return self.enter_export().map(Some);
        }
        self.state = State::ExportNamePadding(EXPORT_NAME_PADDING);
        Ok(None)
    }

    /// Transmission begins, with what is in `asked`.
    pub(super) fn enter_export(&mut self) -> Result<Event<C>, Error> {
        let asked = core::mem::take(&mut self.asked);
        let export = asked.export.ok_or(PeerMisbehaved::NoExportInfo(OptionCode::GO))?;
        let block_size = match &asked.block_size {
            Some(sizes) => validate::block_size(sizes).map_err(PeerMisbehaved::BadBlockSize)?,
            None => BlockSize::DEFAULT,
        };
        let &Negotiation { structured, extended, .. } = &self.negotiation;
        // A selection holds for the export that it was made for (C-OPT-SM-14).
        let selection = core::mem::take(&mut self.negotiation.selection);
        let holds = self.negotiation.selection_for == asked.name;
        let rules = Rules {
            size: export.size,
            flags: validate::flags(export.flags, structured, extended),
            block_size: block_size.with_payload_at_most(self.config.limits.max_payload),
        };
        self.export = Some(Entered {
            rules,
            block_size_advertised: asked.block_size.is_some(),
            name: asked.canonical_name,
            description: asked.description,
            contexts: if holds { selection } else { Vec::new() },
            resizing: None,
        });
        self.script = None;
        self.collected = Vec::new();
        self.state = State::ReplyHeader;
        self.settle();
        Ok(Event::Ready)
    }
}
