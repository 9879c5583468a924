//! What went wrong between the two sides, in words that say what to do.

use core::net::IpAddr;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use x509_parser::time::ASN1Time;

/// Where the other side speaks no TLS at all.
pub(super) const NOT_TLS: &str =
    "what the peer sent is no TLS; it may be in the clear, or for another protocol";

/// Where there is no version in common.
pub(super) const NO_VERSION: &str =
    "the peer has neither TLS 1.2 nor TLS 1.3, and older versions are refused";

/// Where there is no cipher in common.
pub(super) const NO_CIPHER: &str = "the two sides have no cipher suite in common; one of them may expect a certificate \
                                    and the other one a pre-shared key";

/// What an alert of the peer means, with the name that the specification has for it.
pub(super) fn alert(alert: AlertDescription) -> String {
    let (name, meaning) = match alert {
        AlertDescription::UnexpectedMessage => {
            ("unexpected_message", "the peer expected something else at this time")
        }
        AlertDescription::BadRecordMac => {
            ("bad_record_mac", "the peer can't decrypt what this side sent")
        }
        AlertDescription::HandshakeFailure => {
            let name = "handshake_failure";
            return format!(
                "the peer refused the handshake: {NO_CIPHER}, or the peer demands a certificate (alert {name})"
            );
        }
        AlertDescription::BadCertificate => {
            let text = "the peer refuses this side's certificate as damaged or forged, or as one for another name than \
                        that by which the peer reached this side";
            ("bad_certificate", text)
        }
        AlertDescription::UnsupportedCertificate => (
            "unsupported_certificate",
            "this side's certificate is of a kind, or for a use, that the peer does not accept",
        ),
        AlertDescription::CertificateRevoked => {
            ("certificate_revoked", "this side's certificate is revoked; get another one")
        }
        AlertDescription::CertificateExpired => (
            "certificate_expired",
            "the peer finds that this side's certificate has expired; renew it, or correct the peer's clock",
        ),
        AlertDescription::CertificateUnknown => (
            "certificate_unknown",
            "the peer refuses this side's certificate, and does not say why",
        ),
        AlertDescription::UnknownCA => (
            "unknown_ca",
            "the peer does not trust the authority that issued this side's certificate; both sides need the same \
             authority, or both a pre-shared key",
        ),
        AlertDescription::AccessDenied => (
            "access_denied",
            "the peer's list of those that it allows has no name of this side's certificate",
        ),
        AlertDescription::NoCertificate | AlertDescription::CertificateRequired => (
            "certificate_required",
            "the peer wants a certificate of this side; a client has it in client-cert.pem and client-key.pem",
        ),
        AlertDescription::IllegalParameter => {
            ("illegal_parameter", "the peer refuses what this side sent as contradictory")
        }
        AlertDescription::DecodeError => {
            ("decode_error", "the peer can't parse what this side sent")
        }
        AlertDescription::RecordOverflow => {
            ("record_overflow", "this side sent a record that is too long for the peer")
        }
        AlertDescription::DecryptError => {
            ("decrypt_error", "the peer found a signature or a key of this side to be wrong")
        }
        AlertDescription::ProtocolVersion => {
            let name = "protocol_version";
            return format!("{NO_VERSION} (alert {name})");
        }
        AlertDescription::InsufficientSecurity => {
            ("insufficient_security", "the peer demands stronger ciphers than this side has")
        }
        AlertDescription::UnrecognisedName => (
            "unrecognized_name",
            "the peer has no certificate for the name by which it was reached; say which name to expect (--tls-hostname NAME, \
             or tls-hostname=NAME in the URI)",
        ),
        AlertDescription::UnknownPSKIdentity => {
            ("unknown_psk_identity", "the peer has no pre-shared key of that user")
        }
        AlertDescription::InternalError => {
            ("internal_error", "the peer failed for a reason of its own; its log may say more")
        }
        AlertDescription::UserCanceled => ("user_canceled", "the peer gave the handshake up"),
        AlertDescription::NoRenegotiation => {
            ("no_renegotiation", "the peer does not agree to another handshake")
        }
        other => return format!("the peer ended TLS with the alert {other:?}"),
    };
    format!("{meaning} (alert {name})")
}

