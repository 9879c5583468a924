//! From the command line to the copy.

use core::sync::atomic::AtomicU64;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use nbd_engine::counted;

use super::arguments::Arguments;
use super::disk::size_of;
use super::extents::{Extents, Oracle};
use super::feed::Feed;
use super::made::Made;
use super::open::{Kind, Side, Wishes, cannot};
use super::plan::{Cut, Plan};
use super::progress::{Phase, Progress, Wanted};
use super::record::{self, Paths, Record};
use super::sink::InOrder;
use super::team::{Ends, Pair, Team};
use super::verify::Verifier;
use super::worker::{Destination, Shared, Source, Worker};
use super::{open, same};
use crate::exit::Failure;
use crate::{log, stderr, target, waiting};

/// As many connections as are worth while with most servers.
pub(super) const CONNECTIONS: usize = 4;

/// The longest run of zeroes that is asked for at once: more would hold up the progress bar.
const ZEROES: u64 = 128 << 20;

/// `nbd copy`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let progress = Wanted::new(&arguments.progress)?;
    log::start(arguments.verbose)?;
    waiting::start(arguments.verbose > 0);
    let places = target::places(&arguments.words)?;
    let [source, destination] = &places[..] else {
        return Err(Failure::usage("give a source and a destination: what to copy, and where to"));
    };
    let path = open::path(destination)?;
    let record_path = path.map(record::path_of);
    let mut made = Made::unless_there(path);
    let wishes = Wishes {
        requests: arguments.requests,
        extents: !arguments.no_extents,
        allocated: arguments.allocated,
        verify: arguments.verify,
        resume: arguments.resume,
        timeout: arguments.timeout,
        retries: arguments.retries.clone(),
        tls: arguments.tls.clone(),
    };
    let begun = Begun::default();
    if arguments.resume {
        record::refuse_streams(source, destination)?;
        record_when_signalled(&begun, made.0)?;
    }
    let source = Side::source(source, &wishes)?;
    if arguments.verify && source.is_stream() {
        return Err(Failure::usage(format!("--verify: {} can't be read twice", source.name)));
    }
    // A file is not made any more once a signal has removed it.
    let making = path.map(|_| begun.lock().unwrap_or_else(PoisonError::into_inner));
    let destination = Side::destination(destination, &wishes)?;
    drop(making);
    let uris: Vec<_> = [&source, &destination].into_iter().filter_map(Side::uri).collect();
    arguments.tls.check_used(&uris)?;
    let mut copy = Copy::prepare(arguments, progress, source, destination)?;
    if arguments.resume {
        let paths = Paths { beside: record_path, wanted: arguments.record.clone() };
        let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Arc::new(Record::resume(paths, &copy.source, &copy.destination)?);
        *begun = Some(Arc::downgrade(&record));
        drop(begun);
        if let Some(text) = record.continues() {
            stderr::say(&text);
        }
        copy.record = Some(record);
    } else if let Some(path) = record_path.filter(|_| copy.destination.is_regular()) {
        record::remove(&path)?;
    }
    let record = copy.record.clone();
    let result = copy.carry_out();
    // A record is about the file that was made.
    if result.is_ok() || record.is_some() {
        made.stays();
    }
    match record {
        Some(record) if result.is_err() => {
            // The failure of the copy is the one to be reported first.
            let not_recorded = record.interrupted().err().map(|failure| {
                format!(
                    "the same command begins anew, as nothing could be recorded: {}",
                    failure.text()
                )
            });
            target::conclude();
            result.map_err(|failure| with_hint(failure, record.hint().or(not_recorded)))
        }
        _ => result,
    }
}

/// A failure, and what the user can do about it.
fn with_hint(failure: Failure, hint: Option<String>) -> Failure {
    match (failure, hint) {
        (Failure::Failed(text), Some(hint)) => Failure::Failed(format!("{text}; {hint}")),
        (failure, _) => failure,
    }
}

/// The record of a copy that has begun.
type Begun = Arc<Mutex<Option<Weak<Record>>>>;

/// A signal that ends the copy has what is done recorded first, once there is a record. Before that a destination that was
/// `made` goes again.
fn record_when_signalled(begun: &Begun, made: Option<&Path>) -> Result<(), Failure> {
    let (begun, made) = (Arc::clone(begun), made.map(Path::to_owned));
    let interrupted = move || {
        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = begun.as_ref().and_then(Weak::upgrade) else {
            drop(Made(made.as_deref()));
            // The copy does not begin any more.
            core::mem::forget(begun);
            return waiting::say("interrupted before the copy began");
        };
        drop(begun);
        waiting::say("interrupted: finishing what is in flight; a second signal ends this at once");
        let failure = match record.ends() {
            Ok(()) => String::new(),
            Err(failure) => format!("{}; ", failure.text()),
        };
        let hint = record.hint().unwrap_or("the same command begins anew".into());
        waiting::say(&format!("interrupted; {failure}{hint}"));
    };
    target::before_a_signal_ends_this(interrupted)
        .map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")))
}

