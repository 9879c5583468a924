//! Requests that follow each other.

use core::pin::pin;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use futures_util::future::{Either, select};
use nbd_engine::client::{AllocationFlags, Client, Error, Flags};

use super::verdict::{self, Excuses, Reply};
use super::{Acknowledged, Surroundings};
use crate::mutation::Mutation;
use crate::net::Dialer;
use crate::oracle::{Ended, Oracle, Token};
use crate::plan::{ClientPlan, Op, Step};
use crate::stamp;
use crate::world::note;

/// Goes on with a lane until it is done or the client has no connection left.
pub(super) async fn run<const CALLER: bool>(
    around: &Surroundings,
    client: &Client<Dialer<CALLER>>,
    steps: &[Step],
    cursor: &AtomicUsize,
    plan: &ClientPlan,
    acknowledged: &Acknowledged,
) {
    while let Some(step) = steps.get(cursor.load(Ordering::Relaxed)) {
        if step.think > 0 {
            around.world.sleep(Duration::from_nanos(step.think)).await;
        }
        if !client.is_connected() {
            return;
        }
        let done = carry_out(around, client, step, plan, acknowledged).await;
        // What was certainly not done, for the loss of the connection, is asked for again.
        if done || client.is_connected() {
            cursor.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An open request, which ends at the latest with the lane that waits for it.
struct OpenRequest<'a> {
    oracle: &'a Oracle,
    token: Option<Token>,
}

impl OpenRequest<'_> {
    fn end(mut self, ended: Ended) {
        if let Some(token) = self.token.take() {
            self.oracle.end(token, ended);
        }
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.oracle.end(token, Ended::Unknown);
        }
    }
}

/// Makes one request; gives whether it may have been carried out.
async fn carry_out<const CALLER: bool>(
    around: &Surroundings,
    client: &Client<Dialer<CALLER>>,
    step: &Step,
    plan: &ClientPlan,
    acknowledged: &Acknowledged,
) -> bool {
    let Step { op, id, .. } = *step;
    let (oracle, world) = (&around.oracle, &around.world);
    note(world, || format!("step {id}: {op:?}"));
    let begun = world.nanos();
    let size = client.size();
    let issued = oracle.now();
    let resent = plan.reconnect.is_some();
    let open = OpenRequest { oracle, token: Some(oracle.begin(op, id, resent)) };
    if around.mutation == Some(Mutation::AnswerTakenBeforeItCame) && matches!(op, Op::Write { .. })
    {
        open.end(Ended::Good(Vec::new()));
        let _lost = request(around, client, step).await;
        return true;
    }
    let request = pin!(request(around, client, step));
    let answer = match step.cancel_after {
        None => request.await,
        Some(time) => {
            let alarm = world.sleep(Duration::from_nanos(time));
            match select(request, alarm).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => {
                    note(world, || format!("step {id}: given up"));
                    leaves_undriven::<CALLER>(around);
                    return true;
                }
            }
        }
    };
    let took = Duration::from_nanos(world.nanos() - begun);
    note(world, || match &answer {
        Ok(_) => format!("step {id}: good"),
        Err(error) => format!("step {id}: {error}"),
    });
    if let Some(limit) = plan.request_timeout
        && took > limit + Duration::from_millis(1)
    {
        oracle.violation(format!("step {id}, {op:?}: took {took:?}, and may take {limit:?}"));
    }
    let ended = match answer {
        Ok(stamps) => Ended::Good(stamps),
        Err(Error::Command { .. })
            if op == Op::Flush && around.mutation == Some(Mutation::FailedFlushTakenForGood) =>
        {
            Ended::Good(Vec::new())
        }
        Err(Error::InDoubt { .. }) if around.mutation == Some(Mutation::DoubtNotReported) => {
            Ended::Good(Vec::new())
        }
        Err(error) => {
            if let Error::TimedOut { .. } = error {
                leaves_undriven::<CALLER>(around);
            }
            let reply = Reply { op, size, took, has_status: has_status(client) };
            let judged = verdict::judge(around, plan, &reply, &error, &Excuses::of(around));
            judged.unwrap_or_else(|why| {
                oracle.violation(format!("step {id}, {op:?} failed, {why}: {error}"));
                Ended::Unknown
            })
        }
    };
    let reports = plan.reconnect.is_some_and(|reconnect| reconnect.kept.is_none());
    match &ended {
        Ended::Good(_) if op == Op::Flush && reports => {
            if let Some((cell, stamp)) = acknowledged.flushed(issued, &around.disk) {
                oracle.violation(format!(
                    "step {id}: a flush is good although cell {cell} lost {stamp:#x}, acknowledged before"
                ));
            }
        }
        Ended::Good(_) => acknowledged.write(issued, oracle.now(), step),
        // Also if it was told something else: it knows that the flush did not succeed.
        _ if op == Op::Flush => acknowledged.reported(oracle.now()),
        _ => {}
    }
    let done = !matches!(ended, Ended::NotDone);
    open.end(ended);
    done
}

