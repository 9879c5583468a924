//! A backend that fails: the errors of a file, made to happen from outside (S-ERR-02, S-CMD-READ-03,
//! S-REP-STRUCT-14, S-REP-STRUCT-15).

use std::fs::File;
use std::path::PathBuf;

use nbd_interop::{MIB, in_each_mode};
use nbd_testkit::raw::{Errno, Mode, RawClient, Request};
use nbd_testkit::server::{Serve, Setup};
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        a_read_that_fails_late_is_never_a_success,
    ],
    unix: [
        a_file_that_may_not_grow_gives_enospc,
    ],
}

/// A server in the making of a file of this size.
fn file_server(setup: Setup, size: u64) -> (Serve, PathBuf) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    (serve.arg(format!("file:{}", path.display())), path)
}

/// S-ERR-02: EFBIG of the file becomes ENOSPC, and the signal that comes with it does not kill the server.
fn a_file_that_may_not_grow_gives_enospc(setup: Setup) {
    let (serve, _path) = file_server(setup, MIB);
    let server = serve.prepared_by("ulimit -f 128").start();
    in_each_mode(&server, |client| {
        client.write(0, &[7; 4096]);
        client.call(&Request::write(512 << 10, &[7; 4096])).expect_error(Errno::ENOSPC);
        assert_zero(&client.read(512 << 10, 4096), "what was refused");
        client.read(0, 4096);
    });
}

/// S-CMD-READ-03, S-REP-STRUCT-14, S-REP-STRUCT-15: the file lost its end behind the server's back. A chunk that is
/// under way is completed and an error chunk follows; a simple reply that is under way can only be cut off.
fn a_read_that_fails_late_is_never_a_success(setup: Setup) {
    for mode in nbd_interop::MODES {
        eprintln!("in {mode:?} mode");
        let (serve, path) = file_server(setup, 8 * MIB);
        let content = Pattern(1).bytes(0, 8 * MIB as usize);
        std::fs::write(&path, &content).unwrap();
        let server = serve.start();
        let mut client = RawClient::go_in(mode, server.endpoint());
        assert_same_bytes(&client.read(0, 8 * MIB), &content, "while it was whole");
        File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap();

        let cookie = client.send(&Request::read(0, 8 * MIB));
        match mode {
            Mode::Simple => {
                // Either an error at once, or less than was promised.
                let header = client.wire().recv(16, "simple reply");
                if header[4..8] == [0; 4] {
                    assert!(client.wire().try_recv(8 * MIB as usize).is_none(), "invented data");
                } else {
                    assert_eq!(header[4..8], Errno::EIO.0.to_be_bytes());
                }
            }
            _ => {
                client.reply_to(cookie).expect_error(Errno::EIO);
                assert_same_bytes(&client.read(0, MIB), &content[..MIB as usize], "what is left");
                client.finish();
            }
        }
        let mut other = RawClient::go_in(mode, server.endpoint());
        assert_same_bytes(&other.read(0, MIB), &content[..MIB as usize], "what is left");
        other.finish();
    }
}
