//! Paths. Everything that the harness writes is below `target/e2e` of this workspace.

use std::path::{Path, PathBuf};

/// The workspace's folder.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Built programs and images; each folder name has a hash of the inputs.
#[must_use]
pub fn cache() -> PathBuf {
    root().join("target/e2e/cache")
}

/// One folder per cluster: logs, keys, kubeconfigs.
#[must_use]
pub fn clusters() -> PathBuf {
    root().join("target/e2e/clusters")
}

/// Where cargo builds the binaries that go into images: not the folder a running cargo has locked.
#[must_use]
pub fn image_target() -> PathBuf {
    root().join("target/images")
}

/// The Go modules and configuration files the cluster is made of.
#[must_use]
pub fn sources() -> PathBuf {
    root().join("e2e/cluster")
}

/// What a user applies.
#[must_use]
pub fn manifests() -> PathBuf {
    root().join("manifests")
}
