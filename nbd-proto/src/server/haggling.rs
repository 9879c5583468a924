//! Options: everything up to the start of transmission (section "Handshake").

use alloc::string::String;
use alloc::vec::Vec;

use super::connection::{Entered, State};
use super::validate::Rules;
use super::{Connection, Event, Lookup, Purpose, TlsMode};
use crate::limits::OPTIONS_PER_EXPORT;
use crate::wire::{
    BlockSizeInfo, ClientFlags, EXPORT_NAME_PADDING, ExportInfoReply, InfoRequest, InfoType,
    MAX_STRING, OptionCode, OptionHeader, OptionReplyType, TransmissionFlags, is_valid_string,
};
use crate::{Error, ExportInfo, LimitExceeded, Misuse, PeerMisbehaved};

/// An export as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing<'a> {
    /// The name to ask for it by.
    pub name: &'a str,
    /// A text for people; empty for none.
    pub description: &'a str,
}

/// Why an export is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupRefusal<'a> {
    /// There is no such export.
    Unknown,
    /// There is, but not for this client; the text tells why.
    Policy(&'a str),
}

/// What an answer to [`Event::Lookup`] led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupOutcome {
    /// Haggling goes on.
    Haggling,
    /// Transmission begins, with the export that was just described.
    Entered,
}

use OptionReplyType as Rep;

impl Connection {
    pub(super) fn client_flags(&mut self, bits: u32) -> Result<(), Error> {
        let mut offered = ClientFlags::FIXED_NEWSTYLE;
        offered.set(ClientFlags::NO_ZEROES, self.config.no_zeroes);
        let flags = ClientFlags::from_bits_retain(bits);
        if !offered.contains(flags) {
            return Err(PeerMisbehaved::UnknownClientFlags(bits).into());
        }
        self.negotiation.client_flags = flags;
        self.state = State::OptionHeader;
        Ok(())
    }

    /// Decides whether an option's data will be looked at, skipped, or is too much to bear.
    pub(super) fn option_header(&mut self, header: &OptionHeader) -> Result<(), Error> {
        let limits = &self.config.limits;
        self.options = self.options.saturating_add(1);
        let about_exports = self.listed.saturating_mul(OPTIONS_PER_EXPORT);
        let max_options = limits.max_options.saturating_add(about_exports);
        if self.options > max_options {
            return Err(LimitExceeded::Options(max_options).into());
        }
        let &OptionHeader { code, length } = header;
        if length > limits.max_option_data.max(limits.max_option_skip) {
            return Err(LimitExceeded::OptionData { code, length }.into());
        }
        self.collected.clear();
        self.state = if length > limits.max_option_data {
            State::OptionSkip(*header, length)
        } else {
            State::OptionData(*header)
        };
        Ok(())
    }

    /// How to say that TLS is needed. Without fixed newstyle on both sides there is no TLS, and nothing may be said of it
    /// (S-TLS-02, S-TLS-N-02), so that a server which requires it has nothing to offer.
    fn needs_tls(&self) -> Rep {
        let fixed = self.negotiation.client_flags.contains(ClientFlags::FIXED_NEWSTYLE);
        if fixed { Rep::ERR_TLS_REQD } else { Rep::ERR_POLICY }
    }

    fn refuses_before_tls(&self, code: OptionCode) -> bool {
        self.config.tls == TlsMode::Required
            && !self.negotiation.tls
            && !matches!(code, OptionCode::STARTTLS | OptionCode::ABORT)
    }

    /// Answers that do not depend on the data: TLS first, shutting down, and so on. `true` when answered.
    fn refuse_early(&mut self, code: OptionCode) -> Result<bool, Error> {
        let (reply, text) = if self.refuses_before_tls(code) {
            (self.needs_tls(), "this server requires TLS")
        } else if self.shutting_down && code != OptionCode::ABORT {
            (Rep::ERR_SHUTDOWN, "the server is shutting down")
        } else {
            return Ok(false);
        };
        // An answer to EXPORT_NAME has no room for an error (S-OPT-EN-02, S-TLS-F-02).
        if code == OptionCode::EXPORT_NAME {
            return Err(PeerMisbehaved::ExportNameRefused.into());
        }
        self.option_error(code, reply, text);
        Ok(true)
    }

