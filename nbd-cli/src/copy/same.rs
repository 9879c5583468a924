//! Copies of something onto itself, which would empty it before it is read.

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;

use super::open::{Kind, Side};
use crate::exit::Failure;
use crate::store::Store;
use crate::target::OpenFile;

/// Refuses a copy whose two sides are known to be the same, or to share a file.
///
/// A file that is served is not to be copied to, since it is emptied first. Nor is it to be copied to a server that was
/// started with it: what that makes of the file is not known. A server that was there before may have the file for
/// another of its exports, and what any server has open for reading only may be what an image lies on: those are left
/// alone.
pub(super) fn check(source: &Side, destination: &Side) -> Result<(), Failure> {
    let (from, to) = (&source.name, &destination.name);
    let found = match (store(source), store(destination)) {
        (Some(one), Some(other)) => one
            .overlaps(&other)
            .then(|| format!("{from} and {to} are the same file, or one lies on the other: name another destination")),
        (None, Some(local)) => read(source, &local).map(|path| {
            format!("{to} is what {from} serves ({path}), and would be emptied before it is read: name another destination")
        }),
        (Some(local), None) => written(destination, &local)
            .map(|path| format!("{from} is what {to} serves and writes to ({path}): name another destination")),
        (None, None) => {
            shared(source, destination).map(|path| format!("{from} and {to} both serve {path}: name another destination"))
        }
    };
    found.map_or(Ok(()), |text| Err(Failure::failed(text)))
}

/// What a local side is. Standard input and output can be a file, too.
fn store(side: &Side) -> Option<Store> {
    let metadata = match &side.kind {
        Kind::Disk { disk, .. } => disk.file.metadata(),
        Kind::Stream(file) => file.metadata(),
        Kind::Server { .. } | Kind::Null => return None,
    };
    Store::new(&metadata.ok()?)
}

/// The file that the source's server has open, if that is the local one, or lies on it. Of a server that was not
/// started for this copy, only one that is as large as the export.
fn read(source: &Side, local: &Store) -> Option<String> {
    let Kind::Server { target, client, .. } = &source.kind else { return None };
    let files = target.open_files().into_iter();
    let mut files =
        files.filter(|file| target.is_command() || is_as_large(&file.metadata, client.size()));
    files.find(|file| is_or_lies_on(file, local)).map(|file| shown(&file))
}

/// The file that the destination's server has open to write, if that is the local one, or lies on it.
fn written(destination: &Side, local: &Store) -> Option<String> {
    let Kind::Server { target, .. } = &destination.kind else { return None };
    if !target.is_command() {
        return None;
    }
    let mut files = target.open_files().into_iter().filter(|file| file.writable);
    files.find(|file| is_or_lies_on(file, local)).map(|file| shown(&file))
}

fn is_or_lies_on(file: &OpenFile, local: &Store) -> bool {
    Store::new(&file.metadata).is_some_and(|store| store.overlaps(local))
}

fn shown(file: &OpenFile) -> String {
    file.path.display().to_string()
}

/// How much an export may be smaller than its file: the largest minimum block.
const REST: u64 = 64 << 10;

/// Whether a file can be what an export of that size is made of. The size of a device is unknown here.
fn is_as_large(file: &Metadata, size: u64) -> bool {
    file.file_type().is_block_device() || file.len() >= size && file.len() - size < REST
}

/// The file that two servers both have open, one of them to write. Only one as large as what they serve: they may share
/// others, such as a log.
fn shared(source: &Side, destination: &Side) -> Option<String> {
    let (Kind::Server { target: from, .. }, Kind::Server { target: to, .. }) =
        (&source.kind, &destination.kind)
    else {
        return None;
    };
    // One server may have several exports, and which of its files are whose is not known.
    if from.is_same_server(to) {
        return None;
    }
    let sizes = [source.size()?, destination.size()?];
    let is_served = |file: &OpenFile| sizes.iter().all(|size| is_as_large(&file.metadata, *size));
    let written = to.open_files().into_iter().filter(|file| file.writable);
    let written: Vec<_> = written.filter_map(|file| Store::new(&file.metadata)).collect();
    let mut files = from.open_files().into_iter().filter(is_served);
    files.find(|file| written.iter().any(|one| is_or_lies_on(file, one))).map(|file| shown(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_may_leave_out_less_than_a_block_of_its_file() {
        let file = tempfile::tempfile().unwrap();
        let size = 1 << 20;
        for (length, is) in [
            (0, false),
            (size - 1, false),
            (size, true),
            (size + 1, true),
            (size + 65_535, true),
            (size + 65_536, false),
            (1 << 30, false),
        ] {
            file.set_len(length).unwrap();
            assert_eq!(is_as_large(&file.metadata().unwrap(), size), is, "{length}");
        }
    }
}
