//! Taking URIs apart (RFC 3986, section 3).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::percent;
use super::{Address, DEFAULT_PORT, Ipv6Addr, MAX_STRING, TlsParameters, TlsType, Uri, VSOCK_HOST};

/// What is wrong with a URI. Positions are counted in bytes from its start; those of values that did not come from a
/// URI are 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// There is no `scheme:` at the front.
    #[error(
        "there is no scheme: put nbd:// in front of a host, or nbd+unix:///?socket= in front of a path"
    )]
    NoScheme,
    /// A host and a port without a scheme in front, such as `localhost:10809`: here they are.
    #[error("there is no scheme: put nbd:// in front, as in nbd://{0}")]
    HostWithoutScheme(String),
    /// The scheme is none of NBD's.
    // C-URI-02
    #[error(
        "the scheme {0:?} is not one of nbd, nbds, nbd+unix, nbds+unix, nbd+vsock and nbds+vsock"
    )]
    UnknownScheme(String),
    /// The scheme is followed by neither `//` nor `/`.
    #[error("\"//\" is missing after the scheme, as in nbd://localhost")]
    NoSlashes,
    /// A character that must be percent-encoded.
    // C-URI-01
    #[error("the character {found:?} at {position} must be percent-encoded")]
    BadCharacter {
        /// Where.
        position: usize,
        /// Which.
        found: char,
    },
    /// A percent sign without two hexadecimal digits.
    #[error(
        "two hexadecimal digits are missing after the percent sign at {position}: %25 stands for a percent sign"
    )]
    BadPercent {
        /// Where.
        position: usize,
    },
    /// A part that is a text is not UTF-8 once decoded.
    // C-URI-15
    #[error("the {part} is not UTF-8")]
    NotUtf8 {
        /// Which part.
        part: &'static str,
    },
    /// A part contains NUL once decoded.
    // C-URI-15
    #[error("the {part} contains NUL")]
    Nul {
        /// Which part.
        part: &'static str,
    },
    /// A part is longer than 4096 bytes once decoded.
    // C-URI-15
    #[error("the {part} is longer than 4096 bytes")]
    TooLong {
        /// Which part.
        part: &'static str,
    },
    /// Neither a name, nor an IPv4 address, nor an IPv6 address in brackets, nor, for vsock, a number.
    // C-URI-06
    #[error(
        "the host at {position} is neither a name nor an address; an IPv6 address needs brackets, as in //[::1]/"
    )]
    BadHost {
        /// Where.
        position: usize,
    },
    /// No port number.
    #[error("the port {found:?} at {position} is not {expected}")]
    BadPort {
        /// Where.
        position: usize,
        /// What is there.
        found: String,
        /// What it can be.
        expected: &'static str,
    },
    /// A `unix` URI names a host or port.
    // C-URI-14
    #[error("a Unix domain socket has no host or port: give nbd+unix:///EXPORT?socket=PATH")]
    HostOfUnixSocket,
    /// A `unix` URI has no `socket` parameter, or an empty one.
    // C-URI-04
    #[error(
        "the parameter \"socket\" is missing or empty: give the socket's path, as in nbd+unix:///?socket=PATH"
    )]
    MissingSocket,
    /// Another URI has one.
    #[error(
        "only a Unix domain socket has the parameter \"socket\": begin with nbd+unix:// or nbds+unix://"
    )]
    UnexpectedSocket,
    /// A query parameter that is not known.
    // C-URI-11
    #[error("the parameter {0:?} is unknown: leave it out")]
    UnknownParameter(String),
    /// A query parameter that occurs twice.
    #[error("the parameter {0:?} occurs twice: give it once")]
    RepeatedParameter(&'static str),
    /// A query parameter with a value that it can't have.
    #[error("the parameter {name:?} must be {expected}")]
    BadParameter {
        /// Which parameter.
        name: &'static str,
        /// What it can be.
        expected: &'static str,
    },
    /// A fragment, which NBD URIs have not.
    #[error("the fragment at {position} means nothing in an NBD URI: %23 stands for a #")]
    Fragment {
        /// Where.
        position: usize,
    },
}

/// A part of a URI, and where in the URI it begins.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Part<'a> {
    /// Splits at the first of the separators; the second part is what follows it.
    fn split(self, separators: &[char]) -> (Self, Option<Self>) {
        let Self { text, position } = self;
        match text.split_once(separators) {
            Some((head, rest)) => {
                let rest_position = position.saturating_add(text.len()).saturating_sub(rest.len());
                (Self { text: head, position }, Some(Self { text: rest, position: rest_position }))
            }
            None => (self, None),
        }
    }

    fn strip(self, prefix: &str) -> Option<Self> {
        let text = self.text.strip_prefix(prefix)?;
        Some(Self { text, position: self.position.saturating_add(prefix.len()) })
    }

    fn bytes(self) -> Result<Vec<u8>, UriError> {
        let position = |inside| self.position.saturating_add(inside);
        percent::decode(self.text)
            .map_err(|inside| UriError::BadPercent { position: position(inside) })
    }

    fn text(self, part: &'static str) -> Result<String, UriError> {
        let text = String::from_utf8(self.bytes()?).map_err(|_| UriError::NotUtf8 { part })?;
        text_of(text, part)
    }
}

