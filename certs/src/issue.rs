//! Issues certificates from names, lifetimes and the time of day. No clock, no store.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;

use crate::material::{Lifetimes, Material, Names, end_of_authority, living_authorities};
use crate::rotation::Decision;

/// Certificates are valid from this long before they are issued, for API servers whose clock is behind.
const BACKDATE: Duration = Duration::from_mins(5);
/// Earlier CAs that stay in the bundle while they are valid.
const OLD_AUTHORITIES: usize = 2;

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Generating a key.
    #[error("cannot generate a key")]
    Key(#[source] rcgen::Error),
    /// The certificate of the CA.
    #[error("cannot create the CA")]
    Authority(#[source] rcgen::Error),
    /// The CA in the Secret cannot sign.
    #[error("cannot sign with the CA of the Secret")]
    Signer(#[source] rcgen::Error),
    /// The serving certificate.
    #[error("cannot create a certificate for {name}")]
    Leaf {
        /// The first name.
        name: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
    /// A lifetime that ends after the year 9999.
    #[error("a lifetime of {0:?} is too long; it must end before the year 10000")]
    Lifetime(Duration),
}

/// Issues what a decision asks for; None if nothing has to change.
pub fn renew(
    held: &Material,
    decision: &Decision,
    names: &Names,
    lifetimes: Lifetimes,
    now: OffsetDateTime,
) -> Result<Option<Material>, IssueError> {
    let authority = match decision {
        Decision::Keep { .. } => return Ok(None),
        Decision::IssueLeaf(_) => (held.ca_bundle.clone(), held.ca_key.clone()),
        Decision::RollCa(_) => {
            let (cert, key) = issue_authority(lifetimes.ca, now)?;
            let old = living_authorities(&held.ca_bundle, now);
            let bundle = std::iter::once(cert).chain(old.into_iter().take(OLD_AUTHORITIES));
            (bundle.collect(), key)
        }
    };
    let (ca_bundle, ca_key) = authority;
    let (leaf, leaf_key) = issue_leaf(&ca_bundle, &ca_key, names, lifetimes.leaf, now)?;
    Ok(Some(Material {
        ca_bundle,
        ca_key,
        leaf,
        leaf_key,
    }))
}

/// Creates a CA that may sign serving certificates only: (certificate, key).
fn issue_authority(
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<(String, String), IssueError> {
    let key = KeyPair::generate().map_err(IssueError::Key)?;
    let mut params = CertificateParams::default();
    // each CA has another name, so that old and new differ in a bundle
    params.distinguished_name =
        common_name(&format!("portmapping webhook CA {}", now.unix_timestamp()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(lifetime, now)?;
    let cert = params.self_signed(&key).map_err(IssueError::Authority)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// Creates a serving certificate, signed by the first CA of the bundle: (certificate, key).
fn issue_leaf(
    ca_bundle: &str,
    ca_key: &str,
    names: &Names,
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<(String, String), IssueError> {
    let ca_key = KeyPair::from_pem(ca_key).map_err(IssueError::Signer)?;
    let issuer = Issuer::from_ca_cert_pem(ca_bundle, ca_key).map_err(IssueError::Signer)?;
    let name = names.iter().next().unwrap_or_default().to_owned();
    let failed = |source| IssueError::Leaf {
        name: name.clone(),
        source,
    };

    let key = KeyPair::generate().map_err(IssueError::Key)?;
    let mut params = CertificateParams::new(names.0.clone()).map_err(failed)?;
    params.distinguished_name = common_name(&name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    // no longer than the CA, and backdated by a share of that: an old one at once would be renewed for ever
    let left = end_of_authority(ca_bundle).and_then(|end| Duration::try_from(end - now).ok());
    let lifetime = left.unwrap_or_default().min(lifetime);
    (params.not_before, params.not_after) = validity(lifetime, now)?;
    let cert = params.signed_by(&key, &issuer).map_err(failed)?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Returns begin and end. A short lifetime is backdated by a tenth at most, so that two thirds of the
/// validity are about two thirds of the lifetime.
fn validity(
    lifetime: Duration,
    now: OffsetDateTime,
) -> Result<(OffsetDateTime, OffsetDateTime), IssueError> {
    let too_long = || IssueError::Lifetime(lifetime);
    let life = time::Duration::try_from(lifetime).map_err(|_| too_long())?;
    let start = now - BACKDATE.min(lifetime / 10);
    Ok((start, now.checked_add(life).ok_or_else(too_long)?))
}

#[cfg(test)]
mod tests;
