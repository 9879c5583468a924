//! The kit against servers that others wrote.
//!
//! The kit's client is this project's second reading of the protocol; that it gets along with nbdkit and
//! qemu-nbd shows that it is not a misreading. nbdkit knows structured replies, qemu-nbd extended headers, too.

use std::os::unix::fs::FileExt;

use nbd_testkit::peers::{Peer, PeerServer, require};
use nbd_testkit::raw::{
    Cmd, Errno, Info, Mode, Opt, RawClient, Rep, Request, STATE_HOLE, STATE_ZERO, cmd_flag, flag,
    handshake, info_data, magic, meta_data, option_bytes,
};
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero};
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;

fn nbdkit(args: &[&str]) -> Option<PeerServer> {
    Some(PeerServer::nbdkit(&require("nbdkit")?, args))
}

/// nbdkit refuses an unknown command with a simple reply, also where an error chunk was preferred.
const NBDKIT_REMARKS: [&str; 1] = ["S-REP-STRUCT-12: EINVAL in a simple reply"];

/// qemu-nbd serving a sparse file of 8 MiB with a pattern in its second MiB.
fn qemu_nbd() -> Option<(Peer, PeerServer, NamedTempFile)> {
    let peer = require("qemu-nbd")?;
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(8 * MIB).unwrap();
    file.as_file().write_all_at(&Pattern(1).bytes(MIB, MIB as usize), MIB).unwrap();
    let path = file.path().to_str().unwrap();
    let args = ["--format=raw", "--export-name=", "--discard=unmap", path];
    Some((peer.clone(), PeerServer::qemu_nbd(&peer, &args), file))
}

/// Patterns, zeroes and errors, in whatever form the client negotiated.
fn exercise(client: &mut RawClient) {
    let size = client.export().size;
    let data = Pattern(9).bytes(0, 9000);
    client.write(1001, &data);
    assert_same_bytes(&client.read(1001, 9000), &data, "what was written");
    assert_same_bytes(&client.read(3000, 7), &data[1999..2006], "a part of it");
    client.call(&Request::write_zeroes(2000, 100)).ok();
    assert_zero(&client.read(2000, 100), "zeroed range");
    assert_same_bytes(&client.read(1990, 10), &data[989..999], "before the zeroed range");
    client.call(&Request::trim(4096, 4096)).ok();
    client.call(&Request::flush()).ok();
    client.call(&Request::write(0, &data).flags(cmd_flag::FUA)).ok();
    assert!(client.call(&Request::read(size, 1)).error().is_some());
    assert!(client.call(&Request::new(Cmd(99), 0, 0)).error().is_some());
    let all = [Request::read(0, 512), Request::flush(), Request::read(512, 512)];
    client.send_all(&all);
    assert_eq!(client.drain().len(), 3);
    client.send_dribbled(&Request::write(size - 5, b"hello"));
    client.drain().remove(0).ok();
    assert_same_bytes(&client.read(size - 5, 5), b"hello", "last bytes");
}

#[test]
fn nbdkit_and_the_kit_agree_on_simple_replies() {
    let Some(server) = nbdkit(&["memory", "8M"]) else { return };
    let mut client = RawClient::connect(server.endpoint());
    let greeting = client.read_greeting();
    assert_eq!((greeting.magic, greeting.flags), (magic::IHAVEOPT, 3));
    client.send_client_flags(handshake::FIXED_NEWSTYLE);
    client.wire().expect_silence();
    let info = client.export_name("");
    assert_eq!(info.size, 8 * MIB);
    exercise(&mut client);
    client.finish();
}

#[test]
fn nbdkit_and_the_kit_agree_on_structured_replies() {
    let Some(server) = nbdkit(&["memory", "8M"]) else { return };
    let mut client = RawClient::go_structured(server.endpoint());
    assert!(client.has_flag(flag::SEND_DF));
    exercise(&mut client);
    let read = Request::read(0, 65536).flags(cmd_flag::DF);
    assert_eq!(client.call(&read).ok().content.len(), 1);
    let status = client.call(&Request::block_status(0, 8 * MIB)).only_status();
    assert_eq!(status.context, client.contexts()[0].id);
    assert_eq!(status.total(), 8 * MIB);
    assert_eq!(status.extents[1].flags, STATE_HOLE | STATE_ZERO);
    let one = Request::block_status(MIB, 512).flags(cmd_flag::REQ_ONE);
    assert_eq!(client.call(&one).only_status().extents.len(), 1);
    assert_eq!(client.leave(), NBDKIT_REMARKS);
}

#[test]
fn nbdkit_and_the_kit_agree_on_failing_reads() {
    let Some(server) =
        nbdkit(&["--filter=error", "memory", "8M", "error-pread=EIO", "error-pread-rate=1"])
    else {
        return;
    };
    for mode in [Mode::Simple, Mode::Structured] {
        let mut client = RawClient::go_in(mode, server.endpoint());
        client.call(&Request::read(0, 4096)).expect_error(Errno::EIO);
        client.call(&Request::flush()).ok();
        client.finish();
    }
}

