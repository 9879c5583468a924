//! What a client makes of the description that a server gives of an export.

use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::{BlockSizeInfo, ExportInfoReply, TransmissionFlags};
use crate::{BlockSize, ContextRefusal, InvalidBlockSize, SelectedContext};

/// An export that was entered, and what was agreed for it.
#[derive(Debug)]
pub(super) struct EnteredExport {
    pub(super) info: ExportInfoReply,
    /// `None` when the server sent none.
    pub(super) block_size: Option<BlockSize>,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) contexts: Vec<SelectedContext>,
    pub(super) contexts_refused: Option<ContextRefusal>,
    pub(super) agreed: Agreed,
    /// The embedder wants to disconnect already.
    pub(super) disconnect: bool,
}

/// What both sides agreed on during the handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreed {
    /// Both sides use fixed newstyle.
    pub(super) fixed: bool,
    pub(super) no_zeroes: bool,
    pub(super) tls: bool,
    pub(super) structured: bool,
    pub(super) extended: bool,
}

impl Agreed {
    /// What is left of it once TLS runs.
    // (C-TLS-26)
    pub(super) const fn within_tls(self) -> Self {
        let Self { fixed, no_zeroes, .. } = self;
        Self { fixed, no_zeroes, tls: true, structured: false, extended: false }
    }

    /// Whether replies come in chunks.
    pub(super) const fn chunked(self) -> bool {
        self.structured || self.extended
    }

    /// Transmission flags as far as they mean something: none without `HAS_FLAGS` but the prohibition to write, none
    /// that needs what was not negotiated. Unknown ones are kept, for embedders that print them.
    // (C-XF-12, C-XF-10)
    pub(super) fn flags(self, sent: TransmissionFlags) -> TransmissionFlags {
        use TransmissionFlags as Flags;
        if !sent.contains(Flags::HAS_FLAGS) {
            return sent & Flags::READ_ONLY;
        }
        let mut flags = sent;
        if !self.chunked() {
            flags.remove(Flags::SEND_DF);
        }
        if !self.extended {
            flags.remove(Flags::BLOCK_STATUS_PAYLOAD);
        }
        flags
    }
}

/// Size constraints as they will be obeyed. The minimum and the maximum payload are obligations: values
/// that make no sense can't be obeyed. The preferred size is a hint, and is corrected.
// (C-OPT-GO-25)
pub(super) fn block_size(info: &BlockSizeInfo) -> Result<BlockSize, InvalidBlockSize> {
    let &BlockSizeInfo { minimum, preferred, maximum_payload } = info;
    let floor = minimum.max(512);
    if maximum_payload < floor {
        // The minimum may be the one at fault: let it be named then.
        BlockSize::new(minimum, floor.checked_next_power_of_two().unwrap_or(floor), u32::MAX)?;
        return Err(InvalidBlockSize::MaximumPayload(maximum_payload));
    }
    let ceiling = 1 << maximum_payload.ilog2();
    let wanted = preferred.max(floor).checked_next_power_of_two().unwrap_or(ceiling);
    BlockSize::new(minimum, wanted.min(ceiling), maximum_payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_corrected_and_impossible_obligations_refused() {
        let sizes = |minimum, preferred, maximum_payload| {
            block_size(&BlockSizeInfo { minimum, preferred, maximum_payload })
        };
        assert_eq!(sizes(512, 4096, 1 << 25), BlockSize::new(512, 4096, 1 << 25));
        for (minimum, preferred, maximum, corrected) in [
            (1, 1, u32::MAX, 512),
            (4096, 512, 1 << 20, 4096),
            (1, 3000, 1 << 20, 4096),
            (1, 1 << 21, 1_000_000, 1 << 19),
            (1, u32::MAX, u32::MAX, 1 << 31),
            (1, 4096, 512, 512),
        ] {
            let sizes = sizes(minimum, preferred, maximum).unwrap();
            assert_eq!((sizes.minimum(), sizes.preferred()), (minimum, corrected));
            assert_eq!(sizes.maximum_payload(), maximum);
        }
        for (minimum, maximum) in [(0, 1 << 20), (3, 1 << 20), (1 << 17, 1 << 20), (1 << 17, 1)] {
            assert_eq!(sizes(minimum, 1 << 18, maximum), Err(InvalidBlockSize::Minimum(minimum)));
        }
        assert_eq!(sizes(1, 4096, 511), Err(InvalidBlockSize::MaximumPayload(511)));
        assert_eq!(sizes(4096, 4096, 512), Err(InvalidBlockSize::MaximumPayload(512)));
    }

    #[test]
    fn flags_without_has_flags_only_forbid() {
        let agreed = |structured, extended| Agreed { structured, extended, ..Agreed::default() };
        let all = TransmissionFlags::all();
        assert_eq!(agreed(true, true).flags(all), all);
        let without = all - TransmissionFlags::HAS_FLAGS;
        assert_eq!(agreed(true, true).flags(without), TransmissionFlags::READ_ONLY);
        let compact = all - TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        assert_eq!(agreed(true, false).flags(all), compact);
        assert_eq!(agreed(false, false).flags(all), compact - TransmissionFlags::SEND_DF);
    }
}
