//! Decides whether what the Secret holds can be served, or what must be issued again. No clock, no
//! store.

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;

use crate::material::{Material, Names, dns_names, parse};

/// What to do about the material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Everything is valid.
    Keep {
        /// End of the serving certificate.
        leaf_ends: OffsetDateTime,
        /// End of the signing authority.
        ca_ends: OffsetDateTime,
    },
    /// The CA is valid, the serving certificate is not.
    IssueLeaf(Flaw),
    /// The CA can no longer sign.
    RollCa(Flaw),
}

/// What is wrong with a certificate or its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is empty.
    #[error("there is none")]
    Missing,
    /// It is not PEM text of a certificate or a key.
    #[error("it cannot be read")]
    Unreadable,
    /// The key belongs to another certificate.
    #[error("the key belongs to another certificate")]
    WrongKey,
    /// It may not sign.
    #[error("it is not a CA")]
    NotAnAuthority,
    /// Another CA signed it.
    #[error("another CA signed it")]
    WrongSigner,
    /// The API server would refuse it under this name.
    #[error("it does not cover {0}")]
    NameMissing(String),
    /// Its validity begins in the future.
    #[error("it is not valid yet")]
    NotYet,
    /// Two thirds of its validity are over.
    #[error("two thirds of its validity are over")]
    Old,
}

/// Returns what to do about the material.
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

fn check_authority(held: &Material, now: OffsetDateTime) -> Result<OffsetDateTime, Flaw> {
    // the API server refuses a caBundle if it cannot parse one part of it
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

/// Two thirds of the certificate's own validity, not of a flag's: replicas with different flags must
/// decide alike, otherwise they would issue in turns.
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

fn read_all(pem: &str) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    if pem.is_empty() {
        return Err(Flaw::Missing);
    }
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| Flaw::Unreadable)
}

#[cfg(test)]
mod tests;
