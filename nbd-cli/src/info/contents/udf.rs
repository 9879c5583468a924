//! The names of a UDF file system (ECMA-167), which are three steps away: an anchor in the sector of index 256, whose size
//! is not known before, has the extent of the volume descriptors.

use super::bytes::{at, u16_le, u32_le};
use super::labels::{Next, Place, place_at};

/// The tags of descriptors.
const PRIMARY_VOLUME: u16 = 1;
const ANCHOR: u16 = 2;
const LOGICAL_VOLUME: u16 = 6;
const TERMINATING: u16 = 8;

/// The index of the sector with the anchor.
const ANCHOR_SECTOR: u32 = 256;

/// Where to begin: with the smallest sectors, whose anchor every disk has room for.
pub(super) fn place() -> Option<Place> {
    place_at(u64::from(ANCHOR_SECTOR) * 512, 512, anchor::<512, 2048>)
}

/// The anchor for sectors of that many bytes; else the next size is tried, and none after 4096.
fn anchor<const SECTOR: u64, const OTHER: u64>(bytes: &[u8]) -> Option<Next> {
    if u16_le(bytes, 0)? != ANCHOR || u32_le(bytes, 12)? != ANCHOR_SECTOR {
        let start = u64::from(ANCHOR_SECTOR) * OTHER;
        return match OTHER {
            2048 => place_at(start, 512, anchor::<2048, 4096>),
            4096 => place_at(start, 512, anchor::<4096, 0>),
            _ => None,
        }
        .map(Next::Place);
    }
    let (length, start) = (u64::from(u32_le(bytes, 16)?), u64::from(u32_le(bytes, 20)?));
    place_at(start * SECTOR, length, descriptors::<SECTOR>).map(Next::Place)
}

/// The volume descriptors, one in each sector. The identifier is made of the first digits of the volume set's, as
/// libblkid makes it.
fn descriptors<const SECTOR: u64>(bytes: &[u8]) -> Option<Next> {
    let (mut label, mut uuid) = (None, None);
    for sector in bytes.chunks_exact(usize::try_from(SECTOR).ok()?) {
        match u16_le(sector, 0)? {
            PRIMARY_VOLUME => {
                let set = dstring(at(sector, 72, 128)?);
                uuid = set.and_then(|set| set.get(..16).map(str::to_ascii_lowercase));
                uuid = uuid.filter(|uuid| uuid.bytes().all(|digit| digit.is_ascii_hexdigit()));
            }
            LOGICAL_VOLUME => label = dstring(at(sector, 84, 128)?),
            TERMINATING => break,
            _ => {}
        }
    }
    Some(Next::Names { label, uuid })
}

/// A text in a field whose first byte says how wide its characters are, and the last one how much of it is used.
fn dstring(field: &[u8]) -> Option<String> {
    let (length, field) = field.split_last()?;
    let (width, text) = field.get(..usize::from(*length))?.split_first()?;
    let text = match width {
        8 => text.iter().map(|byte| char::from(*byte)).collect(),
        16 => {
            let units = text.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            String::from_utf16_lossy(&units.collect::<Vec<_>>())
        }
        _ => return None,
    };
    let text = text.trim_matches(['\0', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}
