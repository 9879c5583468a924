//! Extents of `BLOCK_STATUS`.

use super::assembly::Rules;
use super::chunk::Chunk;
use super::codes::ChunkType;

/// A piece of the export and its state in one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub length: u64,
    /// State; its meaning is the context's.
    pub flags: u64,
}

/// The extents of one context, consecutive from the offset of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Id of the context.
    pub context: u32,
    /// The extents.
    pub extents: Vec<Extent>,
}

impl Status {
    /// Reads the payload of a status chunk (S-CMD-BS-02, S-EH-07 to S-EH-09).
    #[track_caller]
    pub(super) fn parse(chunk: &Chunk) -> Self {
        let extended = chunk.kind == ChunkType::BLOCK_STATUS_EXT;
        let (id, mut rest) = chunk.payload.split_first_chunk().expect("status starts with an id");
        let mut announced = None;
        if extended {
            let (count, after) = rest.split_first_chunk().expect("S-EH-08: a descriptor count");
            announced = Some(u32::from_be_bytes(*count) as usize);
            rest = after;
        }
        let unit = if extended { 16 } else { 8 };
        assert!(
            !rest.is_empty() && rest.len().is_multiple_of(unit),
            "S-CMD-BS-02, S-EH-08: {} bytes of extents",
            rest.len()
        );
        let extents: Vec<_> = rest.chunks_exact(unit).map(parse_extent).collect();
        assert!(
            announced.is_none_or(|count| count == extents.len()),
            "S-EH-08: {announced:?} extents announced, {} sent",
            extents.len()
        );
        for extent in &extents {
            assert_ne!(extent.length, 0, "S-CMD-BS-02: an extent has a length");
        }
        Self { context: u32::from_be_bytes(*id), extents }
    }

    /// Bytes that the extents cover together.
    pub fn total(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// The extents with their offsets, from where the request began.
    pub fn placed(&self, mut offset: u64) -> Vec<(u64, Extent)> {
        let mut placed = Vec::new();
        for &extent in &self.extents {
            placed.push((offset, extent));
            offset += extent.length;
        }
        placed
    }

    /// Checks the extents against what was asked (S-CMD-BS-03 to -07); gives broken SHOULD rules.
    #[track_caller]
    pub(super) fn check(
        &self,
        offset: u64,
        asked: u64,
        req_one: bool,
        rules: &Rules<'_>,
    ) -> Vec<String> {
        let mut remarks = Vec::new();
        let (last, others) = self.extents.split_last().expect("at least one extent");
        if req_one {
            assert!(others.is_empty(), "S-CMD-BS-03: {} extents", self.extents.len());
            assert!(last.length <= asked, "S-CMD-BS-03: {last:?} of {asked} asked");
        }
        let before_last: u64 = others.iter().map(|extent| extent.length).sum();
        assert!(
            before_last < asked,
            "S-CMD-BS-04: {before_last} bytes before the last extent, {asked} asked"
        );
        let end = offset.saturating_add(self.total());
        let size = rules.export.size;
        assert!(end <= size, "S-CMD-BS-05: extents end at {end}, the export at {size}");
        if let Some(sizes) = rules.export.block_size {
            for (at, extent) in self.placed(offset) {
                let aligned = extent.length.is_multiple_of(sizes.minimum.into());
                assert!(aligned, "S-CMD-BS-06: {extent:?} at {at} and {sizes:?}");
            }
        }
        for (at, extent) in self.placed(offset).iter().take(others.len()) {
            if !(at + extent.length).is_multiple_of(512) {
                remarks.push(format!("S-CMD-BS-06: {extent:?} at {at} does not end at a sector"));
            }
        }
        if let Some(pair) = self.extents.windows(2).find(|pair| pair[0].flags == pair[1].flags) {
            remarks.push(format!("S-CMD-BS-06: neighbours of equal status: {pair:?}"));
        }
        if self.extents.len() > 1 << 20 {
            remarks.push(format!("S-CMD-BS-07: {} extents", self.extents.len()));
        }
        for extent in self.extents.iter().filter(|_| rules.is_base_allocation(self.context)) {
            assert_eq!(extent.flags >> 32, 0, "S-EH-09: upper status bits of {extent:?}");
            if extent.flags & !3 != 0 {
                remarks.push(format!("S-META-04: reserved bits in {extent:?}"));
            }
        }
        remarks
    }
}

fn parse_extent(bytes: &[u8]) -> Extent {
    if let Ok(bytes) = <[u8; 16]>::try_from(bytes) {
        let both = u128::from_be_bytes(bytes);
        Extent { length: (both >> 64) as u64, flags: both as u64 }
    } else {
        let bytes = bytes.try_into().expect("an extent has 8 or 16 bytes");
        let both = u64::from_be_bytes(bytes);
        Extent { length: both >> 32, flags: both & 0xffff_ffff }
    }
}
