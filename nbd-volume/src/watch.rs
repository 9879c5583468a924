//! The look at the store, again and again: whether this still is the writer, and what it is asked for.

use core::time::Duration;
use std::sync::{Arc, Weak};

use slatedb::{CloseReason, Db};
use tokio::task::JoinHandle;

use crate::Volume;
use crate::error::chain;
use crate::lease::Lost;
use crate::manage::mailbox;
use crate::shared::Shared;

/// Renews the lease, notices that the volume is lost, and answers what is asked by way of the store.
pub(crate) async fn watch(shared: Weak<Shared>, db: Db, interval: Duration) {
    let mut status = db.subscribe();
    // One request at a time.
    let mut answering: Option<JoinHandle<()>> = None;
    loop {
        let Some(volume) = shared.upgrade() else { return };
        let look = volume.lease.look();
        let refreshed = tokio::select! {
            refreshed = db.refresh_manifest() => refreshed,
            _ = status.wait_for(|status| status.close_reason.is_some()) => Ok(()),
        };
        let reason = status.borrow().close_reason;
        let lost = match (reason, refreshed) {
            (Some(CloseReason::Fenced), _) => Some(Lost::Fenced),
            (Some(CloseReason::Clean), _) => Some(Lost::Closed),
            (Some(_), refreshed) => Some(Lost::Failed(
                refreshed
                    .err()
                    .map_or_else(|| "a task of SlateDB's panicked".to_owned(), |e| chain(&e)),
            )),
            (None, Ok(())) => {
                volume.lease.renew(look);
                None
            }
            (None, Err(error)) => {
                let error = chain(&error);
                tracing::debug!(volume = %volume.location, error, "cannot look who writes");
                None
            }
        };
        if let Some(lost) = lost {
            volume.release();
            if volume.lease.lose(lost.clone()) && lost != Lost::Closed {
                tracing::error!(
                    "{}: its clients are disconnected, and none may enter any more; to serve it here, start the server anew",
                    volume.lost_text(&lost)
                );
            }
            return;
        }
        if answering.as_ref().is_none_or(JoinHandle::is_finished) {
            answering = Some(tokio::spawn(mailbox::answer(Volume(Arc::clone(&volume)))));
        }
        let asked = volume.lease.asked();
        tokio::select! {
            () = tokio::time::sleep(interval) => (),
            () = asked => (),
            _ = status.wait_for(|status| status.close_reason.is_some()) => (),
        }
    }
}
