//! An object as an export.

use core::ops::Range;

use bytes::Bytes;
use nbd_engine::export::{AsyncCanCache, AsyncExport, Body, Result};
use nbd_engine::proto::BlockSize;

use super::Object;
use super::parts::PART;

/// The pieces of parts that lie in these bytes.
fn pieces(parts: Vec<Bytes>, bytes: &Range<u64>) -> impl Iterator<Item = Bytes> + use<> {
    let (mut offset, end) = (bytes.start, bytes.end);
    parts.into_iter().map(move |part| {
        let start = offset % PART;
        let length = (PART - start).min(end - offset);
        offset += length;
        part.slice(start as usize..(start + length) as usize)
    })
}

impl AsyncExport for Object {
    fn size(&self) -> u64 {
        self.0.identity.size()
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let bytes = offset..offset + buffer.len() as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        let mut rest = buffer;
        for piece in pieces(self.0.read(&bytes).await?, &bytes) {
            let (filled, behind) = rest.split_at_mut(piece.len());
            filled.copy_from_slice(&piece);
            rest = behind;
        }
        Ok(())
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        let bytes = offset..offset + length as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        pieces(self.0.read(&bytes).await?, &bytes).for_each(|piece| body.share_bytes(piece));
        Ok(())
    }

    fn block_size(&self) -> BlockSize {
        BlockSize::new(1, PART as u32, 1 << 25).unwrap_or(BlockSize::DEFAULT)
    }

    fn description(&self) -> Option<String> {
        Some(format!("object: {}", self.0.location))
    }

    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        Some(self)
    }
}

impl AsyncCanCache for Object {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        // More would drive itself out of the cache.
        let (mut next, end) = (offset, offset + length.min(self.0.options.cache / 2));
        while next < end {
            let step = next..(next + self.0.options.max_request.max(PART)).min(end);
            self.0.read(&step).await?;
            next = step.end;
        }
        Ok(())
    }
}
