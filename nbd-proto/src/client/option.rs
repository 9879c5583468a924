//! Options on their way to the server: those that the embedder sends, and those that the machine does (section "Option
//! types").

use alloc::string::String;
use alloc::vec::Vec;

use super::TlsMode;
use super::connection::{Connection, State};
use super::haggling::{Asked, Script};
use super::validate::{self, OptionError};
use crate::outbound::Tail;
use crate::wire::{InfoRequest, InfoType, MetaContextRequest, OptionCode, OptionHeader};

/// While haggling: one option at a time, each when it is your turn (C-OPT-14).
///
/// All of these fail with an [`OptionError`] that tells what is wrong, and then nothing was sent. Replies come as
/// [events](super::Event).
impl<C> Connection<C> {
    /// Goes on by itself: negotiates what the configuration wants and was not negotiated yet, then enters the export.
    /// [`Event::Ready`](super::Event::Ready) follows, or [`Event::OptionFailed`](super::Event::OptionFailed) and it is
    /// your turn again.
    pub fn enter(&mut self, export: impl Into<String>) -> Result<(), OptionError> {
        let export = export.into();
        // If TLS is required, then STARTTLS is what it will say first.
        self.check_turn(OptionCode::STARTTLS)?;
        self.check(|| validate::name(&export))?;
        if self.negotiation.selection_for != export {
            self.negotiation.tried.contexts = false;
        }
        self.config.export = export;
        self.script = Some(Script::Enter { give_up: false });
        match self.proceed() {
            Ok(event) => self.ready.extend(event),
            Err(error) => self.fail(error),
        }
        Ok(())
    }

    /// `NBD_OPT_LIST`: [`Event::Server`](super::Event::Server) for each export.
    pub fn list(&mut self) -> Result<(), OptionError> {
        self.check_option(OptionCode::LIST)?;
        self.send_option(OptionCode::LIST, |_| {});
        Ok(())
    }

    /// `NBD_OPT_INFO`: [`Event::Info`](super::Event::Info) for each item that the server tells, asked for or not.
    pub fn info(
        &mut self,
        export: impl Into<String>,
        items: &[InfoType],
    ) -> Result<(), OptionError> {
        self.info_or_go(OptionCode::INFO, export.into(), items)
    }

    /// `NBD_OPT_GO`: as [`info`](Self::info), and then [`Event::Ready`](super::Event::Ready) instead of
    /// [`Event::OptionDone`](super::Event::OptionDone).
    pub fn go(&mut self, export: impl Into<String>, items: &[InfoType]) -> Result<(), OptionError> {
        self.info_or_go(OptionCode::GO, export.into(), items)
    }

    fn info_or_go(
        &mut self,
        code: OptionCode,
        export: String,
        items: &[InfoType],
    ) -> Result<(), OptionError> {
        self.check_option(code)?;
        self.check(|| validate::name(&export).and_then(|()| validate::items(items)))?;
        self.send_info(code, export, items);
        Ok(())
    }

    /// `NBD_OPT_EXPORT_NAME`: [`Event::Ready`](super::Event::Ready), or the server hangs up.
    pub fn export_name(&mut self, export: impl Into<String>) -> Result<(), OptionError> {
        let export = export.into();
        self.check_turn(OptionCode::EXPORT_NAME)?;
        self.check(|| validate::name(&export))?;
        if self.negotiation.extended && self.config.strict {
            return Err(OptionError::ExtendedHeaders);
        }
        self.send_export_name(export);
        Ok(())
    }

    /// `NBD_OPT_LIST_META_CONTEXT`: [`Event::MetaContext`](super::Event::MetaContext) for each context of the export that
    /// a query matches; for each there is, without a query.
    pub fn list_meta_context(
        &mut self,
        export: impl Into<String>,
        queries: &[impl AsRef<str>],
    ) -> Result<(), OptionError> {
        let (code, export) = (OptionCode::LIST_META_CONTEXT, export.into());
        self.check_meta_context(code, &export, queries)?;
        self.send_meta_context(code, export, queries);
        Ok(())
    }

    /// `NBD_OPT_SET_META_CONTEXT`: [`Event::MetaContext`](super::Event::MetaContext) for each context that is selected
    /// now, in place of all that were before. The selection holds if that same export is entered.
    pub fn set_meta_context(
        &mut self,
        export: impl Into<String>,
        queries: &[impl AsRef<str>],
    ) -> Result<(), OptionError> {
        let export = export.into();
        self.check_meta_context(OptionCode::SET_META_CONTEXT, &export, queries)?;
        self.send_set_meta_context(export, queries);
        Ok(())
    }

    fn check_meta_context(
        &self,
        code: OptionCode,
        export: &str,
        queries: &[impl AsRef<str>],
    ) -> Result<(), OptionError> {
        self.check_option(code)?;
        self.check(|| {
            if !self.negotiation.chunked() {
                return Err(OptionError::NeedsStructuredReplies);
            }
            validate::name(export)?;
            queries.iter().try_for_each(|query| validate::query(query.as_ref()))
        })
    }

    /// `NBD_OPT_STRUCTURED_REPLY`.
    pub fn structured_reply(&mut self) -> Result<(), OptionError> {
        self.check_option(OptionCode::STRUCTURED_REPLY)?;
        let agreed = self.negotiation.chunked();
        self.check(|| if agreed { Err(OptionError::AlreadyAgreed) } else { Ok(()) })?;
        self.send_structured_reply();
        Ok(())
    }

