//! `nbd-blocking`'s client.

use std::os::unix::net::UnixStream;

use nbd_blocking::Client;
use nbd_blocking::client::{Haggling, Pending};
use nbd_engine::client::{
    Bytes, ContextExtents, Error, ExportDetails, Flags, Handshake, Lent, Listing, Negotiated,
    Options, Uri,
};

use crate::client::{ClientAdapter, ClientUnderTest, HagglingUnderTest, InFlight};

/// Threads.
#[derive(Debug)]
pub struct BlockingClient;

impl ClientAdapter for BlockingClient {
    fn connect(&self, uri: &Uri, options: &Options) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(Client::connect_with(uri, options)?))
    }

    fn over(
        &self,
        stream: UnixStream,
        options: &Options,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Box::new(Client::over_unix(stream, options)?))
    }

    fn haggle(&self, uri: &Uri, options: &Options) -> Result<Box<dyn HagglingUnderTest>, Error> {
        Ok(Box::new(Haggling::connect(uri, options)?))
    }
}

impl ClientUnderTest for Client {
    fn export(&self) -> &Negotiated {
        self
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

    fn read(&self, offset: u64, length: usize) -> Result<Bytes, Error> {
        self.read(offset, length)
    }

    fn read_into(&self, buffer: Vec<u8>, offset: u64) -> Lent {
        self.read_into(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, flags: Flags) -> Result<(), Error> {
        self.write_at_with(data, offset, flags)
    }

    fn write(&self, data: Bytes, offset: u64) -> Result<(), Error> {
        self.write(data, offset)
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

    fn resize(&self, size: u64) -> Result<(), Error> {
        self.resize(size)
    }

    fn disconnect(&self) {
        self.disconnect();
    }

    fn start_read(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Box<dyn InFlight> {
        let pending = self.submit_read_with(buffer, offset, flags);
        self.send_submitted();
        Box::new(pending)
    }

    fn start_write(&self, data: Vec<u8>, offset: u64, flags: Flags) -> Box<dyn InFlight> {
        let pending = self.submit_write_from(data, offset, flags);
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

impl InFlight for Pending<Lent> {
    fn is_done(&self) -> bool {
        self.is_done()
    }

    fn wait(self: Box<Self>) -> Lent {
        Self::wait(*self)
    }
}

impl InFlight for Pending<Result<(), Error>> {
    fn is_done(&self) -> bool {
        self.is_done()
    }

    fn wait(self: Box<Self>) -> Lent {
        (Vec::new(), Self::wait(*self))
    }
}

impl HagglingUnderTest for Haggling {
    fn handshake(&self) -> Handshake {
        self.handshake()
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

    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        self.list_meta_contexts(export, queries)
    }

    fn abort(self: Box<Self>) -> Result<(), Error> {
        (*self).abort()
    }
}
