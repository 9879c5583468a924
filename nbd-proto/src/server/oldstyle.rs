//! Oldstyle: no negotiation at all.

use super::{Config, Connection, TlsMode};
use crate::ExportInfo;

/// Why an export can't be served to oldstyle clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OldstyleUnfit {
    /// The connection or the export requires TLS, which oldstyle has no way to begin.
    #[error("oldstyle has no TLS, which is required")]
    TlsRequired,
    /// The export insists on its size constraints, which oldstyle can't express.
    #[error("oldstyle can't express the size constraints that the export insists on")]
    BlockSizeRequired,
}

impl Connection {
    /// A connection that was just accepted, on a listener for oldstyle clients (section "Oldstyle negotiation"): all
    /// there is of a handshake is the greeting, which describes this one export, and transmission has begun. There are
    /// simple replies only, no metadata contexts and no TLS.
    ///
    /// Not to be offered on a listener for newstyle clients.
    // S-HS-11
    ///
    /// # Errors
    /// When the export requires what oldstyle can't do.
    ///
    /// ```
    /// use nbd_proto::{ExportInfo, server::{Config, Connection}};
    /// let connection = Connection::oldstyle(Config::default(), &ExportInfo::new(1 << 20))?;
    /// assert!(connection.is_transmitting());
    /// # Ok::<(), nbd_proto::server::OldstyleUnfit>(())
    /// ```
    pub fn oldstyle(config: Config, export: &ExportInfo) -> Result<Self, OldstyleUnfit> {
        if config.tls == TlsMode::Required || export.tls_required {
            return Err(OldstyleUnfit::TlsRequired);
        }
        if export.block_size_required && export.block_size.minimum() > 1 {
            return Err(OldstyleUnfit::BlockSizeRequired);
        }
        Ok(Self::entered(config, export))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Event;
    use crate::wire::TransmissionFlags;
    use crate::{BlockSize, Command, Wants};

    fn unfit(config: Config, export: &ExportInfo) -> Option<OldstyleUnfit> {
        Connection::oldstyle(config, export).err()
    }

    #[test]
    fn the_greeting_is_magic_size_flags_and_padding_and_requests_follow() {
        let mut export = ExportInfo::new(1 << 20);
        export.flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_DF;
        let mut connection = Connection::oldstyle(Config::default(), &export).unwrap();
        let mut sent = alloc::vec::Vec::new();
        for segment in connection.segments() {
            let crate::Segment::Control(bytes) = segment else { panic!("{segment:?}") };
            sent.extend_from_slice(bytes);
        }
        let mut expected = b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53".to_vec();
        expected.extend_from_slice(&(1_u64 << 20).to_be_bytes());
        expected.extend_from_slice(&[0, 0, 0, 5]);
        expected.resize(152, 0);
        assert_eq!(sent, expected);
        assert_eq!(connection.transmitted(152).unwrap().count(), 0);

        assert_eq!(connection.next_event(&mut &[][..]), None);
        assert_eq!(connection.wants(), Wants::Bytes { at_least: 28 });
        let mut request = b"\x25\x60\x95\x13\0\0\0\0cookie!!".to_vec();
        request.extend_from_slice(&512_u64.to_be_bytes());
        request.extend_from_slice(&16_u32.to_be_bytes());
        let event = connection.next_event(&mut &request[..]);
        let Some(Event::Request { command, .. }) = event else { panic!("{event:?}") };
        assert_eq!(command, Command::read(512, 16));
    }

    #[test]
    fn what_oldstyle_cannot_do_is_refused() {
        let mut export = ExportInfo::new(1 << 20);
        let config = Config { tls: TlsMode::Required, ..Config::default() };
        assert_eq!(unfit(config, &export), Some(OldstyleUnfit::TlsRequired));
        let config = Config { tls: TlsMode::Available, ..Config::default() };
        assert_eq!(unfit(config, &export), None);

        export.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
        assert_eq!(unfit(Config::default(), &export), None);
        export.block_size_required = true;
        assert_eq!(unfit(Config::default(), &export), Some(OldstyleUnfit::BlockSizeRequired));
        export.block_size_required = false;
        export.tls_required = true;
        assert_eq!(unfit(Config::default(), &export), Some(OldstyleUnfit::TlsRequired));
    }
}
