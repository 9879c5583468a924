//! Any pair of byte streams as a socket: two threads carry the bytes.

use std::any::Any;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
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
        let mut writer = writer;
        carry(&theirs, &mut writer);
        let _closed = theirs.shutdown(Shutdown::Both);
        end(&writer);
    })?;
    Ok((ours, Pumps { outward }))
}

impl Pumps {
    /// Waits until the last reply was written. The other thread may be in a read that never ends, and is left to it.
    pub(crate) fn finish(self) {
        let _panicked = self.outward.join();
    }
}

/// Lets the client of a socket know that there is no more. The reader may be a clone of it, which keeps it open as long as
/// the client, who waits for that, says nothing.
fn end(writer: &dyn Any) {
    if let Some(socket) = writer.downcast_ref::<TcpStream>() {
        let _gone = socket.shutdown(Shutdown::Write);
    }
    if let Some(socket) = writer.downcast_ref::<UnixStream>() {
        let _gone = socket.shutdown(Shutdown::Write);
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
