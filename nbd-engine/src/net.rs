//! Sockets before a runtime takes them over.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::sockopt;

/// Listens on a TCP address, non-blocking.
///
/// # Errors
/// Those of the platform, with the address in their text.
pub fn bind_tcp(address: impl ToSocketAddrs + core::fmt::Display) -> io::Result<TcpListener> {
    let bind = || {
        let listener = TcpListener::bind(&address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error| cannot_listen(&address, &error))
}

/// Listens on a Unix socket path, non-blocking. A socket that a dead server left there is taken over.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] when a live server listens there; [`io::ErrorKind::AlreadyExists`] when the path is
/// something else than a socket, which is left alone; otherwise those of the platform, with the path in their text.
pub fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketPath)> {
    let bind = || {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                take_over(path)?;
                UnixListener::bind(path)?
            }
            result => result?,
        };
        listener.set_nonblocking(true)?;
        Ok((listener, SocketPath::new(path)?))
    };
    bind().map_err(|error| cannot_listen(path.display(), &error))
}

/// Why a place can't be listened on, with the place in the text: for adapters whose runtime binds.
#[must_use]
pub fn cannot_listen(place: impl core::fmt::Display, error: &io::Error) -> io::Error {
    explain(error, &format!("cannot listen on {place}"))
}

/// Removes a socket that nobody listens on.
fn take_over(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        let text = "there is a file of that name that is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there")),
    }
}

fn explain(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The path of a Unix socket, removed when dropped, unless another socket has taken its place.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketPath {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            // Nobody is left to be told.
            let _gone = std::fs::remove_file(&self.path);
        }
    }
}

/// Sets up a TCP stream: small messages leave at once, as the specification asks (B-CONV-05), and a peer that vanished
/// without a word is noticed some time.
///
/// # Errors
/// Those of the platform.
pub fn tune_tcp(stream: impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&stream, true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    Ok(())
}

/// The send buffer of Unix streams, in bytes: a large payload then takes fewer turns of both sides.
const UNIX_SEND_BUFFER: usize = 1 << 20;

/// Sets up a Unix stream.
pub fn tune_unix(stream: impl AsFd) {
    // The platform may allow less, which only costs time.
    let _smaller = sockopt::set_socket_send_buffer_size(&stream, UNIX_SEND_BUFFER);
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalAddr {
    /// A TCP address, with the port that was got.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl core::fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_servers_socket_is_taken_over_and_a_live_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (live, guard) = bind_unix(&path).unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        core::mem::forget(guard);
        drop(live);
        let (_again, guard) = bind_unix(&path).unwrap();
        drop(guard);
        assert!(!path.exists(), "the path is removed at the end");
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_took_the_place_of_ours_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_first, guard) = bind_unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(guard);
        assert!(path.exists());
    }
}
