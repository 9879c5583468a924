//! Layers of all kinds around each other are what a plain array of bytes is, for exports of either kind.

use core::ops::{ControlFlow, Range};
use std::sync::Arc;

use nbd_proto::Extent;
use nbd_proto::wire::ErrorCode;
use nbd_testkit::{Random, cases};

use super::later::{Later, Sooner, wait};
use crate::export::model::read;
use crate::export::{
    Allocation, BaseStamp, BlockSize, Export, Injected, Injection, Logged, Memory, Overlay,
    RateLimit, RateLimited, ReadOnly, RequestLog, Slice, Tracked, Tracker, WithAllocationDepth,
    WithBlockSize, ZeroMode,
};

/// What can be put around an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ReadOnly,
    BlockSize,
    Slice,
    OverlayInMemory,
    OverlayInFile,
    RateLimit,
    Injection,
    Log,
    Tracked,
    Depth,
}

const KINDS: [Kind; 10] = [
    Kind::ReadOnly,
    Kind::BlockSize,
    Kind::Slice,
    Kind::OverlayInMemory,
    Kind::OverlayInFile,
    Kind::RateLimit,
    Kind::Injection,
    Kind::Log,
    Kind::Tracked,
    Kind::Depth,
];

const BASE: u64 = 140 << 10;

type Shared = Arc<dyn Export>;

/// A stack of layers, and what it must be like.
struct Stack {
    disk: Shared,
    /// The export at the bottom.
    memory: Arc<Memory>,
    /// Its content, and what is seen of it through the layers.
    base: Vec<u8>,
    view: Vec<u8>,
    /// Where the view begins in the base.
    start: u64,
    minimum: u64,
    writable: bool,
    resizable: bool,
    /// Whether changes get to the base.
    through: bool,
    /// Bitmaps that all changes reach, with the offset of the view in them.
    trackers: Vec<(Arc<Tracker>, u64)>,
    /// What was changed, in the view.
    changed: Vec<bool>,
    _folder: tempfile::TempDir,
}

impl Stack {
    fn new(kinds: &[Kind], asynchronous: bool, random: &mut Random) -> Self {
        let memory = Arc::new(Memory::new(BASE).unwrap());
        let mut base = vec![0; BASE as usize];
        for _ in 0..random.below(6) {
            let (offset, length) = range(random, BASE, 1);
            let part = &mut base[offset as usize..(offset + length) as usize];
            part.fill(1 + random.below(255) as u8);
            memory.can_write().unwrap().write(part, offset, false).unwrap();
        }
        let mut stack = Self {
            disk: Arc::clone(&memory) as Shared,
            memory,
            view: base.clone(),
            base,
            start: 0,
            minimum: 1,
            writable: true,
            resizable: true,
            through: true,
            trackers: Vec::new(),
            changed: Vec::new(),
            _folder: tempfile::tempdir().unwrap(),
        };
        kinds.iter().for_each(|kind| stack.put(*kind, asynchronous, random));
        stack.changed = vec![false; stack.view.len()];
        stack
    }

    /// Puts a layer around.
    fn put(&mut self, kind: Kind, asynchronous: bool, random: &mut Random) {
        // Both are the same layer, by its implementation for either kind of export.
        macro_rules! wrapped {
            ($wrap:expr) => {{
                let inner = Arc::clone(&self.disk);
                if asynchronous {
                    Arc::new(Sooner($wrap(Later(inner)))) as Shared
                } else {
                    Arc::new($wrap(inner)) as Shared
                }
            }};
        }
        let inner = Arc::clone(&self.disk);
        if self.view.is_empty() {
            return;
        }
        self.disk = match kind {
            Kind::ReadOnly => {
                (self.writable, self.resizable) = (false, false);
                wrapped!(ReadOnly::new)
            }
            Kind::BlockSize => {
                let minimum = self.minimum.max(512 << random.below(4));
                let sizes = BlockSize::new(minimum as u32, 65536, 32 << 20).unwrap();
                self.minimum = minimum;
                self.view.truncate(self.view.len() - self.view.len() % minimum as usize);
                // A size that is no multiple for what lies inside could be asked for.
                self.resizable &= self.view.len() as u64 == inner.size();
                wrapped!(|inner| WithBlockSize::new(inner, sizes))
            }
            Kind::Slice => {
                let (offset, length) = range(random, self.view.len() as u64, self.minimum);
                self.view = self.view[offset as usize..(offset + length) as usize].to_vec();
                self.start += offset;
                self.trackers.iter_mut().for_each(|(_, start)| *start += offset);
                self.resizable = false;
                if asynchronous {
                    let slice = Slice::new_async(Later(inner), offset, Some(length)).unwrap();
                    Arc::new(Sooner(slice))
                } else {
                    Arc::new(Slice::new(inner, offset, Some(length)).unwrap())
                }
            }
            Kind::OverlayInMemory | Kind::OverlayInFile => {
                (self.writable, self.resizable, self.through) = (true, false, false);
                self.trackers.clear();
                let path = self._folder.path().join(format!("{}", Arc::as_ptr(&inner).addr()));
                match (kind, asynchronous) {
                    (Kind::OverlayInFile, false) => {
                        let stamp = BaseStamp::new(&inner, None).unwrap();
                        Arc::new(Overlay::in_file(inner, &stamp, path).unwrap())
                    }
                    (Kind::OverlayInFile, true) => {
                        let inner = Later(inner);
                        let stamp = wait(BaseStamp::new_async(&inner, None)).unwrap();
                        let overlay = wait(Overlay::in_file_async(inner, &stamp, path));
                        Arc::new(Sooner(overlay.unwrap()))
                    }
                    (_, false) => Arc::new(Overlay::in_memory(inner).unwrap()),
                    (_, true) => Arc::new(Sooner(Overlay::in_memory_async(Later(inner)).unwrap())),
                }
            }
            Kind::RateLimit => wrapped!(|inner| RateLimited::new(inner, RateLimit::new())),
            Kind::Injection => wrapped!(|inner| Injected::new(inner, Injection::new(1))),
            Kind::Log => wrapped!(|inner| Logged::new(inner, RequestLog::new())),
            Kind::Depth => wrapped!(WithAllocationDepth::new),
            Kind::Tracked => {
                let mut tracker = None;
                let disk = wrapped!(|inner| {
                    let tracked = Tracked::with_granularity(inner, 4096);
                    tracker = Some(Arc::clone(tracked.tracker()));
                    tracked
                });
                let tracker = tracker.unwrap();
                tracker.start(&format!("b{}", self.trackers.len())).unwrap();
                self.trackers.push((tracker, 0));
                disk
            }
        };
    }

