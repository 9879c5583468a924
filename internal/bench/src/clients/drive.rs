//! The project's clients at work: what `libnbd_loop.c` does, as their users would write it.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use nbd_blocking::client::{BufResult, ClientConfig, Flags, Uri};

use super::arguments::DriveArgs;
use super::catalogue::Ours;
use super::run::Measured;
use crate::compare::settle;
use crate::cpu::CpuSample;
use crate::load::{Direction, Load};
use crate::pattern::Random;

/// The clock is looked at after so many requests.
const LOOK: u64 = 16;

/// Runs a load by one of the clients.
///
/// # Errors
/// When there is no server, or a request fails.
pub fn drive(args: &DriveArgs) -> Result<Measured, Fault> {
    let config = ClientConfig::default();
    let uri: Uri = format!("nbd+unix:///?socket={}", args.socket.display()).parse()?;
    let uri = uri.with_export(&*args.export)?;
    let load = args.load();
    match args.client {
        Ours::NbdBlocking => {
            let client = nbd_blocking::Client::connect_with(&uri, &config)?;
            on_threads(&client, &load)
        }
        Ours::NbdTokio => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(on_tokio(&uri, &config, &load))
        }
        Ours::NbdTokioThreads => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            // As a task: what `block_on` is given runs on a thread beside the runtime's.
            runtime.block_on(runtime.spawn(async move { on_tokio(&uri, &config, &load).await }))?
        }
        Ours::NbdAsyncStd => {
            let task = async_std::task::spawn(async move {
                let client = nbd_async_std::Client::connect_with(&uri, &config).await?;
                let measured = as_task(&client, &load).await?;
                client.disconnect().await;
                Ok(measured)
            });
            async_std::task::block_on(task)
        }
    }
}

async fn on_tokio(uri: &Uri, config: &ClientConfig, load: &Load) -> Result<Measured, Fault> {
    let client = nbd_tokio::Client::connect_with(uri, config).await?;
    let measured = as_task(&client, load).await?;
    client.disconnect().await;
    Ok(measured)
}

type Fault = Box<dyn Error + Send + Sync>;

fn on_threads(client: &nbd_blocking::Client, load: &Load) -> Result<Measured, Fault> {
    let mut work = Work::new(load, client.size())?;
    let mut in_flight = VecDeque::with_capacity(load.depth);
    loop {
        while let Some((buffer, offset)) = work.next() {
            in_flight.push_back(match load.direction {
                Direction::Read => client.submit_read_into(offset, buffer, Flags::empty()),
                Direction::Write => client.submit_write_from(offset, buffer, Flags::empty()),
            });
        }
        let Some(oldest) = in_flight.pop_front() else { return work.measured() };
        work.landed(oldest.wait())?;
    }
}

/// The same on any runtime.
async fn as_task<C>(
    client: &nbd_engine::client::Client<C>,
    load: &Load,
) -> Result<Measured, Fault> {
    let mut work = Work::new(load, client.size())?;
    let mut in_flight = VecDeque::with_capacity(load.depth);
    loop {
        while let Some((buffer, offset)) = work.next() {
            in_flight.push_back(match load.direction {
                Direction::Read => client.submit_read_into(offset, buffer, Flags::empty()),
                Direction::Write => client.submit_write_from(offset, buffer, Flags::empty()),
            });
        }
        let Some(oldest) = in_flight.pop_front() else { return work.measured() };
        work.landed(oldest.await)?;
    }
}

/// What to ask for next, and what came of it so far.
struct Work<'a> {
    load: &'a Load,
    blocks: u64,
    random: Random,
    /// Buffers of which no request is in flight.
    spare: Vec<Vec<u8>>,
    asked: u64,
    answered: u64,
    ending: bool,
    start: Instant,
    start_cpu: CpuSample,
}

impl<'a> Work<'a> {
    fn new(load: &'a Load, size: u64) -> Result<Self, Fault> {
        let blocks = size / u64::from(load.block);
        if blocks == 0 {
            return Err("the export is smaller than a block".into());
        }
        settle();
        Ok(Self {
            load,
            blocks,
            random: Random::new(load.seed),
            spare: vec![vec![0x5a; load.block as usize]; load.depth],
            asked: 0,
            answered: 0,
            ending: false,
            start_cpu: CpuSample::of(std::process::id())?,
            start: Instant::now(),
        })
    }

    fn next(&mut self) -> Option<(Vec<u8>, u64)> {
        let over = self.ending || self.load.requests.is_some_and(|most| self.asked >= most);
        let buffer = if over { None } else { self.spare.pop() }?;
        self.asked += 1;
        Some((buffer, self.random.below(self.blocks) * u64::from(self.load.block)))
    }

    fn landed(&mut self, (buffer, result): BufResult) -> Result<(), Fault> {
        result?;
        self.spare.push(buffer);
        self.answered += 1;
        if self.answered.is_multiple_of(LOOK)
            && let Some(limit) = self.load.duration
        {
            self.ending = self.start.elapsed() >= limit;
        }
        Ok(())
    }

    fn measured(self) -> Result<Measured, Fault> {
        let elapsed = self.start.elapsed();
        settle();
        let cpu = CpuSample::of(std::process::id())?.since(&self.start_cpu);
        Ok(Measured { requests: self.answered, elapsed, cpu })
    }
}
