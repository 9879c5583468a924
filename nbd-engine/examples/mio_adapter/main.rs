//! An adapter of one's own: servers and clients on [mio](https://docs.rs/mio), by one thread. The guide `docs/write-an-adapter.md`
//! walks through it.
//!
//! ```text
//! cargo run --example mio_adapter [ADDRESS:PORT | /PATH/OF/SOCKET]
//! cargo run --example mio_adapter URI
//! ```
//!
//! The former serves a disk in memory and prints where, the latter shows the first bytes of an export. What an adapter
//! has is here: [`event_loop`] has tasks and time, [`sockets`] the streams and listeners. What it has not is anything of
//! the protocol.

mod event_loop;
mod sockets;

use std::net::ToSocketAddrs;
use std::path::Path;

use event_loop::EventLoop;
use mio::net::{TcpListener, UnixListener};
use nbd_engine::Runtime;
use nbd_engine::client::{Client, ClientConfig, Error, Uri};
use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{ServerConfig, ServerState, listen};
use sockets::Socket;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    if place.contains("://") {
        return look(&place.parse()?);
    }
    let exports = ExportMap::new().with("", Memory::new(64 << 20)?)?;
    let state = ServerState::new(exports, ServerConfig::default());
    let backlog = state.config().backlog();
    let (event_loop, poll) = EventLoop::new()?;
    let spawn = |task| {
        event_loop.spawn(task);
        Ok(())
    };
    let listening = if place.starts_with('/') {
        let (listener, path) = net::bind_unix(Path::new(&place), backlog)?;
        let listener = Socket::new(UnixListener::from_std(listener), &event_loop)?;
        let address = LocalAddr::Unix(place.into());
        listen(&state, [(address, (path, listener))], &event_loop, spawn)?
    } else {
        let mut sockets = Vec::new();
        for listener in net::bind_resolved(place.to_socket_addrs(), backlog)? {
            let address = LocalAddr::Tcp(listener.local_addr()?);
            sockets.push((address, Socket::new(TcpListener::from_std(listener), &event_loop)?));
        }
        listen(&state, sockets, &event_loop, spawn)?
    };
    for address in listening.local_addrs() {
        println!("{:#}", address.uri("")?);
    }
    event_loop.run(poll)?;
    Ok(())
}

/// Shows the first bytes of an export.
fn look(uri: &Uri) -> Result<(), Box<dyn std::error::Error>> {
    let (event_loop, poll) = EventLoop::new()?;
    let (connector, uri) = (event_loop.clone(), uri.clone());
    event_loop.spawn(Box::pin(async move {
        let looked = async {
            let client = Client::connect_by(connector, &uri, &ClientConfig::new()).await?;
            let mut bytes = [0; 16];
            let count = client.read_at(&mut bytes, 0).await?;
            client.disconnect().await;
            Ok::<_, Error>(bytes[..count].to_vec())
        };
        match looked.await {
            Ok(bytes) => println!("{bytes:02x?}"),
            Err(error) => eprintln!("{error}"),
        }
    }));
    // Until the last task has ended: this one, and the one that drives the connection.
    Ok(event_loop.run(poll)?)
}
