//! Sockets that listen already, handed over by systemd's socket activation: by systemd itself, or by a client such as
//! nbdinfo and nbdcopy that starts a server for itself.

use core::sync::atomic::{AtomicI32, Ordering};
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nbd_engine::net::LocalAddr;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::descriptor;
use crate::exit::Failure;

/// The number of the first one.
const FIRST: RawFd = 3;

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// The same socket once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(Self::Tcp),
            Self::Unix(listener) => listener.try_clone().map(Self::Unix),
        }
    }

    /// Where it listens.
    pub(super) fn local_addr(&self) -> io::Result<LocalAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(LocalAddr::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(Path::to_owned);
                Ok(LocalAddr::Unix(path.unwrap_or_default()))
            }
        }
    }

    /// Makes it non-blocking.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl TryFrom<OwnedFd> for Socket {
    /// What is wrong with the descriptor.
    type Error = &'static str;

    fn try_from(socket: OwnedFd) -> Result<Self, Self::Error> {
        let kind = sockopt::socket_type(&socket).map_err(|_| "is not a socket")?;
        if kind != SocketType::STREAM || !sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            return Err("is not a stream socket that listens");
        }
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => Ok(Self::Tcp(socket.into())),
            Ok(AddressFamily::UNIX) => Ok(Self::Unix(socket.into())),
            _ => Err("is neither a TCP nor a Unix socket"),
        }
    }
}

/// How many were handed over to this process.
static TAKEN: AtomicI32 = AtomicI32::new(0);

/// Whether that is the number of a socket that was handed over.
pub(super) fn has_taken(number: RawFd) -> bool {
    (FIRST..FIRST.saturating_add(TAKEN.load(Ordering::Relaxed))).contains(&number)
}

/// The sockets that were handed to this process; `None` if there are none. To be called before anything is opened.
pub(super) fn sockets() -> Result<Option<Vec<Socket>>, Failure> {
    let [pid, fds] = ["LISTEN_PID", "LISTEN_FDS"].map(std::env::var_os);
    let Some(count) = count(pid, fds, std::process::id())? else { return Ok(None) };
    end_with_parent();
    TAKEN.store(RawFd::try_from(count).unwrap_or(RawFd::MAX), Ordering::Relaxed);
    (FIRST..).take(count).map(|number| socket(number, count)).collect::<Result<_, _>>().map(Some)
}

/// Asks for SIGTERM when the parent of this process ends. A client that has started a server for itself may fail
/// without a word to it, as nbdcopy does, and no other process knows of that server. nbdkit does the same.
#[cfg(target_os = "linux")]
fn end_with_parent() {
    use rustix::process::{
        Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal,
    };
    let parent = getppid();
    // That is systemd itself, or the parent has ended already.
    if parent == Some(Pid::INIT) {
        return;
    }
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        tracing::info!(%error, "will not notice the end of the process that has started this one");
    }
    if getppid() != parent {
        // It has ended in between.
        let _can_always_signal_itself = kill_process(getpid(), Signal::TERM);
    }
}

/// Other systems have no such signal.
#[cfg(not(target_os = "linux"))]
const fn end_with_parent() {}

/// How many sockets there are for the process of that number.
fn count(pid: Option<OsString>, fds: Option<OsString>, own: u32) -> Result<Option<usize>, Failure> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(None) };
    let number = |name: &str, text: OsString| {
        // Alone, parse would take a sign.
        let digits = text.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|text| text.parse::<u32>().ok()).filter(|n| *n > 0).ok_or_else(|| {
            Failure::usage(format!(
                "{name} is '{}', which is no number of at least 1: unset LISTEN_PID and LISTEN_FDS, or leave them to \
                 the program that starts servers by socket activation",
                text.to_string_lossy()
            ))
        })
    };
    if number("LISTEN_PID", pid)? != own {
        // Meant for the process that started us, or for one that it has started before.
        return Ok(None);
    }
    let count = number("LISTEN_FDS", fds)?;
    Ok(Some(usize::try_from(count).unwrap_or(usize::MAX)))
}

fn socket(number: RawFd, count: usize) -> Result<Socket, Failure> {
    let failed = |what: &str| {
        Failure::failed(format!(
            "socket activation (LISTEN_FDS={count}): descriptor {number} {what}"
        ))
    };
    let socket = descriptor::take(number).map_err(|_| failed("is not open"))?;
    Socket::try_from(socket)
        .map_err(|what| failed(&format!("{what}; systemd needs ListenStream= and Accept=no")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pid: &str, fds: &str) -> Result<Option<usize>, Failure> {
        count(Some(pid.into()), Some(fds.into()), 77)
    }

    #[test]
    fn sockets_are_counted_if_they_are_for_this_process() {
        assert!(matches!(words("77", "2"), Ok(Some(2))));
        assert!(matches!(words("78", "2"), Ok(None)));
        assert!(matches!(count(None, Some("2".into()), 77), Ok(None)));
        assert!(matches!(count(Some("77".into()), None, 77), Ok(None)));
    }

    #[test]
    fn malformed_variables_are_named() {
        for text in ["", "x", "-1", "+1", "+77", "0", "1 ", "99999999999"] {
            for (found, name) in
                [(words(text, "1"), "LISTEN_PID"), (words("77", text), "LISTEN_FDS")]
            {
                let Err(Failure::Usage(said)) = found else { panic!("{text:?}: {found:?}") };
                assert!(said.contains(&format!("{name} is '{text}'")), "{said}");
            }
        }
    }
}
