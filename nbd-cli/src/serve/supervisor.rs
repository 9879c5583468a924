//! What a supervisor learns of the server: `READY=1` and its like for systemd (see `sd_notify(3)`), the line of
//! `--ready-fd`, and the file of `--pid-file`.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_engine::net::{FOLDER_LOCK_TIMEOUT, folder_of, lock_folder, remove_file_of};
use rustix::fs::{Access, access};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::activation;
use super::process::ProcessArguments;
use crate::exit::Failure;
use crate::{descriptor, path_error, stderr};

/// The variable in which systemd gives its socket.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// The socket of systemd, or of another program that speaks its protocol. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Supervisor(Option<Arc<(UnixDatagram, SocketAddr)>>);

impl Supervisor {
    /// That which the environment names. What can't be used is logged: the server runs without.
    pub(super) fn of_environment() -> Self {
        let Some(name) = std::env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let open = || Ok((UnixDatagram::unbound()?, address(name.as_bytes())?));
        match open() {
            Ok(open) => Self(Some(Arc::new(open))),
            Err(error) => {
                let error: io::Error = error;
                let name = name.display();
                tracing::warn!(%error, "cannot notify the supervisor at {NOTIFY_SOCKET}={name}");
                Self::default()
            }
        }
    }

    /// All exports are open, and it listens.
    fn ready(&self) {
        // The process of the service is another one after a take-over.
        self.notify(&format!("READY=1\nMAINPID={}", std::process::id()));
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// The end begins.
    pub(super) fn stopping(&self) {
        self.notify("STOPPING=1");
    }

    /// What can be read again is read again; [`ready`](Self::ready) says that it is done.
    fn reloading(&self) {
        // The time lets systemd tell this message from one of an earlier reload.
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
        self.notify(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Reads again what can be, with both messages around it.
    pub(super) fn around_reload(&self, reload: impl FnOnce()) {
        self.reloading();
        reload();
        self.ready();
    }

    fn notify(&self, text: &str) {
        let Some((socket, address)) = self.0.as_deref() else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            tracing::warn!(%error, text, "cannot notify the supervisor");
        }
    }
}

/// A path, or an abstract name after `@`.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name {
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsString::from_vec(name.to_vec())),
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither an absolute path nor an abstract socket, which begins with @",
        )),
    }
}

/// Bytes of a file with a process id, and then some.
const MAX_PID_FILE: u64 = 64;

/// Times that files may come and go where that of the process id is to be.
const ATTEMPTS: usize = 8;

/// The process id in a file.
#[derive(Debug)]
pub(in crate::serve) struct PidFile {
    path: PathBuf,
    state: PidState,
}

#[derive(Debug)]
enum PidState {
    /// Written beside its path.
    Prepared(NamedTempFile),
    /// At its path, by device and inode.
    Published(u64, u64),
    /// It could not be moved there.
    Lost,
}

impl PidFile {
    /// Finds out whether [`prepare`](Self::prepare) would succeed, and changes nothing.
    ///
    /// # Errors
    /// The kind of the system's error, and the failure.
    pub(in crate::serve) fn check(path: &Path) -> Result<(), (io::ErrorKind, Failure)> {
        let check = || {
            Self::check_replaced(path)?;
            let folder = folder_of(path);
            if !std::fs::metadata(folder)?.is_dir() {
                return Err(Errno::NOTDIR.into());
            }
            Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
        };
        check().map_err(|error: io::Error| (error.kind(), Self::cannot_write(path, &error)))
    }

    /// Refuses to put the file in the place of what is no file of a process id: it would be lost, and the path be removed at
    /// the end. Gives whether there is anything.
    fn check_replaced(path: &Path) -> io::Result<bool> {
        let metadata = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            metadata => metadata?,
        };
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let in_the_way = |what| Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        if metadata.is_symlink() {
            return in_the_way("it is a symbolic link");
        }
        if !metadata.is_file() {
            return in_the_way("it is no regular file");
        }
        let mut content = Vec::new();
        let file = match File::open(path) {
            // That of a server that ends.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        file.take(MAX_PID_FILE + 1).read_to_end(&mut content)?;
        let is_number =
            content.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace());
        if !is_number || content.len() as u64 > MAX_PID_FILE {
            return in_the_way("it is a file with something else than a process id");
        }
        Ok(true)
    }

    fn cannot_write(path: &Path, error: &io::Error) -> Failure {
        let (path, error) = (path.display(), path_error::cause(error));
        Failure::failed(format!(
            "cannot write the process id to {path}: {error}; choose another path for --pid-file"
        ))
    }

    /// Writes the file beside its path, which shows whether that is possible.
    fn prepare(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Self::cannot_write(path, &error);
        Self::check_replaced(path).map_err(failed)?;
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder_of(path))
            .map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), state: PidState::Prepared(file) })
    }

    /// Finds out whether [`publish`](Self::publish) would replace only what it may.
    fn check_again(&self) -> Result<(), Failure> {
        let checked = Self::check_replaced(&self.path).map(drop);
        checked.map_err(|error| Self::cannot_write(&self.path, &error))
    }

    /// Moves it to its path, in the place of the file of another process id. What else is there stays.
    fn publish(&mut self) {
        let PidState::Prepared(file) = core::mem::replace(&mut self.state, PidState::Lost) else {
            return;
        };
        // Its predecessor may be about to remove its own file. Without the lock there is none to wait for.
        let _lock = lock_folder(folder_of(&self.path), FOLDER_LOCK_TIMEOUT);
        match Self::put(file, &self.path).and_then(|file| file.metadata()) {
            Ok(metadata) => self.state = PidState::Published(metadata.dev(), metadata.ino()),
            Err(error) => {
                let (path, error) = (self.path.display(), path_error::cause(&error));
                stderr::say(&format!("warning: cannot write the process id to {path}: {error}"));
            }
        }
    }

    /// Something may have come there since it was prepared, whose maker knows nothing of the folder's lock: where nothing was,
    /// the system replaces nothing, as far as the file system can do that.
    fn put(mut file: NamedTempFile, path: &Path) -> io::Result<File> {
        for _ in 0..ATTEMPTS {
            if Self::check_replaced(path)? {
                return file.persist(path).map_err(|error| error.error);
            }
            match file.persist_noclobber(path) {
                Ok(file) => return Ok(file),
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                    file = error.file;
                }
                Err(error) => return error.file.persist(path).map_err(|error| error.error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "other programs keep making files there"))
    }
}