    /// `NBD_OPT_EXTENDED_HEADERS`.
    pub fn extended_headers(&mut self) -> Result<(), OptionError> {
        self.check_option(OptionCode::EXTENDED_HEADERS)?;
        let agreed = self.negotiation.extended;
        self.check(|| if agreed { Err(OptionError::AlreadyAgreed) } else { Ok(()) })?;
        self.send_extended_headers();
        Ok(())
    }

    /// `NBD_OPT_STARTTLS`: [`Event::StartTls`](super::Event::StartTls). After
    /// [`tls_established`](Self::tls_established) it is your turn again, and nothing is agreed any more.
    pub fn start_tls(&mut self) -> Result<(), OptionError> {
        self.check_option(OptionCode::STARTTLS)?;
        let running = self.negotiation.tls;
        self.check(|| if running { Err(OptionError::TlsRunning) } else { Ok(()) })?;
        self.send_start_tls();
        Ok(())
    }

    /// `NBD_OPT_ABORT`: [`Event::Disconnected`](super::Event::Disconnected). See also
    /// [`disconnect`](Self::disconnect), which waits for your turn.
    pub fn abort(&mut self) -> Result<(), OptionError> {
        self.check_option(OptionCode::ABORT)?;
        self.send_abort();
        Ok(())
    }

    /// Any option that this crate does not know. Replies that are neither an acknowledgement nor an error come as
    /// [`Event::OptionReply`](super::Event::OptionReply).
    ///
    /// Known options have their own methods; tests that switched strictness off can send them with any data, too.
    pub fn option(&mut self, code: OptionCode, data: &[u8]) -> Result<(), OptionError> {
        self.check_option(code)?;
        let known = code.name().is_some() && code != OptionCode::PEEK_EXPORT;
        self.check(|| if known { Err(OptionError::HasMethod) } else { Ok(()) })?;
        self.send_option(code, |out| out.extend_from_slice(data));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.asked.name = match code {
            OptionCode::EXPORT_NAME => text(data),
            OptionCode::GO => {
                InfoRequest::decode(data).map_or_else(|_| String::new(), |go| text(go.name))
            }
            _ => String::new(),
        };
        Ok(())
    }

    /// Whether the embedder may speak, and may say this.
    fn check_option(&self, code: OptionCode) -> Result<(), OptionError> {
        self.check_turn(code)?;
        self.check(|| {
            if self.negotiation.fixed { Ok(()) } else { Err(OptionError::NeedsFixedNewstyle) }
        })
    }

    /// Whether the embedder may speak. With TLS required nothing else may be said before (C-TLS-25).
    fn check_turn(&self, code: OptionCode) -> Result<(), OptionError> {
        if !matches!(self.state, State::Idle) {
            return Err(OptionError::NotYourTurn);
        }
        self.check(|| {
            let needs_tls = self.config.tls == TlsMode::Required && !self.negotiation.tls;
            let exempt = matches!(code, OptionCode::STARTTLS | OptionCode::ABORT);
            if needs_tls && !exempt { Err(OptionError::NeedsTls) } else { Ok(()) }
        })
    }

    /// A check that tests of servers can switch off.
    fn check(&self, check: impl FnOnce() -> Result<(), OptionError>) -> Result<(), OptionError> {
        if self.config.strict { check() } else { Ok(()) }
    }

    // What is sent, once it may be.

    pub(super) fn send_abort(&mut self) {
        self.send_option(OptionCode::ABORT, |_| {});
    }

    pub(super) fn send_start_tls(&mut self) {
        self.negotiation.tried.tls = true;
        self.send_option(OptionCode::STARTTLS, |_| {});
    }

    pub(super) fn send_extended_headers(&mut self) {
        self.negotiation.tried.extended = true;
        self.send_option(OptionCode::EXTENDED_HEADERS, |_| {});
    }

    pub(super) fn send_structured_reply(&mut self) {
        self.negotiation.tried.structured = true;
        self.send_option(OptionCode::STRUCTURED_REPLY, |_| {});
    }

    /// Selects contexts. What was selected before is void even if this fails (S-OPT-SM-01).
    pub(super) fn send_set_meta_context(&mut self, export: String, queries: &[impl AsRef<str>]) {
        self.negotiation.tried.contexts = true;
        self.negotiation.selection.clear();
        self.negotiation.selection_for.clone_from(&export);
        self.send_meta_context(OptionCode::SET_META_CONTEXT, export, queries);
    }

    fn send_meta_context(&mut self, code: OptionCode, export: String, queries: &[impl AsRef<str>]) {
        self.send_option(code, |out| {
            MetaContextRequest::encode(&export, queries.iter().map(AsRef::as_ref), out);
        });
        self.asked.name = export;
        self.asked.queries = queries.len();
    }

    pub(super) fn send_info(&mut self, code: OptionCode, export: String, items: &[InfoType]) {
        self.send_option(code, |out| InfoRequest::encode(&export, items, out));
        self.asked.name = export;
    }

    pub(super) fn send_export_name(&mut self, export: String) {
        self.send_option(OptionCode::EXPORT_NAME, |out| out.extend_from_slice(export.as_bytes()));
        self.asked.name = export;
    }

    /// Queues an option; its reply is what comes next.
    fn send_option(&mut self, code: OptionCode, write: impl FnOnce(&mut Vec<u8>)) {
        let header_at = self.out.position();
        self.out.put(&OptionHeader { code, length: 0 }.encode());
        let data_at = self.out.position();
        self.out.put_with(write);
        let length = self.out.position().saturating_sub(data_at);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.out.patch(header_at, OptionHeader { code, length }.encode());
        self.out.seal(Tail::None, None);
        self.asked = Asked::default();
        self.state = if code == OptionCode::EXPORT_NAME {
            State::ExportName
        } else {
            State::OptionReply(code)
        };
    }
}
