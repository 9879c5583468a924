//! The data of requests.

use bytes::Bytes;

/// The data of a request. It belongs to the request until the outcome is there, so that a waiter that gives up can't
/// disturb the stream.
#[derive(Debug, Default)]
pub(super) enum Buffer {
    #[default]
    None,
    /// To be read into, or to be written.
    Owned(Vec<u8>),
    /// To be written.
    Shared(Bytes),
}

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// What can be read into.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::None | Self::Shared(_) => &mut [],
        }
    }

    pub(super) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Owned(bytes) => bytes,
            Self::None | Self::Shared(_) => Vec::new(),
        }
    }
}
