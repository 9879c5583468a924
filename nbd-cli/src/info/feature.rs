//! Questions with yes or no for an answer.

use core::str::FromStr;

use nbd_engine::proto::wire::TransmissionFlags as Flags;

use crate::exit::Failure;
use crate::target::Target;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    /// Whether the server lets us in.
    Connect,
    Read,
    Write,
    Tls,
    StructuredReply,
    ExtendedHeaders,
    Flag(Flags),
}

const NAMES: [(&str, Feature); 18] = [
    ("block-status-payload", Feature::Flag(Flags::BLOCK_STATUS_PAYLOAD)),
    ("cache", Feature::Flag(Flags::SEND_CACHE)),
    ("connect", Feature::Connect),
    ("df", Feature::Flag(Flags::SEND_DF)),
    ("extended-headers", Feature::ExtendedHeaders),
    ("fast-zero", Feature::Flag(Flags::SEND_FAST_ZERO)),
    ("flush", Feature::Flag(Flags::SEND_FLUSH)),
    ("fua", Feature::Flag(Flags::SEND_FUA)),
    ("multi-conn", Feature::Flag(Flags::CAN_MULTI_CONN)),
    ("read", Feature::Read),
    ("read-only", Feature::Flag(Flags::READ_ONLY)),
    ("resize", Feature::Flag(Flags::SEND_RESIZE)),
    ("rotational", Feature::Flag(Flags::ROTATIONAL)),
    ("structured-reply", Feature::StructuredReply),
    ("tls", Feature::Tls),
    ("trim", Feature::Flag(Flags::SEND_TRIM)),
    ("write", Feature::Write),
    ("zero", Feature::Flag(Flags::SEND_WRITE_ZEROES)),
];

/// The names of all.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|(name, _)| *name)
}

impl FromStr for Feature {
    type Err = String;

    /// In either case, with `-`, `_` or nothing between words, and `structured`, as nbdinfo takes them.
    fn from_str(text: &str) -> Result<Self, String> {
        let bare = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "");
        let wanted = match bare(text) {
            structured if structured == "structured" => "structuredreply".into(),
            wanted => wanted,
        };
        let known = NAMES.iter().find(|(name, _)| bare(name) == wanted);
        known.map(|(_, feature)| *feature).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            format!("'{text}' is not a feature; choose one of {names}")
        })
    }
}

impl Feature {
    /// Asks the server.
    pub(super) fn holds(self, target: &Target) -> Result<bool, Failure> {
        // There is no answer without the export, even if it does not depend on it.
        let client = target.connect(&target.config())?;
        let holds = match self {
            Self::Connect | Self::Read => true,
            Self::Write => !client.export().is_read_only(),
            Self::Tls => client.export().is_tls(),
            Self::StructuredReply => client.export().is_structured(),
            Self::ExtendedHeaders => client.export().is_extended(),
            Self::Flag(flag) => client.export().flags().contains(flag),
        };
        client.disconnect();
        Ok(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_case_and_either_dash() {
        let read_only = Ok(Feature::Flag(Flags::READ_ONLY));
        for text in ["read-only", "READ_ONLY", "Read-Only", "readonly"] {
            assert_eq!(text.parse(), read_only);
        }
        assert_eq!("structured".parse(), Ok(Feature::StructuredReply));
        assert_eq!("TLS".parse(), Ok(Feature::Tls));
    }

    #[test]
    fn an_unknown_feature_is_answered_with_the_known_ones() {
        let error = "writable".parse::<Feature>().unwrap_err();
        assert!(error.contains("'writable'") && error.contains("read-only, resize"), "{error}");
    }
}
