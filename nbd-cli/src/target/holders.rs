//! The files that a server on this machine has open, as far as this user can know.

use std::fs::{self, File, Metadata};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::{FdFlags, fcntl_getfd};

use super::Target;
use super::sockets;

/// Processes that are looked at, at most: a server's own and those that it has started.
const MAX_PROCESSES: usize = 64;

/// A file or a block device that a server has open.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) metadata: Metadata,
    /// Its path as it was opened.
    pub(crate) path: PathBuf,
    pub(crate) writable: bool,
}

impl Target {
    /// The regular files and block devices that the server has open: that of a command that was started, or one behind
    /// a Unix socket to which there is a connection. Nothing is known of servers of other users and other machines, of
    /// those on TCP, and of what a server opens later or only maps. What it has from us, such as standard error, is
    /// left out.
    pub(crate) fn open_files(&self) -> Vec<OpenFile> {
        let inherited = inherited();
        let mut files = Vec::new();
        for process in self.processes() {
            let folder = Path::new("/proc").join(process.to_string());
            let Ok(entries) = fs::read_dir(folder.join("fd")) else { continue };
            for entry in entries.flatten() {
                // Through the link, to whatever is open, though its name may be gone.
                let Ok(metadata) = fs::metadata(entry.path()) else { continue };
                let kind = metadata.file_type();
                let identity = (metadata.dev(), metadata.ino());
                if !(kind.is_file() || kind.is_block_device()) || inherited.contains(&identity) {
                    continue;
                }
                let info = fs::read_to_string(folder.join("fdinfo").join(entry.file_name()));
                let writable = info.is_ok_and(|info| is_writable(&info));
                let path = fs::read_link(entry.path()).unwrap_or_default();
                files.push(OpenFile { metadata, path, writable });
            }
        }
        files
    }

    /// Whether the server is, or may be, the same as another one.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        let others = other.processes();
        self.uri == other.uri || self.processes().iter().any(|process| others.contains(process))
    }

    /// The processes of the server.
    fn processes(&self) -> Vec<u32> {
        let mut processes = match &self.server {
            Some(server) => vec![server.number()],
            None => peers(&self.uri),
        };
        let own = own_line();
        let mut index = 0;
        while index < processes.len() && processes.len() < MAX_PROCESSES {
            let process = processes[index];
            let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
            let children = children.unwrap_or_default();
            let children =
                children.split_whitespace().filter_map(|child| child.parse::<u32>().ok());
            // A command that the server runs, as with --run, is no part of it.
            processes.extend(children.filter(|child| !own.contains(child)));
            index += 1;
        }
        processes
    }
}

/// This process, and those that it descends from.
fn own_line() -> Vec<u32> {
    let mut line = vec![std::process::id()];
    while line.len() < MAX_PROCESSES
        && let Some(process) = line.last()
        && let Ok(status) = fs::read_to_string(format!("/proc/{process}/status"))
        && let Some(parent) = status.lines().find_map(|line| line.strip_prefix("PPid:"))
        && let Ok(parent @ 1..) = parent.trim().parse()
    {
        line.push(parent);
    }
    line
}

/// The processes that listen on a URI's Unix socket, as our sockets that are connected to it show.
fn peers(uri: &nbd_blocking::client::Uri) -> Vec<u32> {
    let nbd_engine::proto::Address::Unix { socket } = uri.address() else { return Vec::new() };
    let sockets = sockets::connected_to(socket);
    let peer = |socket: &OwnedFd| sockets::peer_process(socket.as_fd());
    let mut peers: Vec<u32> = sockets.iter().filter_map(peer).collect();
    peers.retain(|process| *process != std::process::id());
    peers.sort_unstable();
    peers.dedup();
    peers
}

/// Whether a descriptor is open for writing, by its entry in `fdinfo`.
fn is_writable(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 3 != 0)
}

/// The files that servers have from us. Standard input and output are not among them.
fn inherited() -> Vec<(u64, u64)> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<RawFd>().ok();
    let numbers = entries.flatten().filter_map(number).filter(|number| *number > 1);
    let identity = |number: RawFd| {
        // SAFETY: the number is no more than looked at; one that was closed meanwhile gives an error.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl_getfd(descriptor).ok()?;
        if flags.contains(FdFlags::CLOEXEC) {
            return None;
        }
        let metadata = File::from(descriptor.try_clone_to_owned().ok()?).metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    numbers.filter_map(identity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_open_for_writing_or_not() {
        assert!(!is_writable("pos:\t0\nflags:\t0100000\nmnt_id:\t29\n"));
        assert!(is_writable("pos:\t0\nflags:\t02100002\n"));
        assert!(is_writable("flags:\t0100001\n"));
        assert!(!is_writable("nothing\n"));
    }
}
