//! What the Secret holds, and what can be read from certificates in PEM. No clock, no store.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// The DNS names of the serving certificate; the first is also its common name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub(crate) Vec<String>);

impl Names {
    /// Returns the name that the API server uses for a service, and those that clients in the
    /// cluster use.
    #[must_use]
    pub fn of_service(service: &str, namespace: &str) -> Self {
        Self(vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            format!("{service}.{namespace}"),
        ])
    }

    /// Returns the names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// How long certificates are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the CA.
    pub ca: Duration,
    /// Of the serving certificate; it never ends after its CA.
    pub leaf: Duration,
}

/// Everything that the Secret holds, in PEM; a missing part is empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Material {
    /// The caBundle: the CA that signs, then earlier ones whose certificates a replica may still
    /// serve.
    pub ca_bundle: String,
    /// Key of the CA that signs.
    pub ca_key: String,
    /// The serving certificate.
    pub leaf: String,
    /// Its key.
    pub leaf_key: String,
}

/// Leaves the keys out, because the text may be logged.
impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("ca_bundle", &self.ca_bundle)
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

/// Returns the parts of a bundle that look like certificates, one PEM text each.
pub(crate) fn authorities(bundle: &str) -> impl Iterator<Item = &str> {
    bundle
        .split_inclusive("-----END CERTIFICATE-----\n")
        .filter_map(|part| part.get(part.rfind("-----BEGIN CERTIFICATE-----")?..))
}

/// Returns the CAs of a bundle that have not expired, each once, in PEM; unreadable parts are left out.
pub(crate) fn living_authorities(bundle: &str, now: OffsetDateTime) -> Vec<String> {
    let mut living: Vec<String> = Vec::new();
    for part in authorities(bundle) {
        let lives = end_of_authority(part).is_some_and(|end| end > now);
        if lives && !living.iter().any(|other| other == part) {
            living.push(part.to_owned());
        }
    }
    living
}

/// Returns the first CA of the bundle, the one that signs.
pub(crate) fn signing_authority(bundle: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(bundle.as_bytes()).ok()
}

/// Returns when the first CA of the bundle expires.
pub(crate) fn end_of_authority(bundle: &str) -> Option<OffsetDateTime> {
    let der = signing_authority(bundle)?;
    Some(parse(&der)?.validity().not_after.to_datetime())
}

/// The part of a certificate that decides whether it can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// When it expires.
    pub(crate) ends: OffsetDateTime,
    /// The names that it covers.
    pub(crate) dns_names: Vec<String>,
}

/// Reads the first certificate of a chain; None if there is none.
pub(crate) fn summary(chain: &str) -> Option<Summary> {
    let der = signing_authority(chain)?;
    let cert = parse(&der)?;
    Some(Summary {
        ends: cert.validity().not_after.to_datetime(),
        dns_names: dns_names(&cert).into_iter().map(str::to_owned).collect(),
    })
}

pub(crate) fn dns_names<'a>(cert: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect()
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der)
        .ok()
        .map(|(_rest, cert)| cert)
}
