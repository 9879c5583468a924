//! An object store over HTTP on loopback: as much of the S3 protocol as clients of it use, in memory.
//!
//! Objects are `/BUCKET/KEY`. Any web client can read them, with ranges and conditions. Nothing is authenticated.

mod http;
mod listing;
mod manners;
mod store;

use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use http::{Request, Response};
pub use manners::Manners;
use store::Store;

/// A store that lasts until this is dropped.
#[derive(Debug)]
pub struct ObjectServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    store: Mutex<Store>,
    /// Microseconds that each answer is held back.
    delay: AtomicU64,
    /// Every request fails.
    down: AtomicBool,
    manners: Mutex<Manners>,
    stopped: AtomicBool,
    requests: AtomicU64,
    sent: AtomicU64,
    log: Mutex<Vec<String>>,
}

impl ObjectServer {
    /// Starts a store on a port of its own.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let shared = Arc::<Shared>::default();
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if server.stopped.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let server = Arc::clone(&server);
                thread::spawn(move || server.converse(stream));
            }
        });
        Self { address, shared }
    }

    /// `http://127.0.0.1:PORT`, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The variables by which clients of S3 find this store: its endpoint, a region, credentials.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
        ]
    }

    /// Stores an object under `BUCKET/KEY`, and replaces the one that is there.
    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.store().put(path, bytes.into());
    }

    /// Has each answer held back for so long, as by a store that is far away.
    pub fn set_delay(&self, delay: Duration) {
        let microseconds = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.shared.delay.store(microseconds, Ordering::Release);
    }

    /// Has all requests answered by 503, or no longer.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::Release);
    }

    /// Has requests answered in another way from now on.
    pub fn set_manners(&self, manners: Manners) {
        *self.shared.manners.lock().unwrap_or_else(PoisonError::into_inner) = manners;
    }

    /// How many requests came, and how many bytes of objects were sent.
    #[must_use]
    pub fn traffic(&self) -> (u64, u64) {
        let shared = &self.shared;
        (shared.requests.load(Ordering::Acquire), shared.sent.load(Ordering::Acquire))
    }

    /// The requests since this was asked last: `METHOD TARGET RANGE`, without the range where there is none.
    #[must_use]
    pub fn take_log(&self) -> Vec<String> {
        core::mem::take(&mut *self.shared.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for ObjectServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // It waits for a connection.
        let _woken = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the requests of a connection until the client closes it.
    fn converse(&self, stream: TcpStream) {
        let _small_answers_go_at_once = stream.set_nodelay(true);
        let Ok(mut answers) = stream.try_clone() else { return };
        let mut requests = BufReader::new(stream);
        while let Ok(Some(mut request)) = Request::read(&mut requests) {
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            let manners = self.manners.lock().unwrap_or_else(PoisonError::into_inner).clone();
            manners.ignore(&mut request);
            let mut response = match manners.answer(&request) {
                Some(response) => self.counted(&request, |_| response),
                None => self.counted(&request, |store| store.answer(&request)),
            };
            manners.change(&mut response);
            let headers_only = request.method == "HEAD";
            let written = match manners.endless && !headers_only {
                true => response.write_endless(&mut answers),
                false => response.write(&mut answers, headers_only, manners.cut_after),
            };
            if written.is_err() {
                return;
            }
        }
    }

    /// The answer that something gives, counted, written down, and held back.
    fn counted(&self, request: &Request, answer: impl FnOnce(&mut Store) -> Response) -> Response {
        self.requests.fetch_add(1, Ordering::AcqRel);
        let line = format!("{} {} {}", request.method, request.target, request.header("range"));
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody asks for that many.
        if log.len() < 10_000 {
            log.push(line.trim_end().to_owned());
        }
        drop(log);
        thread::sleep(Duration::from_micros(self.delay.load(Ordering::Acquire)));
        if self.down.load(Ordering::Acquire) {
            return Response::new(503, "the store is down");
        }
        let response = answer(&mut self.store());
        if request.method == "GET" {
            self.sent.fetch_add(response.body.len() as u64, Ordering::AcqRel);
        }
        response
    }
}
