//! Requests that exports fail, as the log reports them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use nbd_proto::Command;
use nbd_proto::wire::ErrorCode;

use crate::command_text::CommandText;
use crate::export::ExportError;
use crate::throttle::Throttle;

/// So many exports are told apart; all others are counted together.
const EXPORTS: usize = 1000;

/// Counts requests that failed for want of what the export is made of, rather than by what the client asked for. Clients
/// can repeat them as often as they like, so each export has a throttle of its own: one that fails does not hide another.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    exports: Mutex<HashMap<Box<str>, Throttle>>,
    others: Throttle,
}

impl Failures {
    /// A request to an export failed: logs that if it is time to. The span says whose request it was.
    pub(super) fn report(&self, export: &str, command: Command, error: &ExportError) {
        let codes = [ErrorCode::EIO, ErrorCode::ENOSPC, ErrorCode::ENOMEM];
        // A file system that has become read-only is EPERM.
        if !error.is_of_system() && !codes.contains(&error.code()) {
            tracing::debug!(command = %CommandText(command), %error, "a request failed");
            return;
        }
        match self.count(export) {
            Some(times) => {
                tracing::warn!(command = %CommandText(command), %error, times, "the disk failed a request");
            }
            None => {
                tracing::debug!(command = %CommandText(command), %error, "the disk failed a request")
            }
        }
    }

    fn count(&self, export: &str) -> Option<u64> {
        let mut exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(throttle) = exports.get(export) {
            return throttle.count();
        }
        if exports.len() >= EXPORTS {
            return self.others.count();
        }
        exports.entry(export.into()).or_default().count()
    }

    /// Reports at the end what was counted and not reported yet.
    pub(super) fn report_rest(&self) {
        let exports = self.exports.lock().unwrap_or_else(PoisonError::into_inner);
        for (export, throttle) in exports.iter() {
            let times = throttle.unreported();
            if times > 0 {
                tracing::warn!(export, times, "the disk failed further requests");
            }
        }
        let times = self.others.unreported();
        if times > 0 {
            tracing::warn!(times, "the disks of other exports failed further requests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_export_that_fails_does_not_hide_another() {
        let failures = Failures::default();
        assert_eq!(failures.count("a"), Some(1));
        for _ in 0..1000 {
            assert_eq!(failures.count("a"), None);
        }
        assert_eq!(failures.count("b"), Some(1));
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let failures = Failures::default();
        let reported = (0..2 * EXPORTS).filter(|n| failures.count(&n.to_string()).is_some());
        assert_eq!(reported.count(), EXPORTS + 1);
        assert_eq!(failures.exports.lock().unwrap().len(), EXPORTS);
    }
}
