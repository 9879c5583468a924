//! Values that a file writes as the command line does: sizes, durations, addresses. Each is a text, or a plain number
//! where the command line takes one without a unit.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use nbd_engine::export::BlockSize;
use nbd_engine::net::Network;
use nbd_engine::proto::wire::DEFAULT_PORT;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::super::block_size;
use crate::quantity::{self, Timeout};
use crate::serve::metrics::MetricsAddress;

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// A duration, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

/// Size constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSizes(pub(crate) BlockSize);

/// A directory on a local disk with what a cache may take there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeCache {
    pub(crate) directory: PathBuf,
    pub(crate) size: Size,
}

impl VolumeCache {
    /// `DIR:SIZE`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some((directory, size)) if !directory.is_empty() => Ok(Self {
                directory: directory.into(),
                size: Size(quantity::size(size).map_err(|error| format!("'{text}': {error}"))?),
            }),
            _ => Err(format!("'{text}' is no cache: give DIR:SIZE, such as /var/cache/nbd:20G")),
        }
    }
}

impl fmt::Display for VolumeCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.directory.display(), self.size)
    }
}

impl Word for VolumeCache {
    const EXPECTED: &'static str = "a directory and a size, such as \"/var/cache/nbd:20G\"";
    const NUMBER: bool = false;
    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

/// A range of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr(pub(crate) Network);

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Word for Cidr {
    const EXPECTED: &'static str =
        "an address or a network, such as \"192.0.2.7\" or \"10.0.0.0/8\"";
    const NUMBER: bool = false;
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("'{text}': {error}"))
    }
}

/// A TCP address: one of IPv4 or IPv6, or a name that stands for all of its addresses, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl TcpAddress {
    /// `HOST:PORT`, `[IPv6]:PORT`, or either without its port, which is 10809 then.
    fn parse(text: &str) -> Result<Self, String> {
        let help = || {
            format!(
                "'{text}' is not a TCP address: give HOST:PORT or HOST, such as 127.0.0.1:10809, [::1]:10809 or \
                 localhost"
            )
        };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']').ok_or_else(help)? {
                (host, "") => (host, None),
                (host, port) => (host, Some(port.strip_prefix(':').ok_or_else(help)?)),
            },
            None => match text.split_once(':') {
                // Several colons are those of an IPv6 address without its port.
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (text, None),
            },
        };
        if host.is_empty() {
            return Err(help());
        }
        let port = port.map_or(Ok(DEFAULT_PORT), quantity::port)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

/// A virtual machine socket of this machine.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VsockAddress {
    /// A context identifier, or all of them.
    pub(crate) cid: u32,
    pub(crate) port: u32,
}

#[cfg(target_os = "linux")]
impl VsockAddress {
    /// `PORT` or `CID:PORT`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let help = |_| {
            format!("'{text}' is not a vsock address: give PORT or CID:PORT, of numbers below 2^32")
        };
        let (cid, port) = match text.split_once(':') {
            Some((cid, port)) => (cid.parse().map_err(help)?, port),
            None => (nbd_engine::net::VSOCK_CID_ANY, text),
        };
        Ok(Self { cid, port: port.parse().map_err(help)? })
    }
}

#[cfg(target_os = "linux")]
impl fmt::Display for VsockAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cid {
            nbd_engine::net::VSOCK_CID_ANY => self.port.fmt(f),
            cid => write!(f, "{cid}:{}", self.port),
        }
    }
}

#[cfg(target_os = "linux")]
impl Word for VsockAddress {
    const EXPECTED: &'static str = "a vsock address, such as \"10809\" or \"3:10809\"";
    const NUMBER: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &[(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")])
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        write_scaled(f, milliseconds, &[(3_600_000, "h"), (60_000, "m"), (1_000, "s")])?;
        f.write_str(if milliseconds % 1_000 == 0 && milliseconds > 0 { "" } else { "ms" })
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(duration) => Period(*duration).fmt(f),
            Self::Never => f.write_str("never"),
        }
    }
}

impl fmt::Display for BlockSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u32| Size(bytes.into());
        let [minimum, preferred] = [size(self.0.minimum()), size(self.0.preferred())];
        write!(f, "{minimum}:{preferred}:{}", size(self.0.maximum_payload()))
    }
}

/// The number in the largest of the units, each larger than the next, of which it is a multiple.
fn write_scaled(f: &mut fmt::Formatter<'_>, number: u64, units: &[(u64, &str)]) -> fmt::Result {
    match units.iter().find(|(unit, _)| number > 0 && number.is_multiple_of(*unit)) {
        Some((unit, suffix)) => write!(f, "{}{suffix}", number / unit),
        None => write!(f, "{number}"),
    }
}

/// A value that is written as a word.
trait Word: Sized + fmt::Display {
    /// What is expected in place of something that is no word at all.
    const EXPECTED: &'static str;
    /// Whether a number without quotes will do.
    const NUMBER: bool;
    fn parse(text: &str) -> Result<Self, String>;
}

impl Word for Size {
    const EXPECTED: &'static str = "a size, such as \"512\", \"4k\", \"10M\" or \"1G\"";
    const NUMBER: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        quantity::size(text).map(Self)
    }
}

impl Word for Period {
    const EXPECTED: &'static str = "a duration, such as \"500ms\", \"10s\" or \"5m\"";
    const NUMBER: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        quantity::duration(text).map(Self)
    }
}

impl Word for Timeout {
    const EXPECTED: &'static str = "a duration, such as \"30s\" or \"5m\", or \"never\"";
    const NUMBER: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        quantity::timeout(text)
    }
}

impl Word for BlockSizes {
    const EXPECTED: &'static str = "one to three sizes, such as \"512\" or \"512:4k:1M\"";
    const NUMBER: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        block_size::parse(text).map(Self)
    }
}

impl Word for MetricsAddress {
    const EXPECTED: &'static str =
        "a port, an address such as \"127.0.0.1:9809\", or \"unix:PATH\"";
    const NUMBER: bool = true;
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Word for TcpAddress {
    const EXPECTED: &'static str = "a TCP address, such as \"127.0.0.1:10809\"";
    const NUMBER: bool = false;
    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

struct WordVisitor<W>(PhantomData<W>);

impl<W: Word> Visitor<'_> for WordVisitor<W> {
    type Value = W;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(W::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<W, E> {
        W::parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<W, E> {
        match W::NUMBER {
            true => self.visit_str(&number.to_string()),
            false => Err(E::invalid_type(de::Unexpected::Signed(number), &self)),
        }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<W, E> {
        match W::NUMBER {
            true => self.visit_str(&number.to_string()),
            false => Err(E::invalid_type(de::Unexpected::Float(number), &self)),
        }
    }
}

macro_rules! words {
    ($($word:ty: $name:literal),* $(,)?) => {$(
        impl<'de> Deserialize<'de> for $word {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(WordVisitor(PhantomData))
            }
        }

        impl Serialize for $word {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        #[cfg(test)]
        impl schemars::JsonSchema for $word {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "title": $name })
            }
        }
    )*};
}

words! {
    Size: "size",
    Period: "duration",
    Timeout: "duration or never",
    BlockSizes: "sizes",
    VolumeCache: "directory and size",
    MetricsAddress: "address for metrics",
    TcpAddress: "TCP address",
    Cidr: "address or network",
}

#[cfg(target_os = "linux")]
words! {
    VsockAddress: "vsock address",
}
