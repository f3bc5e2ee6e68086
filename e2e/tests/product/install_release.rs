//! Does what a release offers install portmapping, and can a user check what it is?

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Config, install, paths, process};
use serde_json::Value;

use crate::support::emulated::{a_review_is_answered, the_keepers_tests_pass};
use crate::support::outside::Way;
use crate::support::pods::{entries, mapped_pod, on_node};
use crate::support::release::{IMAGES, Release, SOURCE, VERSION, listed, run_in};
use crate::support::space::Space;
use crate::support::{config, get};

/// Fails if a name of an image is not one of this registry with a whole digest.
fn ends_in_digest(name: &str, registry: &str) -> Result<()> {
    let digest = name
        .strip_prefix(registry)
        .and_then(|rest| rest.split_once("@sha256:"))
        .map(|(_, digest)| digest);
    let is_hex = |digest: &str| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    ensure!(digest.is_some_and(is_hex), "{name:?} has no digest");
    Ok(())
}

/// The files name all images by digest, and the sums are those of all files.
fn files_name_digests_and_verify(release: &Release) -> Result<()> {
    let Release { registry, .. } = release;
    let images = release.images()?;
    let names: Vec<_> = images.iter().map(|one| one.split('@').next()).collect();
    let wanted = IMAGES.map(|image| format!("{registry}/portmapping-{image}"));
    ensure!(
        names == wanted.each_ref().map(|one| Some(one.as_str())),
        "{images:?}"
    );
    for image in &images {
        ends_in_digest(image, registry)?;
    }
    let bases = release.text("bases.txt")?;
    let bases: Vec<_> = bases
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let stages: Vec<_> = bases.iter().map(|(stage, _)| *stage).collect();
    ensure!(stages == ["BUILDER", "DEBIAN"], "bases.txt has {stages:?}");
    for (_, base) in bases {
        ends_in_digest(base, registry)?;
        release.tool("crane", &["manifest", base])?;
    }
    let install = release.text("install.yaml")?;
    let asked = install
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "));
    let asked: BTreeSet<_> = asked
        .map(|name| name.trim_matches('"').to_owned())
        .collect();
    ensure!(
        asked == images.into_iter().collect(),
        "install.yaml names {asked:?}"
    );

    let mut check = process::command("sha256sum");
    check.current_dir(release.files());
    check.args(["--check", "--strict", "SHA256SUMS"]);
    let checked = process::run(&mut check, Duration::from_mins(1))?;
    let checked = checked.lines().filter_map(|line| line.strip_suffix(": OK"));
    let checked: BTreeSet<_> = checked.map(str::to_owned).collect();
    let mut present = BTreeSet::new();
    for file in fs::read_dir(release.files()).context("read the release")? {
        present.insert(file?.file_name().to_string_lossy().into_owned());
    }
    ensure!(present.remove("SHA256SUMS"), "no SHA256SUMS");
    ensure!(
        checked == present,
        "SHA256SUMS has {checked:?} of {present:?}"
    );
    Ok(())
}

/// The registry has the chart that the files have.
fn the_chart_is_in_the_registry(release: &Release) -> Result<()> {
    let chart = format!("oci://{}/charts/portmapping", release.registry);
    let to = release.files().with_file_name("pulled");
    fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
    let folder = to.to_string_lossy();
    let words = ["pull", &chart, "--version", VERSION, "--plain-http"];
    release.tool("helm", &[&words[..], &["--destination", &folder]].concat())?;
    let name = format!("portmapping-{VERSION}.tgz");
    let [pulled, offered] = [to, release.files()].map(|place| fs::read(place.join(&name)));
    ensure!(
        pulled? == offered?,
        "{name} is another chart in the registry"
    );
    Ok(())
}

