//! How requests arrive and replies are matched to them: in pieces, in bulk, with any cookie
//! (S-REQ-15, S-REP-01, S-REP-02, S-ORD-03).

use std::time::Duration;

use nbd_interop::{MIB, in_each_mode};
use nbd_testkit::raw::{Errno, RawClient, Request, cmd_flag};
use nbd_testkit::server::Setup;
use nbd_testkit::{Pattern, assert_same_bytes, matrix};

matrix! {
    tcp_and_unix: [
        each_request_gets_one_reply_and_idleness_none,
        requests_may_arrive_byte_by_byte,
        requests_may_be_coalesced,
        payload_may_arrive_apart_from_its_header,
        payload_may_arrive_in_pieces_among_other_requests,
    ],
    unix: [
        refused_payload_may_arrive_apart_from_its_header,
        cookies_are_returned_unchanged,
        equal_cookies_are_answered_each,
    ],
}

/// S-REP-02: one reply each, in any order (S-ORD-03), then nothing.
fn each_request_gets_one_reply_and_idleness_none(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let mut sent: Vec<_> =
            (0..50).map(|n| client.send(&Request::read(n * 512, 512 + n))).collect();
        let mut answered: Vec<_> = client.drain().into_iter().map(|r| r.ok().cookie).collect();
        sent.sort_unstable();
        answered.sort_unstable();
        assert_eq!(sent, answered);
        client.wire().expect_silence();
    });
}

/// S-REP-01: the cookie is the client's, any 64 bits.
fn cookies_are_returned_unchanged(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for cookie in [0, 1, u64::MAX, 1 << 63, 0x6744_6698_0000_0000, 0x0102_0304_0506_0708] {
            let read = Request::read(0, 512).cookie(cookie);
            assert_eq!(client.call(&read).ok().cookie, cookie);
            let failing = Request::read(MIB, 512).cookie(cookie);
            client.call(&failing).expect_error(Errno::EINVAL);
        }
    });
}

/// S-REP-01, S-REP-02: a client that repeats a cookie gets as many replies as it sent requests.
fn equal_cookies_are_answered_each(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let data = Pattern(5).bytes(0, 4096);
        client.write(0, &data);
        client.send_all(&vec![Request::read(0, 4096).cookie(7); 20]);
        let replies = client.drain();
        assert_eq!(replies.len(), 20);
        for reply in replies {
            assert_same_bytes(&reply.data(), &data, "read");
        }
    });
}

/// S-REQ-15: fragments of one byte, payload included.
fn requests_may_arrive_byte_by_byte(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let data = Pattern(4).bytes(0, 300);
        client.send_dribbled(&Request::write(700, &data));
        client.drain().remove(0).ok();
        client.send_dribbled(&Request::read(700, 300));
        assert_same_bytes(&client.drain().remove(0).data(), &data, "dribbled");
        client.send_dribbled(&Request::write(MIB, &data));
        client.drain().remove(0).expect_error(Errno::ENOSPC);
    });
}

/// S-REQ-15: many requests in one piece, small payloads among them, good and bad.
fn requests_may_be_coalesced(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        let mut burst = Vec::new();
        for round in 0..100 {
            let data = Pattern(round).bytes(0, 137);
            burst.push(Request::write(round * 1000, &data));
            burst.push(Request::write(MIB, &data));
            burst.push(Request::read(round * 1000 + 500, 100));
        }
        client.send_all(&burst);
        let failed = client.drain().iter().filter(|reply| reply.error().is_some()).count();
        assert_eq!(failed, 100);
        for round in 0..100 {
            let expected = Pattern(round).bytes(0, 137);
            assert_same_bytes(&client.read(round * 1000, 137), &expected, "round");
        }
    });
}

/// Time for the server to take in what was sent so far. Nothing depends on it but which path the server takes.
const PAUSE: Duration = Duration::from_millis(2);

