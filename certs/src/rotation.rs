//! Whether what the Secret holds is good to serve, or what must be made anew. No clock, no store.

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::issue::{Material, Names};

/// What to do about the material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is good.
    Keep {
        /// End of the serving certificate.
        leaf_ends: OffsetDateTime,
        /// End of the signing authority.
        ca_ends: OffsetDateTime,
    },
    /// The authority is good, its leaf is not.
    IssueLeaf(Flaw),
    /// The authority cannot go on signing.
    RollCa(Flaw),
}

/// What is wrong with a certificate or its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Nothing there.
    #[error("there is none")]
    Missing,
    /// No certificate or no key in it.
    #[error("it cannot be read")]
    Unreadable,
    /// The key is another one's.
    #[error("the key does not fit")]
    WrongKey,
    /// It may not sign.
    #[error("it is no certificate authority")]
    NotAnAuthority,
    /// Signed by somebody else.
    #[error("the certificate authority did not sign it")]
    WrongSigner,
    /// The API server would refuse it under this name.
    #[error("it does not cover {0}")]
    NameMissing(String),
    /// It begins in the future.
    #[error("it is not valid yet")]
    NotYet,
    /// Past two thirds of its life.
    #[error("it is past two thirds of its life")]
    Old,
}

/// Judges the material.
#[must_use]
pub fn decide(held: &Material, names: &Names, now: OffsetDateTime) -> Decision {
    match check_authority(held, now) {
        Err(flaw) => Decision::RollCa(flaw),
        Ok(ca_ends) => match check_leaf(held, names, now) {
            Err(flaw) => Decision::IssueLeaf(flaw),
            Ok(leaf_ends) => Decision::Keep { leaf_ends, ca_ends },
        },
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

fn check_authority(held: &Material, now: OffsetDateTime) -> Result<OffsetDateTime, Flaw> {
    // the API server refuses a caBundle of which any part cannot be read
    let bundle = read_all(&held.ca_bundle)?;
    let authorities: Vec<_> = bundle
        .iter()
        .map(|der| parse(der).ok_or(Flaw::Unreadable))
        .collect::<Result<_, _>>()?;
    let signing = authorities.first().ok_or(Flaw::Missing)?;
    if !signing.is_ca() {
        return Err(Flaw::NotAnAuthority);
    }
    check_key(signing, &held.ca_key)?;
    check_age(signing, now)
}

fn check_leaf(held: &Material, names: &Names, now: OffsetDateTime) -> Result<OffsetDateTime, Flaw> {
    let chain = read_all(&held.leaf)?;
    let leaf = chain.first().and_then(parse).ok_or(Flaw::Unreadable)?;
    check_key(&leaf, &held.leaf_key)?;
    let bundle = read_all(&held.ca_bundle)?;
    let signing = bundle.first().and_then(parse).ok_or(Flaw::Unreadable)?;
    leaf.verify_signature(Some(signing.public_key()))
        .map_err(|_| Flaw::WrongSigner)?;
    let covered = dns_names(&leaf);
    if let Some(missing) = names.iter().find(|name| !covered.contains(name)) {
        return Err(Flaw::NameMissing(missing.to_owned()));
    }
    check_age(&leaf, now)
}

fn check_key(cert: &X509Certificate<'_>, key: &str) -> Result<(), Flaw> {
    if key.is_empty() {
        return Err(Flaw::Missing);
    }
    let key = KeyPair::from_pem(key).map_err(|_| Flaw::Unreadable)?;
    if key.der_bytes() == cert.public_key().subject_public_key.data.as_ref() {
        Ok(())
    } else {
        Err(Flaw::WrongKey)
    }
}

/// Two thirds of the certificate's own life, not of a flag's: replicas with different flags must
/// come to the same answer, else they would reissue in turns.
fn check_age(cert: &X509Certificate<'_>, now: OffsetDateTime) -> Result<OffsetDateTime, Flaw> {
    let validity = cert.validity();
    let (start, end) = (
        validity.not_before.to_datetime(),
        validity.not_after.to_datetime(),
    );
    if now < start {
        return Err(Flaw::NotYet);
    }
    if now >= start + (end - start) * 2 / 3 {
        return Err(Flaw::Old);
    }
    Ok(end)
}

fn dns_names<'a>(cert: &'a X509Certificate<'_>) -> Vec<&'a str> {
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

fn read_all(pem: &str) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    if pem.is_empty() {
        return Err(Flaw::Missing);
    }
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| Flaw::Unreadable)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der)
        .ok()
        .map(|(_rest, cert)| cert)
}

#[cfg(test)]
mod tests;