    /// The data of a long option has been skipped.
    pub(super) fn option_too_big(&mut self, header: &OptionHeader) -> Result<Option<Event>, Error> {
        let code = header.code;
        self.state = State::OptionHeader;
        if self.refuse_early(code)? {
            return Ok(None);
        }
        match code {
            OptionCode::EXPORT_NAME => return Err(PeerMisbehaved::ExportNameRefused.into()),
            OptionCode::ABORT => return Ok(Some(self.abort())),
            OptionCode::SET_META_CONTEXT => self.forget_contexts(),
            _ => {}
        }
        if code.name().is_some() && code != OptionCode::PEEK_EXPORT {
            self.option_error(code, Rep::ERR_TOO_BIG, "the option's data is too long");
        } else {
            self.option_error(code, Rep::ERR_UNSUP, "the option is not supported");
        }
        Ok(None)
    }

    /// An option has arrived, its data in `collected`.
    pub(super) fn option(&mut self, header: &OptionHeader) -> Result<Option<Event>, Error> {
        let code = header.code;
        self.state = State::OptionHeader;
        if self.refuse_early(code)? {
            return Ok(None);
        }
        let has_data = !self.collected.is_empty();
        match code {
            OptionCode::EXPORT_NAME => return self.export_name(header).map(Some),
            OptionCode::ABORT => return Ok(Some(self.abort())),
            OptionCode::LIST if !has_data => {
                self.state = State::Awaiting(*header);
                return Ok(Some(Event::List));
            }
            OptionCode::STARTTLS => return Ok(self.start_tls(has_data)),
            OptionCode::INFO | OptionCode::GO => return Ok(self.info(header)),
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                return Ok(self.meta_context(header));
            }
            OptionCode::STRUCTURED_REPLY if self.config.structured_replies => {
                if has_data {
                    self.option_error(code, Rep::ERR_INVALID, "this option takes no data");
                } else if self.negotiation.extended {
                    let text = "extended headers are in force";
                    self.option_error(code, Rep::ERR_EXT_HEADER_REQD, text);
                } else {
                    self.negotiation.structured = true;
                    self.option_ack(code);
                }
            }
            OptionCode::EXTENDED_HEADERS if self.config.extended_headers => {
                if has_data {
                    self.option_error(code, Rep::ERR_INVALID, "this option takes no data");
                } else {
                    self.negotiation.extended = true;
                    self.option_ack(code);
                }
            }
            OptionCode::LIST => {
                self.option_error(code, Rep::ERR_INVALID, "this option takes no data");
            }
            _ => self.option_error(code, Rep::ERR_UNSUP, "the option is not supported"),
        }
        Ok(None)
    }

    fn abort(&mut self) -> Event {
        self.option_ack(OptionCode::ABORT);
        self.state = State::Ended;
        Event::Aborted
    }

    fn export_name(&mut self, header: &OptionHeader) -> Result<Event, Error> {
        if self.negotiation.extended {
            return Err(PeerMisbehaved::ExportNameAfterExtendedHeaders.into());
        }
        let name = valid_name(&self.collected).ok_or(PeerMisbehaved::ExportNameRefused)?;
        self.state = State::Awaiting(*header);
        Ok(Event::Lookup(Lookup { name, purpose: Purpose::Enter }))
    }

    fn start_tls(&mut self, has_data: bool) -> Option<Event> {
        let code = OptionCode::STARTTLS;
        let fixed = self.negotiation.client_flags.contains(ClientFlags::FIXED_NEWSTYLE);
        if has_data {
            self.option_error(code, Rep::ERR_INVALID, "this option takes no data");
        } else if self.negotiation.tls {
            self.option_error(code, Rep::ERR_INVALID, "TLS is running already");
        } else if self.config.tls == TlsMode::Off {
            self.option_error(code, Rep::ERR_UNSUP, "this server does not do TLS");
        } else if !fixed {
            self.option_error(code, Rep::ERR_POLICY, "TLS needs fixed newstyle negotiation");
        } else {
            self.option_ack(code);
            self.state = State::Tls;
            return Some(Event::StartTls);
        }
        None
    }

    fn info(&mut self, header: &OptionHeader) -> Option<Event> {
        let name = match InfoRequest::decode(&self.collected) {
            Ok(request) => valid_name(request.name),
            Err(error) => {
                self.option_malformed(header.code, &error);
                return None;
            }
        };
        let enter = header.code == OptionCode::GO;
        let purpose = if enter { Purpose::Enter } else { Purpose::Info };
        self.ask(header, name, purpose)
    }

    /// Asks the embedder about the export of that name. A name that is no valid string is that of none (S-CONV-07).
    pub(super) fn ask(
        &mut self,
        header: &OptionHeader,
        name: Option<String>,
        purpose: Purpose,
    ) -> Option<Event> {
        let Some(name) = name else {
            self.option_error(header.code, Rep::ERR_UNKNOWN, "there is no such export");
            return None;
        };
        self.state = State::Awaiting(*header);
        Some(Event::Lookup(Lookup { name, purpose }))
    }

    /// Answers [`Event::List`]. Names and descriptions that are no valid strings are left out.
    ///
    /// # Errors
    /// [`Misuse::NoSuchQuestion`] when the client did not ask for a list.
    pub fn answer_list<'e>(
        &mut self,
        exports: impl IntoIterator<Item = Listing<'e>>,
    ) -> Result<(), Misuse> {
        if !matches!(&self.state, State::Awaiting(header) if header.code == OptionCode::LIST) {
            return Err(Misuse::NoSuchQuestion);
        }
        self.state = State::OptionHeader;
        let mut listed = 0_u32;
        for listing in exports {
            if is_valid_string(listing.name.as_bytes()) {
                listed = listed.saturating_add(1);
                let valid = is_valid_string(listing.description.as_bytes());
                self.option_server(listing.name, if valid { listing.description } else { "" });
            }
        }
        // The client may ask about each of them.
        self.listed = self.listed.max(listed);
        self.option_ack(OptionCode::LIST);
        Ok(())
    }

    /// Answers [`Event::Lookup`] with the export, or with why it is not to be had.
    ///
    /// # Errors
    /// [`Misuse::NoSuchQuestion`] when the client did not ask for an export. When an export that
    /// `NBD_OPT_EXPORT_NAME` asked for is refused, which can't be told to the client, the connection ends: the next
    /// call of [`next_event`](Self::next_event) gives the error.
    pub fn answer_lookup(
        &mut self,
        answer: Result<&ExportInfo, LookupRefusal<'_>>,
    ) -> Result<LookupOutcome, Misuse> {
        let header = match &self.state {
            State::Awaiting(header) if header.code != OptionCode::LIST => *header,
            _ => return Err(Misuse::NoSuchQuestion),
        };
        self.state = State::OptionHeader;
        let code = header.code;
        let info = match answer {
            Ok(info) if info.tls_required && !self.negotiation.tls => {
                // Before TLS an export that needs it is as good as unknown to metadata options (S-TLS-S-02).
                let entering = matches!(code, OptionCode::INFO | OptionCode::GO);
                let reply = if entering { self.needs_tls() } else { Rep::ERR_UNKNOWN };
                return Ok(self.refuse_lookup(code, reply, "this export requires TLS"));
            }
            Ok(info) => info,
            Err(LookupRefusal::Unknown) => {
                let text = "there is no such export";
                return Ok(self.refuse_lookup(code, Rep::ERR_UNKNOWN, text));
            }
            Err(LookupRefusal::Policy(text)) => {
                return Ok(self.refuse_lookup(code, Rep::ERR_POLICY, text));
            }
        };
        match code {
            OptionCode::EXPORT_NAME => Ok(self.enter_by_export_name(info)),
            OptionCode::INFO | OptionCode::GO => Ok(self.describe(code, info)),
            _ => {
                self.contexts(code, info);
                Ok(LookupOutcome::Haggling)
            }
        }
    }

    fn refuse_lookup(&mut self, code: OptionCode, reply: Rep, text: &str) -> LookupOutcome {
        if code == OptionCode::EXPORT_NAME {
            self.fail(PeerMisbehaved::ExportNameRefused.into());
        } else {
            self.option_error(code, reply, text);
        }
        LookupOutcome::Haggling
    }

    fn enter_by_export_name(&mut self, info: &ExportInfo) -> LookupOutcome {
        if info.block_size_required && info.block_size.minimum() > 1 {
            return self.refuse_lookup(OptionCode::EXPORT_NAME, Rep::ERR_BLOCK_SIZE_REQD, "");
        }
        let name = valid_name(&self.collected).unwrap_or_default();
        let reply =
            ExportInfoReply { size: info.size, flags: self.transmission_flags(info, &name) };
        self.out.put(&reply.encode_export_name());
        if !self.negotiation.client_flags.contains(ClientFlags::NO_ZEROES) {
            self.out.put(&[0; EXPORT_NAME_PADDING]);
        }
        self.out.seal(crate::outbound::Tail::None, None);
        self.enter(info, &name);
        LookupOutcome::Entered
    }

    /// Answers INFO and GO (S-OPT-GO-01).
    fn describe(&mut self, code: OptionCode, info: &ExportInfo) -> LookupOutcome {
        let Ok(request) = InfoRequest::decode(&self.collected) else {
            return LookupOutcome::Haggling;
        };
        let name = valid_name(request.name).unwrap_or_default();
        let wants = |item| request.items().any(|wanted| wanted == item);
        let (wants_name, wants_description, wants_block_size) =
            (wants(InfoType::NAME), wants(InfoType::DESCRIPTION), wants(InfoType::BLOCK_SIZE));
        let block_size = self.block_size(info);
        let sizes = BlockSizeInfo::from(block_size).encode();
        if info.block_size_required && block_size.minimum() > 1 && !wants_block_size {
            self.option_reply(code, Rep::INFO, &[&sizes]);
            let text = "this export needs a client that heeds NBD_INFO_BLOCK_SIZE";
            self.option_error(code, Rep::ERR_BLOCK_SIZE_REQD, text);
            return LookupOutcome::Haggling;
        }
        let flags = self.transmission_flags(info, &name);
        let export = ExportInfoReply { size: info.size, flags };
        self.option_reply(code, Rep::INFO, &[&export.encode()]);
        for (wanted, item, text) in [
            (wants_name, InfoType::NAME, &info.name),
            (wants_description, InfoType::DESCRIPTION, &info.description),
        ] {
            if wanted
                && let Some(text) = text
                && is_valid_string(text.as_bytes())
            {
                self.option_reply(code, Rep::INFO, &[&item.0.to_be_bytes(), text.as_bytes()]);
            }
        }
        if wants_block_size {
            self.option_reply(code, Rep::INFO, &[&sizes]);
        }
        self.option_ack(code);
        if code == OptionCode::GO {
            self.enter(info, &name);
            return LookupOutcome::Entered;
        }
        LookupOutcome::Haggling
    }

    fn block_size(&self, info: &ExportInfo) -> crate::BlockSize {
        info.block_size.with_payload_at_most(self.config.limits.max_payload)
    }

    /// What is advertised: what the export says, less what contradicts, plus what was negotiated (section
    /// "Transmission flags").
    pub(super) fn transmission_flags(&self, info: &ExportInfo, name: &str) -> TransmissionFlags {
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
        flags.set(Flags::SEND_DF, self.negotiation.structured || self.negotiation.extended);
        let payload = self.negotiation.extended && self.has_selection(name);
        flags.set(Flags::BLOCK_STATUS_PAYLOAD, payload);
        flags
    }

    pub(super) fn enter(&mut self, info: &ExportInfo, name: &str) {
        let flags = self.transmission_flags(info, name);
        let contexts = if self.has_selection(name) {
            core::mem::take(&mut self.negotiation.selection)
        } else {
            Vec::new()
        };
        let rules = Rules {
            size: info.size,
            flags,
            block_size: self.block_size(info),
            extended: self.negotiation.extended,
            require_payload_flag: self.config.require_payload_flag,
            has_contexts: !contexts.is_empty(),
        };
        self.export = Some(Entered { rules, announced: info.size, contexts });
        self.collected = Vec::new();
        self.state = State::RequestHeader;
    }
}

/// The name as a string, unless it breaks the rules for strings.
pub(super) fn valid_name(bytes: &[u8]) -> Option<String> {
    if bytes.len() > MAX_STRING || bytes.contains(&0) {
        return None;
    }
    core::str::from_utf8(bytes).ok().map(Into::into)
}
