//! What tells whether an object still is what it was.

use object_store::{GetOptions, ObjectMeta};

/// What a store reports of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    size: u64,
    etag: Option<String>,
    /// The time of the last change, in seconds since 1970, as HTTP has it. The library has 1970 for a missing one.
    modified: Option<i64>,
}

impl Identity {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let modified = meta.last_modified.timestamp();
        Self {
            size: meta.size,
            etag: meta.e_tag.clone(),
            modified: (modified != 0).then_some(modified),
        }
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Whether another object of the same size would be noticed.
    pub(super) const fn tells_changes(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    /// The condition for a request: the store then refuses it if the object was changed. A weak ETag can't be one, and is
    /// only compared.
    pub(super) fn condition(&self) -> GetOptions {
        let strong = self.etag.clone().filter(|etag| !etag.starts_with("W/"));
        GetOptions { if_match: strong, ..GetOptions::default() }
    }

    /// Whether a reply lacks the ETag that the first one had: whether it is of the same object can't be told. A reply to
    /// a request for metadata may lack it.
    pub(super) const fn is_lost_in(&self, meta: &ObjectMeta) -> bool {
        self.etag.is_some() && meta.e_tag.is_none()
    }

    /// What differs in what the store reports now, in words. The time counts only where there is no ETag: servers behind
    /// one name may have copies of different age.
    pub(super) fn difference(&self, meta: &ObjectMeta) -> Option<String> {
        let now = Self::of(meta);
        if now.size != self.size {
            return Some(format!("it had {} bytes, and has {}", self.size, now.size));
        }
        if let (Some(was), Some(is)) = (&self.etag, &now.etag) {
            return (was != is).then(|| format!("its ETag was {was}, and is {is}"));
        }
        match (self.modified, now.modified) {
            (Some(was), Some(is)) if was != is => {
                Some("it was modified since it was opened (Last-Modified)".to_owned())
            }
            _ => None,
        }
    }
}
