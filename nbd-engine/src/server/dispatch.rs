//! From a command to an export's method: the one place where the two meet.

use std::sync::Arc;

use nbd_proto::wire::TransmissionFlags;
use nbd_proto::{Command, ContextInfo, ExportInfo};

use super::ServerConfig;
pub(super) use super::guard::guarded;
use super::guard::guarded_async;
use super::pieces::Pieces;
use super::slot_futures;
use super::status::Status;
use super::workers::Completion;
use crate::export::{
    AsyncCanCache, AsyncCanFlush, AsyncCanResize, AsyncCanTrim, AsyncCanWrite, AsyncCanWriteZeroes,
    AsyncExport, Body, Export, ExportEntry, ExportError, Fua, Page, ReadFlags, Result, ZeroMode,
};

/// What carrying out a command needs and leaves behind. Kept with a slot in flight and reused.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// What was read, or what is to be written.
    pub(crate) body: Body,
    /// The extents that are asked for and found, for a block status.
    pub(crate) status: Status,
}

impl Work {
    pub(crate) fn clear(&mut self) {
        self.body.clear();
        self.status.clear();
    }
}

pub(super) fn unsupported<T>() -> Result<T> {
    // The core refuses commands that were not advertised, so only an export that changes its mind gets here.
    Err(ExportError::new(nbd_proto::wire::ErrorCode::EINVAL, "the export can't do that any more"))
}

/// Carries out a command; may block.
pub(crate) fn execute(export: &dyn Export, command: Command, work: &mut Work) -> Result<()> {
    match command {
        Command::Read { offset, length, dont_fragment, .. } => {
            work.body.set_flags(ReadFlags { dont_fragment });
            export.read_body(&mut work.body, length as usize, offset)?;
            check_length(work, length)
        }
        Command::Write { offset, fua, .. } => {
            let writes = export.can_write().map_or_else(unsupported, Ok)?;
            let native = fua && writes.fua() == Fua::Native;
            writes.write(work.body.buffer(), offset, native)?;
            flush_for(export, fua && !native)
        }
        Command::Flush => export.can_flush().map_or_else(unsupported, |flushes| flushes.flush()),
        Command::Trim { offset, length, fua, .. } => {
            let native = fua && native_fua(export);
            let trims = export.can_trim().map_or_else(unsupported, Ok)?;
            trims.trim(offset, length, native)?;
            flush_for(export, fua && !native)
        }
        Command::Cache { offset, length, .. } => {
            export.can_cache().map_or_else(unsupported, |caches| caches.cache(offset, length))
        }
        Command::WriteZeroes { offset, length, fua, no_hole, fast, .. } => {
            let native = fua && native_fua(export);
            let mode = ZeroMode { fua: native, no_hole, fast };
            let zeroes = export.can_write_zeroes().map_or_else(unsupported, Ok)?;
            zeroes.write_zeroes(offset, length, mode)?;
            flush_for(export, fua && !native)
        }
        Command::BlockStatus { .. } => work.status.find(export),
        Command::Resize { size, .. } => {
            export.can_resize().map_or_else(unsupported, |resizes| resizes.resize(size))
        }
        _ => unsupported(),
    }
}

/// Carries out a command if that can be done at once. The payload of a write is `payload`, which need not be in `work`
/// then: from the receive buffer to the export is one copy.
pub(crate) fn try_execute(
    export: &dyn Export,
    command: Command,
    payload: &[u8],
    work: &mut Work,
) -> Option<Result<()>> {
    guarded(|| try_execute_unguarded(export, command, payload, work))
        .unwrap_or_else(|error| Some(Err(error)))
}

fn try_execute_unguarded(
    export: &dyn Export,
    command: Command,
    payload: &[u8],
    work: &mut Work,
) -> Option<Result<()>> {
    match command {
        Command::Read { offset, length, dont_fragment, .. } => {
            work.body.set_flags(ReadFlags { dont_fragment });
            let result = export.try_read(&mut work.body, length as usize, offset)?;
            Some(result.and_then(|()| check_length(work, length)))
        }
        Command::Write { offset, fua, .. } => {
            let Some(writes) = export.can_write() else { return Some(unsupported()) };
            let native = fua && writes.fua() == Fua::Native;
            if export.never_blocks() {
                let result = writes.write(payload, offset, native);
                return Some(result.and_then(|()| flush_for(export, fua && !native)));
            }
            // A flush may take its time, so that an emulated FUA is for the workers.
            if fua && !native { None } else { writes.try_write(payload, offset, native) }
        }
        // What is over a long range takes its time even where nothing blocks.
        _ if command.length() > AT_ONCE => None,
        _ => export.never_blocks().then(|| execute(export, command, work)),
    }
}

