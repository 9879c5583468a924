//! Unix listeners, their paths, and streams.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::sockopt;

use super::folder::{identity, remove_file_of};
use super::takeover;

/// Listens on a Unix socket path, non-blocking. A socket that a dead server left there is taken over; of several servers
/// that try to, one succeeds, and the others find a live server.
///
/// May wait for up to two seconds for other servers that start in the same folder.
///
/// `backlog` is how many connections the system holds until they are accepted. The system may lower it.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] when the socket belongs to a live server, whether it listens already or not yet;
/// [`io::ErrorKind::AlreadyExists`] when the path is something else than a socket, which is left alone;
/// [`io::ErrorKind::InvalidInput`] when the path is [too long](check_socket_path); otherwise those of the platform. The
/// path is in the text.
pub fn bind_unix(path: &Path, backlog: u32) -> io::Result<(UnixListener, SocketPath)> {
    let bind = || {
        check_socket_path(path)?;
        let listener = takeover::bind(path, backlog)?;
        Ok((listener, SocketPath::new(path)?))
    };
    bind().map_err(|error| super::cannot_listen(path.display(), &error))
}

/// Finds out whether [`bind_unix`] would succeed now, and changes nothing. A live server is not connected to.
///
/// # Errors
/// Those of [`bind_unix`].
pub fn check_unix(path: &Path) -> io::Result<()> {
    let check = || {
        check_socket_path(path)?;
        takeover::check(path)
    };
    check().map_err(|error| super::cannot_listen(path.display(), &error))
}

/// The longest path that the address of a Unix socket has room for, in bytes.
const MAX_PATH: usize =
    if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };

/// Checks that the path of a Unix socket fits into an address.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] when it is too long, with the limit and what to do in the text; without the path.
pub fn check_socket_path(path: &Path) -> io::Result<()> {
    let length = path.as_os_str().len();
    if length <= MAX_PATH {
        return Ok(());
    }
    let text = format!(
        "the path of a Unix socket has at most {MAX_PATH} bytes, and this one has {length}; choose a shorter one, or a \
         relative one"
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// The path of a Unix socket, removed when dropped, unless another socket has taken its place.
///
/// Dropping it may block for up to [two seconds](super::FOLDER_LOCK_TIMEOUT) while other servers start in the same
/// folder. Drop it before the listener, as a pair of both does, which [listens](crate::server::Listen), too: as long as
/// that is open no other server takes the path over, and no other file can have its identity.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    identity: (u64, u64),
    /// Another process removes it.
    left: bool,
}

impl SocketPath {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)?, left: false })
    }

    /// The path of a socket that another process has bound, which has [left](Self::leave) it to this one together with the
    /// listener. `identity` is what it had [there](Self::identity).
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when that file is not there any more, with the path in the text; otherwise those of the
    /// platform.
    pub fn adopt(path: &Path, identity: (u64, u64)) -> io::Result<Self> {
        let found = Self::new(path).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot use {}: {error}", path.display()))
        })?;
        if found.identity == identity {
            return Ok(found);
        }
        found.leave();
        let text = format!("another file is at {} now", path.display());
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is, whatever its path: device and inode.
    #[must_use]
    pub const fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Leaves the file to another process, which has the listener, too.
    pub fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if !self.left {
            remove_file_of(&self.path, self.identity);
        }
    }
}

/// The send buffer of Unix streams, in bytes: a large payload then takes fewer turns of both sides.
const UNIX_SEND_BUFFER: usize = 1 << 20;

/// Sets up a Unix stream of a server or a client: its send buffer has 1 MiB where the system allows it.
pub fn tune_unix(stream: impl AsFd) {
    // The platform may allow less, which only costs time.
    let _smaller = sockopt::set_socket_send_buffer_size(&stream, UNIX_SEND_BUFFER);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind_unix(&path, 16).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    /// Each with the kind of its error, and the folder stays as it was.
    #[test]
    fn a_check_says_of_a_path_what_binding_would() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "precious").unwrap();
        drop(UnixListener::bind(path("stale")).unwrap());
        let _live = UnixListener::bind(path("live")).unwrap();
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names = Vec::from_iter(entries.map(|entry| entry.unwrap().file_name()));
            names.sort();
            names
        };
        let before = names();
        for (name, kind) in [
            ("new", None),
            ("stale", None),
            ("live", Some(io::ErrorKind::AddrInUse)),
            ("file", Some(io::ErrorKind::AlreadyExists)),
            ("missing/socket", Some(io::ErrorKind::NotFound)),
            ("file/socket", Some(io::ErrorKind::NotADirectory)),
            ("", Some(io::ErrorKind::AlreadyExists)),
        ] {
            let found = check_unix(&path(name)).map_err(|error| error.kind());
            assert_eq!(found.err(), kind, "{name}");
        }
        assert_eq!(names(), before);
        for name in ["live", "file", "missing/socket", "file/socket", "new", "stale"] {
            let found = check_unix(&path(name)).map_err(|error| error.kind());
            assert_eq!(bind_unix(&path(name), 16).map(drop).map_err(|error| error.kind()), found);
        }
    }

    #[test]
    fn a_socket_that_took_the_place_of_ours_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_first, guard) = bind_unix(&path, 16).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(guard);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_was_left_belongs_to_the_process_that_adopts_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, first) = bind_unix(&path, 16).unwrap();
        let identity = first.identity();
        first.leave();
        assert!(path.exists());
        // As long as somebody listens, no other server takes the path over.
        assert_eq!(bind_unix(&path, 16).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(SocketPath::adopt(&path, identity).unwrap());
        assert!(!path.exists());
        let missing = SocketPath::adopt(&path, identity).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "another file").unwrap();
        let error = SocketPath::adopt(&path, identity).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(path.exists(), "it is not ours");
        drop(listener);
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused_with_its_length() {
        let folder = tempfile::tempdir().unwrap();
        let room = MAX_PATH - folder.path().as_os_str().len() - 1;
        bind_unix(&folder.path().join("x".repeat(room)), 16).unwrap();
        let path = folder.path().join("x".repeat(room + 1));
        let error = bind_unix(&path, 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(text.contains("at most 107 bytes, and this one has 108; choose"), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}
