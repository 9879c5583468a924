//! Options as they are sent, once they may be.

use alloc::string::String;
use alloc::vec::Vec;

use super::OptionError;
use super::negotiation::Negotiation;
use super::question::{Description, Question, Selecting};
use crate::outbound::{Outbound, Tail};
use crate::wire::{InfoRequest, InfoType, MetaContextRequest, OptionCode, OptionHeader};

impl Negotiation {
    pub(super) fn send_start_tls(&mut self, out: &mut Outbound) -> Result<(), OptionError> {
        self.tried.tls = true;
        self.send(out, Question::StartTls, &[])
    }

    pub(super) fn send_extended_headers(&mut self, out: &mut Outbound) -> Result<(), OptionError> {
        self.tried.extended = true;
        self.send(out, Question::ExtendedHeaders, &[])
    }

    pub(super) fn send_structured_reply(&mut self, out: &mut Outbound) -> Result<(), OptionError> {
        self.tried.structured = true;
        self.send(out, Question::StructuredReply, &[])
    }

    /// Selects contexts. What was selected before is void even if this fails.
    // (S-OPT-SM-01)
    pub(super) fn send_set_meta_context(
        &mut self,
        out: &mut Outbound,
        export: String,
        queries: &[impl AsRef<str>],
    ) -> Result<(), OptionError> {
        let data = meta_context_data(&export, queries);
        let (export, queries) = (Some(export), queries.len());
        self.selection = Some(Selecting { export: export.clone(), queries, contexts: Vec::new() });
        let selecting = Selecting { export, queries, contexts: Vec::new() };
        self.send(out, Question::SetMetaContext(selecting), &data)
    }

    pub(super) fn send_list_meta_context(
        &mut self,
        out: &mut Outbound,
        export: &str,
        queries: &[impl AsRef<str>],
    ) -> Result<(), OptionError> {
        self.send(out, Question::ListMetaContext, &meta_context_data(export, queries))
    }

    pub(super) fn send_info(
        &mut self,
        out: &mut Outbound,
        code: OptionCode,
        export: String,
        items: &[InfoType],
    ) -> Result<(), OptionError> {
        let mut data = Vec::new();
        InfoRequest::encode(&export, items, &mut data);
        let description = Description::of(export);
        let question = if code == OptionCode::GO {
            Question::Go(description)
        } else {
            Question::Info(description)
        };
        self.send(out, question, &data)
    }
}

fn meta_context_data(export: &str, queries: &[impl AsRef<str>]) -> Vec<u8> {
    let mut data = Vec::new();
    MetaContextRequest::encode(export, queries.iter().map(AsRef::as_ref), &mut data);
    data
}

pub(super) fn put_option(
    out: &mut Outbound,
    code: OptionCode,
    data: &[u8],
) -> Result<(), OptionError> {
    let length = u32::try_from(data.len()).map_err(|_| OptionError::TooLong)?;
    out.put(&OptionHeader { code, length }.encode());
    out.put(data);
    out.seal(Tail::None, None);
    Ok(())
}
