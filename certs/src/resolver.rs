//! The certificate of the next TLS handshake. Replacing it does not affect open connections.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Serves the latest certificate, and none before the first.
#[derive(Debug, Default)]
pub struct Resolver {
    current: ArcSwapOption<CertifiedKey>,
}

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The chain is not PEM text of certificates.
    #[error("cannot read the serving certificate")]
    Certificate(#[source] pem::Error),
    /// The key is not PEM text of a key.
    #[error("cannot read the serving certificate's key")]
    Key(#[source] pem::Error),
    /// rustls refuses the pair.
    #[error("cannot serve the certificate with its key")]
    Pair(#[source] rustls::Error),
    /// The program did not install a provider for rustls.
    #[error("no cryptography provider is installed")]
    NoProvider,
}

impl Resolver {
    /// Serves this chain from the next handshake on. After an error the old one stays in use.
    pub fn install(&self, chain: &str, key: &str) -> Result<(), ResolverError> {
        let provider = CryptoProvider::get_default().ok_or(ResolverError::NoProvider)?;
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(ResolverError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(ResolverError::Key)?;
        let pair = CertifiedKey::from_der(chain, key, provider).map_err(ResolverError::Pair)?;
        self.current.store(Some(Arc::new(pair)));
        Ok(())
    }

    /// Returns the certificate of the next handshake.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

#[cfg(test)]
mod tests;