/// An image is there for each architecture, with labels, programs that start, and an SBOM that lists what is in it.
fn image_is_complete(release: &Release, image: &str, name: &str) -> Result<()> {
    let index: Value = serde_json::from_str(&release.tool("crane", &["manifest", name])?)?;
    let manifests = index["manifests"].as_array().context("no index")?;
    let offered = manifests
        .iter()
        .map(|one| one["platform"]["architecture"].as_str());
    let offered: Vec<_> = offered.collect();
    let wanted = release.architectures.iter().map(|one| Some(one.as_str()));
    ensure!(
        wanted.eq(offered.iter().copied()),
        "{name} is for {offered:?}"
    );

    let mut head = process::command("git");
    head.current_dir(paths::root()).args(["rev-parse", "HEAD"]);
    let revision = process::run(&mut head, Duration::from_mins(1))?;
    for architecture in &release.architectures {
        let platform = format!("linux/{architecture}");
        let text = release.tool("crane", &["config", "--platform", &platform, name])?;
        let labels = &serde_json::from_str::<Value>(&text)?["config"]["Labels"];
        for (label, value) in [
            ("version", VERSION),
            ("revision", revision.trim()),
            ("source", SOURCE),
        ] {
            let label = format!("org.opencontainers.image.{label}");
            ensure!(labels[&label] == value, "{name}, {architecture}: {labels}");
        }

        let root = release.unpack(name, architecture)?;
        let version = run_in(&root, architecture, &[&format!("/{image}"), "--version"])?;
        let wanted = format!("{image} {}", env!("CARGO_PKG_VERSION"));
        ensure!(version.trim() == wanted, "{architecture}: {version:?}");
        match image {
            "webhook" => a_review_is_answered(&root, architecture)?,
            _ => the_keepers_tests_pass(architecture)?,
        }
        let file = format!("portmapping-{image}-{architecture}.spdx.json");
        let sbom: Value = serde_json::from_str(&release.text(&file)?)?;
        let crates = listed(&sbom, "pkg:cargo/")?;
        for one in [image, "portmapping-shared", "rustls", "tokio"] {
            ensure!(crates.contains(one), "{file} does not list the crate {one}");
        }
        ensure!(
            !crates.contains("proptest"),
            "{file} lists a crate of tests"
        );
        let packages = listed(&sbom, "pkg:deb/debian/")?;
        let mut installed = BTreeSet::new();
        if image == "enforcer" {
            debian_programs_start(&root, architecture)?;
            for package in fs::read_dir(root.join("var/lib/dpkg/status.d"))? {
                installed.insert(package?.file_name().to_string_lossy().into_owned());
            }
            ensure!(
                installed.contains("iptables"),
                "{architecture}: {installed:?}"
            );
        }
        ensure!(
            packages == installed,
            "{file} lists {packages:?} of {installed:?}"
        );
    }
    Ok(())
}

/// The emulator has no netlink, which `nft` opens before anything else: of that, the loader finds all libraries, or fails.
fn debian_programs_start(root: &Path, architecture: &str) -> Result<()> {
    for program in ["iptables-save", "iptables-legacy"] {
        let words = [&format!("/usr/sbin/{program}"), "--version"];
        let version = run_in(root, architecture, &words)?;
        ensure!(version.contains(" v1."), "{architecture}: {version:?}");
    }
    let loader = match architecture {
        "arm64" => "/lib/ld-linux-aarch64.so.1",
        _ => "/lib64/ld-linux-x86-64.so.2",
    };
    let libraries = run_in(root, architecture, &[loader, "--list", "/usr/sbin/nft"])?;
    ensure!(
        libraries.contains("libnftables"),
        "{architecture}: {libraries}"
    );
    Ok(())
}

/// Every container runs an image of the release, by its digest.
fn pods_run(cluster: &Cluster, images: &[String]) -> Result<()> {
    let pods = get(cluster, &["-n", install::NAMESPACE, "pods"])?;
    let pods = pods["items"].as_array().context("no list")?;
    let mut run = BTreeSet::new();
    for pod in pods {
        let status = &pod["status"];
        let kinds = ["initContainerStatuses", "containerStatuses"];
        let all = kinds.iter().filter_map(|kind| status[kind].as_array());
        run.extend(all.flatten().map(|one| one["imageID"].as_str()));
    }
    let wanted = images.iter().map(|image| Some(image.as_str()));
    ensure!(
        run == wanted.collect(),
        "the pods run {run:?} instead of {images:?}"
    );
    Ok(())
}

/// ARCHITECTURES builds less than both; this machine's is needed.
#[test]
#[ignore = "compiles everything twice, 10 minutes and more; by command"]
fn a_release_installs_by_digest_from_its_registry_and_a_client_reaches_a_pod() -> Result<()> {
    let release = Release::build()?;
    files_name_digests_and_verify(&release)?;
    the_chart_is_in_the_registry(&release)?;
    let images = release.images()?;
    for (image, name) in IMAGES.iter().zip(&images) {
        image_is_complete(&release, image, name)?;
    }

    // no image of the product is on the nodes
    let cluster = Cluster::start(&Config {
        product: false,
        ..config("release")
    })?;
    let servers = release.serve(&cluster)?;
    let file = release.files().join("install.yaml");
    cluster.kubectl_run(["apply", "-f", &file.to_string_lossy()])?;
    for workload in ["deployment/webhook", "daemonset/enforcer"] {
        install::rolled_out(&cluster, install::NAMESPACE, workload)?;
    }
    pods_run(&cluster, &images)?;
    Space::with(&cluster, "released", |space| {
        for node in cluster.nodes()? {
            let name = format!("mapped-{node}");
            space.create(&on_node(mapped_pod(&name), &node))?;
            let pod = space.ready(&name)?;
            for entry in entries(&pod)? {
                space.answers(&pod, &entry, Way::Http)?;
            }
        }
        Ok(())
    })?;
    drop(servers);
    cluster.stop()?;
    release.remove()
}