/// Commands without a payload that are about more bytes than this are for the workers: many of them in a row would
/// hold up the thread or task, and with it other connections.
const AT_ONCE: u64 = 256 << 10;

/// The size of the pages that a write's payload is to be received into, if the export takes them over.
pub(crate) fn page_size(export: &dyn Export, command: Command) -> Option<usize> {
    let Command::Write { offset, length, fua, .. } = command else { return None };
    let writes = export.can_write().filter(|writes| !fua || writes.fua() == Fua::Native)?;
    let size = writes.takes_pages().filter(|_| export.never_blocks())?.page_size();
    let aligned = offset.is_multiple_of(size as u64) && (length as usize).is_multiple_of(size);
    (size.is_power_of_two() && aligned).then_some(size)
}

/// A page of the export's own memory to receive into, if there is one.
pub(crate) fn new_page(export: &dyn Export) -> Option<Page> {
    export.can_write()?.takes_pages()?.new_page()
}

/// Carries out a write whose payload lies in pages of that size. Those that come back are appended to `spare`.
pub(crate) fn write_pages(
    export: &dyn Export,
    command: Command,
    pages: &mut Vec<Page>,
    spare: &mut Vec<Page>,
) -> Result<()> {
    let Command::Write { offset, .. } = command else { return unsupported() };
    let writes = export.can_write().map_or_else(unsupported, Ok)?;
    let takes = writes.takes_pages().map_or_else(unsupported, Ok)?;
    guarded(|| {
        let mut at = offset;
        for page in pages.drain(..) {
            let length = page.len() as u64;
            spare.extend(takes.write_page(page, at)?);
            at += length;
        }
        Ok(())
    })?
}

/// A request to an asynchronous export.
#[derive(Debug)]
pub(crate) struct AsyncRequest {
    /// Where the connection keeps the request.
    pub(crate) slot: usize,
    pub(crate) command: Command,
    pub(crate) work: Work,
}

/// Where a slot's future gets requests to an asynchronous export from.
pub(crate) type Mailbox = slot_futures::Mailbox<AsyncRequest, Completion>;

/// Carries out requests, one after the other, for as long as it is polled.
pub(crate) async fn serve_requests<E: AsyncExport>(export: Arc<E>, mailbox: Mailbox) {
    loop {
        let AsyncRequest { slot, command, mut work } = mailbox.next().await;
        let result = guarded_async(execute_async(&*export, command, &mut work)).await;
        mailbox.finish(Completion { slot, command, work, result });
    }
}

/// Carries out a command on an asynchronous export, a long one piece by piece.
async fn execute_async<E: AsyncExport>(
    export: &E,
    command: Command,
    work: &mut Work,
) -> Result<()> {
    match Pieces::new(command) {
        Some(mut pieces) => pieces.run_async(export).await,
        None => execute_whole_async(export, command, work).await,
    }
}

