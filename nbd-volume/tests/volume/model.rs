//! What a volume should hold.

use core::ops::{ControlFlow, Range};

use nbd_engine::export::{
    Allocation, AsyncCanExtents as _, AsyncCanFlush as _, AsyncCanResize as _, AsyncCanTrim as _,
    AsyncCanWrite as _, AsyncCanWriteZeroes as _, AsyncExport as _, Body, Result, ZeroMode,
};
use nbd_testkit::Random;
use nbd_volume::Volume;

/// A change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write(Vec<u8>, u64),
    Trim(Range<u64>),
    Zero(Range<u64>),
}

impl Change {
    /// Some change within these bytes, of which there are some.
    pub(crate) fn draw(random: &mut Random, within: Range<u64>) -> Self {
        let length = within.end - within.start;
        let start = within.start + random.below(length);
        let end = start + 1 + random.below((within.end - start).min(40_000));
        match random.below(6) {
            0 => Self::Trim(start..end),
            1 => Self::Zero(start..end),
            2 => Self::Write(vec![0; (end - start) as usize], start),
            _ => {
                let seed = random.below(1 << 32);
                let bytes = (0..end - start).map(|i| (((i + 1) * (seed | 1)) >> 7) as u8);
                Self::Write(bytes.collect(), start)
            }
        }
    }

    pub(crate) fn apply(&self, disk: &mut [u8]) {
        match self {
            Self::Write(data, offset) => {
                disk[*offset as usize..][..data.len()].copy_from_slice(data);
            }
            Self::Trim(range) | Self::Zero(range) => {
                disk[range.start as usize..range.end as usize].fill(0);
            }
        }
    }

    pub(crate) async fn carry_out(&self, volume: &Volume) -> Result<()> {
        match self {
            Self::Write(data, offset) => {
                volume.can_write().unwrap().write(data, *offset, false).await
            }
            Self::Trim(range) => {
                volume.can_trim().unwrap().trim(range.start, range.end - range.start, false).await
            }
            Self::Zero(range) => {
                let length = range.end - range.start;
                volume
                    .can_write_zeroes()
                    .unwrap()
                    .write_zeroes(range.start, length, ZeroMode::default())
                    .await
            }
        }
    }
}

pub(crate) async fn flush(volume: &Volume) -> Result<()> {
    volume.can_flush().unwrap().flush().await
}

pub(crate) async fn write(volume: &Volume, data: &[u8], offset: u64) -> Result<()> {
    volume.can_write().unwrap().write(data, offset, false).await
}

pub(crate) async fn resize(volume: &Volume, size: u64) -> Result<()> {
    volume.can_resize().unwrap().resize(size).await
}

pub(crate) async fn read(volume: &Volume, range: Range<u64>) -> Result<Vec<u8>> {
    let mut buffer = vec![0xaa; (range.end - range.start) as usize];
    volume.read(&mut buffer, range.start).await?;
    Ok(buffer)
}

/// Reads some bytes in either way, and compares them.
pub(crate) async fn compare(volume: &Volume, disk: &[u8], range: Range<u64>) {
    let expected = &disk[range.start as usize..range.end as usize];
    assert!(read(volume, range.clone()).await.unwrap() == expected, "bytes {range:?} differ");
    let mut body = Body::default();
    volume.read_body(&mut body, expected.len(), range.start).await.unwrap();
    assert!(body.to_vec() == expected, "bytes {range:?} differ in a body");
}

/// All runs of the volume.
pub(crate) async fn extents(volume: &Volume) -> Vec<Allocation> {
    let mut runs = Vec::new();
    let mut offset = 0;
    while offset < volume.size() {
        let mut covered = 0;
        volume
            .can_extents()
            .unwrap()
            .extents(offset, volume.size() - offset, &mut |run| {
                covered += run.length;
                runs.push(run);
                ControlFlow::Continue(())
            })
            .await
            .unwrap();
        assert!(covered > 0, "nothing was reported");
        offset += covered;
    }
    assert_eq!(offset, volume.size());
    runs
}