/// A copy that is about to begin.
struct Copy<'a> {
    arguments: &'a Arguments,
    progress: Wanted,
    source: Side,
    destination: Side,
    size: Option<u64>,
    /// How many threads there may be.
    wanted: usize,
    cut: Cut,
    requests: usize,
    skip_zeroes: bool,
    /// What is copied already, and where that is recorded.
    record: Option<Arc<Record>>,
}

impl<'a> Copy<'a> {
    /// Finds out how to copy, and refuses what can't work, before a byte is written.
    fn prepare(
        arguments: &'a Arguments,
        progress: Wanted,
        source: Side,
        destination: Side,
    ) -> Result<Self, Failure> {
        let size = source.size();
        if arguments.verify && matches!(destination.kind, Kind::Stream(_) | Kind::Null) {
            let text = format!("--verify: {} can't be read back", destination.name);
            return Err(Failure::usage(text));
        }
        same::check(&source, &destination)?;
        let room = destination.size().filter(|_| !destination.is_regular());
        if let (Some(size), Some(room)) = (size, room)
            && size > room
        {
            return Err(Failure::failed(format!(
                "the destination is too small: {} has {}, and {} has {size}; nothing was written",
                destination.name,
                counted(room, "byte"),
                source.name
            )));
        }
        let unit = source.unit().max(destination.unit());
        let max = source.payload().min(destination.payload());
        let data = Cut::longest_data(arguments.request_size, max, unit);
        let sends_zeroes =
            destination.client().is_some_and(|client| !client.export().can_write_zeroes());
        let cut = Cut { unit, data, zero: if sends_zeroes { data } else { ZEROES.max(unit) } };
        let in_queue = arguments.queue_size.map_or(u64::MAX, |bytes| (bytes / data).max(1));
        let mut requests = arguments.requests.min(usize::try_from(in_queue).unwrap_or(usize::MAX));
        let processors = thread::available_parallelism().map_or(1, Into::into);
        let threads = if arguments.threads == 0 { processors } else { arguments.threads };
        let wanted = arguments.connections.unwrap_or(CONNECTIONS.min(threads));
        let pieces = size.map_or(u64::MAX, |size| size.div_ceil(data).max(1));
        let mut wanted = wanted.min(usize::try_from(pieces).unwrap_or(usize::MAX));
        if arguments.threads != 0 {
            wanted = wanted.min(threads);
        }
        if arguments.synchronous {
            (wanted, requests) = (1, 1);
        }
        let wanted = destination.most_connections(source.most_connections(wanted));
        tracing::info!(connections = wanted, requests, request_size = data, "copying");
        let skip_zeroes = arguments.destination_is_zero;
        Ok(Self {
            arguments,
            progress,
            source,
            destination,
            size,
            wanted,
            cut,
            requests,
            skip_zeroes,
            record: None,
        })
    }

    /// Where the copy begins: not at the beginning if that is there already.
    fn begin(&self) -> u64 {
        let reach = self.record.as_ref().map_or(0, |record| record.reach());
        reach - reach % self.cut.unit
    }

    /// Both sides stay until it is dropped: a signal may be about to have them flushed and that recorded.
    fn carry_out(&mut self) -> Result<(), Failure> {
        self.copy_and_check()
            .map_err(|failure| open::named(failure, [&self.source, &self.destination]))
    }

    fn copy_and_check(&mut self) -> Result<(), Failure> {
        self.make_room()?;
        let makers = (self.source.maker(), self.destination.maker());
        let mut team = Team::to_be_made(self.wanted - 1, makers);
        let streamed = self.copy(&mut team)?;
        if let Some(record) = &self.record {
            record.check()?;
        }
        self.conclude(&team, streamed)?;
        self.check_sizes(streamed)?;
        if self.arguments.verify {
            let verified = self.verify(&mut team);
            if let (Err(_), Some(record)) = (&verified, &self.record) {
                record.restart()?;
            }
            verified?;
        }
        if let Some(record) = &self.record {
            // Everything is durable. Once the connections are gone a signal could not have that recorded any more.
            target::conclude();
            record.complete()?;
        }
        self.disconnect(team);
        self.progress.done();
        self.report_replaced_connections();
        Ok(())
    }

