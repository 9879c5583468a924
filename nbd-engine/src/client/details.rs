//! What a server tells of an export.

use nbd_proto::client::{ExportView, Info};
use nbd_proto::wire::{BlockSizeInfo, TransmissionFlags};

/// An export in the answer to a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The name to ask for it by; empty for the default export.
    pub name: String,
    /// A text for people; empty for none.
    pub description: String,
}

/// The handshake that a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handshake {
    /// One export, no options.
    Oldstyle,
    /// Options that can't be refused: only `NBD_OPT_EXPORT_NAME` is of use.
    Newstyle,
    /// What everybody speaks.
    FixedNewstyle,
}

/// What a server told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportDetails {
    /// The name it was asked for by; empty for the default export.
    pub name: String,
    /// The name that the server calls it by, if it told one.
    pub canonical_name: Option<String>,
    /// A text for people, if there is one.
    pub description: Option<String>,
    /// Bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// The size constraints as told, `None` if none were.
    pub block_size: Option<BlockSizeInfo>,
    /// The metadata contexts that are selected; none while haggling.
    pub contexts: Vec<String>,
}

impl ExportDetails {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            canonical_name: None,
            description: None,
            size: 0,
            flags: TransmissionFlags::empty(),
            block_size: None,
            contexts: Vec::new(),
        }
    }

    pub(super) fn entered(name: &str, export: &ExportView<'_>) -> Self {
        Self {
            name: name.into(),
            canonical_name: export.name.map(Into::into),
            description: export.description.map(Into::into),
            size: export.size,
            flags: export.flags,
            block_size: export.block_size_advertised.then(|| export.block_size.into()),
            contexts: export.contexts.iter().map(|context| context.name.clone()).collect(),
        }
    }

    pub(super) fn learn(&mut self, info: Info) {
        match info {
            Info::Export { size, flags } => (self.size, self.flags) = (size, flags),
            Info::Name(name) => self.canonical_name = Some(name),
            Info::Description(text) => self.description = Some(text),
            Info::BlockSize(sizes) => self.block_size = Some(sizes),
            _ => {}
        }
    }
}
