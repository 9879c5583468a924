//! What a server decides before the first byte.

use crate::Limits;

/// When a server offers TLS (section "Server-side requirements").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsMode {
    /// NOTLS: no TLS at all.
    #[default]
    Off,
    /// SELECTIVETLS: for clients that want it, and for exports that say so.
    Available,
    /// FORCEDTLS: nothing is done before TLS.
    Required,
}

/// How a server connection behaves. The defaults offer all that the core can do, and no TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Bounds on what the peer can make the connection hold. Default [`Limits::DEFAULT`].
    pub limits: Limits,
    /// Whether TLS is offered. Default [`TlsMode::Off`]. With anything but [`TlsMode::Off`] the embedder does the TLS
    /// handshake when [`Wants::Tls`](crate::Wants::Tls) asks for it.
    pub tls: TlsMode,
    /// Whether the 124 zero bytes after EXPORT_NAME may be left out. Default `true`.
    pub no_zeroes: bool,
    /// Whether structured replies, and with them metadata contexts, are offered. Default `true`.
    pub structured_replies: bool,
    /// Whether extended headers are offered. Default `true`.
    pub extended_headers: bool,
    /// Whether a write under extended headers is refused when it lacks `NBD_CMD_FLAG_PAYLOAD_LEN`, as the
    /// specification would have it. Default `false`: qemu 10 does not set the flag, yet sends the payload, so
    /// that to refuse its writes is to lose the stream.
    // S-EH-06
    pub require_payload_flag: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::DEFAULT,
            tls: TlsMode::Off,
            no_zeroes: true,
            structured_replies: true,
            extended_headers: true,
            require_payload_flag: false,
        }
    }
}