    /// Empties a regular file, and gives it its size: it is nothing but a hole then.
    fn make_room(&mut self) -> Result<(), Failure> {
        let Side { name, kind: Kind::Disk { disk, size: old, regular: true } } = &self.destination
        else {
            return Ok(());
        };
        // What is there is to stay; the rest of it may have been written, too.
        if self.record.as_ref().is_some_and(|record| record.reach() > 0) {
            return Ok(());
        }
        let size = self.size.unwrap_or(0);
        if i64::try_from(size).is_err() {
            return Err(Failure::failed(format!(
                "{} has {size} bytes, which is more than a file can have; nothing was written",
                self.source.name
            )));
        }
        // To grow it fails where a file can't be that large, and then what was in it is still there.
        let grown = if size > *old { disk.file.set_len(size) } else { Ok(()) };
        let emptied = grown.and_then(|()| disk.file.set_len(0));
        let emptied = emptied.and_then(|()| disk.file.set_len(size));
        emptied.map_err(|error| cannot("make room in", name, &error))?;
        self.skip_zeroes = true;
        if self.arguments.allocated {
            let allocated = if size == 0 { Ok(false) } else { disk.allocate(size) };
            if allocated.is_err() {
                // What could be set aside is of no use.
                let _best_effort = disk.file.set_len(0);
            }
            self.skip_zeroes = allocated.map_err(|error| cannot("make room in", name, &error))?;
        }
        Ok(())
    }

    /// What the threads share.
    fn shared(&self, feed: Feed, phase: Phase) -> Shared {
        let block = self.arguments.sparse.checked_next_multiple_of(self.destination.unit());
        let sparse = match &self.destination.kind {
            Kind::Stream(_) | Kind::Null => 0,
            _ if self.arguments.sparse == 0 || self.arguments.allocated => 0,
            Kind::Server { client, .. }
                if !client.export().can_write_zeroes() && !self.skip_zeroes =>
            {
                0
            }
            // Longer than any buffer: nothing is that long.
            _ => block.and_then(|block| usize::try_from(block).ok()).unwrap_or(0),
        };
        let progress = Progress::start(&self.progress, phase, self.size);
        Shared {
            feed,
            progress,
            source: self.source.name.clone(),
            destination: self.destination.name.clone(),
            requests: self.requests,
            request_size: usize::try_from(self.cut.data).unwrap_or(usize::MAX),
            sparse,
            skip_zeroes: self.skip_zeroes,
            allocated: self.arguments.allocated,
            count: AtomicU64::new(0),
            record: None,
        }
    }

    /// Copies everything. Gives how much a stream had.
    fn copy(&mut self, team: &mut Team) -> Result<u64, Failure> {
        let feed = match &mut self.source.kind {
            Kind::Stream(file) => {
                let file = file.try_clone();
                let file = file.map_err(|error| cannot("read", &self.source.name, &error))?;
                let limit = self.destination.size().filter(|_| !self.destination.is_regular());
                Feed::stream(file, self.source.name.clone(), limit)
            }
            _ => self.plan(self.oracle(), self.begin()),
        };
        let to = if self.arguments.verify { 50 } else { 100 };
        let mut shared = self.shared(feed, Phase { what: "copy", from: 0, to });
        shared.begins_at(self.begin());
        shared.record = self.record.clone();
        let result = team.work(
            self.first_ends()?,
            |pair| self.further_ends(pair),
            |ends| Worker::new(&shared, ends).run(),
        );
        shared.progress.end();
        result?;
        let streamed = shared.feed.streamed();
        shared.check(self.size.unwrap_or(streamed))?;
        Ok(streamed)
    }

    /// What is to be copied, or compared, from an offset on.
    fn plan(&self, oracle: Oracle, from: u64) -> Feed {
        let size = self.size.unwrap_or(0);
        let plan = Plan::new(size, self.cut, Extents::new(oracle, size)).from(from);
        Feed::plan(plan)
    }

    fn oracle(&self) -> Oracle {
        if self.arguments.no_extents { Oracle::None } else { self.source.oracle() }
    }

    /// The two ends of the first thread.
    fn first_ends(&self) -> Result<Ends, Failure> {
        let source = match &self.source.kind {
            Kind::Server { client, .. } => Source::Server(client.clone()),
            Kind::Disk { disk, .. } => Source::Disk(disk.clone()),
            Kind::Stream(_) | Kind::Null => Source::Stream,
        };
        let destination = match &self.destination.kind {
            Kind::Server { client, .. } => Destination::Server(client.clone()),
            Kind::Disk { disk, .. } => Destination::Disk(disk.clone()),
            Kind::Stream(file) => {
                let (file, name) = (file.try_clone(), &self.destination.name);
                let file = file.map_err(|error| cannot("write", name, &error))?;
                Destination::Stream(InOrder::new(file))
            }
            Kind::Null => Destination::Nowhere,
        };
        Ok((source, destination))
    }

