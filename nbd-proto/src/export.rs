//! What both roles know of an export.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{BlockSizeInfo, MAX_STRING, TransmissionFlags};

/// The size constraints of an export, in bytes, checked (section "Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    minimum: u32,
    preferred: u32,
    maximum_payload: u32,
}

impl BlockSize {
    /// What holds when nothing is said: a minimum of 1 byte, 4 KiB preferred, 32 MiB of payload.
    // S-SZ-06
    pub const DEFAULT: Self = Self { minimum: 1, preferred: 4096, maximum_payload: 1 << 25 };

    /// Size constraints in bytes (section "Size constraints").
    ///
    /// # Errors
    /// [`InvalidBlockSize`] unless `minimum` is a power of two up to 65536, `preferred` a power of two of at least 512 and
    /// at least `minimum`, and `maximum_payload` at least `preferred`.
    ///
    /// ```
    /// use nbd_proto::BlockSize;
    /// assert!(BlockSize::new(512, 4096, 1 << 25).is_ok());
    /// assert!(BlockSize::new(0, 4096, 1 << 25).is_err());
    /// assert!(BlockSize::new(512, 4096, 1024).is_err());
    /// ```
    // S-SZ-01 to S-SZ-03
    pub const fn new(
        minimum: u32,
        preferred: u32,
        maximum_payload: u32,
    ) -> Result<Self, InvalidBlockSize> {
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(InvalidBlockSize::Minimum(minimum));
        }
        if !preferred.is_power_of_two() || preferred < 512 || preferred < minimum {
            return Err(InvalidBlockSize::Preferred(preferred));
        }
        if maximum_payload < preferred {
            return Err(InvalidBlockSize::MaximumPayload(maximum_payload));
        }
        Ok(Self { minimum, preferred, maximum_payload })
    }

    /// The smallest unit of offset and length in bytes: a power of two from 1 to 65536.
    #[must_use]
    pub const fn minimum(&self) -> u32 {
        self.minimum
    }

    /// The smallest unit that is served efficiently, in bytes: a power of two, 512 or more.
    #[must_use]
    pub const fn preferred(&self) -> u32 {
        self.preferred
    }

    /// The longest payload of a request or of a content chunk, in bytes: at least the preferred size.
    #[must_use]
    pub const fn maximum_payload(&self) -> u32 {
        self.maximum_payload
    }

    /// The same constraints with a maximum payload of at most `bytes`, but never less than the preferred size.
    #[must_use]
    pub fn with_payload_at_most(self, bytes: u32) -> Self {
        let maximum_payload = self.maximum_payload.min(bytes).max(self.preferred);
        Self { maximum_payload, ..self }
    }

    /// Whether offset and length are multiples of the minimum.
    #[must_use]
    pub fn is_aligned(&self, offset: u64, length: u64) -> bool {
        // The minimum is a power of two, so a mask does for a remainder.
        (offset | length) & u64::from(self.minimum.wrapping_sub(1)) == 0
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<BlockSizeInfo> for BlockSize {
    type Error = InvalidBlockSize;

    fn try_from(info: BlockSizeInfo) -> Result<Self, Self::Error> {
        Self::new(info.minimum, info.preferred, info.maximum_payload)
    }
}

impl From<BlockSize> for BlockSizeInfo {
    fn from(sizes: BlockSize) -> Self {
        let BlockSize { minimum, preferred, maximum_payload } = sizes;
        Self { minimum, preferred, maximum_payload }
    }
}

/// Which size constraint breaks the rules, with its value in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBlockSize {
    /// Not a power of two, or above 65536.
    #[error("a minimum block size of {0} is not a power of two up to 65536")]
    Minimum(u32),
    /// Not a power of two, below 512, or below the minimum.
    #[error("a preferred block size of {0} is not a power of two of at least 512 and the minimum")]
    Preferred(u32),
    /// Below the preferred size.
    #[error("a maximum payload of {0} is below the preferred block size")]
    MaximumPayload(u32),
}

/// A metadata context that an export offers (section "Metadata querying").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextInfo {
    name: String,
    wide: bool,
    query: Option<String>,
}

impl ContextInfo {
    /// The name of the allocation context that the specification defines.
    pub const BASE_ALLOCATION: &'static str = "base:allocation";

    /// A context with a status of 32 bits. `None` unless the name is a namespace of printable characters, a colon and
    /// a leaf, at most [`MAX_STRING`] bytes in all.
    // S-META-01
    #[must_use]
    pub fn new(name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        let (namespace, leaf) = name.split_once(':')?;
        let printable = |c: char| !c.is_whitespace() && !c.is_control();
        let valid = !namespace.is_empty()
            && namespace.chars().all(printable)
            && !leaf.is_empty()
            && !leaf.contains('\0')
            && name.len() <= MAX_STRING;
        valid.then_some(Self { name, wide: false, query: None })
    }

