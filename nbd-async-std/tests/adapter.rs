//! The engine's scenarios, on both runtimes. Those of the workspace's suite (`internal/suite`) run on them, too.

#[path = "../../nbd-engine/tests/adapters/mod.rs"]
mod adapters;

use std::future::Future;
use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::thread;

use adapters::{Adapter, LIMIT};
use nbd_async_std::export::ExportMap;
use nbd_async_std::{Listening, LocalAddr, Settings};

/// Waits for a future on a thread of its own, and no longer than [`LIMIT`].
fn bounded(future: impl Future<Output = ()> + Send + 'static) {
    let (done, end) = mpsc::channel();
    thread::spawn(move || {
        async_io::block_on(future);
        // Nobody listens when it took too long.
        let _late = done.send(());
    });
    end.recv_timeout(LIMIT).expect("the server ends");
}

macro_rules! adapter {
    ($name:ident, $server:ty) => {
        struct $name {
            server: $server,
            listening: Mutex<Vec<Listening>>,
        }

        impl $name {
            fn add(&self, listening: Listening) -> LocalAddr {
                let address = listening.local_addr().clone();
                self.listening.lock().unwrap().push(listening);
                address
            }
        }

        impl Adapter for $name {
            fn start(exports: ExportMap, settings: Settings) -> Self {
                let server = <$server>::with_settings(exports, settings);
                Self { server, listening: Mutex::default() }
            }

            fn listen_tcp(&self) -> LocalAddr {
                let listening = async_io::block_on(self.server.listen_tcp("127.0.0.1:0"));
                self.add(listening.unwrap())
            }

            fn listen_unix(&self, path: &Path) -> LocalAddr {
                self.add(self.server.listen_unix(path).unwrap())
            }

            fn connections(&self) -> usize {
                self.server.connections()
            }

            fn shut_down(&self) {
                self.server.shut_down();
            }

            fn wait(self) {
                let Self { server, listening } = self;
                bounded(async move {
                    server.wait().await;
                    for one in listening.into_inner().unwrap() {
                        one.join().await;
                    }
                    assert_eq!(server.connections(), 0, "connections are left");
                });
            }
        }
    };
}

adapter!(AsyncStd, nbd_async_std::Server);
adapter!(Smol, nbd_async_std::smol::Server);

mod async_std {
    crate::adapters::adapter_suite!(crate::AsyncStd);
}

mod smol {
    crate::adapters::adapter_suite!(crate::Smol);
}
