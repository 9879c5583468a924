//! Where metrics are served.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A word of the command line: a port of the loopback address, an address with a port, or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MetricsAddress {
    /// A host and a port; 0 takes a free one.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let help = || {
            "give a port, an address with a port such as 127.0.0.1:9809 or [::1]:9809, or unix:PATH"
                .to_owned()
        };
        if let Some(path) = word.strip_prefix("unix:") {
            return if path.is_empty() { Err(help()) } else { Ok(Self::Unix(path.into())) };
        }
        let loopback = Ipv4Addr::LOCALHOST.to_string();
        let (host, port) = word.rsplit_once(':').unwrap_or((&loopback, word));
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // Without brackets it would be unclear where an IPv6 address ends.
        if host.is_empty() || bare.is_none() && host.contains(':') {
            return Err(help());
        }
        let port = port.parse().map_err(|_| help())?;
        Ok(Self::Tcp(bare.unwrap_or(host).to_owned(), port))
    }
}

impl MetricsAddress {
    /// The path of a Unix socket.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(..) => None,
        }
    }

    /// The same, to change it.
    pub(crate) const fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(..) => None,
        }
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_a_host_with_a_port_or_a_path() {
        for (word, host, port) in [
            ("9809", "127.0.0.1", 9809),
            ("0", "127.0.0.1", 0),
            ("localhost:1", "localhost", 1),
            ("0.0.0.0:80", "0.0.0.0", 80),
            ("[::1]:9809", "::1", 9809),
        ] {
            let address: MetricsAddress = word.parse().unwrap();
            assert_eq!(address, MetricsAddress::Tcp(host.into(), port), "{word}");
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        let unix: MetricsAddress = "unix:/run/a b".parse().unwrap();
        assert_eq!(unix, MetricsAddress::Unix("/run/a b".into()));
        assert_eq!(unix.to_string().parse(), Ok(unix));
        for word in ["", "x", ":9809", "::1", "::1:9809", "65536", "localhost:", "-1", "unix:"] {
            let error = word.parse::<MetricsAddress>().unwrap_err();
            assert!(error.contains("unix:PATH"), "{word}");
        }
    }
}
