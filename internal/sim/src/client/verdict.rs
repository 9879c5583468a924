//! Whether an error has a cause among the faults of the run, and what it says about the request.

use core::time::Duration;

use nbd_engine::client::{
    Error, ErrorCode, InvalidRequest, LostReason, NoSession, OptionReplyType, SubmitError,
};
use nbd_engine::proto;

use super::Surroundings;
use crate::oracle::Ended;
use crate::plan::{ClientPlan, Op};

/// Faults that have happened so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Excuses {
    /// A stream may have been broken, or closed by the server in order.
    streams: bool,
    /// A server has been shut down.
    shutdown: bool,
}

impl Excuses {
    pub(super) fn of(around: &Surroundings) -> Self {
        let shutdown = around.outages() > 0 || around.disk.has_shut_down();
        let streams = shutdown || around.net.harmed() > 0 || around.crowded;
        Self { streams, shutdown }
    }
}

/// A request that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    pub(super) op: Op,
    /// The export's size as the client knew it when it asked.
    pub(super) size: u64,
    pub(super) took: Duration,
    pub(super) has_status: bool,
}

type Judgement = Result<Ended, &'static str>;

/// What an error says about a request; `Err` if it must not have happened.
pub(super) fn judge(
    around: &Surroundings,
    plan: &ClientPlan,
    reply: &Reply,
    error: &Error,
    excuses: &Excuses,
) -> Judgement {
    let since = |sent: bool| if sent { Ended::Unknown } else { Ended::NotDone };
    match error {
        Error::Command { error, .. } => command(around, reply, error.code, excuses),
        Error::Lost { sent, reason, .. } => {
            lost(reason, excuses, around.disk.was_resized())?;
            Ok(since(*sent))
        }
        Error::InDoubt { .. }
            if plan.reconnect.is_some() && reply.op == Op::Flush && excuses.streams =>
        {
            Ok(Ended::Failed)
        }
        Error::Disconnected { .. } if excuses.streams => Ok(Ended::NotDone),
        Error::TimedOut { sent, .. } => match plan.request_timeout {
            None => Err("without a limit"),
            Some(limit) if reply.took < limit => Err("too early"),
            Some(_) => Ok(since(*sent)),
        },
        Error::Invalid(InvalidRequest::OutOfRange(_)) => {
            let end = reply.op.end().unwrap_or(0) * around.disk_plan.cell;
            match end > reply.size {
                true => Ok(Ended::NotDone),
                // Its size may have changed while it was carried out in parts.
                false if around.disk.was_resized() => Ok(Ended::Failed),
                false => Err("although it lies inside"),
            }
        }
        Error::Invalid(InvalidRequest::NoContexts | InvalidRequest::NotOffered(_))
            if matches!(reply.op, Op::Status { .. }) && !reply.has_status =>
        {
            Ok(Ended::NotDone)
        }
        Error::Invalid(InvalidRequest::Empty) => Ok(Ended::NotDone),
        // Some parts of it may have been carried out.
        Error::NotSubmitted(SubmitError::Resizing) => Ok(Ended::Failed),
        _ => Err("which must not happen"),
    }
}

fn command(around: &Surroundings, reply: &Reply, code: ErrorCode, excuses: &Excuses) -> Judgement {
    let disk = &around.disk;
    if disk.claim(code) {
        return Ok(Ended::Failed);
    }
    match code {
        ErrorCode::ESHUTDOWN if excuses.shutdown => Ok(Ended::Failed),
        ErrorCode::EINVAL | ErrorCode::ENOSPC if disk.was_resized() && reply.op != Op::Flush => {
            Ok(Ended::Failed)
        }
        _ => Err("although the disk did not"),
    }
}

/// Whether a connection may be lost like that.
fn lost(reason: &LostReason, excuses: &Excuses, resized: bool) -> Result<(), &'static str> {
    let excused = match reason {
        LostReason::Transport(_) | LostReason::Silent { .. } => excuses.streams,
        LostReason::Protocol(error) => excuses.streams && is_cut(error),
        LostReason::ShuttingDown => excuses.shutdown,
        // It is another export then.
        LostReason::GaveUp(_) => resized,
        _ => false,
    };
    if excused { Ok(()) } else { Err("for no reason") }
}

/// Whether the stream ended in the middle of something.
const fn is_cut(error: &proto::Error) -> bool {
    matches!(error, proto::Error::UnexpectedEnd(_))
}

/// Why a client must not fail to connect like that; `None` if it may.
pub(super) fn fault_of_connecting(
    error: &Error,
    excuses: &Excuses,
    resized: bool,
) -> Option<&'static str> {
    let excused = match error {
        Error::Connect { .. } | Error::TimedOut { .. } => excuses.streams,
        Error::Lost { reason, .. } => return lost(reason, excuses, resized).err(),
        // The size changed while the connections were made.
        Error::Unsupported { .. } => resized,
        Error::Protocol { source, .. } => excuses.streams && is_cut(source),
        Error::Refused { refusal: NoSession::Option { reply, .. }, .. } => {
            excuses.shutdown && *reply == OptionReplyType::ERR_SHUTDOWN
        }
        _ => false,
    };
    if excused { None } else { Some("for no reason") }
}
