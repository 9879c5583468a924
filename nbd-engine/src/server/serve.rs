//! A connection from its first byte to its last, with its deadlines.

use core::future::{Future, poll_fn};
use core::task::Poll;
use core::time::Duration;
use std::sync::Arc;

use super::session::Session;
use super::{ConnectionError, Permit};
use crate::runtime::{BoxFuture, Runtime};
use crate::transport::Transport;

/// How long an idle client is still answered after the shutdown began, so that a request that was under way gets its
/// `ESHUTDOWN`; and how long a client may take to notice the end of the stream.
const GRACE: Duration = Duration::from_millis(200);

/// How much longer the handshake may take for each export that was listed to the client: clients such as `qemu-nbd --list`
/// then ask about all of them, and Nagle's algorithm on their side costs 40 ms for each question.
const TIME_PER_EXPORT: Duration = Duration::from_secs(1);

/// Serves one client over a byte stream of any kind until it leaves, breaks the protocol, or the server shuts down.
///
/// `peer` names the client in the log. Dropping the future ends the connection at once; writes that were under way may
/// or may not have been done, as after a power cut before their reply.
///
/// # Errors
/// Why the connection ended, if not by the client's leave.
pub async fn serve<T, R>(
    permit: Permit,
    transport: T,
    runtime: R,
    peer: String,
) -> Result<(), ConnectionError>
where
    T: Transport,
    R: Runtime,
{
    let service = Arc::clone(permit.service());
    let mut session = Session::new(Arc::clone(&service), transport).inspect_err(|error| {
        if let Some(times) = service.floods().unfit.count() {
            tracing::warn!(peer, %error, times, "cannot serve a client");
        }
    })?;
    tracing::debug!(peer, "a client connected");
    let result = drive(&mut session, &permit, &runtime).await;
    match &result {
        Ok(()) => tracing::debug!(peer, export = session.export_name(), "a client left"),
        Err(error) => {
            tracing::info!(peer, export = session.export_name(), %error, "a connection was closed");
        }
    }
    result
}

async fn drive<T, R>(
    session: &mut Session<T>,
    permit: &Permit,
    runtime: &R,
) -> Result<(), ConnectionError>
where
    T: Transport,
    R: Runtime,
{
    let service = permit.service();
    let settings = service.settings();
    let mut limit = settings.handshake_timeout;
    let mut handshake = runtime.sleep(limit);
    let mut shutdown = service.shutdown_listener();
    let mut drain: Option<(BoxFuture, BoxFuture)> = None;
    poll_fn(|cx| {
        if drain.is_none()
            && (service.is_shutting_down()
                || core::pin::Pin::new(&mut shutdown).poll(cx).is_ready())
        {
            session.shut_down();
            drain = Some((runtime.sleep(settings.drain_timeout), runtime.sleep(GRACE)));
        }
        if let Poll::Ready(result) = session.poll(cx) {
            return Poll::Ready(result);
        }
        if !session.is_transmitting() && handshake.as_mut().poll(cx).is_ready() {
            let for_list = TIME_PER_EXPORT.saturating_mul(session.listed_exports());
            let allowed = settings.handshake_timeout.saturating_add(for_list);
            if allowed <= limit {
                return Poll::Ready(Err(ConnectionError::HandshakeTimeout(limit)));
            }
            handshake = runtime.sleep(allowed - limit);
            limit = allowed;
            cx.waker().wake_by_ref();
        }
        if let Some((deadline, grace)) = &mut drain {
            if deadline.as_mut().poll(cx).is_ready() {
                let limit = settings.drain_timeout;
                service.cut_off(session.requests_in_flight());
                return Poll::Ready(if session.is_idle() {
                    Ok(())
                } else {
                    Err(ConnectionError::DrainTimeout(limit))
                });
            }
            // A future that was ready must not be polled again; it is replaced by one that is over, too.
            if grace.as_mut().poll(cx).is_ready() {
                if session.is_idle() {
                    return Poll::Ready(Ok(()));
                }
                *grace = Box::pin(core::future::ready(()));
            }
        }
        Poll::Pending
    })
    .await?;
    // Closing in earnest, but not for ever: the client may not read.
    let mut linger = runtime.sleep(GRACE);
    poll_fn(|cx| match session.poll_close(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => linger.as_mut().poll(cx),
    })
    .await;
    Ok(())
}
