//! Pieces of equal size, such as blocks, as the bytes of a request.

use core::ops::Range;

use bytes::Bytes;
use nbd_engine::export::Body;

/// What lies in these bytes of pieces of `size` bytes, the first of which holds their beginning: each with its length. An
/// empty piece is a hole.
pub(crate) fn cut(
    pieces: Vec<Bytes>,
    size: u64,
    bytes: &Range<u64>,
) -> impl Iterator<Item = (Bytes, usize)> + use<> {
    let (mut offset, end) = (bytes.start, bytes.end);
    pieces.into_iter().map(move |piece| {
        let start = offset % size;
        let length = (size - start).min(end - offset);
        offset += length;
        let (start, length) = (start as usize, length as usize);
        match piece.is_empty() {
            true => (piece, length),
            false => (piece.slice(start..start + length), length),
        }
    })
}

/// Fills a buffer with what was [cut].
pub(crate) fn fill(buffer: &mut [u8], cut: impl Iterator<Item = (Bytes, usize)>) {
    let mut rest = buffer;
    for (piece, length) in cut {
        let (filled, behind) = rest.split_at_mut(length);
        match piece.is_empty() {
            true => filled.fill(0),
            false => filled.copy_from_slice(&piece),
        }
        rest = behind;
    }
}

/// Appends what was [cut] to a reply, without a copy. Holes that follow each other are one.
pub(crate) fn share(body: &mut Body, cut: impl Iterator<Item = (Bytes, usize)>) {
    let mut hole = 0;
    for (piece, length) in cut {
        if piece.is_empty() {
            hole += length;
            continue;
        }
        if hole > 0 {
            body.hole(core::mem::take(&mut hole));
        }
        body.share_bytes(piece);
    }
    if hole > 0 {
        body.hole(hole);
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn the_bytes_of_a_request_are_those_of_its_pieces() {
        cases(200, |random| {
            let size = 1 + random.below(16);
            let mut disk = Vec::new();
            let mut pieces = Vec::new();
            for _ in 0..1 + random.below(8) {
                let is_hole = random.below(3) == 0;
                let byte = if is_hole { 0 } else { 1 + random.below(255) as u8 };
                let piece: Vec<u8> = (0..size).map(|_| byte).collect();
                pieces.push(if is_hole { Bytes::new() } else { Bytes::from(piece.clone()) });
                disk.extend(piece);
            }
            let start = random.below(disk.len() as u64);
            let end = start + 1 + random.below(disk.len() as u64 - start);
            let asked = start / size..end.div_ceil(size);
            let asked = pieces[asked.start as usize..asked.end as usize].to_vec();
            let mut buffer = vec![255; (end - start) as usize];
            fill(&mut buffer, cut(asked, size, &(start..end)));
            assert_eq!(buffer, disk[start as usize..end as usize]);
        });
    }
}
