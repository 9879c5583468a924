//! A page of memory, owned or shared.

use core::fmt;
use core::ops::Deref;
use std::sync::Arc;

use super::frames::Frames;
use super::slab::Frame;

/// A page of bytes that can be received into and written while they have one owner, and read while they are shared: to
/// clone a page copies nothing.
///
/// Pages that a [`Memory`](super::Memory) gave out go back to it when their last owner drops them, on whatever thread;
/// they keep the memory of their disk alive, not the disk. Others are made from a vector.
#[derive(Clone)]
pub struct Page(Arc<Bytes>);

enum Bytes {
    /// A frame and where it belongs. It is there until the last owner takes it out.
    Frame(Option<Frame>, Arc<Frames>),
    Heap(Box<[u8]>),
}

impl Page {
    pub(super) fn from_frame(frame: Frame, owner: Arc<Frames>) -> Self {
        Self(Arc::new(Bytes::Frame(Some(frame), owner)))
    }

    /// The bytes, to be changed; `None` while they are shared.
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        Some(match Arc::get_mut(&mut self.0)? {
            Bytes::Frame(frame, _) => frame.as_mut().map(Frame::bytes_mut).unwrap_or_default(),
            Bytes::Heap(bytes) => bytes,
        })
    }

    /// Whether both are the same page, rather than equal ones.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether it is memory of `owner`.
    pub(super) fn is_of(&self, owner: &Arc<Frames>) -> bool {
        matches!(&*self.0, Bytes::Frame(_, own) if Arc::ptr_eq(own, owner))
    }

    /// The frame, if there is one and it is not shared. The page is gone.
    pub(super) fn into_frame(self) -> Option<Frame> {
        match Arc::into_inner(self.0)? {
            Bytes::Frame(ref mut frame, _) => frame.take(),
            Bytes::Heap(_) => None,
        }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Self::Frame(frame, owner) = self
            && let Some(frame) = frame.take()
        {
            owner.give_back([frame]);
        }
    }
}

impl Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.0 {
            Bytes::Frame(frame, _) => frame.as_ref().map(Frame::bytes).unwrap_or_default(),
            Bytes::Heap(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Page {
    /// A page of memory of its own.
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Bytes::Heap(bytes.into_boxed_slice())))
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("len", &self.len()).finish_non_exhaustive()
    }
}
