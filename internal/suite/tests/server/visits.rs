//! What an export learns of its clients, and what it can do about them.

use core::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex};

use nbd_blocking::ServerConfig;
// By way of the adapter: a program needs no other crate.
use nbd_blocking::export::{
    Allocation, AnyExport, AsyncCanFlush, AsyncCanWrite, AsyncCanWriteZeroes, AsyncExport, Body,
    CanExtents, CanFlush, CanTrim, CanWrite, CanWriteZeroes, ClientInfo, CloseReason, ErrorCode,
    Export, ExportEntry, ExportError, ExportMap, Fua, Memory, Result, ZeroMode,
};
use nbd_suite::Served;
use nbd_testkit::SOON;
use nbd_testkit::peers::require;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Cmd, Errno, Info, Mode, RawClient, Request, cmd_flag, flag};

/// A disk that records which clients enter and disconnect, and fails on request.
#[derive(Default)]
struct Noting {
    log: Mutex<Vec<(u64, Option<CloseReason>)>>,
    error: Mutex<Option<ErrorCode>>,
    /// Reads wait until it is gone.
    closed: Mutex<bool>,
    opened: Condvar,
    reading: Mutex<usize>,
    asked_for_one_piece: Mutex<Vec<bool>>,
}

impl Noting {
    fn act(&self) -> Result<()> {
        match *self.error.lock().unwrap() {
            Some(code) => Err(ExportError::new(code, "as the test wants it")),
            None => Ok(()),
        }
    }

    fn entered(&self, client: &ClientInfo) {
        self.log.lock().unwrap().push((client.connection, None));
    }

    fn left(&self, client: &ClientInfo, reason: &CloseReason) {
        assert_eq!(*self.reading.lock().unwrap(), 0, "a client left while a request was under way");
        self.log.lock().unwrap().push((client.connection, Some(reason.clone())));
    }

    fn log(&self) -> Vec<(u64, Option<CloseReason>)> {
        self.log.lock().unwrap().clone()
    }
}

impl Export for Noting {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        *self.reading.lock().unwrap() += 1;
        let closed = self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed);
        drop(closed.unwrap());
        buffer.fill(0);
        *self.reading.lock().unwrap() -= 1;
        self.act()
    }

    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        self.asked_for_one_piece.lock().unwrap().push(body.flags().dont_fragment);
        Export::read(self, body.fill(length)?, offset)
    }

    fn client_entered(&self, client: &ClientInfo) {
        self.entered(client);
    }

    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        self.left(client, reason);
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }
}

impl CanWrite for Noting {
    fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.act()
    }

    fn fua(&self) -> Fua {
        Fua::Unsupported
    }
}

impl CanFlush for Noting {
    fn flush(&self) -> Result<()> {
        self.act()
    }
}

impl CanTrim for Noting {
    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> Result<()> {
        self.act()
    }
}

impl CanWriteZeroes for Noting {
    fn write_zeroes(&self, _offset: u64, _length: u64, _mode: ZeroMode) -> Result<()> {
        self.act()
    }

    fn can_fast_zero(&self) -> bool {
        false
    }
}

impl CanExtents for Noting {
    fn extents(
        &self,
        _offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let _enough = visit(Allocation { length, hole: false, zero: false });
        self.act()
    }
}

impl AsyncExport for Noting {
    fn size(&self) -> u64 {
        1 << 20
    }

    async fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(0);
        self.act()
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        self.asked_for_one_piece.lock().unwrap().push(body.flags().dont_fragment);
        AsyncExport::read(self, body.fill(length)?, offset).await
    }

    fn client_entered(&self, client: &ClientInfo) {
        self.entered(client);
    }

    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        self.left(client, reason);
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        Some(self)
    }
}

impl AsyncCanWrite for Noting {
    async fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.act()
    }

    fn fua(&self) -> Fua {
        Fua::Unsupported
    }
}

impl AsyncCanFlush for Noting {
    async fn flush(&self) -> Result<()> {
        self.act()
    }
}

impl AsyncCanWriteZeroes for Noting {
    async fn write_zeroes(&self, _offset: u64, _length: u64, _mode: ZeroMode) -> Result<()> {
        self.act()
    }

    fn can_fast_zero(&self) -> bool {
        false
    }
}

/// The disk as an export that may block, and as one whose work is a future.
fn kinds() -> [(Arc<Noting>, AnyExport); 2] {
    let (one, other) = (Arc::<Noting>::default(), Arc::<Noting>::default());
    let blocking = AnyExport::new_blocking(Arc::clone(&one));
    let later = AnyExport::new_async(Arc::clone(&other));
    [(one, blocking), (other, later)]
}

/// Waits until that many clients have left.
fn wait_for_leavers(disk: &Noting, count: usize) {
    let left = || disk.log().iter().filter(|(_, reason)| reason.is_some()).count();
    wait_until("the clients have left", SOON, || left() == count);
}

