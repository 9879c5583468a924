//! A client as a stream of bytes, with the traits of `std::io`.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::Client;

/// An export with a position in it, for code that reads, writes and seeks.
///
/// What is read and written has to be aligned as for the [`Client`] itself; most exports take any byte. Each call is a
/// request: put a [`BufReader`](std::io::BufReader) or [`BufWriter`](std::io::BufWriter) of some 256 KiB around it.
/// Flushing makes everything durable if the server can. Writes at the end of the export fail with
/// [`io::ErrorKind::StorageFull`].
#[derive(Clone, Debug)]
pub struct Disk {
    pub(super) client: Client,
    pub(super) position: u64,
}

impl Disk {
    /// The client.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }
}

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.client.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Disk {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let left = self.client.size().saturating_sub(self.position);
        let count = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
        if count == 0 && !data.is_empty() {
            let text = format!("the end of the export, at {}, was reached", self.client.size());
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        self.client.write_at(&data[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.client.can_flush() {
            self.client.flush()?;
        }
        Ok(())
    }
}

impl Seek for Disk {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.client.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a seek before the beginning")
        })?;
        Ok(self.position)
    }
}
