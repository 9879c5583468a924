//! Requests side by side.

use nbd_testkit::raw::Request;
use nbd_testkit::server::Transport;

use super::disks::{GatedDisk, Kind};
use super::gate::Gate;
use super::{Adapter, Server};

pub(crate) fn a_slow_request_does_not_hold_up_others<A: Adapter>(transport: Transport) {
    for kind in [Kind::Worker, Kind::Async] {
        let (disk, exports) = GatedDisk::share(kind);
        let server = Server::<A>::start(transport, exports);
        let (mut client, mut other) = (server.client(), server.client());
        let slow = client.send(&Request::read(GatedDisk::behind(0), 8));
        disk.gates[0].wait_for(1);
        assert_eq!(client.read(GatedDisk::FREE, 8), [4; 8], "{kind:?}");
        assert_eq!(other.read(GatedDisk::FREE, 8), [4; 8], "{kind:?}");
        disk.gates[0].open();
        assert_eq!(client.reply_to(slow).data(), [1; 8], "{kind:?}");
        client.finish();
        other.finish();
        server.stop();
    }
}

pub(crate) fn replies_are_sent_in_the_order_in_which_work_ends<A: Adapter>(transport: Transport) {
    for kind in [Kind::Worker, Kind::Async] {
        let (disk, exports) = GatedDisk::share(kind);
        let server = Server::<A>::start(transport, exports);
        let mut client = server.client();
        let cookies =
            client.send_all(&[0, 1, 2].map(|gate| Request::read(GatedDisk::behind(gate), 8)));
        for gate in [2, 0, 1] {
            disk.gates[gate].wait_for(1);
            disk.gates[gate].open();
            let reply = client.next_reply().expect("the connection is open");
            assert_eq!(reply.cookie, cookies[gate], "{kind:?}");
            assert_eq!(reply.data(), [gate as u8 + 1; 8], "{kind:?}");
        }
        client.finish();
        server.stop();
    }
}

pub(crate) fn a_slow_write_is_overtaken_too<A: Adapter>(transport: Transport) {
    for kind in [Kind::Worker, Kind::Async] {
        let (disk, exports) = GatedDisk::share(kind);
        let server = Server::<A>::start(transport, exports);
        let mut client = server.client();
        // A payload that lies with its header, and one that is read by itself.
        let slow = [(0, 8), (1, 200_000)].map(|(gate, length)| {
            client.send(&Request::write(GatedDisk::behind(gate), &vec![7; length]))
        });
        disk.gates[0].wait_for(1);
        disk.gates[1].wait_for(1);
        client.write(GatedDisk::FREE, &[7; 8]);
        disk.gates.iter().for_each(Gate::open);
        slow.into_iter().for_each(|cookie| drop(client.reply_to(cookie).ok()));
        client.finish();
        server.stop();
    }
}
