//! A client's use of an export, from when it enters to when it leaves.

use std::sync::{Arc, Mutex, PoisonError};

use super::dispatch::guarded;
use crate::export::{ClientInfo, CloseReason, ExportEntry, Withdrawal};

/// A client's use of an export. Whoever carries out a request holds on to it, so that the export learns of the client's
/// leaving only after the last request has ended.
#[derive(Debug)]
pub(crate) struct Visit {
    entry: ExportEntry,
    client: Arc<ClientInfo>,
    reason: Mutex<Option<CloseReason>>,
}

impl Visit {
    /// The client enters.
    pub(crate) fn begin(entry: ExportEntry, client: Arc<ClientInfo>) -> Arc<Self> {
        let visit = Self { entry, client, reason: Mutex::default() };
        if guarded(|| visit.entry.client_entered(&visit.client)).is_err() {
            tracing::error!(
                export = visit.entry.name(),
                "an export panicked when a client entered"
            );
        }
        Arc::new(visit)
    }

    /// What takes the export away from the client, if anything does.
    pub(crate) const fn withdrawal(&self) -> Option<&Withdrawal> {
        self.entry.withdrawal()
    }

    /// Says why it is about to end; the first reason counts.
    pub(crate) fn ends_for(&self, reason: CloseReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let reason = self.reason.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let reason = reason.unwrap_or(CloseReason::Dropped);
        if guarded(|| self.entry.client_left(&self.client, &reason)).is_err() {
            tracing::error!(export = self.entry.name(), "an export panicked when a client left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Export, Memory, PeerAddr, Result};

    fn client() -> Arc<ClientInfo> {
        Arc::new(ClientInfo::new(7, PeerAddr::Unix(None)))
    }

    #[test]
    fn the_first_reason_counts_and_comes_once_after_the_last_request() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (entered, left) = (Arc::clone(&log), Arc::clone(&log));
        let entry = ExportEntry::new("disk", Memory::new(1).unwrap())
            .unwrap()
            .on_enter(move |client| {
                entered.lock().unwrap().push(format!("{} entered", client.connection));
            })
            .on_close(move |client, reason| {
                left.lock().unwrap().push(format!("{}: {reason:?}", client.connection));
            });
        for reason in [Some(CloseReason::Vanished), None] {
            let visit = Visit::begin(entry.clone(), client());
            let request = Arc::clone(&visit);
            if let Some(reason) = reason {
                visit.ends_for(reason);
                visit.ends_for(CloseReason::ShutDown);
            }
            drop(visit);
            assert!(log.lock().unwrap().last().unwrap().ends_with("entered"));
            drop(request);
        }
        let all = ["7 entered", "7: Vanished", "7 entered", "7: Dropped"];
        assert_eq!(*log.lock().unwrap(), all);
    }

    #[test]
    fn an_export_that_panics_at_the_door_is_none_the_worse() {
        struct Shy;
        impl Export for Shy {
            fn size(&self) -> u64 {
                1
            }
            fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
                Ok(())
            }
            fn client_entered(&self, _client: &ClientInfo) {
                panic!("so many people");
            }
            fn client_left(&self, _client: &ClientInfo, _reason: &CloseReason) {
                panic!("so few people");
            }
        }
        drop(Visit::begin(ExportEntry::new("", Shy).unwrap(), client()));
    }
}
