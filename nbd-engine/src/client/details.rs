//! What a server says of its exports.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nbd_proto::client::{Connection, Info};
use nbd_proto::wire::{BlockSizeInfo, TransmissionFlags};
use nbd_proto::{BlockSize, ContextRefusal, ExportView};

/// An export in the answer to a list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// The name to ask for it by; empty for the default export.
    pub name: String,
    /// A text for people; empty for none.
    pub description: String,
}

impl Listing {
    pub(super) const fn new(name: String, description: String) -> Self {
        Self { name, description }
    }
}

/// The handshake that a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handshake {
    /// One export, no options.
    Oldstyle,
    /// Options that can't be refused: only `NBD_OPT_EXPORT_NAME` is of use.
    Newstyle,
    /// Every option; nearly all servers speak it.
    FixedNewstyle,
}

/// What a server said of an export, and what client and server agreed about it.
///
/// A [`Client`](super::Client) [has](super::Client::export) that of the export that it entered. What
/// [`Negotiation::info`](super::Negotiation::info) gives holds for the moment: no metadata context is selected, and
/// entering can still change the rest.
#[derive(Clone, Debug)]
pub struct ExportDetails {
    name: String,
    canonical_name: Option<String>,
    description: Option<String>,
    pub(super) size: Arc<AtomicU64>,
    flags: TransmissionFlags,
    block_size: BlockSize,
    advertised_block_size: Option<BlockSizeInfo>,
    contexts: Vec<Arc<str>>,
    contexts_refused: Option<ContextRefusal>,
    structured: bool,
    extended: bool,
    tls: bool,
}

impl ExportDetails {
    pub(super) fn new(name: &str, connection: &Connection, tls: bool) -> Self {
        Self {
            name: name.into(),
            canonical_name: None,
            description: None,
            size: Arc::default(),
            flags: TransmissionFlags::empty(),
            block_size: BlockSize::DEFAULT,
            advertised_block_size: None,
            contexts: Vec::new(),
            contexts_refused: None,
            structured: connection.is_structured(),
            extended: connection.is_extended(),
            tls: tls || connection.is_tls(),
        }
    }

    pub(super) fn entered(name: &str, export: &ExportView<'_>, tls: bool) -> Self {
        let &ExportView { size, flags, block_size, structured, extended, .. } = export;
        Self {
            name: name.into(),
            canonical_name: export.name.map(Into::into),
            description: export.description.map(Into::into),
            size: Arc::new(AtomicU64::new(size)),
            flags,
            block_size,
            advertised_block_size: export.block_size_advertised.then(|| block_size.into()),
            contexts: export.contexts.iter().map(|context| (*context.name).into()).collect(),
            contexts_refused: export.contexts_refused.cloned(),
            structured,
            extended,
            tls: tls || export.tls,
        }
    }

    pub(super) fn learn(&mut self, info: Info) {
        match info {
            Info::Export { size, flags } => {
                self.size.store(size, Ordering::Release);
                self.flags = flags;
            }
            Info::Name(name) => self.canonical_name = Some(name),
            Info::Description(text) => self.description = Some(text),
            Info::BlockSize(sizes) => {
                let BlockSizeInfo { minimum, preferred, maximum_payload } = sizes;
                self.advertised_block_size = Some(sizes);
                let sizes = BlockSize::new(minimum, preferred, maximum_payload);
                self.block_size = sizes.unwrap_or(BlockSize::DEFAULT);
            }
            _ => {}
        }
    }

    /// The name that it was asked for by; empty for the default export.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that the server calls it by, if it said one.
    #[must_use]
    pub fn canonical_name(&self) -> Option<&str> {
        self.canonical_name.as_deref()
    }

