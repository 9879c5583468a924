//! What the URI document says, row by row, and that printing and parsing agree.

use super::*;
use alloc::format;
use alloc::string::ToString;
use proptest::prelude::*;

fn parse(uri: &str) -> Uri {
    uri.parse().unwrap_or_else(|error| panic!("{uri}: {error}"))
}

fn error(uri: &str) -> UriError {
    uri.parse::<Uri>().map_or_else(|error| error, |parsed| panic!("{uri}: {parsed:?}"))
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.into(), port }
}

#[test]
fn the_six_schemes_and_no_other() {
    for (uri, requires_tls) in [
        ("nbd://h", false),
        ("nbds://h", true),
        ("NBD://h", false),
        ("nbd+unix:///?socket=s", false),
        ("nbds+unix:///?socket=s", true),
        ("nbd+vsock://3", false),
        ("nbds+vsock://3", true),
    ] {
        assert_eq!(parse(uri).requires_tls(), requires_tls, "{uri}");
    }
    assert_eq!(error("http://h"), UriError::UnknownScheme("http".into()));
    assert_eq!(error("nbd+tcp://h"), UriError::UnknownScheme("nbd+tcp".into()));
    assert_eq!(error("disk"), UriError::NoScheme);
    for text in ["localhost:10809", "127.0.0.1:10809/disk", "[::1]:10809", "user@host:1"] {
        assert_eq!(error(text), UriError::HostWithoutScheme(text.into()));
        assert!(error(text).to_string().contains(&alloc::format!("nbd://{text}")));
    }
    assert_eq!(error("host:port"), UriError::UnknownScheme("host".into()));
    assert_eq!(error(""), UriError::NoScheme);
    assert_eq!(error("nbd:h:10809"), UriError::NoSlashes);
    assert_eq!(error("nbd:"), UriError::NoSlashes);
}

#[test]
fn the_export_names_of_the_documents_table() {
    for (uri, export) in [
        ("nbd://example.com/disk", "disk"),
        ("nbd+unix:///disk?socket=sock", "disk"),
        ("nbd+unix:/disk?socket=sock", "disk"),
        ("nbd://example.com/", ""),
        ("nbd://example.com", ""),
        ("nbd://example.com//disk", "/disk"),
        ("nbd://example.com/hello%20world", "hello world"),
        ("nbd://example.com/a/b%2Fc", "a/b/c"),
        ("nbd://example.com/a+b", "a+b"),
        ("nbd://example.com/%C3%BC", "ü"),
    ] {
        assert_eq!(parse(uri).export(), export, "{uri}");
    }
}

#[test]
fn export_names_that_can_not_be() {
    let part = "export name";
    assert_eq!(error("nbd://h/a%00b"), UriError::Nul { part });
    assert_eq!(error("nbd://h/%ff"), UriError::NotUtf8 { part });
    let longest = "x".repeat(4096);
    assert_eq!(parse(&format!("nbd://h/{longest}")).export(), longest);
    assert_eq!(error(&format!("nbd://h/{longest}x")), UriError::TooLong { part });
    assert_eq!(parse("nbd://h").with_export("a\0"), Err(UriError::Nul { part }));
}

#[test]
fn hosts_and_ports() {
    for (uri, address) in [
        ("nbd://example.com", tcp("example.com", 10809)),
        ("nbd://example.com:10809/", tcp("example.com", 10809)),
        ("nbd://example.com:", tcp("example.com", 10809)),
        ("nbd://127.0.0.1:65535", tcp("127.0.0.1", 65535)),
        ("nbd://[::1]", tcp("::1", 10809)),
        ("nbd://[0:0::0:1]:10810/x", tcp("::1", 10810)),
        ("nbd://[fe80::1%25eth0]:7", tcp("fe80::1%eth0", 7)),
        ("nbd:///disk", tcp("localhost", 10809)),
        ("nbd://:7/disk", tcp("localhost", 7)),
        ("nbd:/disk", tcp("localhost", 10809)),
        ("nbd://b%C3%BCcher.example", tcp("bücher.example", 10809)),
        ("nbd+vsock://", Address::Vsock { cid: 2, port: 10809 }),
        ("nbd+vsock://7:4294967295/x", Address::Vsock { cid: 7, port: u32::MAX }),
    ] {
        assert_eq!(*parse(uri).address(), address, "{uri}");
        let again = parse(&parse(uri).to_string());
        assert_eq!(again, parse(uri), "{uri}");
    }
}

