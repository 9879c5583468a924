//! A disk of many extents.

use core::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_engine::export::{
    Allocation, AnyExport, AsyncCanExtents, AsyncContexts, AsyncExport, CanExtents, ContextInfo,
    Contexts, Export, ExportMap, Extent, Result, Visitor,
};

use super::Way;

/// How often a disk was asked for its allocation.
pub static ASKED: AtomicUsize = AtomicUsize::new(0);

/// The size of a [`Striped`] disk.
pub const HUGE: u64 = 1 << 62;

/// 2^62 bytes in sectors of changing status, in contexts for any width of the stripes.
#[derive(Clone, Copy, Debug)]
pub struct Striped(pub Way);

impl Striped {
    /// The ways that it can be served on.
    pub const WAYS: [Way; 3] = [Way::Inline, Way::Workers, Way::Async];

    /// As the default export, and the only one.
    pub fn exports(way: Way) -> ExportMap {
        let export = match way {
            Way::Async => AnyExport::new_async(Self(way)),
            _ => AnyExport::new_blocking(Self(way)),
        };
        ExportMap::new().with("", export).expect("the name is short")
    }

    /// Stripes from an offset on, without end.
    fn stripes(offset: u64, width: u64) -> impl Iterator<Item = Extent> {
        let mut offset = offset;
        core::iter::from_fn(move || {
            let stripe = offset / width;
            let length = (stripe + 1) * width - offset;
            offset += length;
            Some(Extent { length, status: stripe & 1 })
        })
    }

    fn allocations(offset: u64) -> impl Iterator<Item = Allocation> {
        ASKED.fetch_add(1, Ordering::Relaxed);
        Self::stripes(offset, 512).map(|stripe| {
            let hole = stripe.status == 1;
            Allocation { length: stripe.length, hole, zero: hole }
        })
    }

    fn width(context: &str) -> Option<u64> {
        context.strip_prefix("x-stripes:")?.parse().ok().filter(|width| *width > 0)
    }

    fn all() -> Vec<ContextInfo> {
        let wide = ContextInfo::new("x-wide:stripe").map(ContextInfo::wide);
        ContextInfo::new("x-stripes:1024").into_iter().chain(wide).collect()
    }

    fn made_for(query: &str) -> Option<ContextInfo> {
        if query == "x-stripes:largest" {
            return ContextInfo::new("x-stripes:4194304").map(|context| context.answering(query));
        }
        Self::width(query).and_then(|_| ContextInfo::new(query))
    }

    fn status_of(context: &str, offset: u64) -> Box<dyn Iterator<Item = Extent> + Send> {
        match Self::width(context) {
            Some(width) => Box::new(Self::stripes(offset, width)),
            None => Box::new(
                Self::stripes(offset, 1 << 40)
                    .map(move |stripe| Extent { status: stripe.status << 40, ..stripe }),
            ),
        }
    }
}

impl Export for Striped {
    fn size(&self) -> u64 {
        HUGE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        self.0 == Way::Inline
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl CanExtents for Striped {
    fn extents(
        &self,
        offset: u64,
        _length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let _visited = Self::allocations(offset).try_for_each(visit);
        Ok(())
    }
}

impl Contexts for Striped {
    fn list(&self) -> Vec<ContextInfo> {
        Self::all()
    }

    fn find(&self, query: &str) -> Option<ContextInfo> {
        Self::made_for(query)
    }

    fn status(
        &self,
        context: &str,
        offset: u64,
        _length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let _visited = Self::status_of(context, offset).try_for_each(visit);
        Ok(())
    }
}

impl AsyncExport for Striped {
    fn size(&self) -> u64 {
        HUGE
    }

    async fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        Some(self)
    }

    fn contexts(&self) -> Option<impl AsyncContexts> {
        Some(self)
    }
}

impl AsyncCanExtents for Striped {
    async fn extents(
        &self,
        offset: u64,
        _length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        let _visited = Self::allocations(offset).try_for_each(visit);
        Ok(())
    }
}

impl AsyncContexts for Striped {
    fn list(&self) -> Vec<ContextInfo> {
        Self::all()
    }

    fn find(&self, query: &str) -> Option<ContextInfo> {
        Self::made_for(query)
    }

    async fn status(
        &self,
        context: &str,
        offset: u64,
        _length: u64,
        visit: &mut Visitor<'_, Extent>,
    ) -> Result<()> {
        let _visited = Self::status_of(context, offset).try_for_each(visit);
        Ok(())
    }
}
