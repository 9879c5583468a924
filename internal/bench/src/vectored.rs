//! Gathered writes: all of it, and without an allocation for each list.

use std::io::{self, ErrorKind, IoSlice, Write};

/// The kernel takes at most this many slices in one call (`UIO_MAXIOV`).
pub const MAX_SLICES: usize = 1024;

/// A list of slices whose allocation outlives the slices, so that it is made once.
#[derive(Debug, Default)]
pub struct SliceList {
    spare: Vec<IoSlice<'static>>,
}

impl SliceList {
    /// An empty list with the allocation of the last one.
    pub fn take<'a>(&mut self) -> Vec<IoSlice<'a>> {
        relabel(std::mem::take(&mut self.spare))
    }

    /// Gives the allocation back.
    pub fn put_back(&mut self, list: Vec<IoSlice<'_>>) {
        self.spare = relabel(list);
    }
}

/// The same allocation with another lifetime; empty, so there is nothing to outlive it. Collecting
/// a `Vec`'s own iterator into a `Vec` of items of the same size keeps the allocation.
fn relabel<'b>(mut list: Vec<IoSlice<'_>>) -> Vec<IoSlice<'b>> {
    list.clear();
    list.into_iter().map(|_| IoSlice::new(&[])).collect()
}

/// Writes every byte of `slices`, in as few calls as the kernel allows.
pub fn write_all(mut to: impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        let batch = slices.len().min(MAX_SLICES);
        match to.write_vectored(&slices[..batch]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
