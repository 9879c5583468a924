//! Flushes and force unit access.

use nbd_testkit::raw::{Request, cmd_flag, flag};
use nbd_testkit::server::Transport;

use super::disks::{Call, KINDS, Scripted};
use super::{Adapter, Server};

/// Each command that writes, and the call that it becomes.
fn writing(fua: bool) -> [(Request, Call); 3] {
    [
        (Request::write(0, &[1; 512]), Call::Write { fua }),
        (Request::trim(0, 4096), Call::Trim { fua }),
        (Request::write_zeroes(0, 4096), Call::Zero { fua }),
    ]
}

pub(crate) fn emulated_fua_flushes_once_after_the_write<A: Adapter>(transport: Transport) {
    for kind in KINDS {
        let (disk, exports) = Scripted::new(kind).share();
        let server = Server::<A>::start(transport, exports);
        let mut client = server.client();
        assert!(client.has_flag(flag::SEND_FUA), "{kind:?}");
        for (request, call) in writing(false) {
            client.call(&request.clone().flags(cmd_flag::FUA)).ok();
            assert_eq!(disk.take_calls(), [call, Call::Flush], "{kind:?}");
            client.call(&request).ok();
            assert_eq!(disk.take_calls(), [call], "{kind:?} without the flag");
        }
        client.finish();
        server.stop();
    }
}

pub(crate) fn native_fua_is_passed_down_and_nothing_is_flushed<A: Adapter>(transport: Transport) {
    for kind in KINDS {
        // Once with flushes, which are of no use then, and once without.
        for disk in [Scripted::new(kind), Scripted::new(kind).without_flush()] {
            let (disk, exports) = disk.with_native_fua().share();
            let server = Server::<A>::start(transport, exports);
            let mut client = server.client();
            assert!(client.has_flag(flag::SEND_FUA), "{kind:?}");
            for (request, call) in writing(true) {
                client.call(&request.flags(cmd_flag::FUA)).ok();
                assert_eq!(disk.take_calls(), [call], "{kind:?}");
            }
            for (request, call) in writing(false) {
                client.call(&request).ok();
                assert_eq!(disk.take_calls(), [call], "{kind:?} without the flag");
            }
            client.finish();
            server.stop();
        }
    }
}

pub(crate) fn fua_is_not_offered_without_flush_or_native_support<A: Adapter>(transport: Transport) {
    for kind in KINDS {
        let (disk, exports) = Scripted::new(kind).without_flush().share();
        let server = Server::<A>::start(transport, exports);
        let mut client = server.client();
        assert!(!client.has_flag(flag::SEND_FUA | flag::SEND_FLUSH), "{kind:?}");
        client.write(0, &[1; 512]);
        assert_eq!(disk.take_calls(), [Call::Write { fua: false }], "{kind:?}");
        client.finish();
        server.stop();
    }
}

pub(crate) fn flush_covers_writes_of_every_connection<A: Adapter>(transport: Transport) {
    for kind in KINDS {
        let (disk, exports) = Scripted::new(kind).share();
        let server = Server::<A>::start(transport, exports);
        let (mut writer, mut flusher) = (server.client(), server.client());
        assert!(flusher.has_flag(flag::CAN_MULTI_CONN), "{kind:?}");
        writer.write(0, &[1; 512]);
        writer.write(512, &[1; 100_000]);
        flusher.call(&Request::flush()).ok();
        let write = Call::Write { fua: false };
        assert_eq!(disk.take_calls(), [write, write, Call::Flush], "{kind:?}");
        writer.finish();
        flusher.finish();
        server.stop();
    }
}