#[test]
fn a_client_enters_once_however_often_it_asks_and_disconnects_once_with_the_reason() {
    for (disk, export) in kinds() {
        let served = Served::only(export);
        // As qemu does it, and disconnects.
        let mut client = RawClient::negotiate(served.endpoint());
        client.structured_reply().unwrap();
        client.list().unwrap();
        client.info("", &[Info::BLOCK_SIZE]).unwrap();
        client.set_meta_context("", &["base:allocation"]).unwrap();
        assert_eq!(disk.log(), [], "nobody entered yet");
        client.go("", &[Info::BLOCK_SIZE]).unwrap();
        client.read(0, 512);
        client.finish();
        wait_for_leavers(&disk, 1);
        // Asks and goes.
        let mut client = RawClient::negotiate(served.endpoint());
        client.info("", &[]).unwrap();
        drop(client);
        // Hangs up.
        let mut client = RawClient::go_simple(served.endpoint());
        client.read(0, 512);
        drop(client);
        wait_for_leavers(&disk, 2);
        // Breaks the protocol.
        let mut client = RawClient::go_simple(served.endpoint());
        client.wire().send(&[0xff; 28]);
        client.wire().drain_to_eof();
        wait_for_leavers(&disk, 3);
        // Stays until the end.
        let mut client = RawClient::go_simple(served.endpoint());
        client.read(0, 512);
        served.server().shut_down();
        served.server().wait();
        wait_for_leavers(&disk, 4);
        let log = disk.log();
        let reason =
            |number: u64| log.iter().find(|(one, reason)| *one == number && reason.is_some());
        assert_eq!(log.len(), 8, "{log:?}");
        assert_eq!(reason(0).unwrap().1, Some(CloseReason::Disconnected));
        assert_eq!(reason(2).unwrap().1, Some(CloseReason::Vanished));
        assert!(
            matches!(&reason(3).unwrap().1, Some(CloseReason::Failed(text)) if text.contains("MAGIC")),
            "{log:?}"
        );
        assert_eq!(reason(4).unwrap().1, Some(CloseReason::ShutDown));
    }
}

#[test]
fn an_export_learns_of_a_disconnect_after_the_last_request_has_ended() {
    let disk = Arc::<Noting>::default();
    let served = Served::only(AnyExport::new_blocking(Arc::clone(&disk)));
    *disk.closed.lock().unwrap() = true;
    let mut client = RawClient::go_simple(served.endpoint());
    client.send(&Request::read(0, 512));
    wait_until("the read has begun", SOON, || *disk.reading.lock().unwrap() == 1);
    client.wire().send(&[0xff; 28]);
    client.wire().drain_to_eof();
    wait_until("the connection is gone", SOON, || served.server().connections() == 0);
    assert_eq!(disk.log().len(), 1, "it has not left yet");
    *disk.closed.lock().unwrap() = false;
    disk.opened.notify_all();
    wait_for_leavers(&disk, 1);
}

#[test]
fn an_oldstyle_client_enters_and_disconnects_as_well() {
    for (disk, export) in kinds() {
        let served = Served::only(export);
        let mut wire = nbd_testkit::raw::Wire::connect(&served.listen_oldstyle(""));
        wire.recv(152, "greeting");
        wire.send(&Request::new(Cmd::DISC, 0, 0).encode(Mode::Simple, 1));
        wire.expect_eof();
        wait_for_leavers(&disk, 1);
        assert_eq!(disk.log(), [(0, None), (0, Some(CloseReason::Disconnected))]);
    }
}

#[test]
fn an_entry_keeps_a_state_for_each_client() {
    let count = Arc::new(());
    let left = Arc::new(Mutex::new(Vec::new()));
    let (held, notes) = (Arc::clone(&count), Arc::clone(&left));
    let entry = ExportEntry::new("", Memory::new(4096).unwrap()).unwrap().on_close(
        move |client, reason| {
            let _held = &held;
            notes.lock().unwrap().push((client.connection, reason.clone()));
        },
    );
    let served = Served::start(ExportMap::new().with_entry(entry), ServerConfig::default());
    let clients: Vec<_> = (0..3).map(|_| RawClient::go_simple(served.endpoint())).collect();
    clients.into_iter().for_each(RawClient::finish);
    wait_until("they have left", SOON, || left.lock().unwrap().len() == 3);
    assert!(left.lock().unwrap().iter().all(|one| one.1 == CloseReason::Disconnected));
    served.server().shut_down();
    served.server().wait();
    drop(served);
    wait_until("nothing is kept", SOON, || Arc::strong_count(&count) == 1);
}