#[test]
fn the_alternate_form_names_every_default() {
    for (uri, shown) in [
        ("nbd://h", "nbd://h:10809/"),
        ("nbd://h:7/a?tls-type=psk", "nbd://h:7/a?tls-type=psk"),
        ("nbd://[::1]?tls-type=psk", "nbd://[::1]:10809/?tls-type=psk"),
        ("nbd+vsock://3", "nbd+vsock://3:10809/"),
        ("nbd+unix:///?socket=s", "nbd+unix:///?socket=s"),
    ] {
        assert_eq!(format!("{:#}", parse(uri)), shown);
        assert_eq!(parse(shown), parse(uri));
    }
}

#[test]
fn an_invalid_host_or_port_is_named_with_its_position() {
    for uri in [
        "nbd://::1",
        "nbd://[::1",
        "nbd://[]",
        "nbd://[example.com]",
        "nbd://[127.0.0.1]",
        "nbd://%3A%3A1",
        "nbd://2001:db8::1:10809",
        "nbd://a%00b",
        "nbd://a%ff",
        "nbd://a%20b",
        "nbd+vsock://host",
        "nbd+vsock://-1",
        "nbd+vsock://4294967296",
    ] {
        let expected = if uri.contains("vsock") { 12 } else { 6 };
        let position = match error(uri) {
            UriError::BadHost { position } => position,
            other => panic!("{uri}: {other}"),
        };
        assert_eq!(position, expected, "{uri}");
    }
    let text = error("nbds://2001:db8::1/disk").to_string();
    assert!(text.contains("brackets"), "{text}");
    let bad_port = |found: &str, position| {
        let expected = "a number from 1 to 65535";
        UriError::BadPort { position, found: found.into(), expected }
    };
    for port in ["65536", "0", "x", "+1", "%31"] {
        assert_eq!(error(&format!("nbd://h:{port}")), bad_port(port, 8));
    }
    assert_eq!(error("nbd://[::1]x"), bad_port("x", 11));
    let text = error("nbd+vsock://2:4294967296").to_string();
    assert_eq!(text, "the port \"4294967296\" at 14 is not a number from 0 to 4294967295");
    assert_eq!(error(&format!("nbd://{}", "x".repeat(4097))), UriError::BadHost { position: 6 });
    assert_eq!(parse(&format!("nbd://{}", "x".repeat(4096))).export(), "");
    assert_eq!(Uri::tcp("h", 0), Err(bad_port("0", 0)));
    assert_eq!(Uri::tcp(&"x".repeat(4097), 1), Err(UriError::BadHost { position: 0 }));
    assert_eq!(Uri::tcp("a/b", 1), Err(UriError::BadHost { position: 0 }));
}

#[test]
fn a_unix_uri_needs_a_socket_and_others_have_none() {
    for (uri, socket) in [
        ("nbd+unix:///?socket=nbd.sock", &b"nbd.sock"[..]),
        ("nbd+unix://?socket=nbd.sock", b"nbd.sock"),
        ("nbd+unix:///?socket=/a/b%20c", b"/a/b c"),
        ("nbd+unix:///?socket=%00/abstract", b"\0/abstract"),
        ("nbd+unix:///?socket=%00a%00b", b"\0a\0b"),
        ("nbd+unix:///?socket=%ff+x=y", b"\xff+x=y"),
    ] {
        let uri = parse(uri);
        assert_eq!(*uri.address(), Address::Unix { socket: socket.into() }, "{uri}");
        assert_eq!(parse(&uri.to_string()), uri);
    }
    for uri in ["nbd+unix:///disk", "nbd+unix:///?socket=", "nbd+unix:///?socket"] {
        assert_eq!(error(uri), UriError::MissingSocket, "{uri}");
    }
    assert_eq!(error("nbd+unix:///?socket=a%00"), UriError::Nul { part: "socket" });
    assert_eq!(error("nbd+unix://host/?socket=s"), UriError::HostOfUnixSocket);
    assert_eq!(error("nbd+unix://:1/?socket=s"), UriError::HostOfUnixSocket);
    assert_eq!(error("nbd://h/?socket=s"), UriError::UnexpectedSocket);
}

#[test]
fn tls_parameters_and_the_user() {
    let uri = parse(concat!(
        "nbds+unix://al%40ice@/x?socket=s&tls-type=psk&tls-hostname=example.com",
        "&tls-verify-peer=0&tls-certificates=/etc/pki&tls-psk-file=%2Ftmp%2Fkeys"
    ));
    assert_eq!(uri.user(), Some("al@ice"));
    let TlsParameters { kind, hostname, verify_peer, certificates, psk_file } = uri.tls();
    assert_eq!((*kind, hostname.as_deref()), (Some(TlsType::Psk), Some("example.com")));
    assert_eq!(*verify_peer, Some(false));
    assert_eq!(certificates.as_deref(), Some(&b"/etc/pki"[..]));
    assert_eq!(psk_file.as_deref(), Some(&b"/tmp/keys"[..]));
    assert_eq!(parse(&uri.to_string()), uri);
    assert_eq!(parse("nbd://@h").user(), None);
    for (parameter, name) in
        [("tls-type=tls", "tls-type"), ("tls-verify-peer=yes", "tls-verify-peer")]
    {
        let error = error(&format!("nbds://h/?{parameter}"));
        assert!(matches!(error, UriError::BadParameter { name: n, .. } if n == name), "{error}");
    }
}

