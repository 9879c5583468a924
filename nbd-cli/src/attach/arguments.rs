//! The command line of `nbd attach`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use crate::quantity;
use crate::tls::TlsArguments;

/// How long requests wait for a connection when all are lost and none is replaced: a server's service that restarts is back
/// by then, and programs that wait for the disk are not held up for long.
const DEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The same with `--persist`: a server's machine that restarts is back by then.
const PERSISTENT_DEAD_TIMEOUT: Duration = Duration::from_secs(300);

/// Make an export a block device of this machine, by the kernel's NBD client, and write its path, such as /dev/nbd0.
///
/// The kernel's module nbd has to be there (modprobe nbd), and the right CAP_SYS_ADMIN. The command ends once the device is
/// attached, unless it has to carry TLS or other streams that the kernel can't, started the server, or was given
/// --persist: then it stays until the device is detached, by nbd detach or a signal.
#[derive(Debug, Args)]
#[command(override_usage = "nbd attach [OPTIONS] <URI | [ COMMAND ARGS ]> [DEVICE]")]
pub(crate) struct Arguments {
    /// The export's URI, or the command of a server between brackets, as with nbd info; and the device, such as /dev/nbd0
    /// [default: a free one]
    #[arg(value_name = "URI DEVICE", required = true, num_args = 1..)]
    pub(super) words: Vec<OsString>,

    /// Connections to make, where the server allows several
    #[arg(long, value_name = "N", default_value = "1", value_parser = quantity::positive)]
    pub(super) connections: usize,

    /// How long a reply may take, in seconds, or a number with a suffix such as 5m; 0 for any time. A request without one
    /// has its connection closed, and is sent again on another one
    #[arg(long, value_name = "T", default_value = "60", value_parser = quantity::duration)]
    pub(super) timeout: Duration,

    /// How long requests wait for a new connection once all are lost, before they fail [default: 30, with --persist 300]
    #[arg(long, value_name = "T", value_parser = quantity::duration)]
    dead_timeout: Option<Duration>,

    /// Stay, and replace connections that are lost, if the export is still the same
    #[arg(long)]
    pub(super) persist: bool,

    /// Allow no writes
    #[arg(long)]
    pub(super) read_only: bool,

    /// Have the kernel detach the device when the last program closes it
    #[arg(long)]
    pub(super) disconnect_on_close: bool,

    /// Have the kernel remove the device when it is detached
    #[arg(long)]
    pub(super) destroy_on_disconnect: bool,

    /// Write JSON: the device
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) tls: TlsArguments,
}

impl Arguments {
    pub(super) fn dead_timeout(&self) -> Duration {
        let default = if self.persist { PERSISTENT_DEAD_TIMEOUT } else { DEAD_TIMEOUT };
        self.dead_timeout.unwrap_or(default)
    }
}
