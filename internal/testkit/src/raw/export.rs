//! INFO, GO and `EXPORT_NAME`, and what they tell about an export.

use super::client::{Mode, RawClient};
use super::codes::{Info, Opt, Rep, flag, handshake};
use super::options::{OptionError, OptionReply};

/// Size constraints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Unit of all offsets and lengths.
    pub minimum: u32,
    /// Unit of efficient requests.
    pub preferred: u32,
    /// Longest payload.
    pub maximum: u32,
}

/// What is known of an export; comparing two means comparing sets of information (S-OPT-GO-06).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Canonical name.
    pub name: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// Size constraints.
    pub block_size: Option<BlockSize>,
    /// Types of information that the protocol text does not know, sorted.
    pub unknown: Vec<Info>,
}

/// The data of INFO and GO.
pub fn info_data(name: impl AsRef<[u8]>, requests: &[Info]) -> Vec<u8> {
    let name = name.as_ref();
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name);
    data.extend_from_slice(&(requests.len() as u16).to_be_bytes());
    for request in requests {
        data.extend_from_slice(&request.0.to_be_bytes());
    }
    data
}

impl RawClient {
    /// INFO.
    #[track_caller]
    pub fn info(
        &mut self,
        name: impl AsRef<[u8]>,
        requests: &[Info],
    ) -> Result<ExportInfo, OptionError> {
        let replies = self.option(Opt::INFO, &info_data(name, requests))?;
        Ok(self.parse_infos(&replies))
    }

    /// GO: on success the connection is in transmission.
    #[track_caller]
    pub fn go(
        &mut self,
        name: impl AsRef<[u8]>,
        requests: &[Info],
    ) -> Result<ExportInfo, OptionError> {
        let replies = self.option(Opt::GO, &info_data(&name, requests))?;
        let info = self.parse_infos(&replies);
        self.enter(name.as_ref(), info.clone());
        Ok(info)
    }

    /// Receives the replies to a GO that was sent by other means, and enters transmission.
    #[track_caller]
    pub fn read_go_replies(&mut self, name: impl AsRef<[u8]>) -> Result<ExportInfo, OptionError> {
        let replies = self.read_option_replies(Opt::GO)?;
        let info = self.parse_infos(&replies);
        self.enter(name.as_ref(), info.clone());
        Ok(info)
    }

    /// `EXPORT_NAME` that must succeed: 10 bytes, and 124 zero ones unless that was agreed away
    /// (S-HS-06, S-HS-07, S-OPT-EN-01).
    #[track_caller]
    pub fn export_name(&mut self, name: impl AsRef<[u8]>) -> ExportInfo {
        self.send_option(Opt::EXPORT_NAME, name.as_ref());
        let size = self.wire.u64("EXPORT_NAME reply");
        let flags = self.wire.u16("EXPORT_NAME reply");
        self.check_flags(flags);
        if self.agreed & handshake::NO_ZEROES == 0 {
            let padding = self.wire.recv(124, "S-HS-07: padding of EXPORT_NAME");
            assert_eq!(padding, [0; 124], "S-HS-07: the padding is zero");
        }
        let info = ExportInfo { size, flags, ..ExportInfo::default() };
        self.enter(name.as_ref(), info.clone());
        info
    }

    fn enter(&mut self, name: &[u8], info: ExportInfo) {
        self.export = Some(info);
        // A selection made for another export is void (S-OPT-SM-08).
        self.selection.take_if(|(selected_for, _)| selected_for != name);
    }