fn text_of(text: String, part: &'static str) -> Result<String, UriError> {
    self::text(text, part, MAX_STRING)
}

/// A text without NUL, not too long.
pub(super) fn text(text: String, part: &'static str, max: usize) -> Result<String, UriError> {
    no_nul(text.as_bytes(), part)?;
    if text.len() > max { Err(UriError::TooLong { part }) } else { Ok(text) }
}

pub(super) fn no_nul(bytes: &[u8], part: &'static str) -> Result<(), UriError> {
    if bytes.contains(&0) { Err(UriError::Nul { part }) } else { Ok(()) }
}

/// A socket's path, or its abstract name behind a NUL.
pub(super) fn socket(socket: Vec<u8>) -> Result<Vec<u8>, UriError> {
    match socket.first() {
        None => Err(UriError::MissingSocket),
        Some(0) => Ok(socket),
        Some(_) => no_nul(&socket, "socket").map(|()| socket),
    }
}

/// A host as it is kept: an IPv6 address in its shortest form with its zone, or any other text that can stand for
/// itself in front of a port.
pub(super) fn host(host: &str, position: usize) -> Result<String, UriError> {
    let bad = UriError::BadHost { position };
    let (address, zone) = match host.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (host, None),
    };
    let fine = |text: &str| {
        !text.is_empty()
            && text.len() <= MAX_STRING
            && !text
                .contains(|c: char| c.is_control() || c.is_whitespace() || ":/?#[]@%".contains(c))
    };
    match (address.parse::<Ipv6Addr>(), zone) {
        (Ok(address), None) => Ok(address.to_string()),
        (Ok(address), Some(zone)) if fine(zone) => Ok(alloc::format!("{address}%{zone}")),
        (Err(_), None) if fine(host) => Ok(host.into()),
        _ => Err(bad),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Vsock,
}

/// Whether all that is wrong with a text is that it has no scheme. `rest` is what follows the first colon.
fn is_host_and_port(text: &str, rest: Part<'_>) -> bool {
    !rest.text.starts_with('/') && uri(&alloc::format!("nbd://{text}")).is_ok()
}

pub(super) fn uri(text: &str) -> Result<Uri, UriError> {
    if let Some((position, found)) =
        text.char_indices().find(|(_, c)| !percent::is_uri_character(*c))
    {
        return Err(UriError::BadCharacter { position, found });
    }
    let (scheme, rest) = Part { text, position: 0 }.split(&[':']);
    let rest = rest.ok_or(UriError::NoScheme)?;
    let (requires_tls, kind) = match scheme_of(scheme.text) {
        Err(_) if is_host_and_port(text, rest) => {
            return Err(UriError::HostWithoutScheme(text.into()));
        }
        scheme => scheme?,
    };
    let (rest, fragment) = rest.split(&['#']);
    if let Some(fragment) = fragment {
        return Err(UriError::Fragment { position: fragment.position.saturating_sub(1) });
    }
    let (rest, query) = rest.split(&['?']);
    let (authority, path) = match rest.strip("//") {
        Some(rest) => rest.split(&['/']),
        None => {
            let path = rest.strip("/").ok_or(UriError::NoSlashes)?;
            (Part { text: "", position: rest.position }, Some(path))
        }
    };
    let (user, authority) = match authority.split(&['@']) {
        (user, Some(authority)) => (Some(user.text("user")?), authority),
        (authority, None) => (None, authority),
    };
    let (tls, socket) = parameters(query)?;
    if socket.is_some() && kind != Kind::Unix {
        return Err(UriError::UnexpectedSocket);
    }
    let address = match kind {
        Kind::Tcp => tcp(authority)?,
        Kind::Vsock => vsock(authority)?,
        Kind::Unix if !authority.text.is_empty() => return Err(UriError::HostOfUnixSocket),
        Kind::Unix => Address::Unix { socket: socket.ok_or(UriError::MissingSocket)? },
    };
    let export = path.map_or(Ok(String::new()), |path| path.text("export name"))?;
    let user = user.filter(|user| !user.is_empty());
    Ok(Uri { requires_tls, address, user, export, tls })
}

/// Schemes have no case.
fn scheme_of(scheme: &str) -> Result<(bool, Kind), UriError> {
    for (name, requires_tls, kind) in [
        ("nbd", false, Kind::Tcp),
        ("nbds", true, Kind::Tcp),
        ("nbd+unix", false, Kind::Unix),
        ("nbds+unix", true, Kind::Unix),
        ("nbd+vsock", false, Kind::Vsock),
        ("nbds+vsock", true, Kind::Vsock),
    ] {
        if scheme.eq_ignore_ascii_case(name) {
            return Ok((requires_tls, kind));
        }
    }
    Err(UriError::UnknownScheme(scheme.into()))
}

