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

/// The functions of the suite's [`Control`](crate::Control), for a server of any adapter.
macro_rules! control {
    ($server:expr) => {{
        let (counted, stopped) = ($server.clone(), $server.clone());
        $crate::Control {
            connections: Box::new(move || counted.connections()),
            shut_down: Box::new(move || stopped.shut_down()),
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

/// The life of a server of an asynchronous adapter. `$tcp`, `$unix`, `$tcp_stream` and `$unix_stream` make the runtime's
/// sockets out of the standard library's.
macro_rules! serve {
    ($server:expr, $places:expr, $said:expr, $tcp:expr, $unix:expr, $tcp_stream:expr, $unix_stream:expr) => {{
        use $crate::Place;
        let (server, said) = ($server, $said);
        let nothing = || said.send(Ok(Vec::new())).expect("the suite waits for it");
        let mut all = Vec::new();
        for place in $places {
            let listening = match place {
                Place::Text(text) => server.listen_tcp(&*text).await,
                Place::Host(host, port) => server.listen_tcp((&*host, port)).await,
                Place::Addresses(addresses) => server.listen_tcp(&addresses[..]).await,
                Place::Unix(path) => server.listen_unix(path),
                Place::TcpListener(listener) => {
                    listener.set_nonblocking(true).expect("a setting");
                    server.accept_tcp($tcp(listener))
                }
                Place::UnixListener(listener) => {
                    listener.set_nonblocking(true).expect("a setting");
                    server.accept_unix($unix(listener))
                }
                Place::TcpStream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    nothing();
                    return server.serve_tcp($tcp_stream(stream)).await.expect("a proper session");
                }
                Place::UnixStream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    nothing();
                    return server
                        .serve_unix($unix_stream(stream))
                        .await
                        .expect("a proper session");
                }
                Place::Stream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    nothing();
                    let served = server.serve_stream($unix_stream(stream)).await;
                    return served.expect("a proper session");
                }
            };
            match listening {
                Ok(listening) => all.push(listening),
                Err(error) => return said.send(Err(error)).expect("the suite waits for it"),
            }
        }
        let listened = all.iter().map(|one| listened!(one, smol::block_on)).collect();
        said.send(Ok(listened)).expect("the suite waits for it");
        server.wait().await;
        for one in all {
            one.join().await;
        }
    }};
}

use {control, listened, serve};
