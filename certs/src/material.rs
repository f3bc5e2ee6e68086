//! What the Secret holds, and what certificates in PEM text say of themselves. No clock, no store.

use std::fmt;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// The names a certificate must cover, the first one also as its common name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub(crate) Vec<String>);

impl Names {
    /// What the API server calls a service by, and what people in the cluster do.
    #[must_use]
    pub fn of_service(service: &str, namespace: &str) -> Self {
        Self(vec![
            format!("{service}.{namespace}.svc"),
            format!("{service}.{namespace}.svc.cluster.local"),
            format!("{service}.{namespace}"),
        ])
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// How long certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of the certificate authority.
    pub ca: Duration,
    /// Of the serving certificate; never longer than what is left of the authority.
    pub leaf: Duration,
}

/// All that the Secret holds, as PEM text; a missing part is empty.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Material {
    /// Authorities to trust: the signing one first, then older ones whose leaves may still be
    /// served somewhere. The caBundle.
    pub ca_bundle: String,
    /// Key of the signing authority.
    pub ca_key: String,
    /// The serving certificate.
    pub leaf: String,
    /// Its key.
    pub leaf_key: String,
}

/// Without the keys: this may end up in a log.
impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("ca_bundle", &self.ca_bundle)
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

/// The parts of a bundle that look like certificates, one PEM text each.
pub fn authorities(bundle: &str) -> impl Iterator<Item = &str> {
    bundle
        .split_inclusive("-----END CERTIFICATE-----\n")
        .filter_map(|part| part.get(part.rfind("-----BEGIN CERTIFICATE-----")?..))
}

/// Every authority of a bundle that has not ended, once each, as PEM texts; what cannot be read is
/// left out.
#[must_use]
pub fn living_authorities(bundle: &str, now: OffsetDateTime) -> Vec<String> {
    let mut living: Vec<String> = Vec::new();
    for part in authorities(bundle) {
        let lives = end_of_authority(part).is_some_and(|end| end > now);
        if lives && !living.iter().any(|other| other == part) {
            living.push(part.to_owned());
        }
    }
    living
}

/// The bundle's first authority, the one that signs.
#[must_use]
pub fn signing_authority(bundle: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(bundle.as_bytes()).ok()
}

/// When the bundle's first authority ends.
#[must_use]
pub fn end_of_authority(bundle: &str) -> Option<OffsetDateTime> {
    let der = signing_authority(bundle)?;
    Some(parse(&der)?.validity().not_after.to_datetime())
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its end.
    pub ends: OffsetDateTime,
    /// The names that it covers.
    pub dns_names: Vec<String>,
}

/// What the chain's first certificate says of itself; None where there is none.
#[must_use]
pub fn summary(chain: &str) -> Option<Summary> {
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
