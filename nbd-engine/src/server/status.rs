//! The status of blocks: from what an export reports to what is sent.

use core::ops::ControlFlow;
use std::sync::Arc;

use nbd_proto::server::{StatusExtents, StatusQuery};
use nbd_proto::{ContextInfo, Extent};

use crate::export::{
    Allocation, AsyncCanExtents, AsyncContexts, AsyncExport, Export, ExportError, Result,
    no_such_context,
};

/// A metadata context that a client has selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `base:allocation`, from the export's extents.
    Allocation,
    /// One of the export's own, by name.
    Own(Arc<str>),
}

impl Source {
    /// The context of that name, of an export that reports extents or not.
    pub(crate) fn new(name: &str, extents: bool) -> Self {
        if extents && name == ContextInfo::BASE_ALLOCATION {
            Self::Allocation
        } else {
            Self::Own(name.into())
        }
    }
}

/// The status in one context.
#[derive(Debug)]
struct Answer {
    /// The context's number on the connection.
    id: u32,
    source: Source,
    found: StatusExtents,
}

/// The contexts that a block status request is about, and what was found. Used again for later requests.
#[derive(Debug, Default)]
pub(crate) struct Status {
    answers: Vec<Answer>,
    /// Those that the latest request is about; the others are kept for their room.
    used: usize,
    /// Extents that may be found in all.
    max_extents: usize,
}

impl Status {
    /// Forgets everything.
    pub(crate) const fn clear(&mut self) {
        self.used = 0;
        self.max_extents = 0;
    }

    /// Frees all memory.
    pub(crate) fn free(&mut self) {
        *self = Self::default();
    }

    /// The request is about this context, too.
    pub(crate) fn add(&mut self, id: u32, source: &Source, query: StatusQuery) {
        self.max_extents += query.max_extents() as usize + 1;
        if self.used == self.answers.len() {
            let found = StatusExtents::new();
            self.answers.push(Answer { id, source: source.clone(), found });
        }
        let answer = &mut self.answers[self.used];
        answer.id = id;
        if answer.source != *source {
            answer.source.clone_from(source);
        }
        answer.found.begin(query);
        self.used += 1;
    }

    /// Bytes of memory that the answer may take, here and in the queue of what is to be sent.
    pub(crate) const fn cost(&self) -> usize {
        self.max_extents.saturating_mul(2 * size_of::<Extent>())
    }

    /// The contexts with their extents.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (u32, &StatusExtents)> {
        self.answers[..self.used].iter().map(|answer| (answer.id, &answer.found))
    }

    /// Asks the export about the range, in each context; may block.
    pub(crate) fn find(&mut self, export: &dyn Export) -> Result<()> {
        for Answer { source, found, .. } in &mut self.answers[..self.used] {
            while let Some((offset, length)) = found.missing() {
                match source {
                    Source::Allocation => {
                        let extents = export.can_extents().ok_or_else(no_such_context)?;
                        extents.extents(offset, length, &mut |run| found.push(run.into()))?;
                    }
                    Source::Own(name) => {
                        let own = export.contexts().ok_or_else(no_such_context)?;
                        let join = |one, other| own.join(name, one, other);
                        let mut visit = |run| found.push_with(run, join);
                        own.status(name, offset, length, &mut visit)?;
                    }
                }
                check_progress(found, offset)?;
            }
        }
        Ok(())
    }

    /// The same of an asynchronous export.
    pub(crate) async fn find_async<E: AsyncExport>(&mut self, export: &E) -> Result<()> {
        for Answer { source, found, .. } in &mut self.answers[..self.used] {
            while let Some((offset, length)) = found.missing() {
                match source {
                    Source::Allocation => {
                        let extents = export.can_extents().ok_or_else(no_such_context)?;
                        let mut visit = |run: Allocation| found.push(run.into());
                        extents.extents(offset, length, &mut visit).await?;
                    }
                    Source::Own(name) => {
                        let own = export.contexts().ok_or_else(no_such_context)?;
                        let join = |one, other| own.join(name, one, other);
                        let mut visit = |run| -> ControlFlow<()> { found.push_with(run, join) };
                        own.status(name, offset, length, &mut visit).await?;
                    }
                }
                check_progress(found, offset)?;
            }
        }
        Ok(())
    }
}

/// An export that reports nothing would be asked without end.
fn check_progress(found: &StatusExtents, before: u64) -> Result<()> {
    match found.missing() {
        Some((offset, _)) if offset <= before => {
            Err(ExportError::io("the export does not report the status of its blocks"))
        }
        _ => Ok(()),
    }
}
