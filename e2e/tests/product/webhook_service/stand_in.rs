//! The webhook with other flags, and as it was afterwards.

use anyhow::Result;
use e2e::Cluster;

use super::{SECRET, kubectl, settled};

/// Lifetimes with which the authority is renewed about every six seconds, its leaf more often.
const SHORT: [&str; 3] = [
    "PORTMAPPING_CA_LIFETIME=9s",
    "PORTMAPPING_LEAF_LIFETIME=6s",
    "PORTMAPPING_CERT_PERIOD=500ms",
];
/// A look at the Secret every second, certificates as ever.
const QUICK: [&str; 1] = ["PORTMAPPING_CERT_PERIOD=1s"];
/// All of them unset.
const USUAL: [&str; 3] = [
    "PORTMAPPING_CA_LIFETIME-",
    "PORTMAPPING_LEAF_LIFETIME-",
    "PORTMAPPING_CERT_PERIOD-",
];

/// Puts the usual flags back when it is dropped, however the test ended.
pub(crate) struct ShortLived<'a> {
    cluster: &'a Cluster,
    ended: bool,
}

impl<'a> ShortLived<'a> {
    /// Certificates that live for seconds.
    pub(crate) fn start(cluster: &'a Cluster) -> Result<Self> {
        let this = Self::set(cluster, &SHORT)?;
        // what is in the Secret lives as long as it was made for
        kubectl(cluster, &["delete", "secret", SECRET])?;
        settled(cluster)?;
        Ok(this)
    }

    /// The usual certificates, looked after every second.
    pub(crate) fn quick(cluster: &'a Cluster) -> Result<Self> {
        Self::set(cluster, &QUICK)
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

    /// Puts the usual flags back.
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
