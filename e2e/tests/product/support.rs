//! The cluster under test, and what every test does with it.

pub(crate) mod audit;
pub(crate) mod caller;
pub(crate) mod emulated;
pub(crate) mod load;
pub(crate) mod outside;
pub(crate) mod parts;
pub(crate) mod pods;
pub(crate) mod registry;
pub(crate) mod release;
pub(crate) mod space;
pub(crate) mod streams;

use std::collections::BTreeMap;
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::artifacts::image;
use e2e::wait::{Probe, until};
use e2e::{Cluster, Config, install};
use serde_json::Value;

pub(crate) const ANNOTATION: &str = "tkestack.io/portmapping";
pub(crate) const MARK: &str = "tkestack.io/portmapping-request";
/// How long any expected change may take on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(3);
/// Between two polls.
pub(crate) const POLL: Duration = Duration::from_millis(100);

#[allow(clippy::panic, reason = "without a cluster there is nothing to test")]
static WORLD: LazyLock<RwLock<Cluster>> = LazyLock::new(|| match start("product") {
    Ok(cluster) => RwLock::new(cluster),
    Err(error) => panic!("the cluster under test did not start: {error:#}"),
});

/// Runs a test on the cluster, at the same time as other tests.
pub(crate) fn shared(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    // a failed test has restored what it stopped, so a poisoned lock is no problem
    let cluster = WORLD.read().unwrap_or_else(PoisonError::into_inner);
    cluster.judged(|| test(&cluster))
}

/// Runs a test that stops a part of the product: no other test runs at the same time.
pub(crate) fn alone(test: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let cluster = WORLD.write().unwrap_or_else(PoisonError::into_inner);
    cluster.judged(|| test(&cluster))
}

fn start(name: &str) -> Result<Cluster> {
    let mut cluster = Cluster::from_environment(&config(name))?;
    install::install(&mut cluster)?;
    cluster.load_images(&[image::next_enforcer()?])?;
    Ok(cluster)
}

/// The configuration of a cluster that this build runs.
pub(crate) fn config(name: &str) -> Config {
    Config {
        name: format!("{name}-{}", std::process::id()),
        program: Some(env!("CARGO_BIN_EXE_e2e").into()),
        ..Config::default()
    }
}

/// An object as kubectl shows it.
pub(crate) fn get(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let text = cluster.kubectl_run([&["get", "-o", "json"], arguments].concat())?;
    serde_json::from_str(&text).context("kubectl printed no JSON")
}

/// Polls until `probe` succeeds; an error counts as not yet.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    until(what, LIMIT, POLL, || {
        Ok(match probe() {
            Ok(found) => Probe::Done(found),
            Err(error) => Probe::Missing(format!("{error:#}")),
        })
    })
}

/// A node with pods.
pub(crate) fn first_node(cluster: &Cluster) -> Result<String> {
    node_addresses(cluster)?
        .into_keys()
        .next()
        .context("no node")
}

/// The node's name to its first address.
pub(crate) fn node_addresses(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let nodes = get(cluster, &["nodes"])?;
    let nodes = nodes["items"].as_array().context("no list of nodes")?;
    let address = |node: &Value| {
        let name = node["metadata"]["name"].as_str()?.to_owned();
        let all = node["status"]["addresses"].as_array()?;
        let internal = all.iter().find(|address| address["type"] == "InternalIP")?;
        Some((name, internal["address"].as_str()?.to_owned()))
    };
    nodes
        .iter()
        .map(|node| address(node).context("a node without an address"))
        .collect()
}

/// The enforcer's pod on a node.
pub(crate) fn enforcer(cluster: &Cluster, node: &str) -> Result<Value> {
    let selector = format!("spec.nodeName={node}");
    let namespace = ["-n", install::NAMESPACE, "pods"];
    let which = [
        "-l",
        "app.kubernetes.io/component=enforcer",
        "--field-selector",
        &selector,
    ];
    let pods = get(cluster, &[&namespace[..], &which].concat())?;
    let pods = pods["items"].as_array().context("no list")?.iter();
    let mut living = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    living
        .next()
        .cloned()
        .with_context(|| format!("no enforcer on {node}"))
}

/// Runs kubectl with this standard input; whether it succeeded, and its output.
pub(crate) fn kubectl_with(
    cluster: &Cluster,
    arguments: &[&str],
    input: &str,
) -> Result<(bool, String)> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = cluster.kubectl();
    command.args(["--request-timeout=30s"]).args(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("start kubectl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .context("write to kubectl")?;
    }
    let output = child.wait_with_output().context("wait for kubectl")?;
    let reply = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&reply).into_owned(),
    ))
}