#[test]
fn paths_have_no_nul() {
    for part in ["tls-certificates", "tls-psk-file", "tls-hostname"] {
        assert_eq!(error(&format!("nbds://h/?{part}=a%00b")), UriError::Nul { part });
    }
}

#[test]
fn parameters_that_are_unknown_or_repeated_are_named() {
    assert_eq!(error("nbd://h/?sockte=s"), UriError::UnknownParameter("sockte".into()));
    assert_eq!(error("nbd://h/?x-mine"), UriError::UnknownParameter("x-mine".into()));
    assert_eq!(error("nbd+unix:///?socket=a&socket=b"), UriError::RepeatedParameter("socket"));
    assert_eq!(parse("nbd://h/?"), parse("nbd://h/?&&"));
}

#[test]
fn invalid_characters_are_named_with_their_position() {
    assert_eq!(error("nbd://h/a b"), UriError::BadCharacter { position: 9, found: ' ' });
    assert_eq!(error("nbd://h/ü"), UriError::BadCharacter { position: 8, found: 'ü' });
    assert_eq!(error("nbd://h/a%2"), UriError::BadPercent { position: 9 });
    assert_eq!(error("nbd+unix:///?socket=%zz"), UriError::BadPercent { position: 20 });
    assert_eq!(error("nbd://h/a#b"), UriError::Fragment { position: 9 });
}

fn any_address() -> impl Strategy<Value = Uri> {
    prop_oneof![
        ("[a-zA-Z0-9ü._~!-]{1,20}", 1..=u16::MAX)
            .prop_map(|(host, port)| { Uri::tcp(&host, port).unwrap() }),
        (any::<[u16; 8]>(), prop::option::of("[a-z0-9 ü]{1,5}"), 1..=u16::MAX).prop_filter_map(
            "a zone has no space",
            |(address, zone, port)| {
                let zone = zone.map_or(String::new(), |zone| format!("%{zone}"));
                Uri::tcp(&format!("{}{zone}", Ipv6Addr::from(address)), port).ok()
            }
        ),
        (any::<bool>(), prop::collection::vec(1..=u8::MAX, 1..40)).prop_map(
            |(named, mut socket)| {
                if named {
                    socket.insert(0, 0);
                    socket.push(0);
                }
                Uri::unix(socket).unwrap()
            }
        ),
        (any::<u32>(), any::<u32>()).prop_map(|(cid, port)| Uri::vsock(cid, port)),
    ]
}

prop_compose! {
    fn any_uri()(
        uri in any_address(),
        required in any::<bool>(),
        export in "[^\0]{0,40}",
        user in "[^\0]{0,10}",
        kind in prop::option::of(prop::sample::select(&TlsType::ALL[..])),
        hostname in prop::option::of("[^\0]{0,10}"),
        verify_peer in any::<Option<bool>>(),
        certificates in prop::option::of(prop::collection::vec(1..=u8::MAX, 0..10)),
        psk_file in prop::option::of(prop::collection::vec(1..=u8::MAX, 0..10)),
    ) -> Uri {
        let kind = kind.map(|(kind, _)| kind);
        let tls = TlsParameters { kind, hostname, verify_peer, certificates, psk_file };
        uri.with_tls_required(required)
            .with_export(export).unwrap()
            .with_user(user).unwrap()
            .with_tls(tls).unwrap()
    }
}

proptest! {
    #![proptest_config(crate::effort::config())]

    #[test]
    fn a_printed_uri_parses_to_the_same(uri in any_uri()) {
        let printed = uri.to_string();
        prop_assert!(printed.chars().all(percent::is_uri_character), "{}", printed);
        prop_assert_eq!(printed.parse(), Ok(uri));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = text.parse::<Uri>();
    }

    /// Texts that look like URIs get further than any text.
    #[test]
    fn what_looks_like_a_uri_is_parsed_the_same_once_printed(
        text in "nbds?(\\+unix|\\+vsock)?:(//)?([a-z0-9%:@.\\[\\]]{0,12})(/[a-z0-9%/]{0,12})?(\\?(socket=[a-z%0]{0,4})?(&tls-[a-z-]{0,12}=[0-9a-z]{0,4})?)?"
    ) {
        if let Ok(uri) = text.parse::<Uri>() {
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }
}
