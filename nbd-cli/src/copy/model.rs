//! Random plans against a byte array.

use nbd_testkit::{Random, assert_same_bytes, cases};

use super::extents::{Extents, Oracle};
use super::plan::{Cut, Piece, Plan};

const CASES: u64 = 4000;

/// A sparse disk: its bytes, and the runs of data and zeroes that they are made of.
#[derive(Clone, Debug)]
struct Image {
    bytes: Vec<u8>,
    /// Where runs end, and whether they are zero. Neighbours may be of one kind.
    runs: Vec<(u64, bool)>,
}

impl Image {
    /// Runs that are multiples of some length, which need not be that of any block.
    fn random(random: &mut Random, unit: u64) -> Self {
        let grain = random.of(&[1, 7, 512, 1000, 1024, 4096, 16384, 65536]);
        let longest = 1 + random.below(24);
        let limit = random.below(20 * grain.max(unit).max(512));
        let (mut size, mut runs) = (0, Vec::new());
        while size < limit {
            size += grain * (1 + random.below(longest));
            if random.one_in(8) {
                size += random.below(600);
            }
            runs.push((size, random.one_in(2)));
        }
        let mut bytes = vec![0; size as usize];
        let mut start = 0;
        for &(end, zero) in &runs {
            if !zero {
                bytes[start as usize..end as usize].fill(1 + (start % 251) as u8);
            }
            start = end;
        }
        Self { bytes, runs }
    }

    /// The bytes from `offset` to `end`, as a server may answer: as many runs as it likes, each cut anywhere, the last
    /// one too short, or longer than was asked; zeroes may pass for data.
    fn answer(&self, random: &mut Random, offset: u64, end: u64) -> Vec<(u64, bool)> {
        let max = random.of(&[1, 1, 2, 3, 100]);
        let (mut answer, mut at) = (Vec::new(), offset);
        for &(run_end, zero) in self.runs.iter().filter(|(run_end, _)| *run_end > offset) {
            if at >= end || answer.len() >= max {
                break;
            }
            let mut length = run_end - at;
            let last = run_end as usize == self.bytes.len();
            match random.below(8) {
                0 => length = 1 + random.below(length),
                1 if last => length += random.below(1 << 40),
                _ => {}
            }
            answer.push((length, zero && !random.one_in(16)));
            at += length;
            if at != run_end {
                break;
            }
        }
        answer
    }
}

/// What a copy by these pieces makes of a disk that holds something else before.
fn carry_out(pieces: &[Piece], image: &Image) -> Vec<u8> {
    let mut copy = vec![0xff; image.bytes.len()];
    for piece in pieces {
        let range = piece.offset as usize..(piece.offset + piece.length) as usize;
        match piece.zero {
            true => copy[range].fill(0),
            false => copy[range.clone()].copy_from_slice(&image.bytes[range]),
        }
    }
    copy
}

#[test]
fn plans_of_any_sparse_disk_copy_all_of_it() {
    let mut zeroes = 0;
    cases(CASES, |random| {
        let unit = 1 << random.below(17);
        let image = Image::random(random, unit);
        let size = image.bytes.len() as u64;
        // Some hundreds of pieces are enough.
        let scale = unit * (1 + size / unit / 100);
        let multiple = |random: &mut Random, max| scale * (1 + random.below(max));
        let cut = Cut { unit, data: multiple(random, 9), zero: multiple(random, 30) };
        let (reported, mut own) = (image.clone(), Random::new(random.next()));
        let gives_up = random.one_in(50);
        let answer = move |offset, end| match gives_up && own.one_in(5) {
            true => Vec::new(),
            false => reported.answer(&mut own, offset, end),
        };
        let oracle = Oracle::Script(Box::new(answer));
        let mut plan = Plan::new(size, cut, Extents::new(oracle, size));
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(piece) = plan.next() {
            let max = if piece.zero { cut.zero } else { cut.data };
            assert_eq!(piece.offset, at, "{cut:?}: pieces follow each other: {piece:?}");
            assert!(piece.length > 0 && piece.length <= max, "{cut:?}: {piece:?}");
            at += piece.length;
            assert!(at.is_multiple_of(unit) || at == size && !piece.zero, "{cut:?}: {piece:?}");
            zeroes += u64::from(piece.zero);
            pieces.push(piece);
        }
        assert_eq!(at, size, "{cut:?}");
        assert_same_bytes(&carry_out(&pieces, &image), &image.bytes, &format!("{cut:?}"));
    });
    assert!(zeroes > CASES || std::env::var("NBD_SEED").is_ok(), "{zeroes} pieces of zeroes");
}
