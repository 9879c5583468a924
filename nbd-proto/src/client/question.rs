//! Options that await their reply, with what the server has replied so far.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{
    BlockSizeInfo, ExportInfoReply, InfoRequest, MetaContextRequest, OptionCode, OptionReplyHeader,
};
use crate::{Error, LimitExceeded, Limits, NoSession, PeerMisbehaved, SelectedContext};

/// An option that was sent, by what its replies can be.
#[derive(Debug)]
pub(super) enum Question {
    Abort {
        /// Why the machine ends the session, if the embedder did not ask for it.
        because: Option<NoSession>,
    },
    List,
    StartTls,
    StructuredReply,
    ExtendedHeaders,
    Info(Description),
    Go(Description),
    ListMetaContext,
    SetMetaContext(Selecting),
    Other(OptionCode),
}

/// What a server says about an export.
#[derive(Debug, Default)]
pub(super) struct Description {
    /// The name that it was asked for by; `None` when a test of servers sent something that is no name.
    pub(super) export: Option<String>,
    pub(super) info: Option<ExportInfoReply>,
    pub(super) block_size: Option<BlockSizeInfo>,
    pub(super) canonical_name: Option<String>,
    pub(super) description: Option<String>,
}

impl Description {
    pub(super) fn of(export: impl Into<String>) -> Self {
        Self { export: Some(export.into()), ..Self::default() }
    }
}

/// A selection of metadata contexts that is not acknowledged yet.
#[derive(Debug, Default)]
pub(super) struct Selecting {
    pub(super) export: Option<String>,
    /// How many queries were made: as many contexts are fair.
    pub(super) queries: usize,
    pub(super) contexts: Vec<SelectedContext>,
}

impl Question {
    /// An option that the embedder encoded itself: an unknown one, or any one in a test of servers.
    pub(super) fn raw(code: OptionCode, data: &[u8]) -> Self {
        let name = |bytes: &[u8]| core::str::from_utf8(bytes).ok().map(String::from);
        match code {
            OptionCode::ABORT => Self::Abort { because: None },
            OptionCode::LIST => Self::List,
            OptionCode::STARTTLS => Self::StartTls,
            OptionCode::STRUCTURED_REPLY => Self::StructuredReply,
            OptionCode::EXTENDED_HEADERS => Self::ExtendedHeaders,
            OptionCode::LIST_META_CONTEXT => Self::ListMetaContext,
            OptionCode::SET_META_CONTEXT => {
                let request = MetaContextRequest::decode(data).ok();
                let queries = request.as_ref().map_or(0, |request| request.count as usize);
                let export = request.and_then(|request| name(request.name));
                Self::SetMetaContext(Selecting { export, queries, contexts: Vec::new() })
            }
            OptionCode::INFO | OptionCode::GO => {
                let export = InfoRequest::decode(data).ok().and_then(|info| name(info.name));
                let description = Description { export, ..Description::default() };
                if code == OptionCode::GO { Self::Go(description) } else { Self::Info(description) }
            }
            _ => Self::Other(code),
        }
    }

    pub(super) const fn code(&self) -> OptionCode {
        match self {
            Self::Abort { .. } => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::ListMetaContext => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::Other(code) => *code,
        }
    }
}

/// An option whose replies are arriving.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) question: Question,
    replies: u32,
    /// The reply of which only the header has arrived.
    pub(super) header: Option<OptionReplyHeader>,
}

impl Awaited {
    pub(super) const fn new(question: Question) -> Self {
        Self { question, replies: 0, header: None }
    }

    /// The header of a reply has arrived.
    // (C-OPT-16, C-OPT-17)
    pub(super) fn begin(
        &mut self,
        header: OptionReplyHeader,
        limits: &Limits,
    ) -> Result<(), Error> {
        let OptionReplyHeader { code, length, .. } = header;
        let sent = self.question.code();
        if code != sent {
            return Err(PeerMisbehaved::WrongOption { sent, found: code }.into());
        }
        if length > limits.max_option_reply {
            return Err(LimitExceeded::OptionReply { code, length }.into());
        }
        let limit = limits.max_option_replies;
        match self.replies.checked_add(1).filter(|replies| *replies <= limit) {
            Some(replies) => self.replies = replies,
            None => return Err(LimitExceeded::OptionReplies { code, limit }.into()),
        }
        self.header = Some(header);
        Ok(())
    }
}
