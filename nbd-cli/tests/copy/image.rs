//! Random sparse disks.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nbd_testkit::{Pattern, Random};

/// What a disk holds, and where its runs of data and zeroes end.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    pub(crate) runs: Vec<(u64, bool)>,
}

impl Image {
    pub(crate) fn random(random: &mut Random) -> Self {
        let grain = random.of(&[100, 512, 1000, 1024, 4096, 16384, 65536]);
        let longest = 1 + random.below(12);
        let limit = random.of(&[20_000, 200_000, 640_000]);
        let limit = random.below(limit);
        let mut image = Self { bytes: Vec::new(), runs: Vec::new() };
        while image.size() < limit {
            let start = image.size();
            let end =
                start + grain * (1 + random.below(longest)) + random.below(2) * random.below(600);
            let zero = random.one_in(2);
            let length = (end - start) as usize;
            image.bytes.extend(if zero {
                vec![0; length]
            } else {
                Pattern(1).bytes(start, length)
            });
            image.runs.push((end, zero));
        }
        image
    }

    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Adds zeroes up to a multiple of a block.
    pub(crate) fn pad(&mut self, block: u64) {
        let size = self.size().next_multiple_of(block);
        if size > self.size() {
            self.bytes.resize(size as usize, 0);
            self.runs.push((size, true));
        }
    }

    /// A file that has holes where the runs are zero.
    pub(crate) fn write(&self, path: &str) {
        let file = File::create(path).unwrap();
        file.set_len(self.size()).unwrap();
        let mut start = 0;
        for &(end, zero) in &self.runs {
            if !zero {
                file.write_all_at(&self.bytes[start..end as usize], start as u64).unwrap();
            }
            start = end as usize;
        }
    }
}
