//! The adapter of the guide `docs/write-an-adapter.md`, which is an example of `nbd-engine`.

#[path = "../../../../nbd-engine/examples/mio_adapter/event_loop.rs"]
pub(crate) mod event_loop;
#[path = "../../../../nbd-engine/examples/mio_adapter/sockets.rs"]
pub(crate) mod sockets;

use std::sync::Arc;

use mio::net::{TcpListener, UnixListener, UnixStream};
use nbd_engine::Runtime;
use nbd_engine::export::ExportMap;
use nbd_engine::net::{self, LocalAddr, SocketPath};
use nbd_engine::server::{Listen, ServerConfig, ServerState, listen, serve};

use self::event_loop::EventLoop;
use self::sockets::Socket;
use super::control;
use crate::{Adapter, Place, Started};

/// An adapter that was written in an afternoon.
#[derive(Debug)]
pub struct Mio;

impl Adapter for Mio {
    fn start(&self, exports: ExportMap, config: ServerConfig, places: Vec<Place>) -> Started {
        let service = ServerState::new(exports, config);
        Started::on_a_thread(control!(service), move |said| {
            let (event_loop, poll) = EventLoop::new().expect("an event loop");
            let mut guards = Vec::new();
            let tell = |place| begin(&service, place, &event_loop, &mut guards);
            let addresses = places.into_iter().filter_map(tell).collect();
            said.send(addresses).expect("the suite waits for it");
            event_loop.run(poll).expect("it can wait");
            drop(guards);
        })
    }
}

/// Begins to serve at a place, and tells its address.
fn begin(
    service: &Arc<ServerState>,
    place: Place,
    event_loop: &EventLoop,
    guards: &mut Vec<SocketPath>,
) -> Option<LocalAddr> {
    let accept_tcp = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true).expect("a setting");
        let address = LocalAddr::Tcp(listener.local_addr().expect("an address"));
        let listener = TcpListener::from_std(listener);
        accept(service, Socket::new(listener, event_loop).expect("a socket"), event_loop);
        Some(address)
    };
    let accept_unix = |listener: std::os::unix::net::UnixListener| {
        listener.set_nonblocking(true).expect("a setting");
        let address = listener.local_addr().expect("an address");
        let path = address.as_pathname().expect("a path").to_owned();
        let listener = UnixListener::from_std(listener);
        accept(service, Socket::new(listener, event_loop).expect("a socket"), event_loop);
        Some(LocalAddr::Unix(path))
    };
    match place {
        Place::Tcp => accept_tcp(net::bind_tcp("127.0.0.1:0").expect("it listens")),
        Place::TcpListener(listener) => accept_tcp(listener),
        Place::Unix(path) => {
            let (listener, guard) = net::bind_unix(&path).expect("it listens");
            guards.push(guard);
            accept_unix(listener)
        }
        Place::UnixListener(listener) => accept_unix(listener),
        Place::Stream(stream) => {
            stream.set_nonblocking(true).expect("a setting");
            let stream = Socket::new(UnixStream::from_std(stream), event_loop).expect("a socket");
            let (service, runtime) = (Arc::clone(service), event_loop.clone());
            event_loop.spawn(Box::pin(async move {
                let permit = service.admit().await.expect("it does not shut down");
                serve(permit, stream, runtime, "stream".into()).await.expect("a proper session");
            }));
            None
        }
    }
}

fn accept(service: &Arc<ServerState>, listener: impl Listen + 'static, event_loop: &EventLoop) {
    let accepting = listen(Arc::clone(service), listener, event_loop.clone());
    event_loop.spawn(Box::pin(accepting));
}