impl Drop for PidFile {
    /// Removes it, unless it is that of another process by now, such as a successor.
    fn drop(&mut self) {
        let PidState::Published(device, inode) = self.state else { return };
        remove_file_of(&self.path, (device, inode));
    }
}

/// Everything by which others learn that the server is ready. The file of the process id goes when it is dropped.
#[derive(Debug)]
pub(super) struct Readiness {
    pub(super) supervisor: Supervisor,
    pid_file: Option<PidFile>,
    ready_fd: Option<OwnedFd>,
}

impl Readiness {
    /// What the command line and the environment ask for; `ready_fd` is that of the command line, taken over.
    pub(super) fn of(
        arguments: &ProcessArguments,
        ready_fd: Option<OwnedFd>,
    ) -> Result<Self, Failure> {
        let pid_file = arguments.pid_file.as_deref().map(PidFile::prepare).transpose()?;
        Ok(Self { supervisor: Supervisor::of_environment(), pid_file, ready_fd })
    }

    /// The server listens, and nobody knows yet: what has come to the path of the process id since then is not replaced.
    ///
    /// # Errors
    /// When something has.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.pid_file.as_ref().map_or(Ok(()), PidFile::check_again)
    }

    /// The server listens, and all exports are open.
    pub(super) fn announce(&mut self) {
        if let Some(file) = &mut self.pid_file {
            file.publish();
        }
        if let Some(descriptor) = self.ready_fd.take()
            && let Err(error) = File::from(descriptor).write_all(b"READY\n")
        {
            // As good as not waiting for it.
            tracing::warn!(%error, "cannot write to the descriptor of --ready-fd");
        }
        self.supervisor.ready();
    }
}

/// Takes the descriptor of `--ready-fd` over. To be called before anything else is opened.
pub(super) fn take_ready_fd(arguments: &ProcessArguments) -> Result<Option<OwnedFd>, Failure> {
    let Some(number) = arguments.ready_fd else { return Ok(None) };
    let taken = match RawFd::try_from(number).unwrap_or(RawFd::MAX) {
        // Standard input, output and error stay open.
        number @ 0..=2 => descriptor::share(number),
        number if activation::has_taken(number) => {
            return Err(Failure::usage(format!(
                "--ready-fd {number} is one of the sockets that socket activation hands over: choose another one"
            )));
        }
        number => descriptor::take(number),
    };
    taken.map(Some).map_err(|error| {
        Failure::usage(format!("--ready-fd {number} names no descriptor that is open: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn addresses_are_paths_or_abstract_names() {
        assert_eq!(address(b"/run/a").unwrap().as_pathname(), Some(Path::new("/run/a")));
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            assert_eq!(address(b"@a/b").unwrap().as_abstract_name(), Some(&b"a/b"[..]));
        }
        for name in [&b"run/a"[..], b"vsock:2:1", &[b'/'; 200]] {
            assert!(address(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_file_of_the_process_id_appears_whole_and_goes_unless_it_is_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let published = || {
            let mut file = PidFile::prepare(&path).unwrap();
            file.publish();
            file
        };
        let prepared = PidFile::prepare(&path).unwrap();
        assert!(!path.exists());
        drop(prepared);
        let first = published();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(path.metadata().unwrap().mode() & 0o133, 0, "not for all to write");
        let second = published();
        drop(first);
        assert!(path.exists(), "it is the second one's");
        drop(second);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// Also where it comes only when the file is about to be written.
    #[test]
    fn what_is_no_file_of_a_process_id_stays_whenever_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let make: [&dyn Fn(); 4] = [
            &|| drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
            &|| fs::write(&path, "precious").unwrap(),
            &|| std::os::unix::fs::symlink("nowhere", &path).unwrap(),
            &|| fs::create_dir(&path).unwrap(),
        ];
        for make in make {
            let mut file = PidFile::prepare(&path).unwrap();
            file.check_again().unwrap();
            make();
            let before = fs::symlink_metadata(&path).unwrap();
            let Err(Failure::Failed(text)) = file.check_again() else { panic!("{before:?}") };
            assert!(text.contains("cannot write the process id to"), "{text}");
            file.publish();
            drop(file);
            let after = fs::symlink_metadata(&path).unwrap();
            assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nor is anything left");
            if before.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        }
        // One of a server that crashed meanwhile is.
        let mut file = PidFile::prepare(&path).unwrap();
        fs::write(&path, "99999999\n").unwrap();
        file.publish();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_file_of_the_process_id_that_can_not_be_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("missing/pid")] {
            let Err(Failure::Failed(text)) = PidFile::prepare(&path) else { panic!("{path:?}") };
            assert!(text.contains(&path.display().to_string()), "{text}");
        }
    }
}
