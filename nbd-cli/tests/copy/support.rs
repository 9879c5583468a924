//! What the tests of `nbd copy` have in common.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers::{Peer, PeerServer};
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::nbd_binary;
use tempfile::TempDir;

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Bytes of which no two blocks are the same, and none is zero.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state | 1).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Noise with holes: of each MiB the first 100000 bytes are noise, and of the last one the last 5 as well.
pub(crate) fn holey(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let some = noise(100_000);
    for part in bytes.chunks_mut(MIB) {
        let count = part.len().min(some.len());
        part[..count].copy_from_slice(&some[..count]);
    }
    bytes[length - 5..].copy_from_slice(b"the e");
    bytes
}

/// A folder with files.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file, and gives its path.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    /// Writes a file that has holes wherever MiBs begin with a zero page, and gives its path.
    pub(crate) fn sparse(&self, name: &str, bytes: &[u8]) -> String {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (at, page) in bytes.chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, at as u64 * 4096).unwrap();
            }
        }
        self.text(name)
    }
}

pub(crate) fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Bytes on the disk.
pub(crate) fn allocated(path: impl AsRef<Path>) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// The first difference is named, instead of megabytes.
#[track_caller]
pub(crate) fn assert_same(found: &[u8], wanted: &[u8]) {
    assert_eq!(found.len(), wanted.len(), "lengths");
    let difference = found.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!(difference, None, "the first difference");
}

/// Runs `nbd copy` to its end.
#[track_caller]
pub(crate) fn try_copy(args: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).arg("copy").args(args), SOON)
}

#[track_caller]
pub(crate) fn copy(args: &[&str]) {
    try_copy(args).success();
}

/// A copy that fails with exit code 1: gives what it says.
#[track_caller]
pub(crate) fn refused(args: &[&str]) -> String {
    let finished = try_copy(args);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    finished.stderr
}

/// nbdkit, and its URI.
#[track_caller]
pub(crate) fn nbdkit(peer: &Peer, args: &[&str]) -> (PeerServer, String) {
    let server = PeerServer::nbdkit(peer, args);
    let uri = server.endpoint().uri("");
    (server, uri)
}
