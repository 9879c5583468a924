//! The scenarios that every adapter must pass, on runtimes of both flavours.

#[path = "../../nbd-engine/tests/adapters/mod.rs"]
mod adapters;

use std::path::Path;
use std::sync::Mutex;
use std::thread::JoinHandle;

use adapters::{Adapter, LIMIT};
use nbd_tokio::export::ExportMap;
use nbd_tokio::{Listening, LocalAddr, Server, Settings};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A server on a runtime of its own, which a thread drives.
struct Tokio<const MULTI_THREAD: bool> {
    server: Server,
    listening: Mutex<Vec<Listening>>,
    runtime: Handle,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

type CurrentThread = Tokio<false>;
type MultiThread = Tokio<true>;

impl<const MULTI_THREAD: bool> Tokio<MULTI_THREAD> {
    fn add(&self, listening: Listening) -> LocalAddr {
        let address = listening.local_addr().clone();
        self.listening.lock().unwrap().push(listening);
        address
    }
}

impl<const MULTI_THREAD: bool> Adapter for Tokio<MULTI_THREAD> {
    fn start(exports: ExportMap, settings: Settings) -> Self {
        let mut builder =
            if MULTI_THREAD { Builder::new_multi_thread() } else { Builder::new_current_thread() };
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            // An error says that the test is over without a proper end.
            let _ended = runtime.block_on(stopped);
        });
        let server = Server::with_settings(exports, settings);
        Self { server, listening: Mutex::default(), runtime: handle, stop, thread }
    }

    fn listen_tcp(&self) -> LocalAddr {
        self.add(self.runtime.block_on(self.server.listen_tcp("127.0.0.1:0")).unwrap())
    }

    fn listen_unix(&self, path: &Path) -> LocalAddr {
        let _entered = self.runtime.enter();
        self.add(self.server.listen_unix(path).unwrap())
    }

    fn connections(&self) -> usize {
        self.server.connections()
    }

    fn shut_down(&self) {
        self.server.shut_down();
    }

    fn wait(self) {
        let end = async {
            self.server.wait().await;
            for listening in self.listening.into_inner().unwrap() {
                listening.join().await;
            }
            assert_eq!(self.server.connections(), 0, "connections are left");
            while self.runtime.metrics().num_alive_tasks() > 0 {
                tokio::task::yield_now().await;
            }
        };
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, end).await })
            .expect("the server ends, and leaves no task behind");
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

mod current_thread {
    crate::adapters::adapter_suite!(crate::CurrentThread);
}

mod multi_thread {
    crate::adapters::adapter_suite!(crate::MultiThread);
}