#[test]
fn nbdkit_and_the_kit_agree_on_options() {
    let Some(server) = nbdkit(&["--filter=exportname", "memory", "8M", "exportdesc=fixed:words"])
    else {
        return;
    };
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.option_error(Opt(77), b"data"), Rep::ERR_UNSUP);
    assert_eq!(client.option_error(Opt::LIST, b"data"), Rep::ERR_INVALID);
    assert_eq!(client.extended_headers().unwrap_err().code, Rep::ERR_UNSUP);
    assert_eq!(client.list().unwrap(), [(String::new(), "words".to_owned())]);
    let asked = [Info::NAME, Info::DESCRIPTION, Info::BLOCK_SIZE];
    let info = client.info("", &asked).unwrap();
    assert_eq!(info.description.as_deref(), Some("words"));
    assert_eq!(info, client.info("", &asked).unwrap());
    assert!(client.set_meta_context("", &["base:allocation"]).is_err(), "before SR");
    client.structured_reply().unwrap();
    assert_eq!(client.list_meta_context("", &[]).unwrap()[0].name, "base:allocation");
    assert_eq!(client.set_meta_context("", &["x-none:such"]).unwrap(), []);
    client.go("", &asked).unwrap();
    client.finish();

    let mut client = RawClient::negotiate(server.endpoint());
    client.option(Opt::ABORT, b"").unwrap();
    client.wire().expect_eof();
}

#[test]
fn qemu_nbd_and_the_kit_agree_on_simple_and_structured_replies() {
    let Some((_, server, _file)) = qemu_nbd() else { return };
    for mode in [Mode::Simple, Mode::Structured] {
        let mut client = RawClient::go_in(mode, server.endpoint());
        exercise(&mut client);
        client.finish();
    }
}

#[test]
fn qemu_nbd_and_the_kit_agree_on_sparse_reads_and_extents() {
    let Some((_, server, _file)) = qemu_nbd() else { return };
    let mut client = RawClient::go_structured(server.endpoint());
    let reply = client.call(&Request::read(0, 3 * MIB));
    assert!(reply.content.iter().any(|content| content.hole), "{:?}", reply.content);
    assert_same_bytes(
        &reply.data()[MIB as usize..2 * MIB as usize],
        &Pattern(1).bytes(MIB, MIB as usize),
        "the file's data",
    );
    let status = client.call(&Request::block_status(0, 8 * MIB)).only_status();
    let flags: Vec<_> = status.extents.iter().map(|extent| extent.flags).collect();
    assert_eq!(flags, [3, 0, 3]);
    client.finish();
}

#[test]
fn qemu_nbd_and_the_kit_agree_on_extended_headers() {
    let Some((peer, server, _file)) = qemu_nbd() else { return };
    if peer.major() < Some(9) {
        eprintln!("{} has no extended headers", peer.version);
        return;
    }
    let mut client = RawClient::negotiate(server.endpoint());
    client.extended_headers().unwrap();
    assert_eq!(client.structured_reply().unwrap_err().code, Rep::ERR_EXT_HEADER_REQD);
    client.set_meta_context("", &["base:allocation", "qemu:allocation-depth"]).unwrap();
    client.go("", &[Info::BLOCK_SIZE]).unwrap();
    exercise(&mut client);

    let status = client.call(&Request::block_status(0, 8 * MIB)).ok().status;
    assert_eq!(status.len(), client.contexts().len());
    if client.has_flag(flag::BLOCK_STATUS_PAYLOAD) {
        let id = client.contexts()[0].id;
        let only = client.call(&Request::block_status_of(0, MIB, &[id])).only_status();
        assert_eq!(only.context, id);
    }
    let far = client.call(&Request::read(1 << 40, 512));
    assert!(far.error().is_some());
    client.finish();
}

#[test]
fn early_bytes_are_taken_by_every_server() {
    let Some(server) = nbdkit(&["memory", "8M"]) else { return };
    let mut client = RawClient::connect(server.endpoint());
    let mut bytes = handshake::FIXED_NEWSTYLE.to_be_bytes().to_vec();
    bytes.extend(option_bytes(Opt::STRUCTURED_REPLY, &[]));
    bytes.extend(option_bytes(Opt::LIST_META_CONTEXT, &meta_data("", &["base:"])));
    bytes.extend(option_bytes(Opt::GO, &info_data("", &[])));
    client.wire().send(&bytes);
    client.read_greeting();
    client.read_option_replies(Opt::STRUCTURED_REPLY).unwrap();
    client.set_mode(Mode::Structured);
    assert_eq!(client.read_option_replies(Opt::LIST_META_CONTEXT).unwrap().len(), 1);
    client.read_go_replies("").unwrap();
    assert_zero(&client.read(0, 512), "fresh memory");
    client.finish();
}
