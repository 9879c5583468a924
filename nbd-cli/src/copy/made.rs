//! The file that a copy makes.

use std::path::Path;

/// A destination that was not there, and goes again if the copy is refused, or fails before there is a byte in it.
pub(super) struct Made<'a>(pub(super) Option<&'a Path>);

impl<'a> Made<'a> {
    pub(super) fn unless_there(path: Option<&'a Path>) -> Self {
        Self(path.filter(|path| matches!(path.try_exists(), Ok(false)) && !path.is_symlink()))
    }

    pub(super) fn stays(&mut self) {
        self.0 = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // Whatever has bytes stays: they are what was copied so far, or are from elsewhere.
        if let Some(path) = self.0
            && path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
        {
            let _best_effort = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_a_refused_copy_made_goes_unless_something_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("to");
        for (bytes, stays, is_left) in
            [("", false, false), ("", true, true), ("x", false, true), ("x", true, true)]
        {
            let mut made = Made::unless_there(Some(&path));
            fs::write(&path, bytes).unwrap();
            if stays {
                made.stays();
            }
            drop(made);
            assert_eq!(path.exists(), is_left, "{bytes:?} {stays}");
            // What was there before is none of it.
            fs::write(&path, "").unwrap();
            drop(Made::unless_there(Some(&path)));
            fs::remove_file(&path).unwrap();
        }
        drop(Made::unless_there(Some(folder.path())));
        assert!(folder.path().exists());
    }
}