async fn execute_whole_async<E: AsyncExport>(
    export: &E,
    command: Command,
    work: &mut Work,
) -> Result<()> {
    let fua = match command {
        Command::Write { fua, .. }
        | Command::Trim { fua, .. }
        | Command::WriteZeroes { fua, .. } => fua,
        _ => false,
    };
    let native = fua && export.can_write().is_some_and(|ability| ability.fua() == Fua::Native);
    match command {
        Command::Read { offset, length, dont_fragment, .. } => {
            work.body.set_flags(ReadFlags { dont_fragment });
            export.read_body(&mut work.body, length as usize, offset).await?;
            check_length(work, length)?;
        }
        Command::Write { offset, .. } => {
            let ability = export.can_write().map_or_else(unsupported, Ok)?;
            ability.write(work.body.buffer(), offset, native).await?;
        }
        Command::Flush => export.can_flush().map_or_else(unsupported, Ok)?.flush().await?,
        Command::Trim { offset, length, .. } => {
            let ability = export.can_trim().map_or_else(unsupported, Ok)?;
            ability.trim(offset, length, native).await?;
        }
        Command::Cache { offset, length, .. } => {
            export.can_cache().map_or_else(unsupported, Ok)?.cache(offset, length).await?;
        }
        Command::WriteZeroes { offset, length, no_hole, fast, .. } => {
            let mode = ZeroMode { fua: native, no_hole, fast };
            let ability = export.can_write_zeroes().map_or_else(unsupported, Ok)?;
            ability.write_zeroes(offset, length, mode).await?;
        }
        Command::BlockStatus { .. } => work.status.find_async(export).await?,
        Command::Resize { size, .. } => {
            export.can_resize().map_or_else(unsupported, Ok)?.resize(size).await?;
        }
        _ => return unsupported(),
    }
    if fua && !native {
        export.can_flush().map_or_else(unsupported, Ok)?.flush().await?;
    }
    Ok(())
}

/// An export that gives too little would have the reply finished with a gap.
fn check_length(work: &Work, length: u64) -> Result<()> {
    if work.body.len() as u64 == length {
        return Ok(());
    }
    Err(ExportError::io("the export gave another length than it was asked for"))
}

fn native_fua(export: &dyn Export) -> bool {
    export.can_write().is_some_and(|writes| writes.fua() == Fua::Native)
}

fn flush_for(export: &dyn Export, emulated_fua: bool) -> Result<()> {
    if !emulated_fua {
        return Ok(());
    }
    export.can_flush().map_or_else(unsupported, |flushes| flushes.flush())
}

/// What the core advertises of an export: abilities become flags here and nowhere else. `queries` are those that the
/// client asks for metadata contexts by.
pub(crate) fn describe<'q>(
    entry: &ExportEntry,
    config: &ServerConfig,
    queries: impl Iterator<Item = &'q str>,
) -> ExportInfo {
    entry.export().refresh();
    let facts = entry.export().facts();
    let mut info = ExportInfo::new(facts.size);
    info.name = Some(entry.name().to_owned());
    info.description = entry.own_description().or(facts.description);
    info.block_size = facts.block_size;
    info.block_size_required = facts.block_size_required;
    info.tls_required = entry.is_tls_required();
    let resize = config.resize() && entry.is_resize_allowed() && facts.resize;
    let multi_conn = config.max_connections() > 1 && entry.is_multi_conn_allowed();
    let fua = match facts.write {
        None | Some(Fua::Emulated) => facts.flush,
        Some(Fua::Native) => true,
        Some(Fua::Unsupported) => false,
    };
    for (ability, flag) in [
        (facts.write.is_none(), TransmissionFlags::READ_ONLY),
        (facts.flush, TransmissionFlags::SEND_FLUSH),
        (fua, TransmissionFlags::SEND_FUA),
        (facts.rotational, TransmissionFlags::ROTATIONAL),
        (facts.trim, TransmissionFlags::SEND_TRIM),
        (facts.write_zeroes, TransmissionFlags::SEND_WRITE_ZEROES),
        (facts.fast_zero, TransmissionFlags::SEND_FAST_ZERO),
        (multi_conn && facts.multi_conn, TransmissionFlags::CAN_MULTI_CONN),
        (facts.cache, TransmissionFlags::SEND_CACHE),
        (resize, TransmissionFlags::SEND_RESIZE),
    ] {
        info.flags.set(flag, ability);
    }
    if facts.extents {
        info.contexts.push(ContextInfo::base_allocation());
    }
    info.contexts.extend(facts.contexts);
    let max = info.contexts.len() + config.limits().max_contexts as usize;
    add_found(&mut info.contexts, max, queries, |query| entry.export().find_context(query));
    info
}

/// Adds the contexts that an export makes for queries which name none of those that it has. One more than the `max`
/// that a client may select is enough to be refused.
fn add_found<'q>(
    contexts: &mut Vec<ContextInfo>,
    max: usize,
    queries: impl Iterator<Item = &'q str>,
    find: impl Fn(&str) -> Option<ContextInfo>,
) {
    for query in queries {
        let known = contexts.iter().any(|context| context.name() == query);
        if !known && contexts.len() <= max {
            contexts.extend(find(query));
        }
    }
}
