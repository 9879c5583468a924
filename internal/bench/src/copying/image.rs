//! The images that are copied.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbd_testkit::Random;

/// What is in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// No zeroes.
    Dense,
    /// Every other MiB is a hole.
    HalfSparse,
}

const MIB: usize = 1 << 20;

impl Image {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::HalfSparse => "sparse",
        }
    }
}

/// Makes an image of `size` bytes, a multiple of 2 MiB.
pub fn make(path: &Path, image: Image, size: u64) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let step = match image {
        Image::Dense => 1,
        Image::HalfSparse => 2,
    };
    let mut random = Random::new(size);
    let mut data = vec![0; MIB];
    for offset in (0..size).step_by(MIB * step) {
        // A tenth of it changes from MiB to MiB: enough for a piece at a wrong place to be noticed.
        for word in data.chunks_exact_mut(8).step_by(if offset == 0 { 1 } else { 10 }) {
            word.copy_from_slice(&random.next().to_ne_bytes());
        }
        file.write_all_at(&data, offset)?;
    }
    (&file).flush()
}

/// Whether two files have the same contents.
pub fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; MIB], vec![0; MIB]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}
