//! Any pair of byte streams as a socket: two threads carry the bytes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// The threads that carry bytes.
pub(crate) struct Pumps {
    outward: JoinHandle<()>,
}

/// The server's end of a socket whose other end is tied to `reader` and `writer`.
pub(crate) fn connect(
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
) -> io::Result<(UnixStream, Pumps)> {
    let (ours, theirs) = UnixStream::pair()?;
    let inward = theirs.try_clone()?;
    std::thread::Builder::new().name("nbd-pump-in".into()).spawn(move || {
        carry(reader, &inward);
        // The end of the client's stream reaches the server; an error means that nobody listens any more.
        let _closed = inward.shutdown(Shutdown::Write);
    })?;
    let outward = std::thread::Builder::new().name("nbd-pump-out".into()).spawn(move || {
        carry(&theirs, writer);
        let _closed = theirs.shutdown(Shutdown::Both);
    })?;
    Ok((ours, Pumps { outward }))
}

impl Pumps {
    /// Waits until the last reply was written. The other thread may be in a read that never ends, and is left to it.
    pub(crate) fn finish(self) {
        let _panicked = self.outward.join();
    }
}

/// Carries bytes until either side ends or fails. What is written is flushed before more is waited for.
fn carry(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
        }
    }
}
