//! The adapter of the guide `docs/write-an-adapter.md`, which is an example of `nbd-engine`.

#[path = "../../../../nbd-engine/examples/mio_adapter/event_loop.rs"]
pub(crate) mod event_loop;
#[path = "../../../../nbd-engine/examples/mio_adapter/sockets.rs"]
pub(crate) mod sockets;

use std::io;
use std::net::ToSocketAddrs;
use std::pin::Pin;
use std::sync::{Arc, mpsc};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use nbd_engine::export::{ExportMap, PeerAddr};
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Listening, ServerConfig, ServerState, admit_and_serve, listen,
};
use nbd_engine::{Runtime, Transport};

use self::event_loop::EventLoop;
use self::sockets::Socket;
use super::{control, listened};
use crate::{Adapter, Place, Started};

/// An adapter that was written in an afternoon.
#[derive(Debug)]
pub struct Mio;

impl Adapter for Mio {
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started> {
        let state = ServerState::new(exports, config);
        let control = control!(
            state,
            |state, place| {
                let (event_loop, _poll) = EventLoop::new().expect("an event loop");
                begin(state, place, &event_loop).expect("a listener").map(drop)
            },
            serve_alone
        );
        Started::on_a_thread(control, move |said| {
            let (event_loop, poll) = EventLoop::new().expect("an event loop");
            let begun = places.into_iter().filter_map(|place| begin(&state, place, &event_loop));
            let listened = begun.collect::<io::Result<Vec<_>>>();
            let listened = listened
                .map(|all| all.iter().map(|one| listened!(one, smol::block_on)).collect())
                .inspect_err(|_| state.shut_down());
            said.send(listened).expect("the suite waits for it");
            event_loop.run(poll).expect("it can wait");
        })
    }
}

/// Begins to serve at a place.
fn begin(
    state: &Arc<ServerState>,
    place: Place,
    event_loop: &EventLoop,
) -> Option<io::Result<Listening>> {
    let backlog = state.config().backlog();
    let tcp = |listener: std::net::TcpListener| {
        let address = LocalAddr::Tcp(listener.local_addr()?);
        Ok((address, Socket::new(TcpListener::from_std(listener), event_loop)?))
    };
    let bound = |bound: io::Result<Vec<std::net::TcpListener>>| {
        let sockets = bound?.into_iter().map(tcp).collect::<io::Result<Vec<_>>>()?;
        accept(state, sockets, event_loop)
    };
    let unix = |listener: std::os::unix::net::UnixListener| {
        let address = listener.local_addr().expect("an address");
        let path = address.as_pathname().expect("a path").to_owned();
        let listener = UnixListener::from_std(listener);
        (LocalAddr::Unix(path), Socket::new(listener, event_loop).expect("a socket"))
    };
    Some(match place {
        Place::Text(text) => bound(net::bind_resolved(text.to_socket_addrs(), backlog)),
        Place::Host(host, port) => {
            bound(net::bind_resolved((&*host, port).to_socket_addrs(), backlog))
        }
        Place::Addresses(addresses) => bound(net::bind_resolved(Ok(addresses), backlog)),
        Place::TcpListener(listener) => {
            listener.set_nonblocking(true).expect("a setting");
            bound(Ok(vec![listener]))
        }
        Place::Unix(path) => net::bind_unix(&path, backlog).and_then(|(listener, guard)| {
            let (address, listener) = unix(listener);
            accept(state, vec![(address, (guard, listener))], event_loop)
        }),
        Place::UnixListener(listener) => {
            listener.set_nonblocking(true).expect("a setting");
            accept(state, vec![unix(listener)], event_loop)
        }
        stream => {
            let serving = connection(state, stream, event_loop);
            event_loop.spawn(Box::pin(async { serving.await.expect("a proper session") }));
            return None;
        }
    })
}

/// Serves a stream in an event loop of its own.
fn serve_alone(state: &Arc<ServerState>, place: Place) -> Result<(), ConnectionError> {
    let (event_loop, poll) = EventLoop::new().expect("an event loop");
    let (ended, end) = mpsc::channel();
    let serving = connection(state, place, &event_loop);
    event_loop.spawn(Box::pin(async move {
        ended.send(serving.await).expect("its end is waited for");
    }));
    event_loop.run(poll).expect("it can wait");
    end.recv().expect("it has ended")
}

type Connection = Pin<Box<dyn Future<Output = Result<(), ConnectionError>> + Send>>;

/// Serves a stream.
fn connection(state: &Arc<ServerState>, place: Place, event_loop: &EventLoop) -> Connection {
    match place {
        Place::TcpStream(stream) => {
            stream.set_nonblocking(true).expect("a setting");
            net::tune_tcp(&stream).expect("a setting");
            let peer = PeerAddr::tcp(&stream);
            let stream = Socket::new(TcpStream::from_std(stream), event_loop).expect("a socket");
            serve_one(state, stream, event_loop, peer)
        }
        Place::UnixStream(stream) => {
            let peer = PeerAddr::unix(&stream);
            serve_one(state, socket(stream, event_loop), event_loop, peer)
        }
        Place::Stream(stream) => {
            serve_one(state, socket(stream, event_loop), event_loop, "stream".into())
        }
        listener => panic!("{listener:?} is no stream"),
    }
}

fn socket(stream: std::os::unix::net::UnixStream, event_loop: &EventLoop) -> Socket<UnixStream> {
    stream.set_nonblocking(true).expect("a setting");
    Socket::new(UnixStream::from_std(stream), event_loop).expect("a socket")
}

fn serve_one(
    state: &Arc<ServerState>,
    stream: impl Transport + 'static,
    event_loop: &EventLoop,
    peer: PeerAddr,
) -> Connection {
    let (state, runtime) = (Arc::clone(state), event_loop.clone());
    Box::pin(async move { admit_and_serve(&state, stream, runtime, peer).await })
}

fn accept<L: Listen + 'static>(
    state: &Arc<ServerState>,
    sockets: Vec<(LocalAddr, L)>,
    event_loop: &EventLoop,
) -> io::Result<Listening> {
    listen(state, sockets, event_loop, |task| {
        event_loop.spawn(task);
        Ok(())
    })
}
