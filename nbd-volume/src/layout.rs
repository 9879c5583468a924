//! What a volume consists of: the keys and values in its database, and the object beside it.
//!
//! ```text
//! PREFIX/nbd-volume.json     what it is: format, block size, identity (Descriptor); never changes
//! PREFIX/nbd-request.json    what the server that has it open is asked to do (see the mailbox)
//! PREFIX/manifest/ wal/ compacted/ ...    SlateDB's
//!
//! in the database:
//!   s                        the size (Size)
//!   w                        who writes (WriterRecord)
//!   b + index (8 bytes, big-endian)    a block; one that is missing reads as zeroes
//! ```
//!
//! One database a volume, rather than one for several with prefixes of keys: a checkpoint, a clone and the fencing of a
//! writer are of a whole database, so that volumes of one database could only be cut, copied and moved to another host
//! together.

use core::cmp::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The latest format that is understood.
pub(crate) const FORMAT: u32 = MARKED;

/// The format in which fences have [bytes](crate::fences::FENCE), of volumes with [`Encryption`] and without. Format 1 had
/// neither, and format 2 was that of encrypted volumes.
const MARKED: u32 = 3;

/// The descriptor's name below the volume's prefix.
pub(crate) const DESCRIPTOR: &str = "nbd-volume.json";

/// The key of [`Size`].
pub(crate) const SIZE_KEY: &[u8] = b"s";

/// The key of [`WriterRecord`].
pub(crate) const WRITER_KEY: &[u8] = b"w";

/// What begins the key of a block.
const BLOCK: u8 = b'b';

/// Bytes of a block's key.
const BLOCK_KEY_LENGTH: usize = 9;

/// What a volume is, from its creation to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    /// The version of all that is described here.
    pub(crate) format: u32,
    /// Bytes of a block: a power of two.
    pub(crate) block_size: u32,
    /// Tells this volume from others, clones included.
    pub(crate) id: String,
    /// How its data is encrypted, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encryption: Option<Encryption>,
}

impl Descriptor {
    /// That of a new volume.
    pub(crate) const fn new(block_size: u32, id: String, encryption: Option<Encryption>) -> Self {
        Self { format: FORMAT, block_size, id, encryption }
    }

    /// Whether no part of its log is empty unless it has lost its bytes.
    pub(crate) const fn marks_fences(&self) -> bool {
        self.format >= MARKED
    }
}

/// How the data of a volume and of its clones is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Encryption {
    /// The name of the cipher.
    pub(crate) cipher: String,
    /// What clones have in common, as they have data in common: the identity of the first of them.
    pub(crate) family: String,
    /// Tells whether a key is the right one.
    pub(crate) check: String,
}

/// The only part of a descriptor that later formats must have as well.
#[derive(Debug, Deserialize)]
pub(crate) struct FormatOnly {
    pub(crate) format: u32,
}

/// The size of the volume. In the database, so that snapshots have the size that it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    /// Bytes.
    pub(crate) size: u64,
}

/// The server that writes, or wrote last. In the database, so that one that is fenced can't change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriterRecord {
    /// The volume's identity, as clones have their origin's record.
    pub(crate) volume: String,
    /// The name of the machine.
    pub(crate) host: String,
    /// The process there.
    pub(crate) pid: u32,
    /// Whether it has the volume open, as far as it could tell.
    pub(crate) open: bool,
    /// Milliseconds for which it may answer requests after it was fenced.
    pub(crate) lease: u64,
    /// Seconds since 1970 in which it opened or closed the volume.
    pub(crate) since: u64,
}

/// The key of a block.
pub(crate) fn block_key(index: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(BLOCK_KEY_LENGTH);
    key.put_u8(BLOCK);
    key.put_u64(index);
    key.freeze()
}

/// The index of the block that has this key. None for keys of other things.
pub(crate) fn block_index(key: &[u8]) -> Option<u64> {
    let (first, index) = key.split_first()?;
    (*first == BLOCK).then(|| index.try_into().ok().map(u64::from_be_bytes))?
}

/// The first block whose key is not less than this one, which may be the beginning of a block's key, or the key of something
/// else: behind all blocks for what is.
pub(crate) fn first_block_from(key: &[u8]) -> u64 {
    let Some((first, index)) = key.split_first() else { return 0 };
    match first.cmp(&BLOCK) {
        Ordering::Less => 0,
        Ordering::Greater => u64::MAX,
        Ordering::Equal => {
            let mut bytes = [0; 8];
            let known = index.len().min(bytes.len());
            bytes[..known].copy_from_slice(&index[..known]);
            u64::from_be_bytes(bytes)
        }
    }
}

/// Whether that is a block size: a power of two from 4 KiB to 64 KiB.
pub(crate) const fn is_block_size(size: u32) -> bool {
    size.is_power_of_two() && size >= 4 << 10 && size <= 64 << 10
}

/// Whether that is an identity: 32 hexadecimal digits. Names of folders are made of it, so that it must not be anything else.
pub(crate) fn is_identity(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_blocks_are() {
        let indexes = [0, 1, 255, 256, 1 << 32, (1 << 51) - 1, u64::MAX];
        let keys: Vec<Bytes> = indexes.iter().map(|index| block_key(*index)).collect();
        assert!(keys.is_sorted());
        for (index, key) in indexes.iter().zip(&keys) {
            assert_eq!(block_index(key), Some(*index));
        }
    }

    #[test]
    fn other_keys_are_no_blocks() {
        for key in [SIZE_KEY, WRITER_KEY, b"", b"b", b"b1234567", b"b123456789"] {
            assert_eq!(block_index(key), None, "{key:?}");
        }
    }

    #[test]
    fn block_sizes_are_powers_of_two() {
        let sizes: Vec<u32> = (0..=1 << 17).filter(|size| is_block_size(*size)).collect();
        assert_eq!(sizes, [4096, 8192, 16384, 32768, 65536]);
    }
}
