//! Numbers with what they count.

use core::fmt;

/// A number and a noun, which is in the singular for one: `1 request`, `2 requests`.
#[doc(hidden)]
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> impl fmt::Display {
    Counted { ending: if count == N::from(1) { "" } else { "s" }, count, noun }
}

struct Counted<'a, N> {
    count: N,
    noun: &'a str,
    ending: &'static str,
}

impl<N: fmt::Display> fmt::Display for Counted<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, noun, ending } = self;
        write!(f, "{count} {noun}{ending}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_all_else_plural() {
        let texts = [0_u64, 1, 2, 21].map(|count| counted(count, "byte").to_string());
        assert_eq!(texts, ["0 bytes", "1 byte", "2 bytes", "21 bytes"]);
        assert_eq!(counted(1_usize, "request").to_string(), "1 request");
    }
}
