//! Servers that hang up.

use std::io::ErrorKind;

use nbd_engine::client::Error;
use nbd_testkit::raw::Cmd;

use super::table::{Ask, MODES, entered, config};
use crate::ClientSetup;

/// Whichever byte is the last: as long as the export is not entered there is no client, and after that there is one whose
/// request fails.
pub fn a_session_may_be_cut_at_every_byte(setup: ClientSetup) {
    for mode in MODES {
        let session = || entered(mode).request(Cmd::READ).obey();
        let whole = setup.play([entered(mode), session()]);
        drop(setup.connect(whole.endpoint(), &config()).expect("a proper server"));
        let client = setup.connect(whole.endpoint(), &config()).expect("a proper server");
        Ask::Read.of(&*client).expect("a proper server");
        drop(client);
        let reports = whole.finish();
        let (handshake, all) = (reports[0].sent, reports[1].sent);
        assert!(handshake > 100 && all > handshake + 1024, "{reports:?}");

        // The payload's bytes are all alike: one in a hundred will do.
        let is_payload = |cut: &u64| (handshake + 60..all - 20).contains(cut);
        let cuts: Vec<_> = (0..all).filter(|cut| !is_payload(cut) || cut % 100 == 0).collect();
        let server = setup.play(cuts.iter().map(|cut| session().cut_after(*cut)));
        for cut in &cuts {
            let what = format!("{mode:?}, {cut} of {all} bytes, {handshake} of them handshake");
            let error = match setup.connect(server.endpoint(), &config()) {
                Err(error) => {
                    assert!(*cut < handshake, "{what}: {error}");
                    let told = matches!(error, Error::Protocol { .. } | Error::Connect { .. });
                    assert!(told, "{what}: {error:?}");
                    error
                }
                Ok(client) => {
                    assert!(*cut >= handshake, "{what}: a client");
                    let error = Ask::Read.of(&*client).expect_err(&what);
                    assert!(matches!(error, Error::Lost { .. }), "{what}: {error:?}");
                    assert!(!client.is_connected(), "{what}");
                    error
                }
            };
            let hung_up = [
                ErrorKind::UnexpectedEof,
                ErrorKind::ConnectionReset,
                ErrorKind::ConnectionAborted,
                ErrorKind::BrokenPipe,
            ];
            assert!(hung_up.contains(&error.kind()), "{what}: {error:?}");
        }
        assert_eq!(server.finish().len(), cuts.len());
    }
}
