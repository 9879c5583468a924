//! What the suite asks of an adapter's client.

use std::os::unix::net::UnixStream;

use nbd_engine::client::{
    BufResult, Bytes, Chunk, ClientConfig, ContextExtents, Error, ExportDetails, Flags, Handshake,
    InfoType, Listing, StatusRun, Uri,
};

/// An adapter that has clients. Its runtime is its own, lives as long as the process, and may be entered from any thread.
///
/// All methods block. How long they may take is up to the configured deadlines.
pub trait ClientAdapter: Sync {
    /// Connects to the export that the URI names.
    ///
    /// # Errors
    /// The adapter's.
    fn connect(&self, uri: &Uri, config: &ClientConfig) -> Result<Box<dyn ClientUnderTest>, Error>;

    /// Enters the export of this name over a stream that is there.
    ///
    /// # Errors
    /// The adapter's.
    fn over(
        &self,
        stream: UnixStream,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Box<dyn ClientUnderTest>, Error>;

    /// Connects without entering an export.
    ///
    /// # Errors
    /// The adapter's.
    fn negotiate(
        &self,
        uri: &Uri,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error>;

    /// The same over a stream that is there.
    ///
    /// # Errors
    /// The adapter's.
    fn negotiate_over(
        &self,
        stream: UnixStream,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error>;
}

/// A client that has entered an export, to be shared among threads. Each method does what the engine's method of the
/// same name does, by the adapter's own method of that name, and blocks until that is done.
///
/// # Errors
/// The adapter's.
#[expect(missing_docs, reason = "the methods are documented where they come from")]
pub trait ClientUnderTest: Send + Sync {
    fn export(&self) -> &ExportDetails;
    fn connections(&self) -> usize;
    fn is_connected(&self) -> bool;

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error>;
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error>;
    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, Error>;
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<(), Error>;
    fn read(&self, offset: u64, length: usize, flags: Flags) -> Result<Bytes, Error>;
    fn read_into(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult;
    fn read_chunks(&self, offset: u64, length: usize, flags: Flags) -> Result<Vec<Chunk>, Error>;
    fn write(&self, offset: u64, data: Vec<u8>, flags: Flags) -> Result<(), Error>;
    fn write_from(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult;
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
    /// All runs, joined, of answers that are asked for by so many bytes at a time.
    fn block_status_range(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        window: u64,
    ) -> Result<Vec<StatusRun>, Error>;
    fn resize(&self, size: u64) -> Result<(), Error>;
    fn disconnect(&self);

    /// Submits a read and has it sent as far as the socket takes it. On threads it goes on only while some thread waits
    /// for a request of this client.
    fn start_read(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> Box<dyn InFlight>;
    /// Submits a write, likewise.
    fn start_write(&self, offset: u64, data: Vec<u8>, flags: Flags) -> Box<dyn InFlight>;
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
    fn wait(self: Box<Self>) -> BufResult;
}

/// A client that has entered no export yet.
///
/// # Errors
/// The adapter's.
#[expect(missing_docs, reason = "the methods are documented where they come from")]
pub trait NegotiationUnderTest {
    fn peer(&self) -> String;
    fn handshake(&self) -> Handshake;
    fn is_tls(&self) -> bool;
    fn is_structured(&self) -> bool;
    fn is_extended(&self) -> bool;
    fn list(&mut self) -> Result<Vec<Listing>, Error>;
    fn info(&mut self, export: &str) -> Result<ExportDetails, Error>;
    fn info_with(&mut self, export: &str, items: &[InfoType]) -> Result<ExportDetails, Error>;
    fn structured_replies(&mut self) -> Result<(), Error>;
    fn extended_headers(&mut self) -> Result<(), Error>;
    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error>;
    fn set_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error>;
    fn enter(&mut self, export: &str) -> Result<Box<dyn ClientUnderTest>, Error>;
    fn go(&mut self, export: &str, items: &[InfoType]) -> Result<Box<dyn ClientUnderTest>, Error>;
    fn export_name(&mut self, export: &str) -> Result<Box<dyn ClientUnderTest>, Error>;
    fn abort(self: Box<Self>) -> Result<(), Error>;
}
