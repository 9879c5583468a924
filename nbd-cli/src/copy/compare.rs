//! `nbd compare`: whether two disks have the same bytes, and where they differ first.

use core::sync::atomic::AtomicU64;
use std::ffi::OsString;
use std::io::Write;
use std::thread;

use clap::Args;
use nbd_blocking::Client;
use nbd_engine::counted;
use serde_json::json;

use super::extents::{Extents, Oracle};
use super::feed::Feed;
use super::open::{self, Side, Wishes};
use super::plan::{Cut, Plan};
use super::progress::{self, Phase, Progress, Wanted};
use super::run::CONNECTIONS;
use super::team::{Ends, Team};
use super::verify::Verifier;
use super::worker::Shared;
use crate::exit::Failure;
use crate::target::Place;
use crate::tls::TlsArguments;
use crate::{json, output, quantity, target, waiting};

/// Requests in flight on each connection to each side.
const REQUESTS: usize = 64;

/// The longest request: that of a copy.
const REQUEST_SIZE: u64 = 256 << 10;

/// The longest run of zeroes that is left out at once: more would hold up the progress bar.
const ZEROES: u64 = 1 << 30;

/// Compare two disks byte by byte, and show where they differ first.
///
/// Each of A and B is a file, a block device, a URI such as nbd://HOST/EXPORT, or a server's command between brackets,
/// which is started on a private socket and stopped afterwards, such as [ qemu-nbd -r -f qcow2 disk.qcow2 ]. Where both
/// sides report that a range reads as zeroes, it is not read. Neither may change meanwhile.
///
/// Exit status, as that of cmp and qemu-img compare: 0 if the disks are the same, without output; 1 if they differ; 2
/// if they could not be compared. Disks of different sizes differ, where the smaller one ends at the latest; --length
/// compares only what both have.
#[derive(Debug, Args)]
#[command(override_usage = "nbd compare [OPTIONS] <A> <B>")]
pub(crate) struct Arguments {
    /// Write JSON, of disks that are the same as well
    #[arg(long)]
    json: bool,

    /// Compare the first N bytes only, such as 512, 10M or 1G
    #[arg(short = 'n', long, value_name = "N", value_parser = quantity::size)]
    length: Option<u64>,

    /// At most so many connections to each side, if the servers allow for several [default: the smaller of 4 and the
    /// number of processors]
    #[arg(short = 'C', long, value_name = "N", value_parser = quantity::positive)]
    connections: Option<usize>,

    /// Don't ask where the disks have holes: read everything
    #[arg(long)]
    no_extents: bool,

    #[command(flatten)]
    progress: progress::Argument,

    #[command(flatten)]
    patience: target::Patience,

    #[command(flatten)]
    tls: TlsArguments,

    /// What to compare
    #[arg(value_name = "A B", required = true, num_args = 1..)]
    words: Vec<OsString>,
}

/// `nbd compare`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    compare(arguments).map_err(Failure::undecided)
}

fn compare(arguments: &Arguments) -> Result<(), Failure> {
    let progress = Wanted::new(&arguments.progress)?;
    waiting::start(false);
    let places = target::places(&arguments.words)?;
    let [one, other] = &places[..] else {
        return Err(Failure::usage(
            "give two disks to compare, such as disk.img nbd://HOST/EXPORT",
        ));
    };
    let wishes = Wishes {
        requests: REQUESTS,
        extents: !arguments.no_extents,
        allocated: false,
        verify: false,
        resume: false,
        timeout: arguments.patience.timeout,
        retries: arguments.patience.retries.clone(),
        tls: arguments.tls.clone(),
    };
    let sides = [Side::source(one, &wishes)?, Side::source(other, &wishes)?];
    let uris: Vec<_> = sides.iter().filter_map(Side::uri).collect();
    arguments.tls.check_used(&uris)?;
    let sizes = [size(&sides[0])?, size(&sides[1])?];
    let common = sizes[0].min(sizes[1]);
    let length = arguments.length.unwrap_or(common);
    if length > common {
        let [one, other] = &sides;
        return Err(Failure::failed(format!(
            "--length {length} is more than both have: {} has {}, and {} has {}",
            one.name,
            counted(sizes[0], "byte"),
            other.name,
            sizes[1]
        )));
    }
    let found = Comparison { arguments, progress, sides: &sides, length }
        .carry_out()
        .map_err(|failure| open::named(failure, [&sides[0], &sides[1]]))?;
    let ends = arguments.length.is_none() && sizes[0] != sizes[1];
    let difference = found.or(ends.then_some(common));
    let names = [word(one), word(other)];
    report(arguments.json, names, sizes, length, difference)?;
    difference.map_or(Ok(()), |_| Err(Failure::Differ))
}

