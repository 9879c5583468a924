//! The marks by which writers fence others, as they lie in the store.
//!
//! A writer that opens a database leaves a part without a byte at the end of the log, and SlateDB takes every part without a
//! byte for such a fence. A part of which a file system or a copy has left no byte would be one, too: what was flushed to it
//! would be gone without a word. So a fence has some bytes in the store, which SlateDB does not see, and none has no bytes.

use futures_util::{StreamExt as _, stream};
use object_store::path::Path;
use object_store::{GetResult, GetResultPayload, ObjectMeta, PutPayload};

use crate::layout::Descriptor;
use crate::wal;

/// What a fence consists of. Shorter than any other part of a log can be.
pub(crate) const FENCE: &[u8] = b"fence\n";

/// The fences of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fences {
    /// They have no bytes, or there may be such ones: those of the earlier formats, and where nobody has looked.
    Bare,
    /// Each of them has its [bytes](FENCE).
    Marked,
}

impl Fences {
    pub(crate) const fn of(descriptor: &Descriptor) -> Self {
        if descriptor.marks_fences() { Self::Marked } else { Self::Bare }
    }

    /// What is stored for what SlateDB writes there.
    pub(crate) fn stored(self, path: &Path, payload: PutPayload) -> PutPayload {
        match self == Self::Marked && is_part_of_log(path) && payload.content_length() == 0 {
            true => PutPayload::from_static(FENCE),
            false => payload,
        }
    }

    /// Whether that is an object of the log that has lost its bytes.
    pub(crate) fn is_emptied(self, object: &ObjectMeta) -> bool {
        self == Self::Marked && object.size == 0 && is_part_of_log(&object.location)
    }
}

/// Whether an object may be a fence with its bytes: only a look at them tells.
pub(crate) fn may_be_fence(object: &ObjectMeta) -> bool {
    object.size == FENCE.len() as u64 && is_part_of_log(&object.location)
}

/// A fence as SlateDB sees it.
pub(crate) fn without_bytes(fence: GetResult) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(stream::empty().boxed()),
        meta: listed(fence.meta),
        range: 0..0,
        ..fence
    }
}

/// An object of a list as SlateDB sees it: it goes by the length to find out what to collect, and collects no fences.
pub(crate) fn listed(object: ObjectMeta) -> ObjectMeta {
    if may_be_fence(&object) { ObjectMeta { size: 0, ..object } } else { object }
}

/// Whether an object is a part of a database's log.
fn is_part_of_log(path: &Path) -> bool {
    let mut parts = path.as_ref().rsplit('/').skip(1);
    parts.next() == Some(wal::FOLDER) && wal::number_of(path).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_and_in_the_log_is_a_fence() {
        let stored = |fences: Fences, path: &str, bytes: &'static [u8]| {
            fences.stored(&Path::from(path), PutPayload::from_static(bytes)).content_length()
        };
        let part = "a/v/wal/00000000000000000003.sst";
        assert_eq!(stored(Fences::Marked, part, b""), FENCE.len());
        assert_eq!(stored(Fences::Marked, part, b"12345678"), 8);
        assert_eq!(stored(Fences::Bare, part, b""), 0);
        for other in
            ["a/v/manifest/00000000000000000003.sst", "a/v/wal/gc.boundary", "wal", "3.sst"]
        {
            assert_eq!(stored(Fences::Marked, other, b""), 0, "{other}");
        }
    }
}
