//! A registry on every node, with the product's images and its chart. containerd takes plain HTTP from 127.0.0.1 only.

pub(crate) mod buildah;
pub(crate) mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::artifacts::{go, image};
use e2e::{Cluster, paths, process};

use self::buildah::Buildah;
use self::servers::Servers;
use super::eventually;

/// Where each node finds its registry, and where the images are named.
const ADDRESS: &str = "127.0.0.1:5000";
const IMAGES: [&str; 2] = ["portmapping-webhook", "portmapping-enforcer"];
const HELM_LIMIT: Duration = Duration::from_mins(4);
/// The version of the chart.
const VERSION: &str = "0.0.0-test";

/// The registries; they end with this value.
pub(crate) struct Registry {
    _servers: Servers,
    /// What the registries store, and the chart; removed with the cluster.
    folder: PathBuf,
    /// The digests of webhook and enforcer.
    digests: [String; 2],
}

impl Registry {
    /// Starts a registry on every node, all on the same folder, and pushes the images and the chart into it.
    pub(crate) fn start(cluster: &Cluster) -> Result<Self> {
        // removed with the cluster
        let folder = cluster.logs()?.join("registry");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut registry = Self {
            _servers: Servers::on_nodes(cluster, &folder, ADDRESS)?,
            folder: folder.clone(),
            digests: Default::default(),
        };
        let node = &cluster.nodes()?[0];
        let archives = image::product()?;
        for (index, name) in IMAGES.iter().enumerate() {
            let archive = archives
                .iter()
                .find(|archive| archive.to_string_lossy().contains(name));
            let archive = archive.with_context(|| format!("no archive of {name}"))?;
            let push = || push(cluster, node, &folder, archive, name);
            registry.digests[index] = eventually("the registry to take an image", push)?;
        }
        registry.push_chart(cluster)?;
        Ok(registry)
    }

    /// Packs the chart as a release has it, and pushes it.
    fn push_chart(&self, cluster: &Cluster) -> Result<()> {
        let mut path = go::release_tools()?.into_os_string();
        path.push(":");
        path.push(process::search_path());
        let mut pack = process::command(paths::root().join("release/chart"));
        pack.env("PATH", path).args([ADDRESS, VERSION]);
        pack.args(&self.digests).arg(&self.folder);
        process::run(&mut pack, HELM_LIMIT)?;
        let file = self.folder.join(format!("portmapping-{VERSION}.tgz"));
        let to = format!("oci://{ADDRESS}/charts");
        self.helm(cluster, &["push", &file.to_string_lossy(), &to])?;
        Ok(())
    }

    /// `helm install` of the chart from the registry.
    pub(crate) fn helm_install(
        &self,
        cluster: &Cluster,
        release: &str,
        namespace: &str,
    ) -> Result<String> {
        let chart = format!("oci://{ADDRESS}/charts/portmapping");
        let words = ["install", release, &chart, "--version", VERSION];
        self.helm(cluster, &[&words[..], &["--namespace", namespace]].concat())
    }

    /// helm on a node, where the registry is.
    fn helm(&self, cluster: &Cluster, words: &[&str]) -> Result<String> {
        let program = go::release_tools()?.join("helm");
        let mut helm = cluster.command(&cluster.nodes()?[0], program)?;
        helm.env("HOME", &self.folder);
        process::run(helm.args(words).arg("--plain-http"), HELM_LIMIT)
    }

    /// The chart's values for these images.
    pub(crate) fn values(&self) -> String {
        let [webhook, enforcer] = &self.digests;
        format!(
            "images.registry={ADDRESS},images.webhook.digest={webhook},images.enforcer.digest={enforcer}"
        )
    }
}

/// Pushes an image from a node, and returns its digest.
fn push(cluster: &Cluster, node: &str, work: &Path, archive: &Path, name: &str) -> Result<String> {
    let buildah = Buildah::new(work)?;
    let transfer = |subcommand: &str, words: &[&str]| -> Result<String> {
        buildah.transfer(&mut cluster.command(node, "buildah")?, subcommand, words)
    };
    let from = format!("docker-archive:{}", archive.display());
    let id = transfer("pull", &[&from])?;
    let id = id.trim().lines().last().unwrap_or_default();
    let to = format!("docker://{ADDRESS}/{name}:dev");
    let digest = work.join("digest");
    let digest_file = digest.to_string_lossy();
    let flags = ["--tls-verify=false", "--digestfile", &digest_file];
    transfer("push", &[&flags[..], &[id, &to]].concat())?;
    let digest = fs::read_to_string(&digest).context("read the digest")?;
    Ok(digest.trim().to_owned())
}
