//! Accepting connections.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use super::{Service, serve};
use crate::export::PeerAddr;
use crate::runtime::Runtime;
use crate::transport::Transport;

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted<T> {
    /// The stream.
    pub transport: T,
    /// The address of the client.
    pub peer: PeerAddr,
}

/// Something that connections come from.
pub trait Listen: Send {
    /// The streams that it gives.
    type Transport: Transport + 'static;

    /// Waits for the next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted<Self::Transport>>> + Send;
}

/// After a failure to accept (out of descriptors, mostly) the next try is made this much later.
const RETRY: Duration = Duration::from_millis(100);

/// Accepts connections and serves each as a task of its own, as many at a time as the settings allow, until the
/// service shuts down. Does not wait for the connections: see [`Service::drained`].
pub async fn listen<L: Listen, R: Runtime>(service: Arc<Service>, mut listener: L, runtime: R) {
    // A place is taken by a connection, not by the listener that waits for one: others may have use for it.
    while service.has_room().await {
        let accepted = {
            let mut accept = pin!(listener.accept());
            let mut shutdown = pin!(service.shutdown_begun());
            poll_fn(|cx| match shutdown.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => accept.as_mut().poll(cx).map(Some),
            })
            .await
        };
        match accepted {
            None => return,
            Some(Ok(Accepted { transport, peer })) => {
                let Some(permit) = service.admit().await else { return };
                let connection = serve(permit, transport, runtime.clone(), peer);
                // Why it ended is in the log; there is nobody else to tell.
                runtime.spawn(Box::pin(async move {
                    let _logged = connection.await;
                }));
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection can't be accepted");
                runtime.sleep(RETRY).await;
            }
        }
    }
}
