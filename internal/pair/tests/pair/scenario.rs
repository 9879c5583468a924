//! Running scenarios in every way.

use nbd_pair::pair::Pair;
use nbd_pair::split::Split;
use nbd_proto::{client, server};

/// Runs a scenario with each way to cut streams, and some random ones, and compares the logs of both ends.
pub(crate) fn for_each_split(
    client: &client::Config,
    server: &server::Config,
    scenario: impl Fn(&mut Pair),
) -> Vec<String> {
    let mut expected: Option<(Vec<String>, Vec<String>)> = None;
    let random = [1, 0xdead_beef, 0x1234_5678_9abc_def0].map(Split::Random);
    for split in Split::fixed().into_iter().chain(random) {
        let mut pair = Pair::new(client.clone(), server.clone(), &split);
        scenario(&mut pair);
        let logs = (pair.client.log, pair.server.log);
        match &expected {
            None => expected = Some(logs),
            Some(expected) => assert_eq!(logs, *expected, "{split:?}"),
        }
    }
    expected.unwrap().0
}

/// The three kinds of headers, by what the client asks for.
pub(crate) fn modes() -> [(&'static str, client::Config); 3] {
    let mut simple = client::Config::for_export("disk");
    simple.extended_headers = false;
    simple.structured_replies = false;
    let mut structured = client::Config::for_export("disk");
    structured.extended_headers = false;
    [
        ("simple", simple),
        ("structured", structured),
        ("extended", client::Config::for_export("disk")),
    ]
}
