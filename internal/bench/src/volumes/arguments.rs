//! The command line of `volume`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::stores::Place;
use crate::args::{nbd_program, parse_seconds, parse_size, select};

/// Arguments of `volume`.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    /// The project's `nbd` program, built with the feature `volume` [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub nbd: Option<PathBuf>,
    /// Only these stores: directory, s3, s3-20ms.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub store: Vec<String>,
    /// Sizes of blocks to try, in bytes.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "4k,16k,64k", value_parser = parse_size)]
    pub block_size: Vec<usize>,
    /// Size of the volumes; a multiple of 1M.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub size: usize,
    /// Seconds of each run that has no other end.
    #[arg(long, default_value = "3", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// The memory that volumes get, as `nbd serve --volume-memory` has it [default: that of `nbd serve`].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub volume_memory: Option<usize>,
    /// A folder for the local directory, and for the file that `nbd serve` has.
    #[arg(long, value_name = "FOLDER", default_value = "/tmp")]
    pub folder: PathBuf,
    /// Print JSON in place of tables.
    #[arg(long)]
    pub json: bool,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct VolumePlan {
    /// The project's program.
    pub nbd: PathBuf,
    /// Where volumes lie.
    pub places: Vec<Place>,
    /// Bytes of a block, for each volume.
    pub block_sizes: Vec<u32>,
    /// Bytes of each volume.
    pub size: u64,
    /// Bytes of memory for each volume.
    pub memory: Option<u64>,
    /// How long runs last.
    pub duration: Duration,
    /// For files.
    pub folder: PathBuf,
}

impl VolumeArgs {
    /// What these arguments ask for.
    ///
    /// # Errors
    /// For names that are unknown, and sizes that make no sense.
    pub fn plan(&self, program: &Path) -> Result<VolumePlan, String> {
        let places = select("store", Place::ALL.to_vec(), &self.store, |place| place.name())?;
        if self.size == 0 || !self.size.is_multiple_of(1 << 20) {
            return Err(format!("{} is no multiple of 1 MiB", self.size));
        }
        let sizes = self.block_size.iter().map(|size| match size {
            4096 | 8192 | 16384 | 32768 | 65536 => Ok(*size as u32),
            _ => Err(format!("{size} is no block size: give 4k, 8k, 16k, 32k or 64k")),
        });
        Ok(VolumePlan {
            nbd: nbd_program(self.nbd.as_deref(), program),
            places,
            block_sizes: sizes.collect::<Result<_, _>>()?,
            size: self.size as u64,
            memory: self.volume_memory.map(|bytes| bytes as u64),
            duration: self.seconds,
            folder: self.folder.clone(),
        })
    }
}
