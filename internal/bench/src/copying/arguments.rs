//! The command line of `copy`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::case::{Case, cases};
use crate::args::{nbd_program, parse_size, select};

/// Arguments of `copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The project's `nbd` program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub nbd: Option<PathBuf>,
    /// nbdcopy.
    #[arg(long, value_name = "PATH", default_value = "nbdcopy")]
    pub nbdcopy: PathBuf,
    /// Only these copies.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Size of the images; a multiple of 2M.
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_size)]
    pub size: usize,
    /// How often each copy is repeated.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// A folder of a memory file system, for the images and their copies.
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    pub folder: PathBuf,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub json: bool,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct CopyPlan {
    /// The project's program.
    pub nbd: PathBuf,
    /// What it is held against.
    pub nbdcopy: PathBuf,
    /// The copies.
    pub cases: Vec<Case>,
    /// Bytes of the images.
    pub size: u64,
    /// How often each copy is repeated.
    pub rounds: u32,
    /// Where the images are made.
    pub folder: PathBuf,
}

impl CopyArgs {
    /// What is to be run; an unknown name is an error that lists the known ones.
    pub fn plan(&self, own: &Path) -> Result<CopyPlan, String> {
        let size = self.size as u64;
        if size == 0 || !size.is_multiple_of(2 << 20) {
            return Err("the size of the images has to be a multiple of 2M".into());
        }
        Ok(CopyPlan {
            nbd: nbd_program(self.nbd.as_deref(), own),
            nbdcopy: self.nbdcopy.clone(),
            cases: select("copy", cases(), &self.only, |case| &case.name)?,
            size,
            rounds: self.rounds,
            folder: self.folder.clone(),
        })
    }
}
