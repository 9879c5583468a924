//! `nbd-blocking`'s client.

use std::os::unix::net::UnixStream;

use nbd_blocking::client::Pending;
use nbd_blocking::{Client, Negotiation};
use nbd_engine::client::{
    BufResult, Bytes, Chunk, ClientConfig, ContextExtents, Error, ExportDetails, Flags, Handshake,
    InfoType, Listing, StatusRun, Uri,
};

use crate::client::{ClientAdapter, ClientUnderTest, InFlight, NegotiationUnderTest};

/// Threads.
#[derive(Debug)]
pub struct BlockingClient;

impl ClientAdapter for BlockingClient {
    fn connect(&self, uri: &Uri, config: &ClientConfig) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(Client::connect_with(uri, config)?))
    }

    fn over(
        &self,
        stream: UnixStream,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(Client::over_unix(stream, export, config)?))
    }

    fn negotiate(
        &self,
        uri: &Uri,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error> {
        Ok(Box::new(Negotiation::connect(uri, config)?))
    }

    fn negotiate_over(
        &self,
        stream: UnixStream,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error> {
        Ok(Box::new(Negotiation::over_unix(stream, config)?))
    }
}

impl ClientUnderTest for Client {
    fn export(&self) -> &ExportDetails {
        self.export()
    }

    fn connections(&self) -> usize {
        self.connections()
    }

    fn is_connected(&self) -> bool {
        self.is_connected()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.read_at(buffer, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, Error> {
        self.write_at(data, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.write_all_at(data, offset)
    }

    fn read(&self, offset: u64, length: usize, flags: Flags) -> Result<Bytes, Error> {
        self.read(offset, length, flags)
    }

    fn read_into(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.read_into(offset, buffer, flags)
    }

    fn read_chunks(&self, offset: u64, length: usize, flags: Flags) -> Result<Vec<Chunk>, Error> {
        self.read_chunks(offset, length, flags)
    }

    fn write(&self, offset: u64, data: Vec<u8>, flags: Flags) -> Result<(), Error> {
        self.write(offset, data, flags)
    }

    fn write_from(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.write_from(offset, buffer, flags)
    }

    fn flush(&self) -> Result<(), Error> {
        self.flush()
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.trim(offset, length, flags)
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.write_zeroes(offset, length, flags)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.cache(offset, length)
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.block_status(offset, length, flags)
    }

    fn block_status_range(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        window: u64,
    ) -> Result<Vec<StatusRun>, Error> {
        self.block_status_range(context, offset, length).with_window(window).joined().collect()
    }

    fn resize(&self, size: u64) -> Result<(), Error> {
        self.resize(size)
    }

    fn disconnect(&self) {
        self.disconnect();
    }

    fn start_read(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> Box<dyn InFlight> {
        let pending = self.submit_read_into(offset, buffer, flags);
        self.send_submitted();
        Box::new(pending)
    }

    fn start_write(&self, offset: u64, data: Vec<u8>, flags: Flags) -> Box<dyn InFlight> {
        let pending = self.submit_write_from(offset, data, flags);
        self.send_submitted();
        Box::new(pending)
    }

    fn start_flush(&self) -> Box<dyn InFlight> {
        let pending = self.submit_flush();
        self.send_submitted();
        Box::new(pending)
    }

    fn again(&self) -> Box<dyn ClientUnderTest> {
        Box::new(self.clone())
    }
}

impl InFlight for Pending<BufResult> {
    fn is_done(&self) -> bool {
        self.is_done()
    }

    fn wait(self: Box<Self>) -> BufResult {
        Self::wait(*self)
    }
}

impl InFlight for Pending<Result<(), Error>> {
    fn is_done(&self) -> bool {
        self.is_done()
    }

    fn wait(self: Box<Self>) -> BufResult {
        (Vec::new(), Self::wait(*self))
    }
}

impl NegotiationUnderTest for Negotiation {
    fn peer(&self) -> String {
        self.peer().to_owned()
    }

    fn handshake(&self) -> Handshake {
        self.handshake()
    }

    fn is_tls(&self) -> bool {
        self.is_tls()
    }

    fn is_structured(&self) -> bool {
        self.is_structured()
    }

    fn is_extended(&self) -> bool {
        self.is_extended()
    }

    fn list(&mut self) -> Result<Vec<Listing>, Error> {
        self.list()
    }

    fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        self.info(export)
    }

    fn info_with(&mut self, export: &str, items: &[InfoType]) -> Result<ExportDetails, Error> {
        self.info_with(export, items)
    }

    fn structured_replies(&mut self) -> Result<(), Error> {
        self.structured_replies()
    }

    fn extended_headers(&mut self) -> Result<(), Error> {
        self.extended_headers()
    }

    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        self.list_meta_contexts(export, queries)
    }

    fn set_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        self.set_meta_contexts(export, queries)
    }

    fn enter(&mut self, export: &str) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(self.enter(export)?))
    }

    fn go(&mut self, export: &str, items: &[InfoType]) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(self.go(export, items)?))
    }

    fn export_name(&mut self, export: &str) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(self.export_name(export)?))
    }

    fn abort(self: Box<Self>) -> Result<(), Error> {
        (*self).abort()
    }
}