/// The size of a side that can be read at offsets.
fn size(side: &Side) -> Result<u64, Failure> {
    side.size().ok_or_else(|| {
        let name = &side.name;
        Failure::usage(format!(
            "{name} can't be read at any offset: write it to a file, and compare that"
        ))
    })
}

/// A side as it was given.
fn word(place: &Place) -> String {
    match place {
        Place::Word(word) => word.to_string_lossy().into_owned(),
        Place::Command(_) => place.to_string(),
    }
}

fn report(
    json: bool,
    [one, other]: [String; 2],
    sizes: [u64; 2],
    length: u64,
    difference: Option<u64>,
) -> Result<(), Failure> {
    output::write(|out| {
        if json {
            let document = json!({
                "same": difference.is_none(),
                "first-difference": difference,
                "length": length,
                "a": { "name": one, "size": sizes[0] },
                "b": { "name": other, "size": sizes[1] },
            });
            return Ok(json::write(out, &document)?);
        }
        let Some(offset) = difference else { return Ok(()) };
        let [one, other] = [&one, &other].map(|name| output::printable(name));
        write!(out, "{one} and {other} differ: the first difference is at offset {offset}")?;
        if sizes[0] != sizes[1] {
            write!(out, "; {one} has {}, and {other} has {}", counted(sizes[0], "byte"), sizes[1])?;
        }
        Ok(writeln!(out)?)
    })
}

/// A comparison that is about to begin.
struct Comparison<'a> {
    arguments: &'a Arguments,
    progress: Wanted,
    sides: &'a [Side; 2],
    length: u64,
}

impl Comparison<'_> {
    /// Gives the first offset at which the sides differ.
    fn carry_out(self) -> Result<Option<u64>, Failure> {
        let [one, other] = self.sides;
        let unit = one.unit().max(other.unit());
        let max = one.payload().min(other.payload());
        let data = Cut::longest_data(REQUEST_SIZE, max, unit);
        let cut = Cut { unit, data, zero: ZEROES.max(unit) };
        let phase = Phase { what: "compare", from: 0, to: 100 };
        let shared = Shared {
            feed: Feed::plan(Plan::new(self.length, cut, self.extents())),
            progress: Progress::start(&self.progress, phase, Some(self.length)),
            source: one.name.clone(),
            destination: other.name.clone(),
            requests: REQUESTS,
            request_size: usize::try_from(data).unwrap_or(usize::MAX),
            sparse: 0,
            skip_zeroes: false,
            allocated: false,
            count: AtomicU64::new(0),
            record: None,
        };
        let mut team = Team::to_be_made(self.connections(data) - 1, (one.maker(), other.maker()));
        let first = self.ends(one.client(), other.client());
        let first = first.ok_or_else(|| Failure::failed("there is nothing to read"))?;
        let result = team.work(
            first,
            |pair| self.ends(pair.source.as_ref(), pair.destination.as_ref()),
            |ends| Verifier::new(&shared, ends).run(),
        );
        shared.progress.end();
        let found = match result {
            Ok(()) => {
                shared.check(self.length)?;
                None
            }
            Err(error) => match error.difference() {
                Some(offset) => Some(offset),
                None => return Err(error.of("comparison")),
            },
        };
        team.leave([one.client(), other.client()].into_iter().flatten());
        self.progress.done();
        Ok(found)
    }

    /// Where both sides are known to be zero.
    fn extents(&self) -> Extents {
        if self.arguments.no_extents {
            return Extents::new(Oracle::None, self.length);
        }
        let sides = self.sides.each_ref().map(|side| Extents::new(side.oracle(), self.length));
        Extents::new(Oracle::Both(Box::new(sides)), self.length)
    }

    /// How many connections to make to each side, for requests of that size.
    fn connections(&self, data: u64) -> usize {
        let processors = thread::available_parallelism().map_or(1, Into::into);
        let wanted = self.arguments.connections.unwrap_or(CONNECTIONS.min(processors));
        let pieces = usize::try_from(self.length.div_ceil(data)).unwrap_or(usize::MAX);
        let [one, other] = self.sides;
        other.most_connections(one.most_connections(wanted.min(pieces.max(1))))
    }

    /// What a thread reads by connections of its own.
    fn ends(&self, one: Option<&Client>, other: Option<&Client>) -> Option<Ends> {
        let [first, second] = self.sides;
        Some((first.read_by(one)?, second.written_by(other)?))
    }
}
