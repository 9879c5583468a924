//! Options of `nbd serve` that are about its process, and not about what it serves.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::config::Config;
use super::sandbox::Mode;
use crate::exit::Failure;
use crate::quantity;

/// Options of `nbd serve`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct ProcessArguments {
    /// Replace the server that has this control socket: take its listening sockets over, so that no client is refused
    ///
    /// Without --port, --ip-addr and --unix these are all of its sockets; otherwise those of the same addresses, and the
    /// other ones are closed. The control socket is taken over, too, unless --control names another one. This server opens
    /// its exports and listens before the other one stops accepting; if it fails, the other one goes on. A volume has one
    /// writer: the other one stops accepting and closes it before this one opens it. See also --linger.
    #[arg(long, value_name = "CONTROL", conflicts_with = "track", help_heading = "Process")]
    pub(super) take_over: Option<PathBuf>,

    /// How long clients of the server that is replaced may stay with it, such as 0s, 500ms or 1m; then requests in flight
    /// finish, and clients have to connect again
    #[arg(long, value_name = "T", default_value = "1s", requires = "take_over")]
    #[arg(value_parser = quantity::duration, help_heading = "Process")]
    pub(super) linger: Duration,

    /// Replace the server although what its exports hold in memory and its dirty bitmaps are lost
    #[arg(long, requires = "take_over", help_heading = "Process")]
    pub(super) discard_state: bool,

    /// Write the process id to that file once the server is ready, and remove it at the end
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    pub(super) pid_file: Option<PathBuf>,

    /// Write a line to that descriptor once the server is ready, and close it
    #[arg(long, value_name = "N", value_parser = quantity::number_of::<u32>, help_heading = "Process")]
    pub(super) ready_fd: Option<u32>,

    /// Run a command of the shell while serving, and end with it and its exit status; it finds the server by $uri,
    /// $unixsocket, $port and $exportname
    ///
    /// Without --port, --ip-addr and --unix the server listens on a private Unix socket, as with --unix -. The URIs are not
    /// printed. When a signal ends the server, the command gets SIGTERM.
    #[arg(long, value_name = "COMMAND", conflicts_with = "take_over", help_heading = "Process")]
    pub(super) run: Option<OsString>,

    /// Serve one client on standard input and output, as for inetd and ssh, and end with it; on threads, whatever
    /// --runtime says
    #[arg(long, help_heading = "Process")]
    #[arg(conflicts_with_all = ["port", "ip_addr", "unix", "control", "take_over", "run", "allow", "deny"])]
    pub(super) stdio: bool,
}

impl ProcessArguments {
    /// Whether a server whose configuration names no listener has the default one. `given` says whether sockets were handed
    /// over.
    pub(super) const fn listens_by_default(&self, given: bool) -> bool {
        !given && self.take_over.is_none() && self.run.is_none() && !self.stdio
    }

    /// A server that replaces another one gets the control socket of the other one, unless it is to have one of its own.
    ///
    /// # Errors
    /// For what makes no sense together, which the command line can't tell of a file.
    pub(super) fn add_to(&self, config: &mut Config) -> Result<(), Failure> {
        if self.stdio && !(config.listeners.is_empty() && config.server.control.is_none()) {
            return Err(Failure::usage(
                "--stdio serves the one client on standard input and output: leave out listeners and the control socket",
            ));
        }
        if self.stdio && !config.access.is_default() {
            return Err(Failure::usage(
                "rules of access are about clients that connect, and --stdio has one that the program which starts it let \
                 in: leave out [access], --allow-user and --allow-group",
            ));
        }
        if config.server.sandbox != Mode::Off && (self.run.is_some() || self.pid_file.is_some()) {
            return Err(Failure::usage(
                "a server in a sandbox runs no command and writes no --pid-file: leave out --run, and use --ready-fd or \
                 NOTIFY_SOCKET in place of the file",
            ));
        }
        if let Some(control) = &self.take_over {
            if config.exports.iter().any(|export| !export.track.is_empty()) {
                return Err(Failure::usage(
                    "a server that takes over cannot record changes from its start on, since clients of the other one \
                     still write: leave out track, and start bitmaps by nbd bitmap when the other server has ended",
                ));
            }
            config.server.control.get_or_insert_with(|| control.clone());
        }
        Ok(())
    }
}
