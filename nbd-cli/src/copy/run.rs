//! From the command line to the copy.

use std::sync::Arc;
use std::thread;

use super::arguments::Arguments;
use super::extents::{Extents, Status};
use super::feed::Feed;
use super::open::{Kind, Side, Wishes, cannot};
use super::plan::{Cut, Plan};
use super::progress::{Phase, Progress, Wanted};
use super::sink::InOrder;
use super::trouble::Trouble;
use super::verify::Verifier;
use super::worker::{Destination, Shared, Source, Worker};
use crate::exit::Failure;
use crate::{log, target};

/// As many connections as are worth while with most servers.
const CONNECTIONS: usize = 4;

/// The longest run of zeroes that is asked for at once: more would hold up the progress bar.
const ZEROES: u64 = 128 << 20;

/// `nbd copy`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let progress = Wanted::new(arguments.progress)?;
    log::start(arguments.verbose)?;
    let places = target::places(&arguments.words)?;
    let [source, destination] = &places[..] else {
        return Err(Failure::usage("give two places: what to copy, and where to"));
    };
    let wishes = Wishes {
        requests: arguments.requests,
        extents: !arguments.no_extents,
        allocated: arguments.allocated,
        verify: arguments.verify,
        timeout: arguments.timeout,
    };
    let source = Side::source(source, &wishes)?;
    if arguments.verify && source.is_stream() {
        return Err(Failure::usage(format!("--verify: {} can't be read twice", source.name)));
    }
    let destination = Side::destination(destination, &wishes)?;
    Copy::prepare(arguments, progress, source, destination)?.carry_out()
}

/// A copy that is about to begin.
struct Copy<'a> {
    arguments: &'a Arguments,
    progress: Wanted,
    source: Side,
    destination: Side,
    size: Option<u64>,
    threads: usize,
    cut: Cut,
    requests: usize,
    skip_zeroes: bool,
}

impl<'a> Copy<'a> {
    /// Finds out how to copy, and refuses what can't work, before a byte is written.
    fn prepare(
        arguments: &'a Arguments,
        progress: Wanted,
        mut source: Side,
        mut destination: Side,
    ) -> Result<Self, Failure> {
        let size = source.size();
        if arguments.verify && matches!(destination.kind, Kind::Stream(_) | Kind::Null) {
            let text = format!("--verify: {} can't be read back", destination.name);
            return Err(Failure::usage(text));
        }
        if source.is_same_file(&destination) {
            let text = format!("{} and {} are the same file", source.name, destination.name);
            return Err(Failure::failed(text));
        }
        let room = destination.size().filter(|_| !destination.is_regular());
        if let (Some(size), Some(room)) = (size, room)
            && size > room
        {
            return Err(Failure::failed(format!(
                "the destination is too small: {} has {room} bytes, and {} has {size}; nothing was written",
                destination.name, source.name
            )));
        }
        let unit = source.unit().max(destination.unit());
        let most = source.payload().min(destination.payload());
        let data = (arguments.request_size.min(most) & !(unit - 1)).max(unit);
        let sends_zeroes = destination.client().is_some_and(|client| !client.can_write_zeroes());
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
        let threads = source.connect_more(wanted);
        let threads = destination.connect_more(threads);
        tracing::info!(threads, requests, request_size = data, "copying");
        let skip_zeroes = arguments.destination_is_zero;
        Ok(Self {
            arguments,
            progress,
            source,
            destination,
            size,
            threads,
            cut,
            requests,
            skip_zeroes,
        })
    }

    fn carry_out(mut self) -> Result<(), Failure> {
        self.make_room()?;
        let streamed = self.copy()?;
        self.conclude(streamed)?;
        if self.arguments.verify {
            self.verify()?;
        }
        self.source.leave();
        self.destination.leave();
        self.progress.done();
        Ok(())
    }

