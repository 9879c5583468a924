//! What the suite asks of an adapter's client.

use std::os::unix::net::UnixStream;

use nbd_engine::client::{
    Bytes, ContextExtents, Error, ExportDetails, Flags, Handshake, Lent, Listing, Negotiated,
    Options, Uri,
};

/// An adapter that has clients. Its runtime is its own, lives as long as the process, and may be entered from any thread.
///
/// All methods block. How long they may take is up to the options' deadlines.
pub trait ClientAdapter: Sync {
    /// Connects to the export that the URI names, or the options.
    ///
    /// # Errors
    /// The adapter's.
    fn connect(&self, uri: &Uri, options: &Options) -> Result<Box<dyn ClientUnderTest>, Error>;

    /// Enters the export that the options name over a stream that is there.
    ///
    /// # Errors
    /// The adapter's.
    fn over(
        &self,
        stream: UnixStream,
        options: &Options,
    ) -> Result<Box<dyn ClientUnderTest>, Error>;

    /// Connects without entering an export.
    ///
    /// # Errors
    /// The adapter's.
    fn haggle(&self, uri: &Uri, options: &Options) -> Result<Box<dyn HagglingUnderTest>, Error>;
}

/// A client that has entered an export, to be shared among threads. Each method does what the engine's method of the
/// same name does, by the adapter's own method of that name, and blocks until that is done.
///
/// # Errors
/// The adapter's.
#[expect(missing_docs, reason = "the methods are documented where they come from")]
pub trait ClientUnderTest: Send + Sync {
    /// Size, flags, block sizes and contexts of the export.
    fn export(&self) -> &Negotiated;
    fn connections(&self) -> usize;
    fn is_connected(&self) -> bool;

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error>;
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error>;
    fn read(&self, offset: u64, length: usize) -> Result<Bytes, Error>;
    fn read_into(&self, buffer: Vec<u8>, offset: u64) -> Lent;
    fn write_at(&self, data: &[u8], offset: u64, flags: Flags) -> Result<(), Error>;
    fn write(&self, data: Bytes, offset: u64) -> Result<(), Error>;
    fn flush(&self) -> Result<(), Error>;
    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error>;
    fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error>;
    fn cache(&self, offset: u64, length: u64) -> Result<(), Error>;
    fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error>;
    fn resize(&self, size: u64) -> Result<(), Error>;
    fn disconnect(&self);

    /// Submits a read and has it sent as far as the socket takes it. On threads it goes on only while some thread waits
    /// for a request of this client.
    fn start_read(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Box<dyn InFlight>;
    /// Submits a write, likewise.
    fn start_write(&self, data: Vec<u8>, offset: u64, flags: Flags) -> Box<dyn InFlight>;
    /// Submits a flush, likewise. Its buffer is empty.
    fn start_flush(&self) -> Box<dyn InFlight>;

    /// Another handle to the same client.
    fn again(&self) -> Box<dyn ClientUnderTest>;
}

/// A request that was submitted. Dropping it gives up its outcome.
pub trait InFlight: Send {
    /// Whether the outcome is there.
    fn is_done(&self) -> bool;

    /// Waits for the outcome: the buffer that was lent, and how it went.
    fn wait(self: Box<Self>) -> Lent;
}

/// A client that has entered no export yet.
///
/// # Errors
/// The adapter's.
#[expect(missing_docs, reason = "the methods are documented where they come from")]
pub trait HagglingUnderTest {
    fn handshake(&self) -> Handshake;
    fn is_structured(&self) -> bool;
    fn is_extended(&self) -> bool;
    fn list(&mut self) -> Result<Vec<Listing>, Error>;
    fn info(&mut self, export: &str) -> Result<ExportDetails, Error>;
    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error>;
    fn abort(self: Box<Self>) -> Result<(), Error>;
}