    /// A text for people, if there is one.
    #[must_use]
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The size in bytes. That of a client's export changes by [`resize`](super::Client::resize), and by nothing else.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// What is different about an export that should be this one, for people; `None` if nothing is. Abilities may have been
    /// added, and the export may have grown, but not shrunk.
    #[must_use]
    pub fn difference(&self, found: &Self) -> Option<Arc<str>> {
        let (was, is) = (self.size(), found.size());
        super::reconnect::difference(self, [was, was.max(is)], found)
    }

    /// What the export can do, see the `can_` methods.
    #[must_use]
    pub const fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// Size constraints, as the client obeys them: offsets and lengths have to be multiples of the minimum; requests that
    /// are longer than the maximum payload are split.
    #[must_use]
    pub const fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Size constraints as the server sent them; `None` if it sent none.
    #[must_use]
    pub const fn advertised_block_size(&self) -> Option<BlockSizeInfo> {
        self.advertised_block_size
    }

    /// The metadata contexts that are selected, in the order of the answers of
    /// [`block_status`](super::Client::block_status).
    #[must_use]
    pub fn contexts(&self) -> &[Arc<str>] {
        &self.contexts
    }

    /// Why the server selected none of the [configured](super::ClientConfig::with_contexts) contexts, if it refused to: it
    /// may take fewer at a time, or have failed to look the export up. `None` if it selected those that it has, be it none,
    /// or does not know of contexts at all.
    #[must_use]
    pub const fn contexts_refused(&self) -> Option<&ContextRefusal> {
        self.contexts_refused.as_ref()
    }

    pub(super) fn sorted_contexts(&self) -> Vec<Arc<str>> {
        let mut contexts = self.contexts.clone();
        contexts.sort();
        contexts
    }

    /// Whether a metadata context is selected, so that [`block_status`](super::Client::block_status) reports it.
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|context| **context == *name)
    }

    /// Whether reads are answered by structured or extended replies, which tell holes from data and have error messages.
    #[must_use]
    pub const fn is_structured(&self) -> bool {
        self.structured
    }

    /// Whether extended headers are in use, with lengths of 64 bits.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.extended
    }

    /// Whether the connection runs over TLS: by `NBD_OPT_STARTTLS`, or because the stream that it was made over does, as
    /// [`with_stream_in_tls`](super::ClientConfig::with_stream_in_tls) said.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether nothing can be written.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.flags.contains(TransmissionFlags::READ_ONLY)
    }

    /// Whether the medium rotates, so that requests are best ordered.
    #[must_use]
    pub const fn is_rotational(&self) -> bool {
        self.flags.contains(TransmissionFlags::ROTATIONAL)
    }

    /// Whether [`flush`](super::Client::flush) is understood.
    #[must_use]
    pub const fn can_flush(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_FLUSH)
    }

    /// Whether [`Flags::FUA`](super::Flags) is understood.
    #[must_use]
    pub const fn can_fua(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_FUA)
    }

    /// Whether [`trim`](super::Client::trim) is understood.
    #[must_use]
    pub const fn can_trim(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_TRIM)
    }

    /// Whether [`write_zeroes`](super::Client::write_zeroes) is understood.
    #[must_use]
    pub const fn can_write_zeroes(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_WRITE_ZEROES)
    }

    /// Whether [`Flags::FAST_ZERO`](super::Flags) is understood.
    #[must_use]
    pub const fn can_fast_zero(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_FAST_ZERO)
    }

    /// Whether [`Flags::DF`](super::Flags) is understood.
    #[must_use]
    pub const fn can_df(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_DF)
    }

    /// Whether [`cache`](super::Client::cache) is understood.
    #[must_use]
    pub const fn can_cache(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_CACHE)
    }

    /// Whether [`resize`](super::Client::resize) is understood.
    #[must_use]
    pub const fn can_resize(&self) -> bool {
        self.flags.contains(TransmissionFlags::SEND_RESIZE)
    }

    /// Whether a flush on one connection covers the writes on all of them.
    #[must_use]
    pub const fn can_multi_conn(&self) -> bool {
        self.flags.contains(TransmissionFlags::CAN_MULTI_CONN)
    }
}
