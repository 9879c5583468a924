//! The command line of `nbd copy`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::progress;
use crate::quantity;
use crate::retries::Retries;
use crate::tls::TlsArguments;

/// Copy a disk from a server to a file, from a file to a server, or from one server to another.
///
/// Each of SRC and DST is a file, a block device, a URI such as nbd://HOST/EXPORT, - for standard input or output, or a
/// server's command between brackets, which is started on a private socket and stopped afterwards, such as
/// [ qemu-nbd -f qcow2 disk.qcow2 ]; DST may be null: to throw away what is read. A file is made if it is not there, and takes
/// the size of SRC; everything else has to be as large as SRC at least.
///
/// A copy onto the file that the server of SRC serves is refused where that can be known: of servers between brackets,
/// and of those of this user behind Unix sockets. It can't be known of those on TCP, on other machines or of other
/// users. Of a server between brackets as DST, a copy of the file that it writes to is refused, too.
#[derive(Debug, Args)]
#[command(override_usage = "nbd copy [OPTIONS] <SRC> <DST>")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Arguments {
    /// At most so many connections, if the servers allow for several [default: the smaller of 4 and the number of threads]
    #[arg(short = 'C', long, value_name = "N", value_parser = quantity::positive)]
    pub(super) connections: Option<usize>,

    /// At most so many requests in flight on each connection
    #[arg(short = 'R', long, value_name = "N", default_value_t = 64, value_parser = quantity::positive)]
    pub(super) requests: usize,

    /// The longest request, 64M at most; a server's own limit goes first
    #[arg(long, value_name = "N", default_value = "256k", value_parser = quantity::request_size)]
    pub(super) request_size: u64,

    /// At most so many bytes in flight on each connection [default: no limit but that of --requests]
    #[arg(long, value_name = "N", value_parser = quantity::size)]
    pub(super) queue_size: Option<u64>,

    /// At most so many threads, each with a connection of its own; 0 for the number of processors
    #[arg(short = 'T', long, value_name = "N", default_value_t = 0, value_parser = quantity::number)]
    pub(super) threads: usize,

    /// One request at a time, in order
    #[arg(long)]
    pub(super) synchronous: bool,

    /// Write blocks of N bytes that turn out to be zero as zeroes; 0 turns that off
    #[arg(short = 'S', long, value_name = "N", default_value = "4k", value_parser = quantity::size)]
    pub(super) sparse: u64,

    /// Make no holes at the destination: zeroes take up space there
    #[arg(long)]
    pub(super) allocated: bool,

    /// Leave out zeroes, as the destination has nothing else; wrong unless that is so
    #[arg(long, alias = "target-is-zero")]
    pub(super) destination_is_zero: bool,

    /// Make everything durable in the end; --retries does that, too
    #[arg(long)]
    pub(super) flush: bool,

    /// Go on with a copy onto a file, a block device or a server that was interrupted. What is copied is recorded until all
    /// is there and durable: beside a file, in DST.nbd-copy, and for the others where --record says; there is nothing else to
    /// be given the first time. The source must not have changed
    #[arg(long)]
    pub(super) resume: bool,

    /// Where --resume records what is copied to a block device or a server: a file on a disk that stays when the machine is
    /// restarted
    #[arg(long, value_name = "FILE", requires = "resume")]
    pub(super) record: Option<PathBuf>,

    /// Don't ask where the source has holes: read everything
    #[arg(long)]
    pub(super) no_extents: bool,

    /// Make everything durable as by --flush, then read both sides again, and report where they differ first
    #[arg(long)]
    pub(super) verify: bool,

    #[command(flatten)]
    pub(super) progress: progress::Argument,

    /// How long a server may take for an answer: seconds, or a number with a suffix such as 500ms or 5m; 0 for no limit but
    /// that of 30 s while connecting. With --retries a server that owes an answer and sends nothing for so long is
    /// connected to anew
    #[arg(long, value_name = "T", default_value = "0", value_parser = quantity::duration)]
    pub(super) timeout: Duration,

    #[command(flatten)]
    pub(super) retries: Retries,

    #[command(flatten)]
    pub(super) tls: TlsArguments,

    /// Tell more about what is done; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,

    /// What to copy, and where to
    #[arg(value_name = "SRC DST", required = true, num_args = 1..)]
    pub(super) words: Vec<OsString>,
}

impl Arguments {
    /// As if `-v` had been given that often at least.
    pub(crate) fn raise_verbosity(&mut self, verbosity: u8) {
        self.verbose = self.verbose.max(verbosity);
    }
}
