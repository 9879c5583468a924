//! A client that sends every command.

use nbd_testkit::raw::{Cmd, Errno, RawClient, Request, cmd_flag, flag};
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero};

/// Sends each command that is advertised, with each of its flags, and looks at what it did. The first 256 KiB of the
/// disk are used; what they hold before does not matter.
#[track_caller]
pub(crate) fn every_command(client: &mut RawClient, seed: u64) {
    let (pattern, whole) = (Pattern(seed), 256 << 10);
    let mut expected = pattern.bytes(0, whole);
    client.write(0, &expected);
    assert_same_bytes(&client.read(0, whole as u64), &expected, "what was written");

    // Unaligned, across pages, up to the end.
    let end = client.export().size;
    for (offset, length) in [(1, 1), (4095, 2), (65_530, 20_011), (end - 513, 513)] {
        let data = Pattern(!seed).bytes(offset, length);
        client.write(offset, &data);
        assert_same_bytes(&client.read(offset, length as u64), &data, "an unaligned write");
        if let Some(place) = expected.get_mut(offset as usize..offset as usize + length) {
            place.copy_from_slice(&data);
        }
    }
    assert_same_bytes(&client.read(0, whole as u64), &expected, "around unaligned writes");

    if client.has_flag(flag::SEND_FUA) {
        client.call(&Request::write(7, b"durable").flags(cmd_flag::FUA)).ok();
        expected[7..14].copy_from_slice(b"durable");
    }
    if client.has_flag(flag::SEND_FLUSH) {
        client.call(&Request::flush()).ok();
    }
    if client.has_flag(flag::SEND_CACHE) {
        client.call(&Request::cache(0, 4096)).ok();
    }
    if client.has_flag(flag::SEND_DF) {
        let data = client.call(&Request::read(0, 8192).flags(cmd_flag::DF)).data();
        assert_same_bytes(&data, &expected[..8192], "a read in one piece");
    }
    if client.has_flag(flag::SEND_WRITE_ZEROES) {
        for (offset, flags) in [(30_000, 0), (50_000, cmd_flag::NO_HOLE)] {
            client.call(&Request::write_zeroes(offset, 9_000).flags(flags)).ok();
            assert_zero(&client.read(offset, 9_000), "what was zeroed");
            expected[offset as usize..offset as usize + 9_000].fill(0);
        }
    }
    if client.has_flag(flag::SEND_FAST_ZERO) {
        let fast = Request::write_zeroes(131_072, 65_536).flags(cmd_flag::FAST_ZERO);
        match client.call(&fast).error() {
            None => expected[131_072..196_608].fill(0),
            refused => assert_eq!(refused, Some(Errno::ENOTSUP)),
        }
    }
    assert_same_bytes(&client.read(0, whole as u64), &expected, "around zeroes");
    if client.has_flag(flag::SEND_TRIM) {
        client.call(&Request::trim(200_000, 20_000)).ok();
        let data = client.read(0, whole as u64);
        assert_same_bytes(&data[..200_000], &expected[..200_000], "before a trim");
        assert_same_bytes(&data[220_000..], &expected[220_000..], "behind a trim");
    }
    if !client.contexts().is_empty() {
        let status = client.call(&Request::block_status(0, end)).only_status();
        assert!(status.total() <= end);
        let one = Request::block_status(0, 4096).flags(cmd_flag::REQ_ONE);
        assert_eq!(client.call(&one).only_status().extents.len(), 1);
    }
    if client.has_flag(flag::BLOCK_STATUS_PAYLOAD) {
        let id = client.contexts()[0].id;
        client.call(&Request::block_status_of(0, 4096, &[id])).only_status();
    }
    errors(client);
    if client.has_flag(flag::SEND_RESIZE) {
        let resize = |size| Request::new(Cmd::RESIZE, size, 0);
        client.call(&resize(end + 65_536)).ok();
        assert_zero(&client.read(end, 65_536), "what was added");
        client.call(&resize(end)).ok();
        client.call(&Request::read(end, 1)).expect_error(Errno::EINVAL);
    }
}

/// What is wrong with one request harms no other.
#[track_caller]
fn errors(client: &mut RawClient) {
    let end = client.export().size;
    let data = client.read(100, 100);
    let payload = [0xee; 5000];
    let cookies = client.send_all(&[
        Request::read(end, 1),
        Request::write(end - 1, &payload),
        Request::new(Cmd(0x77), 0, 0),
        Request::read(100, 100),
    ]);
    client.reply_to(cookies[0]).expect_error(Errno::EINVAL);
    client.reply_to(cookies[1]).expect_error(Errno::ENOSPC);
    client.reply_to(cookies[2]).expect_error(Errno::EINVAL);
    assert_same_bytes(&client.reply_to(cookies[3]).data(), &data, "a read after errors");
}
