//! A client as a stream of bytes with a position, and the traits of `std::io`.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::Client;

/// An export with a position in it, for code that reads, writes and seeks.
///
/// What is read and written has to be aligned as for the [`Client`] itself; most exports take any byte. Each call is a
/// request: put a [`BufReader`](std::io::BufReader) or [`BufWriter`](std::io::BufWriter) of some 256 KiB around it.
/// Flushing makes everything durable if the server can. Writes at the end of the export fail with
/// [`io::ErrorKind::StorageFull`].
#[derive(Clone, Debug)]
pub struct Cursor {
    client: Client,
    position: u64,
}

impl Cursor {
    /// The beginning of the export.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { client, position: 0 }
    }

    /// Where the next byte is read or written, in bytes from the beginning of the export.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// The client.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.client.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Cursor {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.client.write_at(data, self.position)?;
        if count == 0 && !data.is_empty() {
            let text = format!("the end of the export, at {}, was reached", self.client.size());
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.client.export().can_flush() {
            self.client.flush()?;
        }
        Ok(())
    }
}

impl Seek for Cursor {
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
