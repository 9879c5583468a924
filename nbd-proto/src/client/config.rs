//! What a client decides before the first byte.

use alloc::string::String;
use alloc::vec::Vec;

use super::option_check::{self, OptionError};
use crate::Limits;
use crate::wire::InfoType;

/// What a client does about TLS (section "Client-side requirements").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsMode {
    /// No TLS.
    #[default]
    Off,
    /// TLS where the server has it, plain text elsewhere: no protection from an attacker in between (section "Protocol
    /// downgrade attacks").
    Preferred,
    /// Nothing but STARTTLS is sent before TLS, and there is no session without it.
    Required,
}

/// How far the machine negotiates by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Goal {
    /// Not at all: after the greeting it is your turn, with [`Event::YourTurn`](super::Event::YourTurn).
    Manual,
    /// TLS and headers; then it is your turn, with [`Event::YourTurn`](super::Event::YourTurn).
    Prepare,
    /// All the way to the export and [`Event::Ready`](super::Event::Ready).
    #[default]
    Enter,
}

/// How a client connection behaves. The defaults enter the default export without TLS, with the best headers that the
/// server has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Bounds on what the peer can make the connection hold. Default [`Limits::DEFAULT`].
    pub limits: Limits,
    /// How far the machine negotiates by itself. Default [`Goal::Enter`].
    pub goal: Goal,
    /// The export to enter: at most 4096 bytes without NUL, of which none, the default, name the default export.
    /// Oldstyle servers have one export and no name for it.
    pub export: String,
    /// Whether TLS is wanted. Default [`TlsMode::Off`]. With anything but [`TlsMode::Off`] the embedder does the TLS
    /// handshake when [`Wants::Tls`](crate::Wants::Tls) asks for it.
    pub tls: TlsMode,
    /// Ask for extended headers, and go on without them where they are refused. Default `true`.
    pub extended_headers: bool,
    /// Ask for structured replies unless extended headers were agreed, and go on without them where they are refused.
    /// Default `true`.
    pub structured_replies: bool,
    /// The metadata contexts to select (section "Metadata querying"): each a namespace, a colon and a leaf, at most
    /// 4096 bytes without NUL. Those that the server does not have are missing from
    /// [`ExportView::contexts`](crate::ExportView::contexts). Default none.
    pub contexts: Vec<String>,
    /// What to ask about the export on entering, each item at most once. Size constraints by default, which this client
    /// obeys.
    pub info: Vec<InfoType>,
    /// Whether to offer fixed newstyle, without which there is `NBD_OPT_EXPORT_NAME` only. Default `true`.
    pub fixed_newstyle: bool,
    /// Whether to leave out the 124 zero bytes after `NBD_OPT_EXPORT_NAME`. Default `true`.
    pub no_zeroes: bool,
    /// Whether to accept a server with the oldstyle handshake. Such a handshake leads to
    /// [`Event::Ready`](super::Event::Ready) whatever the goal, since it has no options. Default `true`.
    pub oldstyle: bool,
    /// Refuse to send what breaks the protocol. Only tests of servers switch this off. Default `true`.
    pub strict: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::DEFAULT,
            goal: Goal::Enter,
            export: String::new(),
            tls: TlsMode::Off,
            extended_headers: true,
            structured_replies: true,
            contexts: Vec::new(),
            info: [InfoType::BLOCK_SIZE].into(),
            fixed_newstyle: true,
            no_zeroes: true,
            oldstyle: true,
            strict: true,
        }
    }
}

impl Config {
    /// The defaults, for the export of this name.
    #[must_use]
    pub fn for_export(name: impl Into<String>) -> Self {
        Self { export: name.into(), ..Self::default() }
    }

    /// Whether names, queries and information items may be sent as they are.
    pub(super) fn check(&self) -> Result<(), OptionError> {
        option_check::length(&self.export, &self.contexts)?;
        if !self.strict {
            return Ok(());
        }
        option_check::name(&self.export)?;
        option_check::items(&self.info)?;
        self.contexts.iter().try_for_each(|query| option_check::query(query))
    }
}