    /// What was asked for succeeds if it is allowed, and changes nothing otherwise.
    fn step(&mut self, random: &mut Random) {
        let size = self.view.len() as u64;
        if size == 0 {
            // Less than a block is left.
            return;
        }
        let (offset, length) = range(random, size, self.minimum);
        let part = offset as usize..(offset + length) as usize;
        match random.below(10) {
            0..4 => {
                let Some(ability) = self.disk.can_write() else {
                    return assert!(!self.writable);
                };
                assert!(self.writable);
                let byte = random.below(256) as u8;
                let data = vec![byte; length as usize];
                let fua = ability.fua() == crate::export::Fua::Native && random.one_in(2);
                ability
                    .try_write(&data, offset, fua)
                    .unwrap_or_else(|| ability.write(&data, offset, fua))
                    .unwrap();
                self.change(part, |bytes| bytes.fill(byte));
            }
            4..6 => {
                let Some(ability) = self.disk.can_write_zeroes() else {
                    return assert!(!self.writable);
                };
                let mode =
                    ZeroMode { fua: false, no_hole: random.one_in(2), fast: random.one_in(3) };
                match ability.write_zeroes(offset, length, mode) {
                    Ok(()) => self.change(part, |bytes| bytes.fill(0)),
                    Err(error) => assert!(mode.fast && error.code() == ErrorCode::ENOTSUP),
                }
            }
            6..8 => {
                let Some(ability) = self.disk.can_trim() else { return assert!(!self.writable) };
                ability.trim(offset, length, false).unwrap();
                // What it reads as is up to the export.
                let now = read(&*self.disk, offset, length);
                self.change(part, |bytes| bytes.copy_from_slice(&now));
            }
            8 => self.outside(random),
            _ => self.resize(random),
        }
    }

    fn change(&mut self, part: Range<usize>, change: impl Fn(&mut [u8])) {
        change(&mut self.view[part.clone()]);
        self.changed[part.clone()].fill(true);
        if self.through {
            let start = self.start as usize;
            change(&mut self.base[start + part.start..start + part.end]);
        }
    }

