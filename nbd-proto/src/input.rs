//! Where a machine takes its input from.

/// Received bytes that are not consumed yet.
///
/// A plain `&[u8]` is one, and so is a [`RecvBuffer`](crate::RecvBuffer).
pub trait Input {
    /// The bytes, in the order of their arrival.
    fn unread(&self) -> &[u8];

    /// The first `count` bytes are used up. To consume more than there are consumes all of them.
    fn consume(&mut self, count: usize);
}

impl Input for &[u8] {
    #[inline]
    fn unread(&self) -> &[u8] {
        self
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        *self = self.get(count..).unwrap_or_default();
    }
}

impl<I: Input + ?Sized> Input for &mut I {
    #[inline]
    fn unread(&self) -> &[u8] {
        (**self).unread()
    }

    #[inline]
    fn consume(&mut self, count: usize) {
        (**self).consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_consumed_from_its_front_and_never_beyond_its_end() {
        fn take(mut input: impl Input, count: usize) -> usize {
            input.consume(count);
            input.unread().len()
        }
        let mut bytes = &b"abcdef"[..];
        assert_eq!(take(&mut bytes, 2), 4);
        assert_eq!(bytes, b"cdef");
        assert_eq!(take(&mut bytes, 5), 0);
        assert_eq!(bytes, b"");
    }
}