    /// Checks the replies of a successful INFO or GO (S-OPT-GO-02, -12, -13).
    #[track_caller]
    fn parse_infos(&mut self, replies: &[OptionReply]) -> ExportInfo {
        let mut info = ExportInfo::default();
        let mut seen = Vec::new();
        for reply in replies {
            assert_eq!(reply.kind, Rep::INFO, "reply to INFO or GO");
            let (kind, data) = reply.data.split_first_chunk().expect("INFO carries a type");
            let kind = Info(u16::from_be_bytes(*kind));
            if seen.contains(&kind) {
                self.remark(format!("S-OPT-GO-13: {kind:?} came twice"));
            }
            seen.push(kind);
            match kind {
                Info::EXPORT => {
                    let (size, flags) = data.split_at_checked(8).expect("S-OPT-GO-02: length");
                    info.size = u64::from_be_bytes(size.try_into().expect("eight bytes"));
                    let flags = flags.try_into().expect("S-OPT-GO-02: INFO_EXPORT has 12 bytes");
                    info.flags = u16::from_be_bytes(flags);
                }
                Info::NAME => info.name = Some(self.string(data, "INFO_NAME")),
                Info::DESCRIPTION => {
                    info.description = Some(self.string(data, "INFO_DESCRIPTION"));
                }
                Info::BLOCK_SIZE => info.block_size = Some(parse_block_size(data)),
                other => info.unknown.push(other),
            }
        }
        assert!(seen.contains(&Info::EXPORT), "S-OPT-GO-02: no INFO_EXPORT before ACK");
        info.unknown.sort_unstable();
        self.check_flags(info.flags);
        self.check_sizes(&info);
        info
    }

    /// Checks that no flag is set that must not be (S-XF-01 to S-XF-04, S-XF-07).
    #[track_caller]
    fn check_flags(&mut self, flags: u16) {
        let set = |bit: u16| flags & bit != 0;
        assert!(set(flag::HAS_FLAGS), "S-XF-01: HAS_FLAGS is clear in {flags:#06x}");
        assert_eq!(flags & !flag::DEFINED, 0, "S-XF-02: undefined bits in {flags:#06x}");
        assert!(
            !set(flag::SEND_DF) || self.mode != Mode::Simple,
            "S-XF-03: SEND_DF without structured replies in {flags:#06x}"
        );
        assert!(
            !set(flag::SEND_FAST_ZERO) || set(flag::SEND_WRITE_ZEROES),
            "S-XF-04: SEND_FAST_ZERO without SEND_WRITE_ZEROES in {flags:#06x}"
        );
        assert!(
            !set(flag::BLOCK_STATUS_PAYLOAD) || self.mode == Mode::Extended,
            "S-XF-07: BLOCK_STATUS_PAYLOAD without extended headers in {flags:#06x}"
        );
        let selected = self.selection.as_ref().is_some_and(|(_, contexts)| !contexts.is_empty());
        if set(flag::BLOCK_STATUS_PAYLOAD) && !selected {
            self.remark("S-XF-07: BLOCK_STATUS_PAYLOAD without a selected context");
        }
    }

    /// Remarks on sizes that do not fit each other (S-SZ-04, S-SZ-05).
    fn check_sizes(&mut self, info: &ExportInfo) {
        let Some(sizes) = info.block_size else { return };
        if u64::from(sizes.maximum) < info.size.min(1 << 20) {
            self.remark(format!("S-SZ-04: maximum payload of {sizes:?} is below 1 MiB"));
        }
        if !info.size.is_multiple_of(sizes.minimum.into()) {
            self.remark(format!("S-SZ-05: size {} is no multiple of {sizes:?}", info.size));
        }
    }
}

/// Reads and checks size constraints (S-OPT-GO-12, S-SZ-01 to S-SZ-03).
#[track_caller]
fn parse_block_size(data: &[u8]) -> BlockSize {
    assert_eq!(data.len(), 12, "S-OPT-GO-12: INFO_BLOCK_SIZE has 14 bytes");
    let field = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().expect("four bytes"));
    let sizes = BlockSize { minimum: field(0), preferred: field(4), maximum: field(8) };
    let BlockSize { minimum, preferred, maximum } = sizes;
    assert!(minimum.is_power_of_two() && minimum <= 65536, "S-SZ-01: minimum of {sizes:?}");
    assert!(
        preferred.is_power_of_two() && preferred >= minimum.max(512),
        "S-SZ-02: preferred size of {sizes:?}"
    );
    assert!(maximum >= preferred, "S-SZ-03: maximum payload of {sizes:?}");
    sizes
}
