//! What a reply to an option means (sections "Option types" and "Option reply types").

use alloc::string::String;
use alloc::vec::Vec;
use core::mem::take;

use super::event::displayable;
use super::question::{Description, Question, Selecting};
use super::{Event, Info};
use crate::wire::{
    DecodeError, InfoReply, MetaContextReply, OptionCode, OptionReplyType as Rep, ServerReply,
};
use crate::{Error, LimitExceeded, Limits, NoSession, PeerMisbehaved, SelectedContext};

/// What a reply does.
#[derive(Debug)]
pub(super) enum Outcome {
    /// More replies follow. The event is for an embedder that negotiates by hand.
    More(Option<Event>),
    /// The option succeeded.
    Done(Agreement),
    /// The option failed.
    Failed { reply: Rep, message: String },
    /// Our ABORT was answered, by whatever.
    Aborted(Option<NoSession>),
}

/// What an option that succeeded changes.
#[derive(Debug)]
pub(super) enum Agreement {
    Nothing,
    StartTls,
    StructuredReplies,
    ExtendedHeaders,
    Selection(Selecting),
    Enter(Description),
}

impl Question {
    /// A reply with its data.
    pub(super) fn reply(
        &mut self,
        reply: Rep,
        data: &mut Vec<u8>,
        limits: &Limits,
    ) -> Result<Outcome, Error> {
        let code = self.code();
        match (self, reply) {
            (question, Rep::ACK) if data.is_empty() => question.acknowledged(),
            // C-OPT-LS-07 and the like: what has no data must not have some.
            (_, Rep::ACK) => Err(DecodeError::LeftOver(data.len()).into()),
            (Self::Abort { because }, reply) if reply.is_error() => Ok(Outcome::Aborted(*because)),
            (_, reply) if reply.is_error() => {
                Ok(Outcome::Failed { reply, message: displayable(data) })
            }
            (Self::List, Rep::SERVER) => {
                let ServerReply { name, description } = ServerReply::decode(data)?;
                let (name, description) = (name.into(), displayable(description.as_bytes()));
                Ok(Outcome::More(Some(Event::Listed { name, description })))
            }
            (Self::Info(description) | Self::Go(description), Rep::INFO) => {
                Ok(Outcome::More(description.item(data)?.map(Event::Info)))
            }
            (Self::ListMetaContext, Rep::META_CONTEXT) => {
                // The id means nothing here (C-OPT-SM-12).
                let name = MetaContextReply::decode(data)?.name.into();
                Ok(Outcome::More(Some(Event::MetaContext { id: 0, name })))
            }
            (Self::SetMetaContext(selecting), Rep::META_CONTEXT) => {
                Ok(Outcome::More(Some(selecting.context(data, limits)?)))
            }
            (Self::Other(code), reply) if code.name().is_none() => {
                let (code, data) = (*code, take(data));
                Ok(Outcome::More(Some(Event::OptionReply { code, reply, data })))
            }
            _ => Err(PeerMisbehaved::UnexpectedOptionReply { code, reply }.into()),
        }
    }

    fn acknowledged(&mut self) -> Result<Outcome, Error> {
        Ok(Outcome::Done(match self {
            Self::Abort { because } => return Ok(Outcome::Aborted(*because)),
            // C-OPT-GO-23.
            Self::Info(Description { info: None, .. }) => {
                return Err(PeerMisbehaved::NoExportInfo(OptionCode::INFO).into());
            }
            Self::List | Self::Info(_) | Self::ListMetaContext | Self::Other(_) => {
                Agreement::Nothing
            }
            Self::StartTls => Agreement::StartTls,
            Self::StructuredReply => Agreement::StructuredReplies,
            Self::ExtendedHeaders => Agreement::ExtendedHeaders,
            Self::Go(description) => Agreement::Enter(take(description)),
            Self::SetMetaContext(selecting) => Agreement::Selection(take(selecting)),
        }))
    }
}

impl Description {
    /// An information item. Unknown ones are ignored.
    // (C-OPT-GO-20)
    fn item(&mut self, data: &[u8]) -> Result<Option<Info>, Error> {
        Ok(Some(match InfoReply::decode(data)? {
            InfoReply::Export(export) => {
                self.info = Some(export);
                Info::Export { size: export.size, flags: export.flags }
            }
            InfoReply::Name(name) => {
                self.canonical_name = Some(name.into());
                Info::Name(name.into())
            }
            InfoReply::Description(text) => {
                let text = displayable(text.as_bytes());
                self.description = Some(text.clone());
                Info::Description(text)
            }
            InfoReply::BlockSize(sizes) => {
                self.block_size = Some(sizes);
                Info::BlockSize(sizes)
            }
            InfoReply::Unknown(_) => return Ok(None),
        }))
    }
}

impl Selecting {
    /// A context that the server selected. Ids must differ.
    // (S-OPT-SM-04)
    fn context(&mut self, data: &[u8], limits: &Limits) -> Result<Event, Error> {
        let MetaContextReply { id, name } = MetaContextReply::decode(data)?;
        if self.contexts.iter().any(|earlier| earlier.id == id) {
            return Err(PeerMisbehaved::DuplicateContext(id).into());
        }
        let max = limits.max_contexts;
        if self.contexts.len() >= (max as usize).max(self.queries) {
            return Err(LimitExceeded::Contexts(max).into());
        }
        self.contexts.push(SelectedContext { id, name: name.into() });
        Ok(Event::MetaContext { id, name: name.into() })
    }
}
