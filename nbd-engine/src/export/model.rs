//! What any export that can do everything must do: the same as a plain array of bytes. For the tests of exports.

use core::ops::ControlFlow;

use nbd_proto::wire::ErrorCode;
use proptest::prelude::*;

use super::{Allocation, Body, Export, ZeroMode};

/// The largest size of the model: a little more than five pages of a disk in memory.
const MAX_SIZE: u64 = (5 << 16) + 777;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64, seed: u8, fua: bool },
    Trim { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, mode: ZeroMode },
    Resize { size: u64 },
}

/// Positions anywhere, but often at or next to the bounds of pages and blocks.
fn position() -> impl Strategy<Value = u64> {
    let bound = (0u64..=5, 0u64..5).prop_map(|(page, off)| (page * 65536 + off).saturating_sub(2));
    let block = (0u64..=80).prop_map(|block| block * 4096);
    prop_oneof![0..=MAX_SIZE, bound, block]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (position(), position()).prop_map(|(a, b)| (a.min(b), a.abs_diff(b)))
}

fn step() -> impl Strategy<Value = Step> {
    let write = (range(), any::<u8>(), any::<bool>())
        .prop_map(|((offset, length), seed, fua)| Step::Write { offset, length, seed, fua });
    let zero =
        (range(), any::<[bool; 3]>()).prop_map(|((offset, length), [fua, no_hole, fast])| {
            Step::Zero { offset, length, mode: ZeroMode { fua, no_hole, fast } }
        });
    prop_oneof![
        3 => range().prop_map(|(offset, length)| Step::Read { offset, length }),
        4 => write,
        1 => range().prop_map(|(offset, length)| Step::Trim { offset, length }),
        2 => zero,
        1 => position().prop_map(|size| Step::Resize { size }),
    ]
}

/// Random steps, for [`check`].
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..30)
}

/// Does the steps with the export and with an array, as far as they lie inside, and compares after each of them.
pub(crate) fn check(export: &dyn Export, steps: Vec<Step>) {
    let mut model = vec![0; export.size() as usize];
    for step in steps {
        let size = model.len() as u64;
        let inside = |offset: u64, length: u64| length > 0 && offset + length <= size;
        let part = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
        match step {
            Step::Read { offset, length } if inside(offset, length) => {
                assert!(read(export, offset, length) == model[part(offset, length)]);
            }
            Step::Write { offset, length, seed, fua } if inside(offset, length) => {
                let data: Vec<u8> = (0..length).map(|i| seed.wrapping_add(i as u8) | 1).collect();
                let writes = export.can_write().unwrap();
                writes
                    .try_write(&data, offset, fua)
                    .unwrap_or_else(|| writes.write(&data, offset, fua))
                    .unwrap();
                model[part(offset, length)].copy_from_slice(&data);
            }
            Step::Trim { offset, length } if inside(offset, length) => {
                export.can_trim().unwrap().trim(offset, length, false).unwrap();
                // What is trimmed reads as anything; the rest is compared below.
                model[part(offset, length)].copy_from_slice(&read(export, offset, length));
            }
            Step::Zero { offset, length, mode } if inside(offset, length) => {
                match export.can_write_zeroes().unwrap().write_zeroes(offset, length, mode) {
                    Ok(()) => model[part(offset, length)].fill(0),
                    Err(error) => assert!(mode.fast && error.code() == ErrorCode::ENOTSUP),
                }
            }
            Step::Resize { size } => {
                export.can_resize().unwrap().resize(size).unwrap();
                model.resize(size as usize, 0);
            }
            _ => {}
        }
        assert_eq!(export.size(), model.len() as u64);
        assert!(read(export, 0, model.len() as u64) == model);
        let mut at = 0;
        for run in runs(export, 0, model.len() as u64) {
            let end = at + run.length as usize;
            assert!(!run.zero || model[at..end].iter().all(|&byte| byte == 0));
            at = end;
        }
        assert_eq!(at, model.len());
    }
    export.can_flush().unwrap().flush().unwrap();
}

/// Does those of the steps that change something, as far as they lie inside, whether or not they succeed.
pub(crate) fn change(export: &dyn Export, steps: Vec<Step>) {
    for step in steps {
        let inside = |offset: u64, length: u64| length > 0 && offset + length <= export.size();
        let _may_fail = match step {
            Step::Write { offset, length, seed, fua } if inside(offset, length) => {
                export.can_write().unwrap().write(&vec![seed; length as usize], offset, fua)
            }
            Step::Trim { offset, length } if inside(offset, length) => {
                export.can_trim().unwrap().trim(offset, length, false)
            }
            Step::Zero { offset, length, mode } if inside(offset, length) => {
                export.can_write_zeroes().unwrap().write_zeroes(offset, length, mode)
            }
            Step::Resize { size } => export.can_resize().unwrap().resize(size),
            _ => Ok(()),
        };
    }
}

/// Reads in all the ways that there are, which must agree.
pub(crate) fn read(export: &dyn Export, offset: u64, length: u64) -> Vec<u8> {
    let length = length as usize;
    let mut bytes = vec![0xee; length];
    export.read(&mut bytes, offset).unwrap();
    let mut body = Body::default();
    export.read_body(&mut body, length, offset).unwrap();
    assert!(content(&body) == bytes);
    body.clear();
    match export.try_read(&mut body, length, offset) {
        Some(result) => {
            result.unwrap();
            assert!(content(&body) == bytes);
        }
        None => assert!(body.is_empty() && body.pieces().is_empty()),
    }
    bytes
}

/// The bytes that a body stands for.
pub(crate) fn content(body: &Body) -> Vec<u8> {
    body.to_vec()
}

/// All runs of a range, asked for until the range is covered.
pub(crate) fn runs(export: &dyn Export, offset: u64, length: u64) -> Vec<Allocation> {
    let mut runs = Vec::new();
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let before = at;
        let mut visit = |run: Allocation| {
            assert!(run.length > 0);
            at += run.length;
            runs.push(run);
            ControlFlow::Continue(())
        };
        export.can_extents().unwrap().extents(before, end - before, &mut visit).unwrap();
        assert!(at > before, "nothing was reported");
        assert!(at <= export.size());
    }
    runs
}
