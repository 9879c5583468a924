//! The search for what was said to be durable.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::Path;

use crate::plan::{SECTOR, SECTORS, Write, content};

/// Looks at each sector, and fails for those that don't hold what they must.
pub(crate) fn run(image: &Path, seed: u64, log: &Path) -> Result<(), Box<dyn Error>> {
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let mut bytes = vec![0; SECTORS as usize * SECTOR];
    fs::File::open(image)?.read_exact(&mut bytes)?;
    let durable = Durable::new(seed, &log);
    let faults = durable.faults(&bytes);
    for fault in faults.iter().take(20) {
        eprintln!("{fault}");
    }
    println!(
        "VERIFIED: {} writes durable by {} flushes and {} FUA writes; {} faults",
        durable.writes,
        durable.flushes,
        durable.fuas,
        faults.len()
    );
    match faults.len() {
        0 => Ok(()),
        count => Err(format!("{count} sectors do not hold what was durable").into()),
    }
}

/// What was said to be durable.
struct Durable {
    seed: u64,
    /// The last durable write to each sector.
    last: Vec<Option<u64>>,
    writes: u64,
    flushes: u64,
    fuas: u64,
}

impl Durable {
    fn new(seed: u64, log: &str) -> Self {
        let nothing = vec![None; SECTORS as usize];
        let mut durable = Self { seed, last: nothing, writes: 0, flushes: 0, fuas: 0 };
        for line in log.lines() {
            // The last line may be cut off: its number could be another one, and so it does not count.
            let complete = log.contains(&format!("{line}\n"));
            match line.trim_end().split_once(' ') {
                Some(("FLUSH", number)) if complete => {
                    let Ok(number) = number.parse() else { continue };
                    durable.flushes += 1;
                    for number in durable.writes..=number {
                        durable.add(number);
                    }
                    durable.writes = number + 1;
                }
                Some(("FUA", number)) if complete => {
                    let Ok(number) = number.parse() else { continue };
                    durable.fuas += 1;
                    durable.add(number);
                }
                _ => {}
            }
        }
        durable
    }

    fn add(&mut self, number: u64) {
        for sector in Write::of(self.seed, number).sectors {
            let last = &mut self.last[sector as usize];
            *last = (*last).max(Some(number));
        }
    }

    /// The sectors that don't hold the last durable write or a later one, whole.
    fn faults(&self, bytes: &[u8]) -> Vec<String> {
        let sectors = bytes.chunks_exact(SECTOR).zip(&self.last).zip(0..);
        sectors.filter_map(|((found, last), sector)| self.fault(found, *last, sector)).collect()
    }

    fn fault(&self, found: &[u8], last: Option<u64>, sector: u64) -> Option<String> {
        let expected = last.map_or_else(|| "nothing".into(), |last| format!("write {last}"));
        if found.iter().all(|byte| *byte == 0) {
            return last
                .is_some()
                .then(|| format!("sector {sector}: zeroes instead of {expected}"));
        }
        let number = u64::from_le_bytes(found[..8].try_into().ok()?).wrapping_sub(1);
        if content(self.seed, number, sector) != found
            || !Write::of(self.seed, number).sectors.contains(&sector)
        {
            return Some(format!("sector {sector}: no write left this"));
        }
        let lost = last.is_some_and(|last| number < last);
        lost.then(|| format!("sector {sector}: write {number}, and {expected} was durable"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(count: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTORS as usize * SECTOR];
        for number in 0..count {
            let write = Write::of(5, number);
            let start = write.offset() as usize;
            let data = write.data(5);
            bytes[start..start + data.len()].copy_from_slice(&data);
        }
        bytes
    }

    #[test]
    fn what_is_durable_must_be_there_and_what_is_not_may() {
        let log = "noise\nFLUSH 31\nFUA 37\nFLUSH 3";
        let durable = Durable::new(5, log);
        assert_eq!((durable.writes, durable.flushes, durable.fuas), (32, 1, 1));
        let mut bytes = written(40);
        assert_eq!(durable.faults(&bytes), [""; 0], "later writes may be there");
        let flushed = written(32);
        let fua = Write::of(5, 37);
        let faults = durable.faults(&flushed).len() as u64;
        assert!(0 < faults && faults <= fua.sectors.end - fua.sectors.start, "{faults}");
        let last = Write::of(5, 31).offset() as usize;
        bytes[last + 100] ^= 1;
        assert_eq!(durable.faults(&bytes).len(), 1, "a sector that is torn");
        bytes[last..last + SECTOR].fill(0);
        assert_eq!(durable.faults(&bytes).len(), 1, "a sector that was lost");
        assert_eq!(Durable::new(5, "").faults(&vec![0; bytes.len()]), [""; 0]);
    }
}
