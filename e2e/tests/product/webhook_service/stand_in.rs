//! The webhook with other flags, restored afterwards.

use anyhow::Result;
use e2e::Cluster;

use super::{SECRET, kubectl, settled};

/// Lifetimes with which the authority is renewed about every six seconds, its leaf more often.
const SHORT: [&str; 3] = [
    "PORTMAPPING_CA_LIFETIME=9s",
    "PORTMAPPING_LEAF_LIFETIME=6s",
    "PORTMAPPING_CERT_PERIOD=500ms",
];
/// Reads the Secret every second; the usual certificates.
const QUICK: [&str; 1] = ["PORTMAPPING_CERT_PERIOD=1s"];
/// Longer than a test: only the watch finds damage.
const UNCHECKED: [&str; 1] = ["PORTMAPPING_CERT_PERIOD=3600s"];
/// All of them unset.
const USUAL: [&str; 3] = [
    "PORTMAPPING_CA_LIFETIME-",
    "PORTMAPPING_LEAF_LIFETIME-",
    "PORTMAPPING_CERT_PERIOD-",
];

/// Restores the usual flags when it is dropped, also after a failed test.
pub(crate) struct ShortLived<'a> {
    cluster: &'a Cluster,
    ended: bool,
}

impl<'a> ShortLived<'a> {
    /// Certificates that live for seconds.
    pub(crate) fn start(cluster: &'a Cluster) -> Result<Self> {
        let this = Self::set(cluster, &SHORT)?;
        // the certificate in the Secret keeps its lifetime, so it is replaced
        kubectl(cluster, &["delete", "secret", SECRET])?;
        settled(cluster)?;
        Ok(this)
    }

    /// The usual certificates, checked every second.
    pub(crate) fn quick(cluster: &'a Cluster) -> Result<Self> {
        Self::set(cluster, &QUICK)
    }

    /// The usual certificates; only the watch of the registration finds damage.
    pub(crate) fn unchecked(cluster: &'a Cluster) -> Result<Self> {
        Self::set(cluster, &UNCHECKED)
    }

    fn set(cluster: &'a Cluster, variables: &[&str]) -> Result<Self> {
        let this = Self {
            cluster,
            ended: false,
        };
        kubectl(
            cluster,
            &[&["set", "env", "deployment/webhook"], variables].concat(),
        )?;
        settled(cluster)?;
        Ok(this)
    }

    /// Restores the usual flags.
    pub(crate) fn end(mut self) -> Result<()> {
        self.ended = true;
        restore(self.cluster)
    }
}

fn restore(cluster: &Cluster) -> Result<()> {
    kubectl(
        cluster,
        &[&["set", "env", "deployment/webhook"], &USUAL[..]].concat(),
    )?;
    settled(cluster)
}

impl Drop for ShortLived<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = restore(self.cluster)
        {
            eprintln!("cannot put the webhook's usual flags back: {error:#}");
        }
    }
}
