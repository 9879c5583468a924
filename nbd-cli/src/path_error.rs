//! What the system says of a path, for people: without names that they have not given, and with what to do.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

/// The system's words. The name of a temporary file, which a caller has made beside the path that it reports, is left out.
pub(crate) fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" at path \"").map_or(text.as_str(), |(cause, _)| cause).to_owned()
}

/// The same, with what to do about it.
pub(crate) fn why(error: &io::Error) -> String {
    if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
        return format!(
            "{}; it is a pipe that nobody reads, or a socket: choose another path",
            cause(error)
        );
    }
    let remedy = match error.kind() {
        ErrorKind::NotFound => "; make its folder first",
        ErrorKind::NotADirectory => "; a part of the path is a file: choose another path",
        ErrorKind::AlreadyExists => "; a file is in the way: choose another path",
        ErrorKind::IsADirectory => "; it is a folder: name a file in it",
        ErrorKind::PermissionDenied => "; choose a path that this user may use",
        ErrorKind::ReadOnlyFilesystem => "; choose a path on a file system that can be written",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room there",
        ErrorKind::ExecutableFileBusy => "; it is a program that is running: stop it first",
        _ => "",
    };
    format!("{}{remedy}", cause(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_is_not_named() {
        let made = tempfile::NamedTempFile::new_in("/no/such/folder").map(drop);
        let text = why(&made.unwrap_err());
        assert!(text.contains("; make its folder first") && !text.contains('/'), "{text}");
        assert_eq!(why(&io::Error::other("a word")), "a word");
    }
}