/// An error of rustls. `handshaking` says that the handshake had not finished.
pub(super) fn of_rustls(error: &Error, handshaking: bool) -> io::Error {
    let text = match error {
        Error::AlertReceived(description) => alert(*description),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) if handshaking => format!("{NOT_TLS} ({error})"),
        Error::PeerIncompatible(reason) => match reason {
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon => {
                format!("{NO_CIPHER} ({reason:?})")
            }
            // What a client of TLS 1.1 looks like, and one that has ciphers with pre-shared keys alone.
            PeerIncompatible::SignatureAlgorithmsExtensionRequired => {
                format!("{NO_VERSION}, or it expects a pre-shared key ({reason:?})")
            }
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled => format!("{NO_VERSION} ({reason:?})"),
            _ => error.to_string(),
        },
        Error::NoCertificatesPresented => {
            "the peer showed no certificate, and has to; a client has it in client-cert.pem and client-key.pem".into()
        }
        Error::InvalidCertificate(reason) => {
            let remedy = remedy(reason).map(|text| format!("; {text}")).unwrap_or_default();
            format!("{}{remedy}", certificate(reason))
        }
        _ => error.to_string(),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// What is wrong with a peer's certificate.
fn certificate(reason: &CertificateError) -> String {
    let text = match reason {
        CertificateError::UnknownIssuer => {
            "the peer's certificate was issued by an authority that is not trusted here"
        }
        CertificateError::BadSignature => {
            "the peer's certificate has a signature that its authority did not make"
        }
        CertificateError::BadEncoding => "the peer's certificate is malformed",
        CertificateError::Expired => "the peer's certificate has expired",
        CertificateError::ExpiredContext { not_after, .. } => {
            return format!("the peer's certificate expired at {}", date(*not_after));
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            return format!("the peer's certificate is not valid before {}", date(*not_before));
        }
        CertificateError::NotValidYet => "the peer's certificate is not valid yet",
        CertificateError::Revoked => "the peer's certificate was revoked",
        CertificateError::UnhandledCriticalExtension => {
            "the peer's certificate has a critical extension that is unknown here"
        }
        CertificateError::NotValidForName => "the peer's certificate is for another name",
        CertificateError::InvalidPurpose => {
            "the peer's certificate is for another purpose: its extended key usage does not allow this one"
        }
        CertificateError::ApplicationVerificationFailure => "the peer's certificate is refused",
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| plain(name)).collect();
            let expected = expected.to_str();
            return match names.is_empty() {
                true => format!(
                    "the peer's certificate has no subject alternative name, so that it is not for {expected}; its common \
                     name does not count"
                ),
                false => format!(
                    "the peer's certificate is for {}, not for {expected}",
                    names.join(", ")
                ),
            };
        }
        CertificateError::Other(other) if other.0.to_string() == OLD_VERSION => {
            "the peer's certificate is of X.509 version 1, which is refused here"
        }
        CertificateError::Other(other) => {
            return format!("the peer's certificate is refused here: {}", other.0);
        }
        _ => return Error::InvalidCertificate(reason.clone()).to_string(),
    };
    text.into()
}

/// A time as people write it, in the form that a certificate in a file is reported with.
fn date(time: UnixTime) -> String {
    let seconds = time.as_secs();
    let date =
        i64::try_from(seconds).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    date.map_or_else(|| format!("{seconds} seconds after 1970"), |date| date.to_string())
}

/// What the library calls a certificate of an older version than 3.
const OLD_VERSION: &str = "UnsupportedCertVersion";

/// A name as people write it, of one such as `DnsName("localhost")`.
fn plain(name: &str) -> String {
    let inner = ["DnsName(", "IpAddress("].iter().find_map(|kind| name.strip_prefix(kind));
    let inner = inner.and_then(|rest| rest.strip_suffix(')'));
    let inner = inner.map_or(name, |inner| inner.trim_matches('"'));
    // The library does not shorten addresses.
    inner.parse().map_or_else(|_| inner.to_owned(), |address: IpAddr| address.to_string())
}

const NAMED_ANEW: &str = "the peer needs one that has its names as subject alternative names, as nbd cert makes it, or \
                          openssl x509 -req with -extfile";

