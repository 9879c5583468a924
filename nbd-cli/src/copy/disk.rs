//! A local file or block device, read and written at offsets.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nbd_engine::counted;
use nbd_engine::export::FileHoles;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::feed::fill;

/// A file that is open.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) file: Arc<File>,
    holes: Arc<FileHoles>,
    allocated: bool,
}

impl Disk {
    /// With space set aside for zeroes, or without.
    pub(super) fn new(file: File, allocated: bool) -> io::Result<Self> {
        let holes = Arc::new(FileHoles::of(&file)?);
        Ok(Self { file: Arc::new(file), holes, allocated })
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let filled = fill(&mut At { file: &self.file, offset }, buffer)?;
        if filled == buffer.len() {
            return Ok(());
        }
        let (end, wanted) = (offset + filled as u64, offset + buffer.len() as u64);
        let size = size_of(&self.file)?;
        Err(if size < wanted { shorter(size, wanted) } else { ends(end, size) })
    }

    pub(super) fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Makes a range zero: a hole, or with space set aside.
    pub(super) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        self.holes.zero(&self.file, offset..offset + length, self.allocated)
    }

    /// Whether there is a hole at `offset`, and where that changes: at `end` at the latest.
    pub(super) fn run(&self, offset: u64, end: u64) -> io::Result<(bool, u64)> {
        self.holes.run(&self.file, offset, end)
    }

    /// Makes what was written durable. The system takes writes before the device does, and reports here alone which of
    /// them failed since.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Has the next reads answered by the device, and not by what the system keeps in memory of it. Only what was
    /// flushed leaves memory; file systems that are nothing but memory keep everything.
    pub(super) fn drop_cache(&self) {
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::fs::fadvise(&*self.file, 0, None, rustix::fs::Advice::DontNeed)
        {
            tracing::info!(%error, "the cache stays: what is read back may come out of memory");
        }
    }

    /// Sets aside space for all of a new file, which reads as zeroes then.
    pub(super) fn allocate(&self, size: u64) -> io::Result<bool> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// A file from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// How many bytes a file or a block device has now.
pub(super) fn size_of(mut file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok(metadata.len()) } else { file.seek(SeekFrom::End(0)) }
}

