//! Who the peer is, as its certificate says.

use core::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The names of a peer whose certificate was verified, or of the key that it shares with this side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsIdentity {
    /// Subject alternative names: host names, addresses, mail addresses and URIs, as text. For a shared key, its user.
    pub names: Vec<String>,
}

impl TlsIdentity {
    /// The names of a certificate. The subject's common name counts where there are no alternative names, as certtool
    /// and openssl make client certificates without any.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::default();
        };
        let mut names: Vec<String> = match certificate.subject_alternative_name() {
            Ok(Some(extension)) => extension.value.general_names.iter().filter_map(text).collect(),
            _ => Vec::new(),
        };
        if names.is_empty() {
            let common = certificate.subject().iter_common_name();
            names.extend(common.filter_map(|name| name.as_str().ok()).map(str::to_owned));
        }
        Self { names }
    }

    /// Whether any of the names matches any of the patterns, in which `*` stands for any number of characters.
    #[must_use]
    pub fn matches(&self, patterns: &[String]) -> bool {
        self.names.iter().any(|name| patterns.iter().any(|pattern| matches(pattern, name)))
    }
}

fn text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            Some((*text).to_owned())
        }
        GeneralName::IPAddress(bytes) => {
            let address = match bytes.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?),
                16 => IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?),
                _ => return None,
            };
            Some(address.to_string())
        }
        _ => None,
    }
}

/// Whether `name` matches `pattern`, without regard to ASCII case.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(start) => rest = &rest[start + middle.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("a.example", "a.example", true),
            ("A.example", "a.EXAMPLE", true),
            ("a.example", "b.a.example", false),
            ("a.example", "a.example.org", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", true),
            ("*.example", "example", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acd", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("spiffe://x/*", "spiffe://x/y", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
