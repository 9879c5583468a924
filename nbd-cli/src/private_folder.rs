//! A folder for the sockets of processes that belong together.

use tempfile::TempDir;

use crate::exit::Failure;
use crate::path_error::cause;

/// A folder that only this user can reach. It is removed when it is dropped.
pub(crate) fn private_folder() -> Result<TempDir, Failure> {
    tempfile::Builder::new().prefix("nbd-").tempdir().map_err(|error| {
        let folder = std::env::temp_dir();
        let (shown, error) = (folder.display(), cause(&error));
        Failure::failed(format!(
            "cannot make a folder for a private socket in {shown}: {error}; set TMPDIR to another folder"
        ))
    })
}
