//! Numbers, sizes and durations as people write them.

use nbd_engine::counted;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

/// A number, of connections for example.
pub(crate) fn number(text: &str) -> Result<usize, String> {
    number_of(text)
}

/// A number of another type, of at most its maximum.
pub(crate) fn number_of<T: FromStr>(text: &str) -> Result<T, String> {
    let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let error = if is_number { "give a smaller number" } else { "give a number" };
    text.parse().map_err(|_| error.into())
}

/// A number of a range.
pub(crate) fn within<T: FromStr + PartialOrd + fmt::Display>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
}

/// A number that is not 0.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "give a number of at least 1".into())
}

/// A TCP port; 0 stands for a free one.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "a port is a number from 0 to 65535".into())
}

/// A size that is not 0.
pub(crate) fn positive_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("give a size of at least 1".into()),
        size => Ok(size),
    }
}

/// As many bytes are held for each request in flight.
const LONGEST_REQUEST: u64 = 64 << 20;

/// The size of requests, which is not 0.
pub(crate) fn request_size(text: &str) -> Result<u64, String> {
    match positive_size(text)? {
        size if size > LONGEST_REQUEST => Err("give a size of at most 64M".into()),
        size => Ok(size),
    }
}

/// Refuses a range that is in no export, however large that is.
pub(crate) fn possible_range(offset: u64, length: u64) -> Result<(), String> {
    match offset.checked_add(length).and_then(|end| i64::try_from(end).ok()) {
        Some(_) => Ok(()),
        None => Err(
            "the range ends beyond 2^63 - 1 bytes, which no export has: choose a smaller offset or length".into(),
        ),
    }
}

/// A range of an export of `size` bytes.
pub(crate) fn range(size: u64, offset: u64, length: u64) -> Result<Range<u64>, String> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(offset..end),
        _ => Err(format!(
            "the export has {}: choose an offset and a length within it",
            counted(size, "byte")
        )),
    }
}

/// A size in bytes: a number, with one of the suffixes `b`, `k`, `m`, `g`, `t`, `p`, `e` in either case for powers of
/// 1024; or `0x` and hexadecimal digits.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let help = || {
        format!(
            "'{text}' is not a size: give a number of bytes, or one with a suffix, such as 512, 4k, 10M, 1G or 1T"
        )
    };
    let fits = |size: Option<u64>| {
        size.filter(|size| i64::try_from(*size).is_ok())
            .ok_or_else(|| format!("'{text}' is too large: a disk has at most 2^63 - 1 bytes"))
    };
    if let Some(digits) = text.strip_prefix("0x") {
        let valid = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        return if valid { fits(u64::from_str_radix(digits, 16).ok()) } else { Err(help()) };
    }
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(help());
    }
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        "e" | "eib" => 60,
        _ => return Err(help()),
    };
    // Digits that are no number are too many of them.
    let number: Option<u64> = digits.parse().ok();
    fits(number.and_then(|number| number.checked_mul(1 << shift)))
}

/// A duration: a number of seconds, or one with a suffix `ms`, `s`, `m` or `h`, with or without a fraction, in whole
/// milliseconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let help = || {
        format!(
            "'{text}' is not a duration: give seconds, or a number with a suffix, such as 10, 500ms, 1.5s or 5m"
        )
    };
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let milliseconds: u64 = match suffix {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(help()),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return Err(help()),
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    let digits = |digits: &str| digits.parse::<u64>().ok();
    let whole = digits(whole).and_then(|whole| whole.checked_mul(milliseconds));
    // What has more digits than that is no whole number of milliseconds anyway.
    let part = match fraction.trim_end_matches('0') {
        "" => Some(0),
        fraction => digits(fraction)
            .zip(10_u64.checked_pow(fraction.len() as u32))
            .and_then(|(part, scale)| Some((part.checked_mul(milliseconds)?, scale)))
            .and_then(|(part, scale)| part.is_multiple_of(scale).then(|| part / scale)),
    };
    let sum = whole.zip(part).and_then(|(whole, part)| whole.checked_add(part));
    sum.map(Duration::from_millis).ok_or_else(help)
}

/// How long something may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeout {
    After(Duration),
    Never,
}

impl Timeout {
    /// `None` for never.
    pub(crate) const fn duration(self) -> Option<Duration> {
        match self {
            Self::After(duration) => Some(duration),
            Self::Never => None,
        }
    }
}

/// A duration that is not 0, or `never`.
pub(crate) fn timeout(text: &str) -> Result<Timeout, String> {
    if text == "never" {
        return Ok(Timeout::Never);
    }
    match duration(text) {
        Ok(Duration::ZERO) => Err("give at least 1ms, or never".into()),
        Ok(duration) => Ok(Timeout::After(duration)),
        Err(error) => Err(format!("{error}, or never")),
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("512", 512),
            ("4k", 4096),
            ("1M", 1 << 20),
            ("10G", 10 << 30),
            ("1T", 1 << 40),
            ("0", 0),
            ("0x0", 0),
            ("0x1F0", 496),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_named_with_a_remedy() {
        for text in ["", "k", "-1", "1.5G", "10 G", "1X", "1Gx", "0x", "0x-1", "0x+1", "0x1G"] {
            assert!(size(text).unwrap_err().contains("is not a size"), "{text}");
        }
        for text in ["8E", "16E", "99999999999E", "9223372036854775808", "99999999999999999999"] {
            assert!(size(text).unwrap_err().contains("too large"), "{text}");
        }
        assert!(size("99999999999999999999X").unwrap_err().contains("is not a size"));
        assert_eq!(size("9223372036854775807"), Ok(i64::MAX as u64));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for text in
            ["", "soon", "-1", "+1", "1.", ".5", "1.5.0", ".", "1 s", "0.5ms", "0.0001s", "1.x"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["0.00000000000000000001h", "99999999999999999999", "1.99999999999999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_of_whole_milliseconds_may_be_fractions() {
        cases(1000, |random| {
            let (unit, suffix) =
                random.of(&[(1, "ms"), (1000, ""), (1000, "s"), (60_000, "m"), (3_600_000, "h")]);
            // Fractions that end, of each unit.
            let parts = unit / random.of(&[1, 2, 4, 5, 8, 20, 25, 40, 125, 1000]).min(unit);
            let milliseconds = random.below(10_000) * parts;
            let mut text = format!("{}", milliseconds as f64 / unit as f64);
            if text.contains('.') && random.one_in(4) {
                text += "00";
            }
            text += suffix;
            assert_eq!(duration(&text), Ok(Duration::from_millis(milliseconds)), "{text}");
        });
    }

    #[test]
    fn timeouts_are_durations_or_never() {
        assert_eq!(timeout("never"), Ok(Timeout::Never));
        assert_eq!(timeout("2m"), Ok(Timeout::After(Duration::from_secs(120))));
        for text in ["0", "0ms", "soon", "", "-1", "Never"] {
            assert!(timeout(text).unwrap_err().contains("never"), "{text}");
        }
    }
}