/// What to do about a peer's certificate.
fn remedy(reason: &CertificateError) -> Option<&'static str> {
    match reason {
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            Some(NAMED_ANEW)
        }
        CertificateError::Other(other) if other.0.to_string() == OLD_VERSION => Some(NAMED_ANEW),
        // The latter for another authority of the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(
            "name a folder (tls-certificates) whose ca-cert.pem is that of the authority that issued it",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Some(
                "reach the peer by a name that its certificate has, or say which name to expect (--tls-hostname NAME, or \
                 tls-hostname=NAME in the URI)",
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some("the peer has to renew its certificate, unless this machine's clock is wrong")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Some("this machine's clock may be late, or that of the one who issued it early")
        }
        CertificateError::ApplicationVerificationFailure => {
            Some("none of the names in the client's certificate is allowed")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_has_words() {
        let expected = rustls::pki_types::ServerName::try_from("disks.example").unwrap();
        let presented = vec!["DnsName(\"localhost\")".into(), "IpAddress(127.0.0.1)".into()];
        let for_others = CertificateError::NotValidForNameContext { expected, presented };
        let text = of_rustls(&Error::InvalidCertificate(for_others), true).to_string();
        let names = "the peer's certificate is for localhost, 127.0.0.1, not for disks.example; ";
        assert!(text.starts_with(names), "{text}");
        for reason in [
            CertificateError::UnknownIssuer,
            CertificateError::BadSignature,
            CertificateError::BadEncoding,
            CertificateError::Expired,
            CertificateError::NotValidYet,
            CertificateError::Revoked,
            CertificateError::UnhandledCriticalExtension,
            CertificateError::NotValidForName,
            CertificateError::InvalidPurpose,
            CertificateError::ApplicationVerificationFailure,
        ] {
            let text = of_rustls(&Error::InvalidCertificate(reason.clone()), true).to_string();
            assert!(text.starts_with("the peer's certificate "), "{text}");
            assert!(!text.contains(&format!("{reason:?}")), "{text}");
        }
    }

    /// The common name of a certificate that has no other names helps nobody who asks for it.
    #[test]
    fn a_certificate_without_alternative_names_is_said_to_have_none() {
        let expected = rustls::pki_types::ServerName::try_from("disks.example").unwrap();
        let nameless = CertificateError::NotValidForNameContext { expected, presented: Vec::new() };
        let text = of_rustls(&Error::InvalidCertificate(nameless), true).to_string();
        assert!(
            text.contains("has no subject alternative name") && text.contains("nbd cert"),
            "{text}"
        );
        assert!(!text.contains("--tls-hostname"), "{text}");
        assert_eq!(plain("IpAddress(0::1)"), "::1");
        assert_eq!(plain("DnsName(\"a.example\")"), "a.example");
    }

    /// As `openssl x509 -req` makes it without an extension.
    #[test]
    fn a_certificate_of_an_old_version_is_refused_in_words() {
        use rustls::client::WebPkiServerVerifier;
        use rustls::client::danger::ServerCertVerifier;
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;

        let both = CertificateDer::pem_slice_iter(include_bytes!("version_1.pem"));
        let both: Vec<_> = both.collect::<Result<_, _>>().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(both[0].clone()).unwrap();
        let provider = super::super::provider();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let name = rustls::pki_types::ServerName::try_from("disks.example").unwrap();
        let now = UnixTime::now();
        let error = verifier.verify_server_cert(&both[1], &[], &name, &[], now).unwrap_err();
        let text = of_rustls(&error, true).to_string();
        assert!(text.contains("is of X.509 version 1") && text.contains("nbd cert"), "{text}");
        assert!(!super::super::identity::has_alternative_names(&both[1]));
    }

    /// In words that say when, whatever the time.
    #[test]
    fn times_of_a_certificate_are_dates() {
        nbd_testkit::cases(200, |random| {
            let seconds = random.below(1 << 34);
            let [then, now] = [seconds, seconds + 1]
                .map(|seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)));
            let expired = CertificateError::ExpiredContext { time: now, not_after: then };
            let early = CertificateError::NotValidYetContext { time: then, not_before: now };
            for (reason, at) in [(expired, seconds), (early, seconds + 1)] {
                let text = of_rustls(&Error::InvalidCertificate(reason), true).to_string();
                let year = 1970 + at / 31_556_952;
                let years = [year - 1, year, year + 1].map(|year| format!(" {year} "));
                assert!(years.iter().any(|year| text.contains(&**year)), "{text}");
                assert!(!text.contains(&at.to_string()) || at < 10_000, "{text}");
            }
        });
    }

    /// Each says something of its own, in one line that has no full stop, with the name by which others know the alert.
    #[test]
    fn every_alert_has_words() {
        let mut texts: Vec<String> =
            (0..=255).map(|code| alert(AlertDescription::from(code))).collect();
        for text in &texts {
            assert!(text.starts_with("the ") || text.starts_with("this "), "{text}");
            assert!(
                text.contains("alert ") && !text.contains('\n') && !text.ends_with('.'),
                "{text}"
            );
        }
        texts.sort();
        texts.dedup();
        // One name is that of an old version for the same.
        assert_eq!(texts.len(), 255);
        assert!(alert(AlertDescription::UnknownCA).contains("alert unknown_ca"));
    }
}
