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

/// The life of a server of an asynchronous adapter. `$tcp`, `$unix` and `$stream` make the runtime's sockets out of the
/// standard library's.
macro_rules! serve {
    ($server:expr, $places:expr, $said:expr, $tcp:expr, $unix:expr, $stream:expr) => {{
        use $crate::Place;
        let (server, said) = ($server, $said);
        let mut all = Vec::new();
        for place in $places {
            let listening = match place {
                Place::Tcp => server.listen_tcp("127.0.0.1:0").await,
                Place::Unix(path) => server.listen_unix(path),
                Place::TcpListener(listener) => {
                    listener.set_nonblocking(true).expect("a setting");
                    server.accept_tcp($tcp(listener))
                }
                Place::UnixListener(listener) => {
                    listener.set_nonblocking(true).expect("a setting");
                    server.accept_unix($unix(listener))
                }
                Place::Stream(stream) => {
                    stream.set_nonblocking(true).expect("a setting");
                    said.send(Vec::new()).expect("the suite waits for it");
                    return server.serve_stream($stream(stream)).await.expect("a proper session");
                }
            };
            all.push(listening.expect("it listens"));
        }
        let addresses = all.iter().map(|one| one.local_addr().clone()).collect();
        said.send(addresses).expect("the suite waits for it");
        server.wait().await;
        for one in all {
            one.join().await;
        }
    }};
}

use {control, serve};
