//! This process's own ends of connections to Unix sockets.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, SocketAddrUnix, getpeername, recv, shutdown};

use crate::descriptor::share;

/// How often to look whether there is a hurry.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// Descriptors of our own for those sockets of this process that are connected to the socket of that name, by whatever name
/// its server has bound it: a relative one begins at that server's folder, and links may lead there.
pub(super) fn connected_to(name: &[u8]) -> Vec<OwnedFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok()
    };
    let sought = identity(Path::new(OsStr::from_bytes(name)));
    let is_sought = |socket: &OwnedFd| {
        is_peer(socket, name)
            || sought.is_some() && peer_file(socket).and_then(|path| identity(&path)) == sought
    };
    let sockets = entries.filter_map(number).filter_map(|number| share(number).ok());
    sockets.filter(is_sought).collect()
}

fn is_peer(socket: &OwnedFd, name: &[u8]) -> bool {
    let Ok(Some(peer)) = getpeername(socket) else { return false };
    let Ok(peer) = SocketAddrUnix::try_from(peer) else { return false };
    match name.strip_prefix(b"\0") {
        Some(name) => peer.abstract_name() == Some(name),
        None => peer.path_bytes() == Some(name),
    }
}

/// The socket that lies at a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    found.file_type().is_socket().then(|| (found.dev(), found.ino()))
}

/// Where the socket lies that a socket is connected to, if it has a path.
fn peer_file(socket: &OwnedFd) -> Option<PathBuf> {
    let peer = SocketAddrUnix::try_from(getpeername(socket).ok()??).ok()?;
    let name = Path::new(OsStr::from_bytes(peer.path_bytes()?));
    let process = peer_process(socket.as_fd())?;
    // A path that is too long for a socket's name is reached by an open folder.
    if let Ok(own) = name.strip_prefix("/proc/self") {
        return Some(Path::new(&format!("/proc/{process}")).join(own));
    }
    Some(Path::new(&format!("/proc/{process}/cwd")).join(name))
}

/// The process at the other end.
#[cfg(target_os = "linux")]
pub(super) fn peer_process(socket: BorrowedFd<'_>) -> Option<u32> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn peer_process(_: BorrowedFd<'_>) -> Option<u32> {
    None
}

/// Adds those of `more` that are not the same sockets.
pub(super) fn add(sockets: &mut Vec<OwnedFd>, more: Vec<OwnedFd>) {
    let identity =
        |socket: &OwnedFd| fstat(socket).map(|status| (status.st_dev, status.st_ino)).ok();
    for socket in more {
        if !sockets.iter().any(|known| identity(known) == identity(&socket)) {
            sockets.push(socket);
        }
    }
}

/// Lets the servers at the other ends come to their end, which takes until `deadline` at most, or until `hurry` says so, and
/// hangs up.
pub(super) fn close(sockets: Vec<OwnedFd>, deadline: Instant, mut hurry: impl FnMut() -> bool) {
    for socket in &sockets {
        let _ended_already = shutdown(socket, Shutdown::Write);
    }
    for socket in &sockets {
        drain(socket, deadline, &mut hurry);
        let _ended_already = shutdown(socket, Shutdown::Both);
    }
}

/// Throws away what comes until the other side has closed the connection.
fn drain(socket: &OwnedFd, deadline: Instant, mut hurry: impl FnMut() -> bool) {
    let look = Timespec::try_from(LOOK).unwrap_or_default();
    let mut buffer = [0; 64 << 10];
    while Instant::now() < deadline && !hurry() {
        let mut ready = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut ready, Some(&look)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        // Another thread may still read there: the later one gets nothing, and must not wait for it.
        match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((1.., _)) | Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_connections_to_one_socket_end_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let listeners = ["a", "b"].map(|name| UnixListener::bind(path(name)).unwrap());
        let mut streams = ["a", "b", "a"].map(|name| UnixStream::connect(path(name)).unwrap());
        let mut found = Vec::new();
        for _ in 0..3 {
            add(&mut found, connected_to(path("a").as_os_str().as_bytes()));
            assert_eq!(found.len(), 2, "each of them once");
        }
        close(found, Instant::now(), || false);
        assert_eq!(streams[0].read(&mut [0]).unwrap(), 0);
        assert_eq!(streams[2].read(&mut [0]).unwrap(), 0);
        streams[1].set_nonblocking(true).unwrap();
        assert!(streams[1].read(&mut [0]).is_err(), "it is open");
        drop(listeners);
    }

    #[test]
    fn what_still_comes_is_thrown_away_until_the_other_side_has_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut server, _) = listener.accept().unwrap();
            let written = server.write_all(&vec![7; 1 << 20]);
            (written.is_ok(), server.read(&mut [0]).unwrap())
        });
        let far = Instant::now() + Duration::from_secs(60);
        close(connected_to(path.as_os_str().as_bytes()), far, || false);
        assert_eq!(server.join().unwrap(), (true, 0), "all is taken, and then there is an end");
        drop(stream);
    }

    /// One that is in a hurry waits for none of it.
    #[test]
    fn a_server_that_is_silent_for_longer_than_a_second_has_the_time_that_there_is() {
        let silence = Duration::from_millis(1200);
        for hurry in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let server = std::thread::spawn(move || {
                assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
                std::thread::sleep(silence);
                theirs.write_all(b"a last word").is_ok()
            });
            close(vec![ours.into()], Instant::now() + Duration::from_secs(60), || hurry);
            assert_eq!(server.join().unwrap(), !hurry);
        }
    }
}
