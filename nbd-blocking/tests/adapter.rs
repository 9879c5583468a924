//! The scenarios that every adapter must pass.

#[path = "../../nbd-engine/tests/adapters/mod.rs"]
mod adapters;

use std::path::Path;
use std::sync::{Mutex, mpsc};

use adapters::{Adapter, LIMIT};
use nbd_blocking::export::ExportMap;
use nbd_blocking::{Listening, LocalAddr, Server, Settings};

struct Blocking {
    server: Server,
    listening: Mutex<Vec<Listening>>,
}

impl Blocking {
    fn add(&self, listening: Listening) -> LocalAddr {
        let address = listening.local_addr().clone();
        self.listening.lock().unwrap().push(listening);
        address
    }
}

impl Adapter for Blocking {
    fn start(exports: ExportMap, settings: Settings) -> Self {
        Self { server: Server::with_settings(exports, settings), listening: Mutex::default() }
    }

    fn listen_tcp(&self) -> LocalAddr {
        self.add(self.server.listen_tcp("127.0.0.1:0").unwrap())
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
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            self.server.wait().unwrap();
            let listening = self.listening.into_inner().unwrap();
            listening.into_iter().for_each(Listening::join);
            sender.send(self.server.connections()).unwrap();
        });
        let left = ended.recv_timeout(LIMIT).expect("the server ends");
        assert_eq!(left, 0, "connections are left");
    }
}

adapters::adapter_suite!(crate::Blocking);