    /// Empties a regular file, and gives it its size: it is nothing but a hole then.
    fn make_room(&mut self) -> Result<(), Failure> {
        let Side { name, kind: Kind::Disk { disk, size: old, regular: true } } = &self.destination
        else {
            return Ok(());
        };
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
            self.skip_zeroes = allocated.map_err(|error| cannot("make room in", name, &error))?;
        }
        Ok(())
    }

    /// What the threads share.
    fn shared(&self, feed: Feed, phase: Phase) -> Shared {
        let block = self.arguments.sparse.next_multiple_of(self.destination.unit());
        let sparse = match &self.destination.kind {
            Kind::Stream(_) | Kind::Null => 0,
            _ if self.arguments.sparse == 0 || self.arguments.allocated => 0,
            Kind::Server { clients, .. } if !clients[0].can_write_zeroes() && !self.skip_zeroes => {
                0
            }
            _ => usize::try_from(block).unwrap_or(0),
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
        }
    }

    /// Copies everything. Gives how much a stream had.
    fn copy(&mut self) -> Result<u64, Failure> {
        let feed = match &mut self.source.kind {
            Kind::Stream(file) => {
                let file = file.try_clone();
                let file = file.map_err(|error| cannot("read", &self.source.name, &error))?;
                let limit = self.destination.size().filter(|_| !self.destination.is_regular());
                Feed::stream(file, self.source.name.clone(), limit)
            }
            _ => Feed::plan(Plan::new(self.size.unwrap_or(0), self.cut, self.extents())),
        };
        let to = if self.arguments.verify { 50 } else { 100 };
        let shared = self.shared(feed, Phase { what: "copy", from: 0, to });
        let ends = self.ends()?;
        let result =
            on_threads(ends, |source, destination| Worker::new(&shared, source, destination).run());
        shared.progress.end();
        result?;
        Ok(shared.feed.streamed())
    }

    fn extents(&self) -> Extents {
        if self.arguments.no_extents {
            return Extents::Unknown;
        }
        match &self.source.kind {
            Kind::Server { clients, .. } if clients[0].has_context(super::extents::ALLOCATION) => {
                Extents::Server(Status::new(clients[0].clone()))
            }
            Kind::Disk { disk, .. } => Extents::File(Arc::clone(&disk.file)),
            _ => Extents::Unknown,
        }
    }

    /// The two ends of each thread.
    fn ends(&self) -> Result<Vec<(Source, Destination)>, Failure> {
        let end = |at: usize| {
            let source = match &self.source.kind {
                Kind::Server { clients, .. } => Source::Server(clients[at].clone()),
                Kind::Disk { disk, .. } => Source::Disk(disk.clone()),
                Kind::Stream(_) | Kind::Null => Source::Stream,
            };
            let destination = match &self.destination.kind {
                Kind::Server { clients, .. } => Destination::Server(clients[at].clone()),
                Kind::Disk { disk, .. } => Destination::Disk(disk.clone()),
                Kind::Stream(file) => {
                    let file = file.try_clone();
                    let name = &self.destination.name;
                    Destination::Stream(InOrder::new(
                        file.map_err(|error| cannot("write", name, &error))?,
                    ))
                }
                Kind::Null => Destination::Nowhere,
            };
            Ok((source, destination))
        };
        (0..self.threads).map(end).collect()
    }

    /// Sees to it that what was written stays.
    fn conclude(&self, streamed: u64) -> Result<(), Failure> {
        let name = &self.destination.name;
        match &self.destination.kind {
            Kind::Disk { disk, regular, .. } => {
                if *regular && self.size.is_none() {
                    // The end of a stream may have been zeroes, which were not written.
                    let sized = disk.file.set_len(streamed);
                    sized.map_err(|error| cannot("resize", name, &error))?;
                }
                if self.arguments.flush {
                    disk.file.sync_all().map_err(|error| cannot("flush", name, &error))?;
                }
            }
            Kind::Server { clients, target, .. } => {
                // Other connections need not see what was written before it is flushed.
                let wanted = self.arguments.flush || self.arguments.verify && self.threads > 1;
                if wanted && clients[0].can_flush() {
                    clients[0].flush().map_err(|error| target.explain(&error))?;
                }
            }
            Kind::Stream(_) | Kind::Null => {}
        }
        Ok(())
    }

    /// Compares all of the source with the destination, whatever is known of holes.
    fn verify(&self) -> Result<(), Failure> {
        let plan = Plan::new(self.size.unwrap_or(0), self.cut, Extents::Unknown);
        let phase = Phase { what: "verify", from: 50, to: 100 };
        let shared = self.shared(Feed::plan(plan), phase);
        let result = on_threads(self.ends()?, |source, destination| {
            Verifier::new(&shared, source, destination).run()
        });
        shared.progress.end();
        Ok(result?)
    }
}

/// Works at all ends, each on a thread of its own, and gives the trouble that is nearest to the beginning.
fn on_threads(
    mut ends: Vec<(Source, Destination)>,
    work: impl Fn(Source, Destination) -> Result<(), Trouble> + Sync,
) -> Result<(), Trouble> {
    let Some((source, destination)) = ends.pop() else { return Ok(()) };
    let mut trouble = None;
    thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = ends
            .into_iter()
            .map(|(source, destination)| scope.spawn(move || work(source, destination)))
            .collect();
        let own = work(source, destination);
        let theirs = others
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        for found in std::iter::once(own).chain(theirs).filter_map(Result::err) {
            trouble = Some(found.first(trouble.take()));
        }
    });
    trouble.map_or(Ok(()), Err)
}
