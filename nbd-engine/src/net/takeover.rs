//! Binding a Unix socket where a dead server may have left one.
//!
//! A socket on which nobody listens looks the same whether its server died or is about to call `listen`, and unlinking
//! is by name, not by identity. So servers take turns, by a lock on the folder, in looking at what is there and replacing
//! it; and a socket that a live process of another program has bound is recognised by the kernel's table.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{FOLDER_LOCK_TIMEOUT, folder_of, lock_folder};

/// Times that a path may change under us before we give up.
const ATTEMPTS: usize = 8;

/// Binds and listens, non-blocking.
pub(super) fn bind(path: &Path, backlog: u32) -> io::Result<UnixListener> {
    bind_within(path, backlog, FOLDER_LOCK_TIMEOUT)
}

/// What [`bind`] would find now. Nothing is made or removed.
pub(super) fn check(path: &Path) -> io::Result<()> {
    let folder = folder_of(path);
    match look(path)? {
        Found::Nothing | Found::Stale => {}
    }
    if !std::fs::metadata(folder)?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}

fn bind_within(path: &Path, backlog: u32, timeout: Duration) -> io::Result<UnixListener> {
    // A path where nothing is needs no lock: `bind` creates the file or fails.
    let lock = lock_folder(folder_of(path), timeout);
    for _ in 0..ATTEMPTS {
        match listen(path, backlog) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
        match look(path)? {
            Found::Nothing => {}
            Found::Stale => {
                if let Err(error) = &lock {
                    let text = format!(
                        "a dead server left its socket there, and the folder cannot be locked to take it over ({error}); \
                         remove the socket"
                    );
                    return Err(io::Error::other(text));
                }
                std::fs::remove_file(path)?;
            }
        }
    }
    Err(in_use("other programs keep making sockets there"))
}

/// Listens where nothing is.
fn listen(path: &Path, backlog: u32) -> io::Result<UnixListener> {
    let socket = socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    super::start_listening(&socket, backlog)?;
    Ok(socket.into())
}

/// A socket that never waits.
fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// What is at a path that could not be bound, if it may be replaced.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A socket without a process.
    Stale,
}

fn look(path: &Path) -> io::Result<Found> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        metadata => metadata?,
    };
    if !metadata.file_type().is_socket() {
        let text = "there is a file of that name that is not a socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let is_bound = || is_bound((metadata.dev(), metadata.ino()));
    match probe(path) {
        Err(Errno::CONNREFUSED | Errno::PROTOTYPE) if is_bound()? => {
            Err(in_use("another program has bound that socket and does not listen yet"))
        }
        Err(Errno::PROTOTYPE) => Err(in_use("another server listens there")),
        Err(Errno::CONNREFUSED) => Ok(Found::Stale),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        Err(Errno::ACCESS | Errno::PERM) => Err(in_use("a socket of another user is there")),
        // It takes datagrams, too.
        Ok(()) => Err(in_use("another program uses that socket")),
        Err(error) => Err(error.into()),
    }
}

fn in_use(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

/// Asks the system whether a process has the socket, by a socket for datagrams: one for streams that somebody has is refused
/// as being of another type, and one that nobody has because nobody has it. A server is not connected to, and has nothing to
/// log.
fn probe(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(socket, &SocketAddrUnix::new(path)?)
}

/// Whether a process has a socket that it bound to this file, by device and inode, and that neither listens nor is
/// connected.
#[cfg(target_os = "linux")]
fn is_bound(identity: (u64, u64)) -> io::Result<bool> {
    use std::os::unix::ffi::OsStrExt;
    /// Of the flags in the table: it listens.
    const ACCEPTS: u32 = 1 << 16;
    /// The state of a socket that is not connected.
    const UNCONNECTED: &[u8] = b"01";
    let table = match std::fs::read("/proc/net/unix") {
        // Without a table nothing can be known.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        table => table?,
    };
    Ok(table.split(|byte| *byte == b'\n').skip(1).any(|line| {
        // Number, references, protocol, flags, type, state, inode of the socket itself, and the path as it was bound.
        let mut columns = line.splitn(7, |byte| *byte == b' ');
        let (flags, state) = (columns.nth(3), columns.nth(1));
        // The inode is padded on the left.
        let rest = columns.next().unwrap_or_default().trim_ascii_start();
        let path = rest.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default();
        let flags = flags.and_then(|flags| str::from_utf8(flags).ok());
        let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok());
        state == Some(UNCONNECTED)
            && flags.is_some_and(|flags| flags & ACCEPTS == 0)
            && std::fs::symlink_metadata(std::ffi::OsStr::from_bytes(path))
                .is_ok_and(|found| (found.dev(), found.ino()) == identity)
    }))
}

