//! Options that the embedder sends by hand (section "Option types").

use alloc::string::String;

use super::connection::{Connection, Phase};
use super::negotiation::Negotiation;
use super::option_check::{self, OptionError};
use super::question::Question;
use super::{Config, TlsMode};
use crate::outbound::Outbound;
use crate::wire::{InfoType, OptionCode};

/// The negotiation by hand: one option at a time, each when it is your turn.
///
/// All of these fail with an [`OptionError`] that says what is wrong, and then nothing was sent. Replies arrive as
/// [events](super::Event).
impl Connection {
    /// Goes on by itself: negotiates what the configuration wants and was not negotiated yet, then enters the export.
    /// [`Event::Ready`](super::Event::Ready) follows, or [`Event::OptionFailed`](super::Event::OptionFailed) and it is
    /// your turn again.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn enter(&mut self, export: impl Into<String>) -> Result<(), OptionError> {
        let export = export.into();
        // If TLS is required, then STARTTLS is what it will send first.
        let turn = self.turn(OptionCode::STARTTLS)?;
        turn.check(|| option_check::name(&export))?;
        option_check::length(&export, &turn.config.contexts)?;
        let Turn { negotiation, out, config } = turn;
        let progress = negotiation.enter(config, out, export);
        self.apply(progress);
        Ok(())
    }

    /// `NBD_OPT_LIST`: [`Event::Listed`](super::Event::Listed) for each export.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn list(&mut self) -> Result<(), OptionError> {
        self.fixed_turn(OptionCode::LIST)?.send(Question::List)
    }

    /// `NBD_OPT_INFO`: [`Event::Info`](super::Event::Info) for each item that the server sends, asked for or not.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn info(
        &mut self,
        export: impl Into<String>,
        items: &[InfoType],
    ) -> Result<(), OptionError> {
        self.info_or_go(OptionCode::INFO, export.into(), items)
    }

    /// `NBD_OPT_GO`: as [`info`](Self::info), and then [`Event::Ready`](super::Event::Ready) instead of
    /// [`Event::OptionDone`](super::Event::OptionDone). If the server refuses, it is your turn again.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn go(&mut self, export: impl Into<String>, items: &[InfoType]) -> Result<(), OptionError> {
        self.info_or_go(OptionCode::GO, export.into(), items)
    }

    fn info_or_go(
        &mut self,
        code: OptionCode,
        export: String,
        items: &[InfoType],
    ) -> Result<(), OptionError> {
        let Turn { negotiation, out, .. } = self.fixed_turn(code)?.checked(|_| {
            option_check::name(&export)?;
            option_check::items(items)
        })?;
        negotiation.send_info(out, code, export, items)
    }

    /// `NBD_OPT_EXPORT_NAME`: [`Event::Ready`](super::Event::Ready), or the server hangs up.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn export_name(&mut self, export: impl Into<String>) -> Result<(), OptionError> {
        let export = export.into();
        let turn = self.turn(OptionCode::EXPORT_NAME)?;
        let Turn { negotiation, out, .. } = turn.checked(|negotiation| {
            option_check::name(&export)?;
            // C-OPT-EN-06.
            if negotiation.agreed.extended { Err(OptionError::ExtendedHeaders) } else { Ok(()) }
        })?;
        negotiation.send_export_name(out, export)
    }

    /// `NBD_OPT_LIST_META_CONTEXT`: [`Event::MetaContext`](super::Event::MetaContext) for each context of the export
    /// that a query matches; for each there is, without a query.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn list_meta_context(
        &mut self,
        export: impl Into<String>,
        queries: &[&str],
    ) -> Result<(), OptionError> {
        let export = export.into();
        let Turn { negotiation, out, .. } =
            self.meta_context_turn(OptionCode::LIST_META_CONTEXT, &export, queries)?;
        negotiation.send_list_meta_context(out, &export, queries)
    }

    /// `NBD_OPT_SET_META_CONTEXT`: [`Event::MetaContext`](super::Event::MetaContext) for each context that is selected
    /// now, in place of all that were before; none is without a query. The selection holds if that same export
    /// is entered.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn set_meta_context(
        &mut self,
        export: impl Into<String>,
        queries: &[&str],
    ) -> Result<(), OptionError> {
        let export = export.into();
        let Turn { negotiation, out, .. } =
            self.meta_context_turn(OptionCode::SET_META_CONTEXT, &export, queries)?;
        negotiation.send_set_meta_context(out, export, queries)
    }

    fn meta_context_turn(
        &mut self,
        code: OptionCode,
        export: &str,
        queries: &[impl AsRef<str>],
    ) -> Result<Turn<'_>, OptionError> {
        self.fixed_turn(code)?.checked(|negotiation| {
            // C-OPT-SM-11.
            if !negotiation.agreed.chunked() {
                return Err(OptionError::NeedsStructuredReplies);
            }
            option_check::name(export)?;
            queries.iter().try_for_each(|query| option_check::query(query.as_ref()))
        })
    }

    /// `NBD_OPT_STRUCTURED_REPLY`.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn structured_reply(&mut self) -> Result<(), OptionError> {
        let Turn { negotiation, out, .. } =
            self.fixed_turn(OptionCode::STRUCTURED_REPLY)?.checked(|negotiation| {
                // C-OPT-15.
                if negotiation.agreed.chunked() { Err(OptionError::AlreadyAgreed) } else { Ok(()) }
            })?;
        negotiation.send_structured_reply(out)
    }

    /// `NBD_OPT_EXTENDED_HEADERS`.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn extended_headers(&mut self) -> Result<(), OptionError> {
        let Turn { negotiation, out, .. } =
            self.fixed_turn(OptionCode::EXTENDED_HEADERS)?.checked(|negotiation| {
                if negotiation.agreed.extended { Err(OptionError::AlreadyAgreed) } else { Ok(()) }
            })?;
        negotiation.send_extended_headers(out)
    }

    /// `NBD_OPT_STARTTLS`: [`Event::StartTls`](super::Event::StartTls). After
    /// [`tls_established`](Self::tls_established) it is your turn again, and nothing is agreed any more.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn start_tls(&mut self) -> Result<(), OptionError> {
        let Turn { negotiation, out, .. } =
            self.fixed_turn(OptionCode::STARTTLS)?.checked(|negotiation| {
                // C-TLS-20.
                if negotiation.agreed.tls { Err(OptionError::TlsRunning) } else { Ok(()) }
            })?;
        negotiation.send_start_tls(out)
    }

    /// `NBD_OPT_ABORT`: the connection [closes](super::Event::Closed). See also [`disconnect`](Self::disconnect), which
    /// waits for your turn.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn abort(&mut self) -> Result<(), OptionError> {
        self.fixed_turn(OptionCode::ABORT)?.send(Question::Abort { because: None })
    }

    /// Any option that this crate does not know. Replies that are neither an acknowledgement nor an error arrive as
    /// [`Event::OptionReply`](super::Event::OptionReply).
    ///
    /// Known options have their own methods; tests that switched strictness off can send them with any data, too.
    ///
    /// # Errors
    /// The rule that the option breaks. Nothing is sent then.
    pub fn option(&mut self, code: OptionCode, data: &[u8]) -> Result<(), OptionError> {
        let known = code.name().is_some() && code != OptionCode::PEEK_EXPORT;
        let Turn { negotiation, out, .. } = self
            .fixed_turn(code)?
            .checked(|_| if known { Err(OptionError::HasMethod) } else { Ok(()) })?;
        negotiation.send_raw(out, code, data)
    }

    /// What is needed to send an option, if it is the embedder's turn, and if this one may be sent.
    // (C-HS-18)
    fn fixed_turn(&mut self, code: OptionCode) -> Result<Turn<'_>, OptionError> {
        self.turn(code)?.checked(|negotiation| {
            if negotiation.agreed.fixed { Ok(()) } else { Err(OptionError::NeedsFixedNewstyle) }
        })
    }

    /// The same for options that need no fixed newstyle. With TLS required nothing else may be sent before.
    // (C-TLS-25)
    fn turn(&mut self, code: OptionCode) -> Result<Turn<'_>, OptionError> {
        let Self { phase, out, config, .. } = self;
        let turn = match phase {
            // C-OPT-14, C-OPT-GO-21.
            Phase::Negotiation(negotiation) if negotiation.is_embedders_turn() => {
                Turn { negotiation, out, config }
            }
            _ => return Err(OptionError::NotYourTurn),
        };
        let needs_tls = turn.config.tls == TlsMode::Required && !turn.negotiation.agreed.tls;
        let exempt = matches!(code, OptionCode::STARTTLS | OptionCode::ABORT);
        turn.checked(|_| if needs_tls && !exempt { Err(OptionError::NeedsTls) } else { Ok(()) })
    }
}

/// The embedder's turn.
struct Turn<'a> {
    negotiation: &'a mut Negotiation,
    out: &'a mut Outbound,
    config: &'a Config,
}

impl Turn<'_> {
    /// A check that tests of servers can switch off.
    fn check(&self, check: impl FnOnce() -> Result<(), OptionError>) -> Result<(), OptionError> {
        if self.config.strict { check() } else { Ok(()) }
    }

    /// The turn, if the check holds.
    fn checked(
        self,
        check: impl FnOnce(&Negotiation) -> Result<(), OptionError>,
    ) -> Result<Self, OptionError> {
        self.check(|| check(self.negotiation))?;
        Ok(self)
    }

    fn send(self, question: Question) -> Result<(), OptionError> {
        self.negotiation.send(self.out, question, &[])
    }
}
