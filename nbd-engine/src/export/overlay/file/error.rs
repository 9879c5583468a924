//! What can be wrong with an overlay file.

use core::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::export::ExportError;
use crate::net::link_end;

/// An overlay file can't be used. The text names the file, what is wrong, and what to do about it.
#[derive(Debug)]
pub struct OverlayError {
    path: PathBuf,
    problem: Problem,
    /// Whether a file that was missing would have been made.
    makes: bool,
    /// Whether it was to be committed.
    commits: bool,
}

#[derive(Debug)]
pub(super) enum Problem {
    NoOverlay,
    Version(u32),
    Damaged(&'static str),
    InUse {
        /// By this process.
        own: bool,
    },
    Committing,
    TooLarge,
    OtherSize {
        own: u64,
        base: u64,
    },
    /// It was made for a part of a disk, or over another overlay, and this is something else.
    OtherLayers {
        offset: u64,
        is_overlay: bool,
    },
    /// What lies below is an overlay, but another one, or as it was not.
    OtherOverlay,
    OtherBase(&'static str),
    /// Something of the base.
    Base(String),
    /// The base does not take what is committed to it.
    Commit {
        base: PathBuf,
        error: ExportError,
    },
    Export(ExportError),
    Io(io::Error),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ExportError> for Problem {
    fn from(error: ExportError) -> Self {
        Self::Export(error)
    }
}

impl OverlayError {
    pub(super) fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), problem, makes: false, commits: false }
    }

    /// The same where a file that is missing is made.
    pub(super) fn makes(path: &Path, problem: Problem) -> Self {
        let is_missing =
            matches!(&problem, Problem::Io(error) if error.kind() == io::ErrorKind::NotFound);
        // The folder that is missing is that of the file, and not that of a link to it.
        let path = if is_missing { link_end(path) } else { path.to_owned() };
        Self { path, problem, makes: true, commits: false }
    }

    /// The same of a commit.
    pub(super) fn commits(self) -> Self {
        Self { commits: true, ..self }
    }

    /// The overlay file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the overlay was made for another base, or for another state of it.
    #[must_use]
    pub const fn is_other_base(&self) -> bool {
        matches!(
            self.problem,
            Problem::OtherSize { .. }
                | Problem::OtherLayers { .. }
                | Problem::OtherOverlay
                | Problem::OtherBase(_)
        )
    }

    /// Whether the overlay is in use by a server or another command.
    #[must_use]
    pub const fn is_in_use(&self) -> bool {
        matches!(self.problem, Problem::InUse { .. })
    }
}

#[cfg(all(test, feature = "tls"))]
impl OverlayError {
    /// One with each problem.
    pub(crate) fn each() -> Vec<Self> {
        let problems = nbd_testkit::each_variant!(Problem {
            Problem::NoOverlay => Problem::NoOverlay,
            Problem::Version(_) => Problem::Version(9),
            Problem::Damaged(_) => Problem::Damaged("its header has a wrong checksum"),
            Problem::InUse { .. } => Problem::InUse { own: false },
            Problem::Committing => Problem::Committing,
            Problem::TooLarge => Problem::TooLarge,
            Problem::OtherSize { .. } => Problem::OtherSize { own: 1024, base: 2048 },
            Problem::OtherLayers { .. } => Problem::OtherLayers { offset: 4096, is_overlay: false },
            Problem::OtherOverlay => Problem::OtherOverlay,
            Problem::OtherBase(_) => Problem::OtherBase("the disk was written meanwhile"),
            Problem::Base(_) => Problem::Base("cannot open the base".into()),
            Problem::Commit { .. } => Problem::Commit {
                base: "base.img".into(),
                error: ExportError::no_space(),
            },
            Problem::Export(_) => Problem::Export(ExportError::no_space()),
            Problem::Io(_) => Problem::Io(io::ErrorKind::PermissionDenied.into()),
        });
        let overlay = Path::new("disk.overlay");
        problems.into_iter().map(|problem| Self::new(overlay, problem)).collect()
    }
}

impl fmt::Display for OverlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::NoOverlay if self.makes => write!(
                f,
                "'{path}' is not an overlay file; name one, or a path at which there is no file yet"
            ),
            Problem::NoOverlay => write!(
                f,
                "'{path}' is not an overlay file; name the file in which a server keeps an overlay, such as FILE of nbd \
                 serve --layer overlay:FILE"
            ),
            Problem::Version(version) => write!(
                f,
                "the overlay '{path}' has version {version}, which this program does not know; use a newer one"
            ),
            Problem::Damaged(what) => write!(
                f,
                "the overlay '{path}' is damaged: {what}; restore it from a copy, or remove the file to begin anew"
            ),
            Problem::InUse { own: true } => write!(
                f,
                "the overlay '{path}' is in use by another export of this server; an overlay is for one export: give each \
                 its own, and open this one again when that export is gone and its clients have left"
            ),
            Problem::InUse { own: false } => write!(
                f,
                "the overlay '{path}' is in use; end the server or command that uses it first"
            ),
            Problem::Committing => write!(
                f,
                "a commit of the overlay '{path}' was interrupted; run it again: nbd overlay commit"
            ),
            Problem::TooLarge => write!(
                f,
                "the overlay '{path}' can't be made: its disk has more blocks than an overlay can have (2^28)"
            ),
            Problem::OtherSize { own, base } => write!(
                f,
                "the overlay '{path}' was made for a disk of {own} bytes; this one has {base}: name the disk that it was \
                 made for{}",
                match self.commits {
                    true => {
                        ", if that is a whole file or device; what an overlay has of a part of a disk can be copied while it \
                         is served"
                    }
                    false => "",
                }
            ),
            Problem::OtherLayers { offset, is_overlay } => {
                let over = match (is_overlay, offset) {
                    (false, 0) => "a disk from its beginning",
                    (true, 0) => "another overlay",
                    (false, _) => "a part of a disk",
                    (true, _) => "a part of another overlay",
                };
                let remedy = match self.commits {
                    true => {
                        "only one over a whole file or device can be committed: copy what clients see of it, while it is served"
                    }
                    false => "give the layers below it as they were then, or discard the overlay",
                };
                write!(f, "the overlay '{path}' was made for {over}")?;
                match offset {
                    0 => write!(f, "; {remedy}"),
                    offset => write!(f, ", from byte {offset} on; {remedy}"),
                }
            }
            Problem::OtherOverlay => write!(
                f,
                "the overlay '{path}' does not fit the overlay below it: that has changed since, or is another one; use the \
                 one that it was made for, as it was then, or discard the overlay '{path}'"
            ),
            Problem::OtherBase(why) => write!(
                f,
                "the overlay '{path}' does not fit this disk: {why}; use the disk that it was made for, as it was then, \
                 or discard the overlay"
            ),
            Problem::Base(error) => f.write_str(error),
            Problem::Commit { base, error } => write!(
                f,
                "cannot write to '{}': {}; the overlay '{path}' still has everything: run the same command again once it can \
                 be written",
                base.display(),
                error.text()
            ),
            Problem::Export(error) => write!(f, "the overlay '{path}' failed: {error}"),
            Problem::Io(error) => {
                write!(f, "cannot use the overlay '{path}': {error}")?;
                match error.kind() {
                    io::ErrorKind::NotFound if self.makes => f.write_str("; make its folder first"),
                    io::ErrorKind::NotFound => f.write_str("; check the path"),
                    io::ErrorKind::NotADirectory => {
                        f.write_str("; a part of the path is a file: choose another path")
                    }
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("; choose a path that this user may use")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl core::error::Error for OverlayError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        None // The text says it.
    }
}
