//! What becomes of a request whose connection breaks while the server carries it out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nbd_blocking::Client;
use nbd_blocking::client::{Chunk, ClientConfig, Command, Error, Flags, Reconnect};
use nbd_blocking::export::{
    Allocation, CanExtents, CanFlush, CanResize, CanWrite, Export, Memory, Result,
};
use nbd_support::bounded;

use super::serial::{Breaker, reconnect, serve};

const SIZE: u64 = 1 << 20;

/// When a call breaks the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// A disk that breaks its connections in some calls: those for which it has a plan, and these as often as planned.
#[derive(Clone)]
struct Fragile(Arc<Inner>);

struct Inner {
    memory: Memory,
    size: AtomicU64,
    breaker: Breaker,
    plan: Mutex<Option<(&'static str, Moment, u32)>>,
    calls: Mutex<Vec<&'static str>>,
}

impl Fragile {
    fn new() -> Self {
        Self(Arc::new(Inner {
            memory: Memory::new(4 * SIZE).unwrap(),
            size: AtomicU64::new(SIZE),
            breaker: Breaker::default(),
            plan: Mutex::default(),
            calls: Mutex::default(),
        }))
    }

    fn plan(&self, call: &'static str, moment: Moment, times: u32) {
        *self.0.plan.lock().unwrap() = Some((call, moment, times));
        self.0.calls.lock().unwrap().clear();
    }

    fn calls(&self, call: &str) -> usize {
        self.0.calls.lock().unwrap().iter().filter(|known| **known == call).count()
    }

    fn connect(&self, reconnect: Reconnect) -> (Client, tempfile::TempDir) {
        let (uri, folder) = serve(self.clone(), &self.0.breaker);
        let config =
            ClientConfig::new().with_contexts(["base:allocation"]).with_reconnect(reconnect);
        (Client::connect_with(&uri.parse().unwrap(), &config).unwrap(), folder)
    }

    fn breaks(&self, call: &str, moment: Moment) {
        let mut plan = self.0.plan.lock().unwrap();
        if let Some((planned, at, times @ 1..)) = &mut *plan
            && (*planned, *at) == (call, moment)
        {
            *times -= 1;
            self.0.breaker.break_all();
        }
    }

    fn call<R>(&self, call: &'static str, run: impl FnOnce(&Memory) -> R) -> R {
        self.0.calls.lock().unwrap().push(call);
        self.breaks(call, Moment::Before);
        let result = run(&self.0.memory);
        self.breaks(call, Moment::After);
        result
    }
}

impl Export for Fragile {
    fn size(&self) -> u64 {
        self.0.size.load(Ordering::Relaxed)
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.call("read", |memory| memory.read(buffer, offset))
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<&dyn CanResize> {
        Some(self)
    }
}

impl CanWrite for Fragile {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.call("write", |memory| memory.can_write().unwrap().write(data, offset, fua))
    }
}

impl CanFlush for Fragile {
    fn flush(&self) -> Result<()> {
        self.call("flush", |_| Ok(()))
    }
}

impl CanExtents for Fragile {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> core::ops::ControlFlow<()>,
    ) -> Result<()> {
        self.call("extents", |memory| memory.can_extents().unwrap().extents(offset, length, visit))
    }
}

impl CanResize for Fragile {
    fn resize(&self, size: u64) -> Result<()> {
        self.call("resize", |_| {
            self.0.size.store(size, Ordering::Relaxed);
            Ok(())
        })
    }
}

const BOTH: [Moment; 2] = [Moment::Before, Moment::After];

#[test]
fn reads_and_what_asks_are_sent_again_and_answered_once() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect(reconnect());
        client.write(4096, vec![7; 4096], Flags::FUA).unwrap();
        let expected = client.read_chunks(0, 16384, Flags::empty()).unwrap();
        let status = client.block_status(0, SIZE, Flags::empty()).unwrap();
        for moment in BOTH {
            disk.plan("read", moment, 2);
            assert_eq!(client.read(4096, 4096, Flags::empty()).unwrap(), vec![7; 4096]);
            assert_eq!(disk.calls("read"), 3);
            disk.plan("read", moment, 1);
            let chunks = client.read_chunks(0, 16384, Flags::empty()).unwrap();
            let ends = |chunks: &[Chunk]| chunks.iter().map(Chunk::offset).collect::<Vec<_>>();
            assert_eq!(ends(&chunks), ends(&expected), "{chunks:?}");
            disk.plan("extents", moment, 1);
            assert_eq!(client.block_status(0, SIZE, Flags::empty()).unwrap(), status);
        }
    });
}

#[test]
fn writes_and_flushes_are_sent_again() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect(reconnect());
        for moment in BOTH {
            disk.plan("write", moment, 2);
            client.write(0, vec![moment as u8 + 1; 512], Flags::empty()).unwrap();
            assert_eq!(disk.calls("write"), 3);
            assert_eq!(client.read(0, 1, Flags::empty()).unwrap()[..], [moment as u8 + 1]);
            client.flush().unwrap();
            disk.plan("flush", moment, 2);
            client.flush().unwrap();
            assert_eq!(disk.calls("flush"), 3);
            // This one was in flight as the connection broke, and there was something to be flushed.
            client.write(0, vec![moment as u8 + 1; 512], Flags::empty()).unwrap();
            disk.plan("flush", moment, 1);
            let error = client.flush().unwrap_err();
            assert!(matches!(error, Error::InDoubt { requests: 1, bytes: 512, .. }), "{error}");
            client.flush().unwrap();
        }
    });
}

#[test]
fn writes_are_sent_once_if_so_chosen() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect(reconnect().with_resent_writes(false));
        for moment in BOTH {
            disk.plan("write", moment, 1);
            let error = client.write(0, vec![1; 512], Flags::empty()).unwrap_err();
            assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
            assert_eq!(disk.calls("write"), 1);
            client.write(0, vec![2; 512], Flags::empty()).unwrap();
        }
    });
}

#[test]
fn a_resize_is_never_sent_twice_and_its_outcome_is_found_out() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect(reconnect());
        let mut size = SIZE;
        for moment in [Moment::After, Moment::Before, Moment::After] {
            size += SIZE / 2;
            disk.plan("resize", moment, 1);
            let error = client.resize(size).unwrap_err();
            assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
            client.read(0, 512, Flags::empty()).unwrap();
            assert_eq!(disk.calls("resize"), 1);
            assert_eq!(client.size(), size, "as it is on the server");
            assert!(client.check(&Command::read(size - 512, 512)).is_ok());
            client.write(size - 512, vec![1; 512], Flags::FUA).unwrap();
        }
    });
}

#[test]
fn a_request_that_kills_the_server_is_given_up_and_others_go_on() {
    bounded(|| {
        let disk = Fragile::new();
        let (client, _folder) = disk.connect(reconnect().with_max_resends(3));
        disk.plan("write", Moment::Before, u32::MAX);
        let write = client.submit_write(0, vec![1; 512], Flags::empty());
        let error = write.wait().unwrap_err();
        assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
        assert_eq!(disk.calls("write"), 4);
        client.read(0, 512, Flags::empty()).unwrap();
    });
}