    /// The two ends of a further thread; `None` where there can be no such thread.
    fn further_ends(&self, pair: &Pair) -> Option<Ends> {
        let source = self.source.read_by(pair.source.as_ref())?;
        let destination = self.destination.written_by(pair.destination.as_ref())?;
        if let (Some(record), Some(client)) = (&self.record, &pair.destination) {
            record.joins(client);
        }
        Some((source, destination))
    }

    /// Sees to it that what was written stays, and that it is the destination that answers when it is read back.
    fn conclude(&self, team: &Team, streamed: u64) -> Result<(), Failure> {
        let name = &self.destination.name;
        // Without a flush what is read back may be nothing but a cache, which other connections need not even see.
        let Arguments { flush, verify, resume, .. } = *self.arguments;
        let retries = self.arguments.retries.are_wanted();
        let flushes = flush || verify || resume || retries;
        let shown = name.clone();
        let _reported = waiting::on(move |seconds| {
            format!("waiting for {shown}: a flush has taken {seconds} s so far")
        });
        match &self.destination.kind {
            Kind::Disk { disk, regular, .. } => {
                if *regular && self.size.is_none() {
                    // The end of a stream may have been zeroes, which were not written.
                    let sized = disk.file.set_len(streamed);
                    sized.map_err(|error| cannot("resize", name, &error))?;
                }
                match &self.record {
                    Some(record) => record.flush()?,
                    None if flushes => {
                        disk.flush().map_err(|error| cannot("flush", name, &error))?;
                    }
                    None => {}
                }
                if self.arguments.verify {
                    disk.drop_cache();
                }
            }
            Kind::Server { client, target, .. } => {
                if !client.export().can_flush() && target.has_lost_connections() {
                    return Err(Failure::failed(format!(
                        "{name} can't be flushed, and the connection to it was lost during the copy: it may have lost \
                         what was written before; copy again"
                    )));
                }
                if let Some(record) = &self.record {
                    record.flush()?;
                } else if flushes && client.export().can_flush() {
                    // A flush covers all connections. But each knows alone what its server may have lost.
                    let further = team.destinations();
                    for client in further.filter(|_| retries).chain([client]) {
                        client.flush().map_err(|error| target.explain(&error))?;
                    }
                }
            }
            Kind::Stream(_) | Kind::Null => {}
        }
        Ok(())
    }

    /// A server that has come back may have another disk behind it, of the same size and name, or one in memory.
    fn report_replaced_connections(&self) {
        if self.arguments.verify {
            return;
        }
        for side in [&self.source, &self.destination] {
            let Side { name, kind: Kind::Server { target, .. } } = side else { continue };
            if target.has_lost_connections() {
                stderr::say(&format!(
                    "the connection to {name} was lost and replaced during the copy: if its disk is in memory, or may be \
                     another one now, copy again with --verify"
                ));
            }
        }
    }

    /// Whether both files are as large as they have to be: what was cut off or added meanwhile was not copied.
    fn check_sizes(&self, streamed: u64) -> Result<(), Failure> {
        let size = self.size.unwrap_or(streamed);
        for side in [&self.source, &self.destination] {
            let Side { name, kind: Kind::Disk { disk, regular, .. } } = side else { continue };
            let exact = *regular || core::ptr::eq(side, &self.source);
            let now = size_of(&disk.file).map_err(|error| cannot("use", name, &error))?;
            if exact && now != size {
                return Err(Failure::failed(format!(
                    "{name} has changed its size during the copy, from {size} to {}: the copy is not complete",
                    counted(now, "byte")
                )));
            }
        }
        Ok(())
    }

    /// Compares all of the source with the destination, whatever is known of holes.
    fn verify(&self, team: &mut Team) -> Result<(), Failure> {
        let phase = Phase { what: "verify", from: 50, to: 100 };
        let shared = self.shared(self.plan(Oracle::None, 0), phase);
        let first = self.first_ends()?;
        let result = team.work(
            first,
            |pair| self.further_ends(pair),
            |ends| Verifier::new(&shared, ends).run(),
        );
        shared.progress.end();
        result?;
        shared.check(self.size.unwrap_or(0))
    }

    /// Disconnects from the servers.
    fn disconnect(&self, team: Team) {
        let first = [self.source.client(), self.destination.client()];
        let _reported = waiting::on(|seconds| {
            format!("waiting for the end of the connections: it has taken {seconds} s so far")
        });
        team.leave(first.into_iter().flatten());
    }
}