/// Other systems have no such table.
#[cfg(not(target_os = "linux"))]
fn is_bound(_identity: (u64, u64)) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::Barrier;

    use tempfile::TempDir;

    use std::thread;

    use super::*;

    fn path() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a socket");
        (folder, path)
    }

    /// What a server leaves that was killed.
    fn stale() -> (TempDir, PathBuf) {
        let (folder, path) = path();
        drop(UnixListener::bind(&path).unwrap());
        (folder, path)
    }

    #[track_caller]
    fn assert_in_use(path: &Path, says: &str) {
        let before = std::fs::symlink_metadata(path).unwrap().ino();
        let error = bind(path, 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(std::fs::symlink_metadata(path).unwrap().ino(), before, "it was replaced");
    }

    #[test]
    fn a_dead_servers_socket_is_taken_over_and_a_live_ones_is_not() {
        let (_folder, path) = stale();
        let _live = bind(&path, 16).unwrap();
        assert_in_use(&path, "another server listens there");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_server_with_a_full_backlog_is_alive() {
        let (_folder, path) = path();
        let (server, address) = (socket().unwrap(), SocketAddrUnix::new(&path).unwrap());
        rustix::net::bind(&server, &address).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        let mut clients = Vec::new();
        loop {
            let client = socket().unwrap();
            let connected = rustix::net::connect(&client, &address);
            clients.push(client);
            assert!(clients.len() < 10_000, "the backlog has an end");
            if connected == Err(Errno::AGAIN) {
                break;
            }
            connected.unwrap();
        }
        assert_in_use(&path, "another server listens there");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_socket_that_is_bound_and_does_not_listen_yet_is_not_taken_over() {
        let (folder, path) = path();
        let server = socket().unwrap();
        rustix::net::bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_in_use(&path, "does not listen yet");
        // The same file by another name.
        std::os::unix::fs::symlink(folder.path(), folder.path().join("link")).unwrap();
        assert_in_use(&folder.path().join("link/a socket"), "does not listen yet");
        rustix::net::listen(&server, 1).unwrap();
        assert_in_use(&path, "another server listens there");
        drop(server);
        bind(&path, 16).unwrap();
    }

    #[test]
    fn sockets_of_another_kind_are_left_to_their_owners() {
        let (_folder, path) = path();
        let _datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert_in_use(&path, "another program uses that socket");
    }

    #[test]
    fn a_server_is_found_without_being_connected_to() {
        let (_folder, path) = path();
        let live = bind(&path, 16).unwrap();
        for _ in 0..3 {
            assert_in_use(&path, "another server listens there");
            assert_eq!(check(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        assert_eq!(live.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_socket_that_was_removed_meanwhile_is_bound() {
        let (_folder, path) = path();
        assert_eq!(look(&path).unwrap(), Found::Nothing);
        bind(&path, 16).unwrap();
    }

    #[test]
    fn a_stale_socket_is_only_replaced_under_the_lock() {
        let (folder, path) = stale();
        let held = lock_folder(folder.path(), FOLDER_LOCK_TIMEOUT).unwrap();
        let error = bind_within(&path, 16, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("cannot be locked"), "{error}");
        assert!(path.exists());
        // Meanwhile another server takes it over: the one that waits finds it alive.
        thread::scope(|scope| {
            let second = scope.spawn(|| bind_within(&path, 16, Duration::from_secs(60)));
            std::fs::remove_file(&path).unwrap();
            let _first = UnixListener::bind(&path).unwrap();
            drop(held);
            assert_eq!(second.join().unwrap().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        });
        // A path where nothing is does not need it.
        let _held = lock_folder(folder.path(), FOLDER_LOCK_TIMEOUT).unwrap();
        bind_within(&folder.path().join("other"), 16, Duration::ZERO).unwrap();
    }

    #[test]
    fn one_of_many_takes_a_stale_socket_over() {
        const SERVERS: usize = 4;
        for _ in 0..200 {
            let (_folder, path) = stale();
            let barrier = Barrier::new(SERVERS);
            let bound: Vec<_> = thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    bind_within(&path, 16, Duration::from_secs(60))
                };
                let servers: Vec<_> = (0..SERVERS).map(|_| scope.spawn(start)).collect();
                servers.into_iter().map(|server| server.join().unwrap()).collect()
            });
            let (won, lost): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
            assert_eq!(won.len(), 1, "{won:?} {lost:?}");
            for error in lost.into_iter().filter_map(Result::err) {
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
            }
            UnixStream::connect(&path).unwrap();
            let winner = won.into_iter().next().unwrap().unwrap();
            winner.accept().unwrap();
        }
    }
}