/// Where those who wait drive, the rest of a reply that nobody waits for may stay unread, for which servers that lack memory
/// close connections.
fn leaves_undriven<const CALLER: bool>(around: &Surroundings) {
    if CALLER {
        around.net.harm();
    }
}

fn has_status<const CALLER: bool>(client: &Client<Dialer<CALLER>>) -> bool {
    client.export().has_context("base:allocation")
}

/// Makes the request, by one of the client's methods for it. Gives the stamps of the cells that it shows.
async fn request<const CALLER: bool>(
    around: &Surroundings,
    client: &Client<Dialer<CALLER>>,
    step: &Step,
) -> Result<Vec<Option<u64>>, Error> {
    let size = around.disk_plan.cell;
    let bytes = |cells: u64| cells * size;
    let with = |wanted: bool, flag: Flags| if wanted { flag } else { Flags::empty() };
    match step.op {
        Op::Read { cell, count } => {
            let (offset, length) = (bytes(cell), bytes(count) as usize);
            let data = match step.form % 4 {
                0 => client.read(offset, length, Flags::empty()).await?.to_vec(),
                1 => {
                    let buffer = vec![0xaa; length];
                    let (buffer, result) = client.read_into(offset, buffer, Flags::empty()).await;
                    result?;
                    buffer
                }
                2 if client.export().can_df() => {
                    client.read(offset, length, Flags::DF).await?.to_vec()
                }
                _ => {
                    let mut buffer = vec![0xaa; length];
                    client.read_exact_at(&mut buffer, offset).await?;
                    buffer
                }
            };
            Ok(stamps(around, step, &data))
        }
        Op::Write { cell, count, fua } => {
            let data = stamp::data(step.id, count, size);
            let (offset, flags) = (bytes(cell), with(fua, Flags::FUA));
            match step.form % 3 {
                0 => client.write(offset, data, flags).await?,
                1 => client.write_from(offset, data, flags).await.1?,
                _ if fua => client.submit_write(offset, data, flags).await?,
                _ => client.write_all_at(&data, offset).await?,
            }
            Ok(Vec::new())
        }
        Op::Zero { cell, count, fua, no_hole, fast } => {
            let flags = with(fua, Flags::FUA)
                | with(no_hole, Flags::NO_HOLE)
                | with(fast && client.export().can_fast_zero(), Flags::FAST_ZERO);
            client.write_zeroes(bytes(cell), bytes(count), flags).await?;
            Ok(Vec::new())
        }
        Op::Trim { cell, count, fua } => {
            client.trim(bytes(cell), bytes(count), with(fua, Flags::FUA)).await?;
            Ok(Vec::new())
        }
        Op::Flush => {
            client.flush().await?;
            Ok(Vec::new())
        }
        Op::Cache { cell, count } => {
            client.cache(bytes(cell), bytes(count)).await?;
            Ok(Vec::new())
        }
        Op::Status { cell, count } => {
            let flags = with(step.form.is_multiple_of(2), Flags::REQ_ONE);
            let found = client.block_status(bytes(cell), bytes(count), flags).await?;
            let mut cells = Vec::new();
            for extent in found.iter().flat_map(|context| &context.extents) {
                if !extent.length.is_multiple_of(size) || extent.length == 0 {
                    let text = format!("step {}: an extent of {} bytes", step.id, extent.length);
                    around.oracle.violation(text);
                }
                let zero = extent.status & u64::from(AllocationFlags::ZERO.bits()) != 0;
                // An extent may reach past what was asked for.
                let rest = count.saturating_sub(cells.len() as u64);
                let covered = (extent.length / size).min(rest);
                cells.extend((0..covered).map(|_| zero.then_some(0)));
            }
            if cells.is_empty() && count > 0 {
                around.oracle.violation(format!("step {}: an empty block status", step.id));
            }
            Ok(cells)
        }
        Op::Resize { cells } => {
            client.resize(bytes(cells)).await?;
            Ok(Vec::new())
        }
    }
}

/// The stamps of the cells that were read.
fn stamps(around: &Surroundings, step: &Step, data: &[u8]) -> Vec<Option<u64>> {
    let cells = data.chunks(around.disk_plan.cell as usize);
    cells
        .enumerate()
        .map(|(index, cell)| {
            let stamp = stamp::read(cell);
            if stamp.is_none() {
                let text = format!(
                    "step {}, {:?}: the data of cell {index} of it was never written",
                    step.id, step.op
                );
                around.oracle.violation(text);
            }
            stamp
        })
        .collect()
}