/// Host and port of `host`, `host:`, `host:port` and `[address]:port`. An empty port is as good as none.
fn host_and_port(authority: Part<'_>) -> Result<(Part<'_>, Option<Part<'_>>), UriError> {
    let (host, port) = match authority.strip("[") {
        Some(inside) => {
            let (address, rest) = inside.split(&[']']);
            let rest = rest.ok_or(UriError::BadHost { position: authority.position })?;
            let port = rest.strip(":");
            if port.is_none() && !rest.text.is_empty() {
                return Err(bad_tcp_port(rest.text, rest.position));
            }
            (address, port)
        }
        None => authority.split(&[':']),
    };
    Ok((host, port.filter(|port| !port.text.is_empty())))
}

fn number<T: core::str::FromStr>(digits: &str) -> Option<T> {
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| only_digits)
}

pub(super) fn bad_tcp_port(found: &str, position: usize) -> UriError {
    UriError::BadPort { position, found: found.into(), expected: "a number from 1 to 65535" }
}

fn tcp(authority: Part<'_>) -> Result<Address, UriError> {
    // Without brackets its groups are not to be taken for a port.
    let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let without_port = authority.text.rsplit_once(':').map(|(host, _)| host);
    if is_address(authority.text) || without_port.is_some_and(is_address) {
        return Err(UriError::BadHost { position: authority.position });
    }
    let (name, port) = host_and_port(authority)?;
    let decoded = name.text("host").map_err(|error| match error {
        UriError::BadPercent { .. } => error,
        _ => UriError::BadHost { position: authority.position },
    })?;
    let host = match decoded.as_str() {
        "" if authority.text.starts_with('[') => {
            return Err(UriError::BadHost { position: authority.position });
        }
        "" => "localhost".into(),
        text => host(text, authority.position)?,
    };
    // Brackets are for IPv6 addresses, which can't do without.
    if authority.text.starts_with('[') != host.contains(':') {
        return Err(UriError::BadHost { position: authority.position });
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => {
            let number = number(port.text).filter(|port| *port != 0);
            number.ok_or_else(|| bad_tcp_port(port.text, port.position))?
        }
    };
    Ok(Address::Tcp { host, port })
}

fn vsock(authority: Part<'_>) -> Result<Address, UriError> {
    let (cid, port) = authority.split(&[':']);
    let cid = match cid.text {
        "" => VSOCK_HOST,
        digits => number(digits).ok_or(UriError::BadHost { position: cid.position })?,
    };
    let port = match port.filter(|port| !port.text.is_empty()) {
        None => u32::from(DEFAULT_PORT),
        Some(port) => number(port.text).ok_or_else(|| UriError::BadPort {
            position: port.position,
            found: port.text.into(),
            expected: "a number from 0 to 4294967295",
        })?,
    };
    Ok(Address::Vsock { cid, port })
}

/// The query's parameters; the second is `socket`.
fn parameters(mut query: Option<Part<'_>>) -> Result<(TlsParameters, Option<Vec<u8>>), UriError> {
    let mut tls = TlsParameters::default();
    let mut socket = None;
    while let Some(rest) = query {
        let (parameter, next) = rest.split(&['&']);
        query = next;
        if parameter.text.is_empty() {
            continue;
        }
        let (name, value) = parameter.split(&['=']);
        let value = value.unwrap_or(Part { text: "", position: rest.position });
        match name.text("parameter")?.as_str() {
            "socket" => set(&mut socket, "socket", self::socket(value.bytes()?)?)?,
            "tls-type" => {
                let text = value.text("tls-type")?;
                let known = TlsType::ALL.into_iter().find(|(_, name)| text == *name);
                let (name, expected) = ("tls-type", "\"anon\", \"x509\" or \"psk\"");
                let (kind, _) = known.ok_or(UriError::BadParameter { name, expected })?;
                set(&mut tls.kind, name, kind)?;
            }
            "tls-hostname" => {
                set(&mut tls.hostname, "tls-hostname", value.text("tls-hostname")?)?;
            }
            "tls-verify-peer" => {
                let name = "tls-verify-peer";
                let verify = match value.text {
                    "0" => false,
                    "1" => true,
                    _ => return Err(UriError::BadParameter { name, expected: "\"0\" or \"1\"" }),
                };
                set(&mut tls.verify_peer, name, verify)?;
            }
            "tls-certificates" => {
                let path = value.bytes()?;
                no_nul(&path, "tls-certificates")?;
                set(&mut tls.certificates, "tls-certificates", path)?;
            }
            "tls-psk-file" => {
                let path = value.bytes()?;
                no_nul(&path, "tls-psk-file")?;
                set(&mut tls.psk_file, "tls-psk-file", path)?;
            }
            unknown => return Err(UriError::UnknownParameter(unknown.into())),
        }
    }
    Ok((tls, socket))
}

fn set<T>(parameter: &mut Option<T>, name: &'static str, value: T) -> Result<(), UriError> {
    match parameter.replace(value) {
        None => Ok(()),
        Some(_) => Err(UriError::RepeatedParameter(name)),
    }
}