    /// `base:allocation`. The status is made of [`AllocationFlags`](crate::wire::AllocationFlags).
    #[must_use]
    pub fn base_allocation() -> Self {
        Self { name: Self::BASE_ALLOCATION.into(), wide: false, query: None }
    }

    /// The same context with a status of 64 bits: it can only be selected with extended headers.
    // S-OPT-EH-09
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.wide = true;
        self
    }

    /// The same context as an answer to `query`, which need not be its name: for a context that is made for what a
    /// client [asks](crate::server::Connection::queries).
    #[must_use]
    pub fn answering(mut self, query: impl Into<String>) -> Self {
        self.query = Some(query.into());
        self
    }

    /// Namespace, colon, leaf.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The query that it answers beside those that name it.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Whether the status has 64 bits.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        self.wide
    }
}

/// How a server describes an export that a client asked for; the core derives the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportInfo {
    /// The size in bytes. Of a larger export than 2^63 - 1 bytes clients see that many, for the sake of those with
    /// signed offsets.
    pub size: u64,
    /// What the export can do. The core adds `HAS_FLAGS` and what depends on negotiation (`SEND_DF`,
    /// `BLOCK_STATUS_PAYLOAD`), drops what contradicts (writing flags on a read-only export, `FAST_ZERO` without
    /// `WRITE_ZEROES`) and bits that the specification does not define.
    pub flags: TransmissionFlags,
    /// Size constraints; the maximum payload is lowered to [`Limits::max_payload`](crate::Limits::max_payload), but not
    /// below the preferred size.
    pub block_size: BlockSize,
    /// Refuse clients that do not ask for size constraints.
    pub block_size_required: bool,
    /// Refuse clients that do not use TLS.
    pub tls_required: bool,
    /// The canonical name, for clients that ask. One of more than [`MAX_STRING`] bytes, or with a NUL, is left out.
    pub name: Option<String>,
    /// A text for people, for clients that ask. One of more than [`MAX_STRING`] bytes, or with a NUL, is left out.
    pub description: Option<String>,
    /// The metadata contexts that can be selected; of several of one name the first.
    pub contexts: Vec<ContextInfo>,
}

impl ExportInfo {
    /// An export of `size` bytes that can be read and written, with default size constraints, no name and no contexts.
    ///
    /// The flags are empty: of the commands only `NBD_CMD_READ` and `NBD_CMD_WRITE` arrive, without FUA, and all others are
    /// refused. Each further command needs its flag in [`flags`](Self::flags), flushes included;
    /// [`READ_ONLY`](TransmissionFlags::READ_ONLY) has writes refused, too.
    ///
    /// ```
    /// use nbd_proto::ExportInfo;
    /// use nbd_proto::wire::TransmissionFlags;
    /// let mut read_only = ExportInfo::new(1 << 20);
    /// read_only.flags |= TransmissionFlags::READ_ONLY;
    /// ```
    #[must_use]
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            flags: TransmissionFlags::empty(),
            block_size: BlockSize::DEFAULT,
            block_size_required: false,
            tls_required: false,
            name: None,
            description: None,
            contexts: Vec::new(),
        }
    }
}

/// The largest size of an export that is announced, in bytes.
pub(crate) const MAX_SIZE: u64 = i64::MAX as u64;

/// A run of bytes with one status (section "Metadata querying").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made in great numbers by embedders")]
pub struct Extent {
    /// Bytes; never zero on the wire.
    pub length: u64,
    /// Flags as the metadata context defines them: for `base:allocation`
    /// [`AllocationFlags`](crate::wire::AllocationFlags), as `u64::from(flags.bits())`.
    pub status: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_names_have_a_printable_namespace_and_a_leaf() {
        for (name, valid) in [
            ("base:allocation", true),
            ("qemu:dirty-bitmap:b0", true),
            ("nocolon", false),
            (":leaf", false),
            ("ns:", false),
            ("n s:leaf", false),
        ] {
            assert_eq!(ContextInfo::new(name).is_some(), valid, "{name}");
        }
    }

    #[test]
    fn alignment_is_to_the_minimum_block_size() {
        let sizes = BlockSize::new(512, 4096, 1 << 20).unwrap();
        assert!(sizes.is_aligned(512, 1024));
        assert!(!sizes.is_aligned(1, 512));
        assert!(!sizes.is_aligned(512, 1));
        assert!(BlockSize::DEFAULT.is_aligned(3, 5));
    }

    #[test]
    fn lowering_the_payload_keeps_the_constraints_valid() {
        let sizes = BlockSize::DEFAULT.with_payload_at_most(1);
        assert_eq!(sizes.maximum_payload(), 4096);
        assert!(
            BlockSize::new(sizes.minimum(), sizes.preferred(), sizes.maximum_payload()).is_ok()
        );
    }
}
