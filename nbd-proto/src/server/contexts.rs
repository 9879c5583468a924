//! Metadata contexts: which of them a client's queries name (section "Metadata querying"), and which a reply waits for.

use alloc::vec::{self, Vec};
use core::slice;

use super::handshake::{ContextKind, Handshake, Selection, Shared, Step};
use super::question::{ContextsQuestion, Question};
use crate::wire::{OptionCode, OptionReplyType as Rep};
use crate::{ContextInfo, ExportInfo, SelectedContext};

impl Handshake {
    pub(super) fn meta_context(
        &mut self,
        shared: &mut Shared<'_>,
        code: OptionCode,
        data: &mut Vec<u8>,
    ) -> Step {
        let set = code == OptionCode::SET_META_CONTEXT;
        if set {
            self.agreed.selection = Selection::default();
        }
        if !shared.config.structured_replies {
            shared.out.option_error(code, Rep::ERR_UNSUP, "the option is not supported");
            return Step::Again;
        }
        if !self.agreed.structured && !self.agreed.extended {
            let text = "structured replies must be negotiated first";
            shared.out.option_error(code, Rep::ERR_INVALID, text);
            return Step::Again;
        }
        self.ask_if_well_formed(shared, code, Question::contexts(set, data))
    }

    /// Answers LIST_META_CONTEXT and SET_META_CONTEXT.
    pub(super) fn answer_contexts(
        &mut self,
        shared: &mut Shared<'_>,
        question: ContextsQuestion,
        info: &ExportInfo,
    ) {
        let (code, set) = (question.code(), question.set);
        let all = !set && question.queries().next().is_none();
        let mut selection = Selection::default();
        for (id, context) in (1_u32..).zip(&info.contexts) {
            let matches = |query: &[u8]| {
                // An empty leaf, at any depth of the name, is a wildcard in LIST and nothing in SET (S-OPT-LM-07).
                let wildcard = !set && query.ends_with(b":");
                query == context.name().as_bytes()
                    || context.query().is_some_and(|own| query == own.as_bytes())
                    || (wildcard && context.name().as_bytes().starts_with(query))
            };
            let allowed = !context.is_wide() || self.agreed.extended;
            let duplicate = selection.contexts.iter().any(|earlier| earlier.name == context.name());
            if allowed && !duplicate && (all || question.queries().any(matches)) {
                let name = context.name();
                let all = name == ContextInfo::BASE_ALLOCATION;
                selection.contexts.push(SelectedContext { id, name: name.into() });
                selection.kinds.push(ContextKind { wide: context.is_wide(), all });
            }
        }
        if set && selection.contexts.len() > shared.config.limits.max_contexts as usize {
            shared.out.option_error(code, Rep::ERR_TOO_BIG, "too many metadata contexts at once");
            return;
        }
        for context in &selection.contexts {
            shared.out.option_context(code, if set { context.id } else { 0 }, &context.name);
        }
        shared.out.option_ack(code);
        if set {
            selection.export = question.name;
            self.agreed.selection = selection;
        }
    }
}

/// The numbers of the metadata contexts that a reply waits for, by
/// [`Reply::awaited_contexts`](super::Reply::awaited_contexts).
///
/// It allocates only where a part of the connection's contexts is awaited: after some extents were given, or when the
/// client asked about a part of them.
#[derive(Clone, Debug)]
#[must_use = "an iterator does nothing unless it is run"]
pub struct AwaitedContexts<'a> {
    all: slice::Iter<'a, SelectedContext>,
    some: vec::IntoIter<u32>,
}

impl<'a> AwaitedContexts<'a> {
    pub(super) fn new(selected: &'a [SelectedContext], awaited: &[u32]) -> Self {
        // Each is a selected one and stands there once, so that as many are the same ones.
        if awaited.len() == selected.len() {
            Self { all: selected.iter(), some: Vec::new().into_iter() }
        } else {
            Self { all: [].iter(), some: Vec::from(awaited).into_iter() }
        }
    }
}

impl Iterator for AwaitedContexts<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.all.next().map(|context| context.id).or_else(|| self.some.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // One of them is empty.
        let length = self.all.len().max(self.some.len());
        (length, Some(length))
    }
}

impl ExactSizeIterator for AwaitedContexts<'_> {}
