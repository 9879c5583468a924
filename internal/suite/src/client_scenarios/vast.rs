//! Ranges and states that need 64 bits, which is what extended headers are for.

use core::ops::ControlFlow;

use nbd_engine::client::{Flags, ClientConfig};
use nbd_engine::export::{
    Allocation, CanExtents, ContextInfo, Contexts, Export, Extent, Memory, Result,
};

use crate::{ClientSetup, Setup};

const SIZE: u64 = 1 << 62;

/// How long each era of the wide context is, by far more than 32 bits can tell.
const ERA: u64 = 1 << 40;

/// 2^62 bytes, all of them one hole, in eras that are numbered in the upper half of 64 bits.
struct Vast;

impl Export for Vast {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl CanExtents for Vast {
    fn extents(
        &self,
        _offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let _told = visit(Allocation { length, hole: true, zero: true });
        Ok(())
    }
}

impl Contexts for Vast {
    fn list(&self) -> Vec<ContextInfo> {
        ContextInfo::new("x-suite:era").map(ContextInfo::wide).into_iter().collect()
    }

    fn status(
        &self,
        _context: &str,
        offset: u64,
        _length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut at = offset;
        let mut eras = core::iter::from_fn(|| {
            let era = at / ERA;
            let length = (era + 1) * ERA - at;
            at += length;
            Some(Extent { length, status: era << 32 })
        });
        let _told = eras.try_for_each(visit);
        Ok(())
    }
}

fn config(extended: bool) -> ClientConfig {
    let config = ClientConfig::new().with_extended_headers(extended).with_contexts(["base:allocation", "x-suite:era"]);
    config
}

/// Extents of more than 4 GiB with states of more than 32 bits, in one reply (C-EH-20); and where there are no extended
/// headers there is no such context, and what there is comes in parts.
pub fn extents_have_64_bits(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(Vast);
    let client = clients.connect(server.endpoint(), &config(true)).expect("the server is there");
    assert!(client.export().is_extended() && client.export().contexts().len() == 2);
    let (offset, length) = (ERA - 512, SIZE - ERA + 512);
    let found = client.block_status(offset, length, Flags::empty()).expect("a block status");
    let [allocation, eras] = &found[..] else { panic!("two contexts were selected: {found:?}") };
    assert_eq!(&*allocation.context, "base:allocation");
    assert_eq!(allocation.extents, [Extent { length, status: 3 }]);
    assert_eq!(&*eras.context, "x-suite:era");
    let expected = [(512, 0), (ERA, 1 << 32), (ERA, 2 << 32)];
    let expected = expected.map(|(length, status)| Extent { length, status });
    assert_eq!(eras.extents[..3], expected);
    let one = client.block_status(0, SIZE, Flags::REQ_ONE).expect("a block status");
    let runs = one.iter().map(|context| context.extents[..].iter().map(|run| run.length).collect());
    assert_eq!(runs.collect::<Vec<Vec<u64>>>(), [[SIZE], [ERA]]);
    client.disconnect();

    let client = clients.connect(server.endpoint(), &config(false)).expect("the server is there");
    assert!(client.export().is_structured() && !client.export().is_extended());
    assert!(!client.export().has_context("x-suite:era"));
    let (mut at, mut asked) = (0, 0);
    while at < 16 << 30 {
        let left = (16 << 30) - at;
        let found = client.block_status(at, left, Flags::empty()).expect("a block status");
        let told: u64 = found[0].extents.iter().map(|run| run.length).sum();
        assert!(told > 0 && found[0].extents.iter().all(|run| run.status == 3));
        at += told;
        asked += 1;
    }
    assert!(asked > 1, "more than 32 bits in one reply");
    client.disconnect();
    server.stop();
}

/// Commands without a payload about more than 4 GiB, in one request or in as many as it takes.
pub fn ranges_have_64_bits(clients: ClientSetup, servers: Setup) {
    const DISK: u64 = 1 << 36;
    let server = servers.serve(Memory::new(DISK).expect("it is sparse"));
    for extended in [true, false] {
        let client = clients.connect(server.endpoint(), &config(extended));
        let client = client.expect("the server is there");
        let marks = [0, 5 << 30, (9 << 30) - 512, 9 << 30, DISK - 512];
        for at in marks {
            client.write_all_at(&[7; 512], at).expect("a write");
        }
        client.cache(0, DISK).expect("a cache");
        client.write_zeroes(512, (9 << 30) - 512, Flags::empty()).expect("zeroes");
        let left = marks.map(|at| client.read(at, 1, Flags::empty()).expect("a read")[0]);
        assert_eq!(left, [7, 0, 0, 7, 7], "{extended}");
        client.trim(0, DISK, Flags::empty()).expect("a trim");
        let found = client.block_status(0, DISK, Flags::empty()).expect("a block status");
        assert_eq!(found[0].extents[0].status, 3, "all is trimmed");
        client.disconnect();
    }
    server.stop();
}