/// A file has lost bytes that were to be read, up to `wanted` at least.
fn shorter(size: u64, wanted: u64) -> io::Error {
    let text = format!(
        "it became shorter: it has {} now, and {wanted} were expected",
        counted(size, "byte")
    );
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// A file has fewer bytes than its size says, such as those of the kernel in `/sys`.
fn ends(end: u64, size: u64) -> io::Error {
    let text = format!(
        "only {} could be read, though its size is {size}; if that is all there is, copy it with: \
         cat FILE | nbd copy - DST",
        counted(end, "byte")
    );
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

/// The first byte in which two buffers differ.
pub(super) fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    // Comparing whole slices is much faster than byte by byte.
    if one == other {
        return None;
    }
    one.iter().zip(other).position(|(a, b)| a != b)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nbd_testkit::{LoopDevice, assert_same_bytes};

    use super::*;

    #[test]
    fn reads_at_offsets_are_whole_or_say_what_is_missing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, [1, 2, 3, 4, 5, 6]).unwrap();
        let disk = Disk::new(file.reopen().unwrap(), false).unwrap();
        let mut buffer = [0; 3];
        disk.read(&mut buffer, 2).unwrap();
        assert_eq!(buffer, [3, 4, 5]);
        let error = disk.read(&mut buffer, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let said = "it became shorter: it has 6 bytes now, and 7 were expected";
        assert_eq!(error.to_string(), said);
        assert_eq!(size_of(&disk.file).unwrap(), 6);
        // Not tried again and again.
        let file = File::options().write(true).open(file.path()).unwrap();
        let disk = Disk::new(file, false).unwrap();
        assert_eq!(disk.read(&mut buffer, 0).unwrap_err().raw_os_error(), Some(9), "EBADF");
    }

    /// Bytes that are not zero, as many as a few pages have.
    static FULL: [u8; 1 << 18] = [7; 1 << 18];

    /// Zeroes ranges that begin and end within sectors and pages, or don't, one after the other.
    #[track_caller]
    fn check_zeroes(disk: &Disk) {
        let mut wanted = FULL.to_vec();
        disk.write(&wanted, 0).unwrap();
        for range in [0..1, 100..200, 4096..8192, 10_001..30_000, 65_536..200_000, 262_100..262_144]
        {
            let length = range.end - range.start;
            disk.zero(range.start as u64, length as u64).unwrap();
            wanted[range.clone()].fill(0);
            let mut found = vec![0; FULL.len()];
            disk.read(&mut found, 0).unwrap();
            assert_same_bytes(&found, &wanted, &format!("{range:?} of {disk:?}"));
            assert_eq!(size_of(&disk.file).unwrap(), FULL.len() as u64);
        }
    }

    #[test]
    fn what_is_zeroed_of_a_file_gives_its_space_back_unless_it_is_to_be_kept() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FULL.len() as u64).unwrap();
        let punched = fallocate(
            &file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            0,
            FULL.len() as u64,
        );
        for allocated in [false, true] {
            let disk = Disk::new(file.try_clone().unwrap(), allocated).unwrap();
            disk.write(&FULL, 0).unwrap();
            disk.flush().unwrap();
            let blocks = || disk.file.metadata().unwrap().blocks();
            let full = blocks();
            disk.zero(0, 1 << 17).unwrap();
            disk.flush().unwrap();
            if allocated {
                assert!(blocks() >= full, "{} of {full} blocks", blocks());
            } else if punched.is_ok() {
                assert_eq!(blocks(), full - (1 << 17) / 512);
                assert_eq!(disk.run(0, 1 << 18).unwrap(), (true, 1 << 17));
            }
            check_zeroes(&disk);
        }
    }

    #[test]
    fn zeroing_a_part_of_a_block_device_changes_nothing_else() {
        if !LoopDevice::are_possible() {
            return;
        }
        for allocated in [false, true] {
            let device = LoopDevice::new(&FULL);
            let file = File::options().read(true).write(true).open(&device.path).unwrap();
            check_zeroes(&Disk::new(file, allocated).unwrap());
        }
    }

    #[test]
    fn a_file_gets_as_much_space_as_it_is_given_if_its_file_system_can_do_that() {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk::new(file.try_clone().unwrap(), true).unwrap();
        let allocated = disk.allocate(1 << 16).unwrap();
        let expected = if allocated { 1 << 16 } else { 0 };
        assert_eq!(file.metadata().unwrap().len(), expected);
    }

    #[test]
    fn a_difference_is_found_at_its_first_byte() {
        assert_eq!(first_difference(&[1; 100], &[1; 100]), None);
        for at in [0, 1, 50, 99] {
            let (one, mut other) = ([1; 100], [1; 100]);
            other[at..].fill(2);
            assert_eq!(first_difference(&one, &other), Some(at));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn flushed_data_leaves_the_cache() {
        use std::time::Duration;

        use nbd_testkit::process::wait_until;
        use rustix::io::{ReadWriteFlags, preadv2};

        const LIMIT: Duration = Duration::from_secs(60);

        let mut folder = std::env::current_exe().unwrap();
        folder.pop();
        // In the build's folder, as temporary files may lie in memory.
        let disk = Disk::new(tempfile::tempfile_in(folder).unwrap(), false).unwrap();
        let is_cached = || {
            let mut buffer = [0; 4096];
            let buffers = &mut [io::IoSliceMut::new(&mut buffer)];
            preadv2(&*disk.file, buffers, 0, ReadWriteFlags::NOWAIT)
        };
        disk.write(&vec![7; 1 << 20], 0).unwrap();
        match is_cached() {
            Ok(count) => assert_eq!(count, 4096),
            Err(error) => {
                eprintln!("SKIPPED: the cache of a file, as it can't be looked at: {error}");
                return;
            }
        }
        disk.flush().unwrap();
        // The kernel keeps pages that somebody is just looking at.
        wait_until("it leaves the cache", LIMIT, || {
            disk.drop_cache();
            is_cached() == Err(Errno::AGAIN)
        });
        let mut buffer = vec![0; 1 << 20];
        disk.read(&mut buffer, 0).unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
    }
}
