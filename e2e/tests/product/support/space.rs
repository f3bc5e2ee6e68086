//! A namespace per test: created at its start, deleted at its end, printed when the test fails.

use anyhow::Result;
use e2e::progress::say;
use e2e::{Cluster, install};

use super::kubectl_with;

/// A namespace of one test's own.
pub(crate) struct Space<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl<'a> Space<'a> {
    /// Runs a test in a namespace named after it.
    pub(crate) fn with(
        cluster: &'a Cluster,
        name: &str,
        test: impl FnOnce(&Space<'a>) -> Result<()>,
    ) -> Result<()> {
        Self::with_labels(cluster, name, &[], test)
    }

    /// The same with labels on the namespace.
    pub(crate) fn with_labels(
        cluster: &'a Cluster,
        name: &str,
        labels: &[&str],
        test: impl FnOnce(&Space<'a>) -> Result<()>,
    ) -> Result<()> {
        let space = Space {
            cluster,
            name: name.to_owned(),
        };
        cluster.kubectl_run(["create", "namespace", name])?;
        for label in labels {
            cluster.kubectl_run(["label", "namespace", name, label])?;
        }
        super::eventually("the namespace's default service account", || {
            space.kubectl(&["get", "serviceaccount", "default"])
        })?;
        let outcome = test(&space);
        if let Err(error) = &outcome {
            say(format_args!("the test in {name} failed: {error:#}"));
            install::picture(cluster, name);
            install::picture(cluster, install::NAMESPACE);
        }
        // in the background: the next test does not wait for the pods of this one
        cluster.kubectl_run(["delete", "namespace", name, "--wait=false"])?;
        outcome
    }

    /// kubectl in this namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster
            .kubectl_run([&["-n", self.name.as_str()], arguments].concat())
    }

    /// An object of this namespace.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        super::get(
            self.cluster,
            &[&["-n", self.name.as_str()], arguments].concat(),
        )
    }

    /// Creates an object; returns the output of kubectl, warnings included.
    pub(crate) fn create(&self, manifest: &serde_json::Value) -> Result<String> {
        let (fine, reply) = self.try_create(manifest, &[])?;
        anyhow::ensure!(fine, "kubectl create was refused: {reply}");
        Ok(reply)
    }

    /// Tries to create an object: whether it succeeded, and the output of kubectl.
    pub(crate) fn try_create(
        &self,
        manifest: &serde_json::Value,
        more: &[&str],
    ) -> Result<(bool, String)> {
        let arguments = [&["-n", self.name.as_str(), "create", "-f", "-"], more].concat();
        kubectl_with(self.cluster, &arguments, &manifest.to_string())
    }
}
