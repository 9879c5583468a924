//! What a client asks that only the embedder can answer: options, parsed once.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Event, LookupQuestion, Purpose};
use crate::wire::{
    DecodeError, InfoRequest, InfoType, MetaContextRequest, OptionCode, Queries, valid_string,
};

/// An option that awaits the embedder's answer.
#[derive(Debug)]
pub(super) enum Question {
    List,
    ExportName { name: String },
    Info(InfoQuestion),
    Contexts(ContextsQuestion),
}

/// `NBD_OPT_INFO` or `NBD_OPT_GO`.
#[derive(Debug)]
pub(super) struct InfoQuestion {
    pub(super) name: String,
    /// Whether the client enters the export.
    pub(super) enter: bool,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
    pub(super) wants_block_size: bool,
}

/// `NBD_OPT_LIST_META_CONTEXT` or `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug)]
pub(super) struct ContextsQuestion {
    pub(super) name: String,
    /// Whether contexts are selected, or only listed.
    pub(super) set: bool,
    /// What [`Queries`] are made of.
    queries: Vec<u8>,
}

/// Why an option can't be turned into a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoQuestion {
    Malformed(DecodeError),
    /// The name is no valid string, so that no export has it.
    BadName,
}

impl From<DecodeError> for NoQuestion {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl Question {
    pub(super) fn info(enter: bool, data: &[u8]) -> Result<Self, NoQuestion> {
        let request = InfoRequest::decode(data)?;
        let wants = |item| request.items().any(|wanted| wanted == item);
        Ok(Self::Info(InfoQuestion {
            name: valid_name(request.name).ok_or(NoQuestion::BadName)?,
            enter,
            wants_name: wants(InfoType::NAME),
            wants_description: wants(InfoType::DESCRIPTION),
            wants_block_size: wants(InfoType::BLOCK_SIZE),
        }))
    }

    /// Takes the data along, so that there is one copy of it.
    pub(super) fn contexts(set: bool, data: &mut Vec<u8>) -> Result<Self, NoQuestion> {
        let request = MetaContextRequest::decode(data)?;
        let name = valid_name(request.name).ok_or(NoQuestion::BadName)?;
        let length = request.raw_queries().as_bytes().len();
        let mut queries = core::mem::take(data);
        queries.drain(..queries.len().saturating_sub(length));
        Ok(Self::Contexts(ContextsQuestion { name, set, queries }))
    }

    pub(super) fn event(&self) -> Event {
        let (name, purpose) = match self {
            Self::List => return Event::List,
            Self::ExportName { name } => (name, Purpose::Enter),
            Self::Info(InfoQuestion { name, enter: true, .. }) => (name, Purpose::Enter),
            Self::Info(InfoQuestion { name, .. }) => (name, Purpose::Info),
            Self::Contexts(ContextsQuestion { name, .. }) => (name, Purpose::MetaContext),
        };
        Event::Lookup(LookupQuestion { name: name.clone(), purpose })
    }
}

impl InfoQuestion {
    pub(super) const fn code(&self) -> OptionCode {
        if self.enter { OptionCode::GO } else { OptionCode::INFO }
    }
}

impl ContextsQuestion {
    pub(super) const fn code(&self) -> OptionCode {
        if self.set { OptionCode::SET_META_CONTEXT } else { OptionCode::LIST_META_CONTEXT }
    }

    /// The queries, in the client's order; some may be no valid strings.
    pub(super) fn queries(&self) -> Queries<'_> {
        Queries::kept(&self.queries)
    }
}

/// The name as a string, unless it breaks the rules for strings.
pub(super) fn valid_name(bytes: &[u8]) -> Option<String> {
    valid_string(bytes).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_string_is_distinguished_from_malformed_data() {
        let mut data = Vec::new();
        InfoRequest::encode("disk", &[InfoType::BLOCK_SIZE], &mut data);
        let Ok(Question::Info(question)) = Question::info(true, &data) else { panic!() };
        assert!(question.wants_block_size && !question.wants_name && question.enter);
        assert_eq!((question.name.as_str(), question.code()), ("disk", OptionCode::GO));
        data[4] = 0xff;
        assert_eq!(Question::info(true, &data).err(), Some(NoQuestion::BadName));
        data.push(0);
        let malformed = Question::info(true, &data).err();
        assert_eq!(malformed, Some(NoQuestion::Malformed(DecodeError::LeftOver(1))));
    }

    #[test]
    fn queries_are_kept_in_their_order() {
        let mut data = Vec::new();
        MetaContextRequest::encode("d", ["b:", "a:x"].into_iter(), &mut data);
        let Ok(Question::Contexts(question)) = Question::contexts(true, &mut data) else {
            panic!()
        };
        assert!(question.queries().eq([&b"b:"[..], b"a:x"]));
    }
}
