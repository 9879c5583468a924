//! Long times, as people read them.

use core::time::Duration;

/// A long time in its two largest units: `12s`, `3m 4s`, `2h 5m`, `3d 1h`.
#[doc(hidden)]
#[must_use]
pub fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_two_largest_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (184, "3m 4s"), (7_500, "2h 5m"), (262_800, "3d 1h")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
