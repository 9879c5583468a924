//! `--stdio`: one client on standard input and standard output, for inetd and ssh.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_blocking::Server;
use nbd_engine::server::{Outcome, ServerConfig};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::live::Live;
use super::reload::Reload;
use super::signals;
use super::supervisor::Readiness;
use crate::descriptor;
use crate::exit::Failure;

/// Where the client is.
#[derive(Debug)]
pub(super) enum Stdio {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Two pipes, files of any other kind, or two sockets.
    Two(File, File),
}

impl Stdio {
    /// Standard input and output. To be called before anything else is opened.
    pub(super) fn take() -> Result<Self, Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::failed(format!("cannot serve a client on standard {what}: {error}"))
        };
        descriptor::check_stdin().map_err(|error| failed("input", error))?;
        descriptor::check_stdout().map_err(|error| failed("output", error))?;
        let input = descriptor::share(0).map_err(|error| failed("input", error))?;
        let output = descriptor::share(1).map_err(|error| failed("output", error))?;
        Ok(Self::of(input, output))
    }

    /// inetd gives one socket for both directions, and of such the client's address is known.
    fn of(input: OwnedFd, output: OwnedFd) -> Self {
        let is_stream = sockopt::socket_type(&input) == Ok(SocketType::STREAM);
        if !is_stream || !is_same(&input, &output) {
            return Self::Two(input.into(), output.into());
        }
        match sockopt::socket_domain(&input) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => Self::Tcp(input.into()),
            Ok(AddressFamily::UNIX) => Self::Unix(input.into()),
            _ => Self::Two(input.into(), output.into()),
        }
    }

    /// Serves the client until it disconnects, or a signal ends the server.
    pub(super) fn serve(
        self,
        exports: Live,
        config: ServerConfig,
        reload: &Arc<Reload>,
        mut readiness: Readiness,
        oldstyle: bool,
    ) -> Result<Outcome, Failure> {
        let server = Server::with_config(exports, config);
        let server = if oldstyle { server.oldstyle("") } else { server };
        let (stop, supervisor) = (server.clone(), readiness.supervisor.clone());
        let end = move || {
            supervisor.stopping();
            stop.shut_down();
        };
        let supervisor = readiness.supervisor.clone();
        let reload = Arc::clone(reload);
        let reload = move || reload.hang_up(&supervisor);
        signals::watch(end, reload)
            .map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")))?;
        readiness.announce();
        let served = match self {
            Self::Tcp(stream) => server.serve_tcp(stream),
            Self::Unix(stream) => server.serve_unix(stream),
            Self::Two(input, output) => server.serve_stream(input, output),
        };
        served.map_err(|error| Failure::failed(format!("the connection failed: {error}")))?;
        server.shut_down();
        Ok(server.wait())
    }
}

/// Whether two descriptors are of the same file.
fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    let identity = |file: &dyn Fn() -> rustix::io::Result<rustix::fs::Stat>| {
        file().map(|stat| (stat.st_dev, stat.st_ino))
    };
    let one = identity(&|| rustix::fs::fstat(&one));
    one.is_ok() && one == identity(&|| rustix::fs::fstat(&other))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn one_socket_for_both_directions_is_known_from_two() {
        let (own, other) = UnixStream::pair().unwrap();
        let again: OwnedFd = own.try_clone().unwrap().into();
        assert!(matches!(Stdio::of(own.into(), again), Stdio::Unix(_)));
        let (second, _peer) = UnixStream::pair().unwrap();
        assert!(matches!(Stdio::of(other.into(), second.into()), Stdio::Two(..)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let again: OwnedFd = tcp.try_clone().unwrap().into();
        assert!(matches!(Stdio::of(tcp.into(), again), Stdio::Tcp(_)));
        let (read, write) = io::pipe().unwrap();
        assert!(matches!(Stdio::of(read.into(), write.into()), Stdio::Two(..)));
    }
}
