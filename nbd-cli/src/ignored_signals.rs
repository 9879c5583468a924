//! Which signals are ignored when this process begins, as `nohup` and `trap ''` have it.

/// Those of the signals that are not ignored, nor to be watched for otherwise: who ignored one before this program began wants
/// it to be nothing.
pub(crate) fn not_ignored<const N: usize>(signals: [i32; N]) -> impl Iterator<Item = i32> {
    let ignored = ignored();
    signals.into_iter().filter(move |signal| !contains(ignored, *signal))
}

/// The signals that this process ignores, a bit for each.
fn ignored() -> u64 {
    // Elsewhere than on Linux there is no such file.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

const fn contains(mask: u64, signal: i32) -> bool {
    mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use signal_hook::consts::{SIGPIPE, SIGTERM};

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn ignored_signals_are_known() {
        // The standard library ignores the first one in every program.
        assert_eq!(Vec::from_iter(not_ignored([SIGPIPE, SIGTERM])), [SIGTERM]);
    }
}
