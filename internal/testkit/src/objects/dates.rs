//! Times as HTTP and S3 write them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Year, month, day, hour, minute, second, and the day of the week from Thursday on.
fn parts(time: SystemTime) -> [u64; 7] {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = seconds / 86_400;
    // Years that begin in March, in eras of 400 of them.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    [year, month, date, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, days % 7]
}

/// As in `Last-Modified`.
pub(super) fn http(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [year, month, date, hour, minute, second, day] = parts(time);
    let (day, month) = (DAYS[day as usize], MONTHS[month as usize - 1]);
    format!("{day}, {date:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

/// As in lists of objects.
pub(super) fn iso(time: SystemTime) -> String {
    let [year, month, date, hour, minute, second, _] = parts(time);
    format!("{year}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_102_444_800, "Fri, 01 Jan 2100 00:00:00 GMT"),
        ] {
            assert_eq!(http(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        assert_eq!(iso(UNIX_EPOCH + Duration::from_secs(951_782_401)), "2000-02-29T00:00:01.000Z");
    }
}
