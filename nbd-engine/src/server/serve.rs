//! A connection from its first byte to its last, with its deadlines.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::sync::Arc;

use futures_util::future::{Either, select};

use super::session::Session;
use super::{ConnectionError, Permit};
use crate::export::PeerAddr;
use crate::runtime::{BoxFuture, Runtime};
use crate::transport::Transport;

/// How long an idle client is still answered after the shutdown began, so that a request that was under way gets its
/// `ESHUTDOWN`; and how long a client may take to notice the end of the stream.
const GRACE: Duration = Duration::from_millis(200);

/// Serves one client over a byte stream of any kind until it leaves, breaks the protocol, or the server shuts down.
///
/// `peer` is what exports and log events learn of the client's address. Dropping the future ends the connection at
/// once; writes that were under way may or may not have been done, as after a power cut before their reply.
///
/// # Errors
/// Why the connection ended, if not by the client's leave.
pub async fn serve<T, R>(
    permit: Permit,
    transport: T,
    runtime: R,
    peer: PeerAddr,
) -> Result<(), ConnectionError>
where
    T: Transport,
    R: Runtime,
{
    let service = Arc::clone(permit.service());
    let client = service.client(peer);
    let peer = &client.peer;
    // An oldstyle client gets its export at once, and looking that up may take its time.
    let limit = service.settings().handshake_timeout;
    let session = pin!(Session::new(Arc::clone(&service), transport, Arc::clone(&client)));
    let shutdown = pin!(service.shutdown_begun());
    let deadline = select(runtime.sleep(limit), shutdown);
    let session = match select(session, deadline).await {
        Either::Left((session, _)) => session,
        Either::Right((Either::Left(_), _)) => Err(ConnectionError::HandshakeTimeout(limit)),
        Either::Right((Either::Right(_), _)) => return Ok(()),
    };
    let mut session =
        session.inspect_err(|error| tracing::warn!(%peer, %error, "a client can't be served"))?;
    tracing::debug!(%peer, "a client connected");
    let result = drive(&mut session, &permit, &runtime).await;
    match &result {
        Ok(()) => tracing::debug!(%peer, export = session.export_name(), "a client disconnected"),
        Err(error) => {
            tracing::info!(%peer, export = session.export_name(), %error, "a connection was closed");
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
    let mut handshake = runtime.sleep(settings.handshake_timeout);
    let mut shutdown = service.shutdown_listener();
    let mut drain: Option<(BoxFuture, BoxFuture)> = None;
    let begin = || Some((runtime.sleep(settings.drain_timeout), runtime.sleep(GRACE)));
    let result = poll_fn(|cx| {
        if drain.is_none()
            && (service.is_shutting_down()
                || core::pin::Pin::new(&mut shutdown).poll(cx).is_ready())
        {
            session.shut_down();
            drain = begin();
        }
        if let Poll::Ready(result) = session.poll(cx) {
            return Poll::Ready(result);
        }
        if drain.is_none() && session.is_ending() {
            drain = begin();
        }
        if !session.is_transmitting() && handshake.as_mut().poll(cx).is_ready() {
            let limit = settings.handshake_timeout;
            return Poll::Ready(Err(ConnectionError::HandshakeTimeout(limit)));
        }
        if let Some((deadline, grace)) = &mut drain {
            if deadline.as_mut().poll(cx).is_ready() {
                let limit = settings.drain_timeout;
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
    .await;
    session.leave(&result);
    result?;
    // Closing in earnest, but not for ever: the client may not read.
    let mut linger = runtime.sleep(GRACE);
    poll_fn(|cx| match session.poll_close(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => linger.as_mut().poll(cx),
    })
    .await;
    Ok(())
}
