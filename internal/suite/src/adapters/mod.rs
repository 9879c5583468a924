//! The adapters under test.
//!
//! Each runs one server on one thread. The servers of the asynchronous adapters have the same methods, so one macro
//! does for all of them; what differs is how a runtime is entered and what its sockets are called.

mod async_std;
mod blocking;
pub(crate) mod mio;
mod smol;
mod tokio;

pub use self::async_std::AsyncStd;
pub use self::blocking::Blocking;
pub use self::mio::Mio;
pub use self::smol::Smol;
pub use self::tokio::{TokioCurrentThread, TokioMultiThread};

/// The functions of the suite's [`Control`](crate::Control), for a server of any adapter. `$listen` and `$serve` do with a
/// server and a place what the functions of these names do.
macro_rules! control {
    ($server:expr, $listen:expr, $serve:expr) => {{
        let (counted, stopped) = ($server.clone(), $server.clone());
        let (listening, serving) = ($server.clone(), $server.clone());
        $crate::Control {
            connections: Box::new(move || counted.connections()),
            shut_down: Box::new(move || stopped.shut_down()),
            listen: Box::new(move |place| $listen(&listening, place)),
            serve: Box::new(move |place| $serve(&serving, place)),
        }
    }};
}

/// What the suite gets of a `Listening` of any adapter. `$wait` waits for a future, where closing is one.
macro_rules! listened {
    ($listening:expr, $wait:expr) => {{
        let closed = $listening.clone();
        $crate::Listened {
            addresses: $listening.local_addrs().to_vec(),
            close: Box::new(move || $wait(closed.close())),
        }
    }};
}

/// What a server of an asynchronous adapter does, as functions: `listen`, `serve_stream` and `live`. `Server` and
/// `Listening` are to be in scope. `$tcp`, `$unix`, `$tcp_stream` and `$unix_stream` make the runtime's sockets out of the
/// standard library's.
macro_rules! asynchronous {
    ($tcp:expr, $unix:expr, $tcp_stream:expr, $unix_stream:expr) => {
        /// Listens at a place; a stream is given back.
        async fn listen(
            server: &Server,
            place: $crate::Place,
        ) -> Result<std::io::Result<Listening>, $crate::Place> {
            use $crate::Place;
            let (tcp, unix) = ($tcp, $unix);
            Ok(match place {
                Place::Text(text) => server.listen_tcp(&*text).await,
                Place::Host(host, port) => server.listen_tcp((&*host, port)).await,
                Place::Addresses(addresses) => server.listen_tcp(&addresses[..]).await,
                Place::Unix(path) => server.listen_unix(path),
                Place::TcpListener(listener) => {
                    listener.set_nonblocking(true).expect("a setting");
                    server.accept_tcp(tcp(listener))
                }
                Place::UnixListener(listener) => {
                    listener.set_nonblocking(true).expect("a setting");
                    server.accept_unix(unix(listener))
                }
                stream => return Err(stream),
            })
        }

        /// Serves a stream.
        async fn serve_stream(
            server: &Server,
            place: $crate::Place,
        ) -> Result<(), nbd_engine::server::ConnectionError> {
            use $crate::Place;
            let (tcp, unix) = ($tcp_stream, $unix_stream);
            match place {
                Place::TcpStream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    server.serve_tcp(tcp(stream)).await
                }
                Place::UnixStream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    server.serve_unix(unix(stream)).await
                }
                Place::Stream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    server.serve_stream(unix(stream)).await
                }
                listener => panic!("{listener:?} is no stream"),
            }
        }

        /// The life of a server.
        async fn live(server: Server, places: Vec<$crate::Place>, said: $crate::Said) {
            let mut all = Vec::new();
            assert!(!server.is_shutting_down());
            for place in places {
                match listen(&server, place).await {
                    Ok(Ok(listening)) => all.push(listening),
                    Ok(Err(error)) => {
                        return said.send(Err(error)).expect("the suite waits for it");
                    }
                    Err(stream) => {
                        said.send(Ok(Vec::new())).expect("the suite waits for it");
                        return serve_stream(&server, stream).await.expect("a proper session");
                    }
                }
            }
            let listened = all.iter().map(|one| listened!(one, smol::block_on)).collect();
            said.send(Ok(listened)).expect("the suite waits for it");
            server.shutdown_begun().await;
            assert!(server.is_shutting_down());
            server.wait().await;
        }

        /// Listens at one more place.
        async fn listen_to_more(server: &Server, place: $crate::Place) -> std::io::Result<()> {
            listen(server, place).await.expect("a listener").map(drop)
        }
    };
}

use {asynchronous, control, listened};