#[test]
fn eshutdown_of_an_export_ends_its_connection_in_order_and_no_other() {
    for (disk, export) in kinds() {
        let exports = ExportMap::new()
            .with("closing", export)
            .unwrap()
            .with("other", Memory::new(4096).unwrap())
            .unwrap();
        let served = Served::start(exports, ServerConfig::default());
        let mut bystander = RawClient::negotiate(served.endpoint());
        bystander.go("other", &[]).unwrap();
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let mut client = RawClient::negotiate(served.endpoint());
            match mode {
                Mode::Simple => {}
                Mode::Structured => client.structured_reply().unwrap(),
                Mode::Extended => client.extended_headers().unwrap(),
            }
            client.go("closing", &[]).unwrap();
            client.write(0, &[1; 512]);
            *disk.error.lock().unwrap() = Some(ErrorCode::ESHUTDOWN);
            client.call(&Request::write(0, &[1; 512])).expect_error(Errno::ESHUTDOWN);
            *disk.error.lock().unwrap() = None;
            client.call(&Request::write(0, &[1; 512])).expect_error(Errno::ESHUTDOWN);
            client.wire().expect_eof();
            bystander.write(0, b"still there");
        }
        bystander.finish();
        wait_for_leavers(&disk, 3);
        let reasons = disk.log().into_iter().filter_map(|(_, reason)| reason);
        assert!(reasons.into_iter().all(|reason| reason == CloseReason::ShutDown));
    }
}

/// The document of `ExportError::new`, code by code and command by command.
#[test]
fn an_errors_code_arrives_as_it_is_documented() {
    use ErrorCode as E;
    let (disk, export) = kinds().into_iter().next().unwrap();
    let served = Served::only(export);
    let mut client = RawClient::negotiate(served.endpoint());
    client.structured_reply().unwrap();
    client.set_meta_context("", &["base:allocation"]).unwrap();
    client.go("", &[]).unwrap();
    let requests = [
        (Request::read(0, 512), false, false),
        (Request::write(0, &[1; 512]), true, true),
        (Request::trim(0, 512), true, false),
        (Request::write_zeroes(0, 512), true, false),
        (Request::flush(), false, false),
        (Request::block_status(0, 512), false, false),
    ];
    for (request, changes, payload) in &requests {
        for code in [E::EPERM, E::EIO, E::ENOMEM, E::EINVAL, E::ENOSPC, E::EOVERFLOW, E::ENOTSUP]
            .into_iter()
            .chain([E(2), E(9999)])
        {
            *disk.error.lock().unwrap() = Some(code);
            let expected = match code {
                E::EPERM | E::EIO | E::ENOMEM | E::EINVAL => code,
                E::ENOSPC if *changes => code,
                E::ENOTSUP => E::EINVAL,
                E::EOVERFLOW if *payload => E::EINVAL,
                E::EOVERFLOW => code,
                _ => E::EIO,
            };
            let error = client.call(request).error().unwrap();
            assert_eq!(error.0, expected.0, "{code} of {request:?}");
        }
    }
    // The client remarks that some of these are not what it expects; that is the export's doing.
    let _remarks = client.leave();
}

#[test]
fn a_flush_can_be_offered_without_fua_and_zeroes_without_fast_ones() {
    for (_disk, export) in kinds() {
        let served = Served::only(export);
        let mut client = RawClient::go_simple(served.endpoint());
        assert!(client.has_flag(flag::SEND_FLUSH) && client.has_flag(flag::SEND_WRITE_ZEROES));
        assert!(!client.has_flag(flag::SEND_FUA) && !client.has_flag(flag::SEND_FAST_ZERO));
        client.call(&Request::flush()).ok();
        let fua = Request::write(0, &[1; 512]).flags(cmd_flag::FUA);
        client.call(&fua).expect_error(Errno::EINVAL);
        client.finish();
    }
}

#[test]
fn an_export_sees_whether_a_read_is_wanted_in_one_piece() {
    for (disk, export) in kinds() {
        let served = Served::only(export);
        let mut client = RawClient::go_structured(served.endpoint());
        client.read(0, 512);
        client.call(&Request::read(0, 512).flags(cmd_flag::DF)).ok();
        client.read(0, 512);
        client.finish();
        assert_eq!(*disk.asked_for_one_piece.lock().unwrap(), [false, true, false]);
    }
}

/// qemu looks an export up twice before it uses it, and libnbd's programs look it up in their own ways.
#[test]
fn stock_clients_enter_once_and_disconnect() {
    let (Some(qemu_io), Some(nbdinfo)) = (require("qemu-io"), require("nbdinfo")) else { return };
    for (disk, export) in kinds() {
        let served = Served::only(export);
        let uri = served.endpoint().uri("");
        let mut command = qemu_io.command();
        command.args(["-f", "raw", "-c", "read 0 4096", &uri]);
        for (number, command) in [&mut command, nbdinfo.command().arg(&uri)].into_iter().enumerate()
        {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            wait_for_leavers(&disk, number + 1);
        }
        let reasons: Vec<_> = disk.log().into_iter().map(|(_, reason)| reason).collect();
        let pair = [None, Some(CloseReason::Disconnected)];
        assert_eq!(reasons, [pair.clone(), pair].concat(), "{:?}", disk.log());
    }
}
