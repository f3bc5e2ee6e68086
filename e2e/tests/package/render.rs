//! Renders manifests with the programs that users have.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::artifacts::go;
use e2e::{Minor, paths, process};
use serde::Deserialize;
use serde_json::Value;

const LIMIT: Duration = Duration::from_mins(1);

/// A directory with a `kustomization.yaml`, removed when the value is dropped. It is inside the checkout, because kustomize accepts
/// relative paths only.
struct Overlay(PathBuf);

impl Overlay {
    fn new(name: &str, text: &str) -> Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("target/package/{name}-{}-{number}", std::process::id());
        let path = paths::root().join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        let overlay = Self(path);
        let file = overlay.0.join("kustomization.yaml");
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(overlay)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The objects of a directory of `manifests`.
pub(crate) fn kustomize(directory: &str) -> Result<Vec<Value>> {
    build(&paths::manifests().join(directory))
}

/// The objects of a user's overlay. `MANIFESTS` in the text is the path of `manifests`.
pub(crate) fn overlay(name: &str, text: &str) -> Result<Vec<Value>> {
    let overlay = Overlay::new(name, &text.replace("MANIFESTS", "../../../manifests"))?;
    build(&overlay.0)
}

fn build(directory: &Path) -> Result<Vec<Value>> {
    let mut kubectl = process::command(go::kubernetes(Minor::default())?.join("kubectl"));
    objects(&process::run(
        kubectl.arg("kustomize").arg(directory),
        LIMIT,
    )?)
}

/// The objects of the chart with these values, as `helm template` takes them.
pub(crate) fn chart(namespace: &str, values: &str) -> Result<Vec<Value>> {
    let mut helm = process::command(go::release_tools()?.join("helm"));
    helm.args(["template", "any-name"])
        .arg(paths::manifests().join("chart"))
        .args(["--namespace", namespace, "--kube-version", "1.36.0"]);
    if !values.is_empty() {
        helm.args(["--set", values]);
    }
    objects(&process::run(&mut helm, LIMIT)?)
}

/// The objects of a stream of YAML documents.
pub(crate) fn objects(text: &str) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).context("read a YAML document"))
        .filter(|object| !matches!(object, Ok(Value::Null)))
        .collect()
}

/// The object of a kind with a name.
pub(crate) fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("no {kind} {name}"))
}
