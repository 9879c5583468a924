//! Each layer does the same around an export that may block and around one whose work is a future.

use std::sync::Arc;

use proptest::prelude::*;

use super::later::{Later, now};
use super::*;
use crate::export::model::{self, Step};
use crate::export::{
    AnyExport, AsyncCanResize, AsyncCanTrim, AsyncCanWrite, AsyncCanWriteZeroes, AsyncContexts,
    AsyncExport, Contexts, Export, Memory, ReadOnly, Tracked, WithAllocationDepth, WithBlockSize,
};

const K64: u64 = 64 << 10;
const SIZE: u64 = 6 * K64;

fn blocking() -> Memory {
    Memory::new(SIZE).unwrap()
}

fn later() -> Later<Memory> {
    Later(blocking())
}

/// Does the steps that change something with both, as far as they may.
fn change(disk: &impl Export, later: &impl AsyncExport, steps: Vec<Step>) {
    for step in &steps {
        let inside = |offset: u64, length: u64| length > 0 && offset + length <= later.size();
        let _may_fail = match *step {
            Step::Write { offset, length, seed, fua } if inside(offset, length) => {
                let data = vec![seed; length as usize];
                now(later.can_write().unwrap().write(&data, offset, fua))
            }
            Step::Trim { offset, length } if inside(offset, length) => {
                now(later.can_trim().unwrap().trim(offset, length, false))
            }
            Step::Zero { offset, length, mode } if inside(offset, length) => {
                now(later.can_write_zeroes().unwrap().write_zeroes(offset, length, mode))
            }
            Step::Resize { size } => now(later.can_resize().unwrap().resize(size)),
            _ => Ok(()),
        };
    }
    model::change(disk, steps);
}

/// All that a client could find out of both is the same.
fn assert_alike(disk: &(impl Export + Contexts), later: &(impl AsyncExport + AsyncContexts)) {
    assert_eq!(Export::size(disk), AsyncExport::size(later));
    let size = Export::size(disk);
    let mut bytes = vec![0xee; size as usize];
    now(later.read(&mut bytes, 0)).unwrap();
    assert!(model::read(disk, 0, size) == bytes);
    let contexts = Contexts::list(disk);
    assert_eq!(contexts, AsyncContexts::list(later));
    for name in contexts.iter().map(ContextInfo::name).chain(["x-other:a"]) {
        let (mut runs, mut later_runs) = (Vec::new(), Vec::new());
        let result = Contexts::status(disk, name, 0, size, &mut |run| {
            runs.push(run);
            ControlFlow::Continue(())
        });
        let mut visit = |run| {
            later_runs.push(run);
            ControlFlow::Continue(())
        };
        assert_eq!(result, now(AsyncContexts::status(later, name, 0, size, &mut visit)), "{name}");
        assert_eq!(runs, later_runs, "{name}");
        for (one, other) in [(0, 1), (2, 1), (3, 3)] {
            let joined = Contexts::join(disk, name, one, other);
            assert_eq!(joined, AsyncContexts::join(later, name, one, other), "{name}");
        }
    }
}

fn facts(disk: impl Export, later: impl AsyncExport) -> [String; 2] {
    [AnyExport::new_blocking(disk), AnyExport::new_async(later)]
        .map(|export| format!("{:?}", export.facts()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_tracked_disk_of_either_kind_has_the_same_content_and_marks(steps in model::steps()) {
        let disk = Tracked::new(WithAllocationDepth::new(blocking()));
        let later = Tracked::new(WithAllocationDepth::new(later()));
        disk.tracker().start("b").unwrap();
        later.tracker().start("b").unwrap();
        change(&disk, &later, steps);
        assert_alike(&disk, &later);
    }

    #[test]
    fn a_disk_of_either_kind_has_the_same_size_in_blocks(
        steps in model::steps(), shift in 9_u32..16,
    ) {
        let sizes = BlockSize::new(1 << shift, 65536, 1 << 20).unwrap();
        let disk = WithBlockSize::new(blocking(), sizes);
        let later = WithBlockSize::new(later(), sizes);
        change(&disk, &later, steps);
        assert_alike(&disk, &later);
    }
}

#[test]
fn what_is_advertised_is_the_same_of_either_kind() {
    let sizes = BlockSize::new(4096, 65536, 1 << 20).unwrap();
    for [disk, later] in [
        facts(blocking(), later()),
        facts(ReadOnly::new(blocking()), ReadOnly::new(later())),
        facts(ReadOnly::new(Tracked::new(blocking())), ReadOnly::new(Tracked::new(later()))),
        facts(
            WithBlockSize::new(blocking(), sizes).required(true),
            WithBlockSize::new(later(), sizes).required(true),
        ),
        facts(WithAllocationDepth::new(blocking()), WithAllocationDepth::new(later())),
        facts(Arc::new(Tracked::new(blocking())), Arc::new(Tracked::new(later()))),
    ] {
        assert_eq!(disk, later);
    }
}

#[test]
fn an_asynchronous_export_without_abilities_has_none() {
    struct Bare;
    impl AsyncExport for Bare {
        fn size(&self) -> u64 {
            1
        }
        async fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
            Ok(())
        }
    }
    let facts = AnyExport::new(ReadOnly::new(Bare)).facts();
    assert!(facts.write.is_none() && !facts.flush && !facts.trim && !facts.write_zeroes);
    assert!(!facts.fast_zero && !facts.cache && !facts.extents && !facts.resize);
}
