//! What is copied from where to where.

use std::path::Path;

use super::arguments::CopyPlan;
use super::image::Image;
use crate::servers::{Server, Storage};

/// One side of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file in a memory file system.
    File,
    /// Nowhere: `null:`.
    Null,
    /// nbdkit's file plugin, or its memory plugin as a destination.
    Nbdkit,
    /// nbdkit's pattern plugin, which makes data up; only a source.
    NbdkitPattern,
    /// `nbd serve` with a file, or with memory as a destination.
    Nbd,
}

/// One copy that both tools carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What it is called on the command line and in the table.
    pub name: String,
    /// What is copied.
    pub image: Image,
    /// From where.
    pub from: Place,
    /// Where to.
    pub to: Place,
}

/// A program that copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// nbdcopy of libnbd.
    Nbdcopy,
    /// `nbd copy`.
    Nbd,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Null => "null",
            Self::Nbdkit => "nbdkit",
            Self::NbdkitPattern => "nbdkit-pattern",
            Self::Nbd => "nbd",
        }
    }

    /// The server that serves `image`.
    pub fn source(self, plan: &CopyPlan, image: &Path) -> Option<Server> {
        let (image, size) = (image.display(), plan.size.to_string());
        let (program, args) = match self {
            Self::File | Self::Null => return None,
            Self::Nbdkit => ("nbdkit".as_ref(), vec!["file".into(), image.to_string()]),
            Self::NbdkitPattern => ("nbdkit".as_ref(), vec!["pattern".into(), size]),
            Self::Nbd => (plan.nbd.as_path(), vec![format!("file:{image}")]),
        };
        Some(self.server(program, args))
    }

    /// The server that takes an image.
    pub fn destination(self, plan: &CopyPlan) -> Option<Server> {
        let size = plan.size.to_string();
        let (program, args) = match self {
            Self::File | Self::Null | Self::NbdkitPattern => return None,
            Self::Nbdkit => ("nbdkit".as_ref(), vec!["memory".into(), size]),
            Self::Nbd => (plan.nbd.as_path(), vec![format!("memory:{size}")]),
        };
        Some(self.server(program, args))
    }

    fn server(self, program: &Path, disk: Vec<String>) -> Server {
        let before = match self {
            Self::Nbd => ["serve", "-U", "{socket}"],
            _ => ["-f", "-U", "{socket}"],
        };
        let args = before.map(String::from).into_iter().chain(disk).collect();
        Server {
            name: self.name().into(),
            // Its disk is not one that is made for it.
            storage: Storage::Memory,
            program: program.into(),
            args,
            export: String::new(),
            tells_version: true,
        }
    }
}

/// All copies, those of an image together.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for image in [Image::Dense, Image::HalfSparse] {
        let downloads = [Place::Nbdkit, Place::NbdkitPattern, Place::Nbd];
        let downloads = downloads.into_iter().flat_map(|from| {
            // What is made up has no holes.
            let skipped = from == Place::NbdkitPattern && image == Image::HalfSparse;
            let to = if skipped { &[][..] } else { &[Place::File, Place::Null] };
            to.iter().map(move |to| (from, *to))
        });
        let uploads = [Place::Nbdkit, Place::Nbd].map(|to| (Place::File, to));
        all.extend(downloads.chain(uploads).map(|(from, to)| Case {
            name: format!("{}-{}-to-{}", image.name(), from.name(), to.name()),
            image,
            from,
            to,
        }));
    }
    all
}