/// Sends a request in pieces that end at these places, with pauses between them.
fn send_cut(client: &mut RawClient, request: &Request, cuts: &[usize]) -> u64 {
    let mut bytes = Vec::new();
    let cookie = client.stage(request, &mut bytes);
    let mut sent = 0;
    for &cut in cuts.iter().filter(|&&cut| cut < bytes.len()).chain([&bytes.len()]) {
        client.wire().send(&bytes[sent..cut]);
        std::thread::sleep(PAUSE);
        sent = cut;
    }
    cookie
}

/// Length of a request's header.
fn header(client: &RawClient) -> usize {
    Request::flush().encode(client.mode(), 0).len()
}

/// Lengths around the units that a server may buffer or allocate by.
const LENGTHS: [usize; 12] =
    [1, 511, 4095, 4096, 4097, 8192, 16_384, 65_535, 65_536, 65_537, 300_000, 1 << 20];

/// S-REQ-15, S-CMD-WRITE-01: the header alone, then the payload, or the header with the first bytes of it; at the
/// beginning, at odd places, and up to the very end of the export, with nothing around it changed.
fn payload_may_arrive_apart_from_its_header(setup: Setup) {
    let server = setup.serving("memory:2M");
    let mut expected = Pattern(1).bytes(0, 2 << 20);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(0, &expected);
    client.finish();
    let mut seed = 2;
    in_each_mode(&server, |client| {
        let header = header(client);
        for length in LENGTHS {
            let end = (2 << 20) - length;
            for offset in [0, 4096.min(end), 5001.min(end), end] {
                for cut in [header, header + 1, header + 4000] {
                    seed += 1;
                    let data = Pattern(seed).bytes(0, length);
                    let write = Request::write(offset as u64, &data);
                    let cookie = send_cut(client, &write, &[cut]);
                    client.reply_to(cookie).ok();
                    expected[offset..offset + length].copy_from_slice(&data);
                }
            }
            assert_same_bytes(&client.read(0, 2 * MIB), &expected, "export");
        }
    });
}

/// S-REQ-15, S-REQ-11: the rest of one payload, the next request and the start of the one after it in one piece.
fn payload_may_arrive_in_pieces_among_other_requests(setup: Setup) {
    let server = setup.serving("memory:2M");
    let mut expected = vec![0; 2 << 20];
    in_each_mode(&server, |client| {
        for (seed, piece) in [1000, 4096, 5000, 65_536, 100_003].into_iter().enumerate() {
            let mut bytes = Vec::new();
            let mut cookies = Vec::new();
            let mut offset = 0;
            for (length, index) in LENGTHS.iter().zip(seed as u64 + 7..) {
                let data = Pattern(index).bytes(0, *length);
                let write = client.stage(&Request::write(offset as u64, &data), &mut bytes);
                let read = client.stage(&Request::read(0, 1), &mut bytes);
                let refused = client.stage(&Request::write(2 * MIB, &data), &mut bytes);
                cookies.push((write, read, refused));
                expected[offset..offset + length].copy_from_slice(&data);
                offset += length;
            }
            for part in bytes.chunks(piece) {
                client.wire().send(part);
                if part.len() >= 65_536 {
                    std::thread::sleep(PAUSE);
                }
            }
            for (write, read, refused) in cookies {
                client.reply_to(write).ok();
                client.reply_to(read).ok();
                client.reply_to(refused).expect_error(Errno::ENOSPC);
            }
            assert_same_bytes(&client.read(0, 2 * MIB), &expected, "export");
        }
    });
}

/// S-REQ-11: likewise for payloads that have no place to go.
fn refused_payload_may_arrive_apart_from_its_header(setup: Setup) {
    let server = setup.serving("memory:2M");
    in_each_mode(&server, |client| {
        let header = header(client);
        for length in LENGTHS {
            let data = vec![0xee; length];
            for cuts in [&[header][..], &[header, header + 1], &[header + 4000]] {
                let cookie = send_cut(client, &Request::write(2 * MIB, &data), cuts);
                client.reply_to(cookie).expect_error(Errno::ENOSPC);
                let faulty = Request::write(0, &data).flags(cmd_flag::REQ_ONE);
                let cookie = send_cut(client, &faulty, cuts);
                client.reply_to(cookie).expect_error(Errno::EINVAL);
            }
        }
        client.read(0, 512);
    });
}
