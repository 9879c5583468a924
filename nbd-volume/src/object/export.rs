//! An object as an export.

use nbd_engine::export::{AsyncCanCache, AsyncExport, Body, Result};
use nbd_engine::proto::BlockSize;

use super::Object;
use super::parts::PART;
use crate::pieces::{cut, fill, share};

impl AsyncExport for Object {
    fn size(&self) -> u64 {
        self.0.identity.size()
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let bytes = offset..offset + buffer.len() as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        fill(buffer, cut(self.0.read(&bytes).await?, PART, &bytes));
        Ok(())
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        let bytes = offset..offset + length as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        share(body, cut(self.0.read(&bytes).await?, PART, &bytes));
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
