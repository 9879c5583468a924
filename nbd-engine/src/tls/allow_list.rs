//! The list of clients that a server lets in.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::identity::identity;
use crate::export::TlsIdentity;

/// Patterns of names; without any call of [`add`](Self::add) every client is on the list.
#[derive(Debug, Default)]
pub(super) struct AllowList(RwLock<Option<Vec<String>>>);

impl AllowList {
    pub(super) fn add(&self, patterns: impl Iterator<Item = String>) {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        list.get_or_insert_default().extend(patterns);
    }

    pub(super) fn allows(&self, identity: &TlsIdentity) -> bool {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        list.as_ref().is_none_or(|patterns| identity.matches(patterns))
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
        tracing::warn!(names = ?client.names, "a client has none of the names that are allowed");
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
