//! What client and server agreed on.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nbd_proto::BlockSize;
use nbd_proto::client::ExportView;
use nbd_proto::wire::{CommandFlags, CommandType, TransmissionFlags};

use super::Invalid;
use super::details::ExportDetails;
use super::invalid::{Operation, Terms};

/// What client and server agreed on, and what the server told of the export. A [`Client`](super::Client) gives it by
/// [`Deref`](core::ops::Deref): these are its getters.
#[derive(Debug)]
pub struct Negotiated {
    details: ExportDetails,
    size: AtomicU64,
    pub(super) terms: Terms,
    pub(super) contexts: Vec<Arc<str>>,
    peer: Arc<str>,
    structured: bool,
    tls: bool,
}

impl Negotiated {
    pub(super) fn new(peer: Arc<str>, details: ExportDetails, export: &ExportView<'_>) -> Self {
        Self {
            size: AtomicU64::new(details.size),
            terms: Terms::new(export),
            contexts: details.contexts.iter().map(|context| context.as_str().into()).collect(),
            details,
            peer,
            structured: export.structured,
            tls: export.tls,
        }
    }

    pub(super) fn resized(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    pub(super) fn check(&self, operation: &Operation) -> Result<(), Invalid> {
        self.terms.check(operation, self.size())
    }

    /// Whether a range makes sense for reads of this export, without asking the server.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_range(&self, offset: u64, length: u64) -> Result<(), Invalid> {
        let flags = CommandFlags::empty();
        self.check(&Operation::new(CommandType::READ, offset, length, flags))
    }

    /// The server, as errors name it.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// What the server told of the export when it was entered.
    #[must_use]
    pub fn details(&self) -> &ExportDetails {
        &self.details
    }

    /// The size in bytes; changes only by [`resize`](super::Client::resize).
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// What the export can do, see the `can_` methods.
    #[must_use]
    pub fn flags(&self) -> TransmissionFlags {
        self.terms.flags
    }

    /// Size constraints, as they are obeyed: the minimum is what offsets and lengths have to be multiples of; requests
    /// that are longer than the maximum payload are split.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.terms.block_size
    }

    /// The metadata contexts that were selected, in the order of the answers of
    /// [`block_status`](super::Client::block_status).
    pub fn contexts(&self) -> impl ExactSizeIterator<Item = &str> {
        self.contexts.iter().map(|context| &**context)
    }

    /// Whether reads are answered by structured or extended replies, which tell holes from data and errors in words.
    #[must_use]
    pub fn is_structured(&self) -> bool {
        self.structured
    }

    /// Whether extended headers are in use, with lengths of 64 bits.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.terms.extended
    }

    /// Whether the connection runs over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether nothing can be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags().contains(TransmissionFlags::READ_ONLY)
    }

    /// Whether the medium rotates, so that requests are best ordered.
    #[must_use]
    pub fn is_rotational(&self) -> bool {
        self.flags().contains(TransmissionFlags::ROTATIONAL)
    }

    /// Whether [`flush`](super::Client::flush) is understood.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_FLUSH)
    }

    /// Whether [`Flags::FUA`](super::Flags) is understood.
    #[must_use]
    pub fn can_fua(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_FUA)
    }

    /// Whether [`trim`](super::Client::trim) is understood.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_TRIM)
    }

    /// Whether [`write_zeroes`](super::Client::write_zeroes) is understood.
    #[must_use]
    pub fn can_write_zeroes(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_WRITE_ZEROES)
    }

    /// Whether [`Flags::FAST_ZERO`](super::Flags) is understood.
    #[must_use]
    pub fn can_fast_zero(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_FAST_ZERO)
    }

    /// Whether [`Flags::DF`](super::Flags) is understood.
    #[must_use]
    pub fn can_df(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_DF)
    }

    /// Whether [`cache`](super::Client::cache) is understood.
    #[must_use]
    pub fn can_cache(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_CACHE)
    }

    /// Whether [`resize`](super::Client::resize) is understood.
    #[must_use]
    pub fn can_resize(&self) -> bool {
        self.flags().contains(TransmissionFlags::SEND_RESIZE)
    }

    /// Whether a flush on one connection covers the writes on all of them.
    #[must_use]
    pub fn can_multi_conn(&self) -> bool {
        self.flags().contains(TransmissionFlags::CAN_MULTI_CONN)
    }

    /// Whether a metadata context is selected, so that [`block_status`](super::Client::block_status) tells of it.
    #[must_use]
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts().any(|context| context == name)
    }
}