    /// What is not inside is refused.
    fn outside(&self, random: &mut Random) {
        let size = self.view.len() as u64;
        let length = self.minimum * (1 + random.below(4));
        let offset =
            random.of(&[size, size - self.minimum.min(size), u64::MAX - length + 1, 1 << 62]);
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return;
        }
        let mut data = vec![7; length as usize];
        let refused = |result: crate::export::Result<()>, code: ErrorCode| {
            assert_eq!(result.unwrap_err().code(), code, "{offset} {length} of {size}");
        };
        // Layers that don't move leave it to what is inside.
        refused(self.disk.read(&mut data, offset), ErrorCode::EINVAL);
        if let Some(ability) = self.disk.can_write() {
            refused(ability.write(&data, offset, false), ErrorCode::ENOSPC);
        }
        if let Some(ability) = self.disk.can_trim() {
            refused(ability.trim(offset, length, false), ErrorCode::EINVAL);
        }
        if let Some(ability) = self.disk.can_write_zeroes() {
            refused(ability.write_zeroes(offset, length, ZeroMode::default()), ErrorCode::ENOSPC);
        }
    }

    fn resize(&mut self, random: &mut Random) {
        let Some(ability) = self.disk.can_resize() else {
            return assert!(!self.writable || !self.resizable);
        };
        if !self.resizable {
            return;
        }
        let size = (1 + random.below(40)) * 4096;
        ability.resize(size).unwrap();
        let old = self.view.len();
        self.view.resize(size as usize, 0);
        self.base.resize(size as usize, 0);
        let changed = old.min(size as usize)..old.max(size as usize);
        self.changed.resize(size as usize, true);
        if let Some(part) = self.changed.get_mut(changed) {
            part.fill(true);
        }
    }

    /// Everything that can be seen is as it must be.
    fn check(&self) {
        let size = self.view.len() as u64;
        assert_eq!(self.disk.size(), size);
        assert_eq!(u64::from(self.disk.block_size().minimum()), self.minimum);
        assert!(read(&*self.disk, 0, size) == self.view);
        assert!(read(&*self.memory, 0, self.base.len() as u64) == self.base);
        let mut at = 0;
        for run in runs(&*self.disk, size) {
            let end = at + run.length as usize;
            let is_zero = self.view[at..end].iter().all(|byte| *byte == 0);
            assert!(is_zero || !run.hole && !run.zero, "{at}..{end} is data");
            at = end;
        }
        for (tracker, start) in &self.trackers {
            let name = &tracker.names()[0];
            let dirty = tracker.dirty(name, *start..start + size).unwrap();
            for (index, _) in self.changed.iter().enumerate().filter(|(_, changed)| **changed) {
                let offset = start + index as u64;
                assert!(dirty.iter().any(|range| range.contains(&offset)), "{offset} is clean");
            }
            let context = format!("qemu:dirty-bitmap:{name}");
            assert_eq!(self.status(&context), cut(&dirty, *start..start + size), "{context}");
        }
    }

    /// The ranges that have status 1 in a context, which is listed once.
    fn status(&self, context: &str) -> Vec<Range<u64>> {
        let contexts = self.disk.contexts().unwrap();
        let names = contexts.list();
        assert_eq!(names.iter().filter(|info| info.name() == context).count(), 1, "{context}");
        let (mut set, mut at, size) = (Vec::<Range<u64>>::new(), 0, self.view.len() as u64);
        while at < size {
            let before = at;
            let mut visit = |run: Extent| {
                let end = (at + run.length).min(size);
                match set.last_mut() {
                    Some(last) if run.status == 1 && last.end == at => last.end = end,
                    _ if run.status == 1 => set.push(at..end),
                    _ => {}
                }
                at = end;
                if at < size { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            contexts.status(context, before, size - before, &mut visit).unwrap();
            assert!(at > before, "nothing was reported");
        }
        set
    }
}

/// Ranges from the beginning of another one on.
fn cut(ranges: &[Range<u64>], whole: Range<u64>) -> Vec<Range<u64>> {
    ranges.iter().map(|range| range.start - whole.start..range.end - whole.start).collect()
}

/// All runs of a disk. The last one of each answer may reach beyond its end.
fn runs(disk: &dyn Export, size: u64) -> Vec<Allocation> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < size {
        let before = at;
        disk.can_extents()
            .unwrap()
            .extents(before, size - before, &mut |run| {
                let length = run.length.min(size - at);
                at += length;
                runs.push(Allocation { length, ..run });
                if at < size { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
            .unwrap();
        assert!(at > before, "nothing was reported");
    }
    runs
}

/// A range of whole blocks inside of a disk.
fn range(random: &mut Random, size: u64, block: u64) -> (u64, u64) {
    let blocks = (size / block).max(1);
    let first = random.below(blocks);
    let rest = blocks - first;
    let longest = if random.one_in(2) { rest } else { rest.min(5000 / block + 1) };
    let count = 1 + random.below(longest);
    (first * block, count * block)
}

fn run(kinds: &[Kind], steps: u32, random: &mut Random) {
    for asynchronous in [false, true] {
        let mut stack = Stack::new(kinds, asynchronous, random);
        let what = format!("{kinds:?}, asynchronous: {asynchronous}");
        let _named = Named(&what);
        stack.check();
        for _ in 0..steps {
            stack.step(random);
            stack.step(random);
            stack.check();
        }
        if let Some(ability) = stack.disk.can_flush() {
            ability.flush().unwrap();
        }
    }
}

/// Names the stack when a check fails.
struct Named<'a>(&'a str);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the stack, from the disk outwards: {}", self.0);
        }
    }
}

#[test]
fn a_layer_and_any_two_around_each_other_are_as_an_array_is() {
    cases(1, |random| {
        for one in KINDS {
            run(&[one], 4, random);
            for other in KINDS {
                run(&[one, other], 3, random);
            }
        }
    });
}

#[test]
fn three_layers_around_each_other_are_as_an_array_is() {
    cases(20, |random| {
        let kinds = [(); 3].map(|()| random.of(&KINDS));
        run(&kinds, 6, random);
    });
}
