//! What is reported, whatever the format.

use nbd_blocking::client::{ExportDetails, Handshake};
use nbd_engine::proto::wire::TransmissionFlags as Flags;

use super::contents::Contents;

/// A server and the exports that were looked at.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) handshake: Handshake,
    pub(crate) tls: bool,
    pub(crate) structured: bool,
    pub(crate) extended: bool,
    pub(crate) exports: Vec<Described>,
}

/// An export.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) details: ExportDetails,
    /// A text for people: what the server says of the export, or else in its list.
    pub(crate) description: Option<String>,
    /// In bytes.
    pub(crate) size: u64,
    /// None when it means nothing to others.
    pub(crate) uri: Option<String>,
    pub(crate) contexts: Vec<String>,
    /// What it seems to contain, by file(1); none if nobody asked.
    pub(crate) content: Option<String>,
    /// What it contains, by what we know; none if nobody asked, or if it is nothing known.
    pub(crate) contents: Option<Contents>,
}

impl Described {
    /// What the server calls it: the default export has a name, too, on most servers.
    pub(super) fn name(&self) -> &str {
        self.details.canonical_name().unwrap_or(self.details.name())
    }
}

impl Report {
    /// The handshake, as nbdinfo calls it.
    pub(super) fn protocol(&self) -> &'static str {
        match self.handshake {
            Handshake::Oldstyle => "oldstyle",
            Handshake::Newstyle => "newstyle",
            _ => "newstyle-fixed",
        }
    }

    /// The replies, as nbdinfo calls them.
    pub(super) fn packets(&self) -> &'static str {
        match (self.extended, self.structured) {
            (true, _) => "extended",
            (false, true) => "structured",
            (false, false) => "simple",
        }
    }
}

impl Described {
    /// What the export is and can do, in nbdinfo's order and by its names.
    pub(super) fn booleans(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        let named = [
            ("is_rotational", Flags::ROTATIONAL),
            ("is_read_only", Flags::READ_ONLY),
            ("can_block_status_payload", Flags::BLOCK_STATUS_PAYLOAD),
            ("can_cache", Flags::SEND_CACHE),
            ("can_df", Flags::SEND_DF),
            ("can_fast_zero", Flags::SEND_FAST_ZERO),
            ("can_flush", Flags::SEND_FLUSH),
            ("can_fua", Flags::SEND_FUA),
            ("can_multi_conn", Flags::CAN_MULTI_CONN),
            ("can_trim", Flags::SEND_TRIM),
            ("can_zero", Flags::SEND_WRITE_ZEROES),
        ];
        named.into_iter().map(|(name, flag)| (name, self.details.flags().contains(flag)))
    }

    /// The size constraints, if the server sent any.
    pub(super) fn block_sizes(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.details.advertised_block_size().into_iter().flat_map(|sizes| {
            [
                ("block_size_minimum", sizes.minimum),
                ("block_size_preferred", sizes.preferred),
                ("block_size_maximum", sizes.maximum_payload),
            ]
        })
    }

    /// The size in the largest unit that it is a multiple of.
    pub(super) fn short_size(&self) -> String {
        short_size(self.size)
    }
}

fn short_size(size: u64) -> String {
    let units = if size == 0 { 0 } else { (size.trailing_zeros() / 10).min(6) };
    let suffix = ["", "K", "M", "G", "T", "P", "E"][units as usize];
    format!("{}{suffix}", size >> (10 * units))
}

#[cfg(test)]
mod tests {
    use super::short_size;

    #[test]
    fn short_sizes_are_exact() {
        for (size, text) in [
            (0, "0"),
            (1000, "1000"),
            (1024, "1K"),
            (1536, "1536"),
            (64 << 20, "64M"),
            (2_125_119_488, "2075312K"),
            (1 << 30, "1G"),
            (6 << 60, "6E"),
        ] {
            assert_eq!(short_size(size), text);
        }
    }
}
