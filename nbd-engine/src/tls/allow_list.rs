//! The list of clients that a server lets in.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::identity::identity;
use crate::export::TlsIdentity;
use crate::throttle::Throttle;

/// Patterns of names, and how many clients had none of them; without any call of [`add`](Self::add) every client is on the list.
#[derive(Debug, Default)]
pub(super) struct AllowList {
    patterns: RwLock<Option<Vec<String>>>,
    refusals: Throttle,
}

impl AllowList {
    pub(super) fn add(&self, patterns: impl Iterator<Item = String>) {
        let mut list = self.patterns.write().unwrap_or_else(PoisonError::into_inner);
        list.get_or_insert_default().extend(patterns);
    }

    pub(super) fn allows(&self, identity: &TlsIdentity) -> bool {
        let list = self.patterns.read().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().is_none_or(|patterns| identity.matches(patterns))
    }
}

impl AllowList {
    /// Whether the user of a pre-shared key is on the list.
    #[cfg(feature = "tls-psk")]
    pub(super) fn allows_user(&self, user: &str) -> bool {
        self.allows(&TlsIdentity { names: vec![user.to_owned()], certificates: Vec::new() })
    }

    /// Logs that a client with these names is not on the list, as a warning once a minute at most.
    pub(super) fn refused(&self, names: &[String]) {
        match self.refusals.count() {
            Some(times) => {
                tracing::warn!(?names, times, "a client has none of the names that are allowed");
            }
            None => tracing::debug!(?names, "a client has none of the names that are allowed"),
        }
    }

    /// Reports at the end what was counted and not logged yet.
    pub(super) fn report_rest(&self) {
        let times = self.refusals.unreported();
        if times > 0 {
            tracing::warn!(times, "further clients had none of the names that are allowed");
        }
    }
}

/// Verifies clients as another verifier does, and has those that are not on the list refused by the alert that is made
/// for it (`access_denied`), so that their users learn why.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) list: Arc<AllowList>,
}

impl ClientCertVerifier for Listed {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        let client = identity(core::slice::from_ref(end_entity));
        if self.list.allows(&client) {
            return Ok(verified);
        }
        self.list.refused(&client.names);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.verifier.requires_raw_public_keys()
    }
}
