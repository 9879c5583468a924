//! Metadata contexts: which of them a client's queries name (section "Metadata querying").

use alloc::vec::Vec;

use super::connection::{SelectedContext, State};
use super::haggling::valid_name;
use super::{Connection, Event, Purpose};
use crate::ExportInfo;
use crate::wire::{MetaContextRequest, OptionCode, OptionHeader, OptionReplyType as Rep};

impl Connection {
    pub(super) fn meta_context(&mut self, header: &OptionHeader) -> Option<Event> {
        if header.code == OptionCode::SET_META_CONTEXT {
            self.forget_contexts();
        }
        if !self.config.structured_replies {
            self.option_error(header.code, Rep::ERR_UNSUP, "the option is not supported");
            return None;
        }
        if !self.negotiation.structured && !self.negotiation.extended {
            let text = "structured replies must be negotiated first";
            self.option_error(header.code, Rep::ERR_INVALID, text);
            return None;
        }
        let name = match MetaContextRequest::decode(&self.collected) {
            Ok(request) => valid_name(request.name),
            Err(error) => {
                self.option_malformed(header.code, &error);
                return None;
            }
        };
        self.ask(header, name, Purpose::MetaContext)
    }

    /// The metadata queries of the option that awaits an answer, in the client's order: for exports that make contexts
    /// to measure ([`ContextInfo::answering`](crate::ContextInfo::answering)). Queries that are no strings are left out.
    /// None unless the [purpose](super::Lookup::purpose) is [`Purpose::MetaContext`].
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        let asked = match &self.state {
            State::Awaiting(header)
                if matches!(
                    header.code,
                    OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT
                ) =>
            {
                MetaContextRequest::decode(&self.collected).ok()
            }
            _ => None,
        };
        let queries = asked.into_iter().flat_map(|request| request.queries());
        queries.filter_map(|query| core::str::from_utf8(query).ok())
    }

    pub(super) fn forget_contexts(&mut self) {
        self.negotiation.selection.clear();
        self.negotiation.selection_for.clear();
    }

    /// Answers LIST_META_CONTEXT and SET_META_CONTEXT.
    pub(super) fn contexts(&mut self, code: OptionCode, info: &ExportInfo) {
        let set = code == OptionCode::SET_META_CONTEXT;
        let Ok(request) = MetaContextRequest::decode(&self.collected) else { return };
        let name = valid_name(request.name).unwrap_or_default();
        let mut selected: Vec<SelectedContext> = Vec::new();
        for (index, context) in info.contexts.iter().enumerate() {
            let matches = |query: &[u8]| {
                // An empty leaf, at any depth of the name, is a wildcard in LIST and nothing in SET (S-OPT-LM-07).
                let wildcard = !set && query.ends_with(b":");
                query == context.name().as_bytes()
                    || context.query().is_some_and(|own| query == own.as_bytes())
                    || (wildcard && context.name().as_bytes().starts_with(query))
            };
            let all = !set && request.count == 0;
            let allowed = !context.is_wide() || self.negotiation.extended;
            let duplicate = selected.iter().any(|earlier| earlier.name == context.name());
            if allowed && !duplicate && (all || request.queries().any(matches)) {
                let id = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
                let (name, wide) = (context.name().into(), context.is_wide());
                selected.push(SelectedContext { id, index, name, wide });
            }
        }
        if set && selected.len() > self.config.limits.max_contexts as usize {
            self.option_error(code, Rep::ERR_TOO_BIG, "too many metadata contexts at once");
            return;
        }
        for context in &selected {
            self.option_context(code, if set { context.id } else { 0 }, &context.name);
        }
        self.option_ack(code);
        if set {
            self.negotiation.selection_for = name;
            self.negotiation.selection = selected;
        }
    }

    /// Whether metadata contexts were selected for this very name (S-OPT-SM-08).
    pub(super) fn has_selection(&self, name: &str) -> bool {
        !self.negotiation.selection.is_empty() && self.negotiation.selection_for == name
    }
}
