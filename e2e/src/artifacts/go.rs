//! Programs built from Go modules at pinned versions.

use std::fmt::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cache::{self, Inputs};
use crate::versions::{Containerd, Minor};
use crate::{paths, process, progress};

/// The names the Kubernetes program answers to.
const COMPONENTS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];
/// Part of each binary's inputs: change it when flags change.
const FLAGS: &str = "-trimpath CGO_ENABLED=0 -s -w -dwarf=false";
const NODE_TAGS: &str = "no_btrfs no_devmapper no_zfs";
const PATIENCE: Duration = Duration::from_mins(40);

/// A folder with etcd and every Kubernetes component.
pub fn kubernetes(minor: Minor) -> Result<PathBuf> {
    let module = paths::sources().join("kubernetes");
    let [mod_file, sum_file] = minor.module_files();
    let tags = match minor {
        Minor::V1_30 | Minor::V1_31 | Minor::V1_32 | Minor::V1_33 => "k8s1.33",
        _ => "",
    };
    let version = minor.version()?;
    let inputs = [
        "main.go",
        "kubelet.go",
        "kubelet_v1_33.go",
        &mod_file,
        &sum_file,
    ]
    .iter()
    .try_fold(inputs()?, |inputs, file| inputs.file(&module.join(file)))?
    .value(tags);
    cache::get(&format!("kubernetes-{minor}"), inputs, |folder| {
        progress::say(format_args!(
            "building Kubernetes {version} and etcd from their Go modules (5 to 15 minutes, once)"
        ));
        let mut build = go_build(&module);
        build
            .arg(format!("-modfile={mod_file}"))
            .arg(format!("-tags={tags}"));
        build
            .arg(format!("-ldflags={}", ldflags(&version)))
            .arg("-o");
        build.arg(folder.join("kubernetes")).arg(".");
        process::run_long(&format!("Kubernetes {version}"), &mut build, PATIENCE)?;
        for name in COMPONENTS {
            let link = folder.join(name);
            symlink("kubernetes", &link).with_context(|| format!("link {}", link.display()))?;
        }
        Ok(())
    })
}

/// A folder with containerd, its shim and client, and the CNI plugins.
pub fn node_tools(containerd: Containerd) -> Result<PathBuf> {
    let module = paths::sources().join("node");
    let (name, [mod_file, sum_file]) = match containerd {
        Containerd::V2 => ("node-tools", ["go.mod", "go.sum"]),
        Containerd::V1_7 => ("node-tools-1.7", ["v1.7.mod", "v1.7.sum"]),
    };
    let inputs = inputs()?
        .file(&module.join(mod_file))?
        .file(&module.join(sum_file))?
        .value(NODE_TAGS);
    cache::get(name, inputs, |folder| {
        progress::say("building containerd and the CNI plugins from their Go modules");
        let mut build = go_build(&module);
        build
            .arg(format!("-modfile={mod_file}"))
            .arg(format!("-tags={NODE_TAGS}"))
            .arg("-ldflags=-s -w")
            .arg("-o");
        // A path that ends in a slash is a folder even before it exists.
        build.arg(folder.join("")).arg("tool");
        process::run_long("containerd and CNI plugins", &mut build, PATIENCE)
    })
}

/// A folder with helm, and with the programs that check what is released.
pub fn release_tools() -> Result<PathBuf> {
    let module = paths::root().join("release/tools");
    let inputs = inputs()?
        .file(&module.join("go.mod"))?
        .file(&module.join("go.sum"))?;
    cache::get("release-tools", inputs, |folder| {
        progress::say("building helm from its Go module");
        let mut build = go_build(&module);
        build.arg("-ldflags=-s -w").arg("-o");
        build.arg(folder.join("")).arg("tool");
        process::run_long("helm", &mut build, PATIENCE)
    })
}

/// A program of one module, built from these of the module's files; the path of the program.
pub fn program(name: &str, module: &Path, files: &[&str]) -> Result<PathBuf> {
    let inputs = files
        .iter()
        .try_fold(inputs()?, |inputs, file| inputs.file(&module.join(file)))?;
    let folder = cache::get(name, inputs, |folder| {
        let mut build = go_build(module);
        build.arg("-ldflags=-s -w").arg("-o");
        build.arg(folder.join(name)).arg(".");
        process::run_long(name, &mut build, PATIENCE)
    })?;
    Ok(folder.join(name))
}

pub(super) fn inputs() -> Result<Inputs> {
    let version = process::run(
        process::command("go").arg("version"),
        Duration::from_mins(1),
    )
    .context("ask Go for its version")?;
    Ok(Inputs::default().value(&version).value(FLAGS))
}

pub(super) fn go_build(module: &Path) -> Command {
    // -v names each package as it is compiled: that is the progress that a user sees
    compile(module, &["build", "-v"])
}

/// Compiles the tests of a package into a program.
pub(super) fn go_test(module: &Path) -> Command {
    compile(module, &["test", "-c", "-vet=off"])
}

fn compile(module: &Path, how: &[&str]) -> Command {
    let mut go = process::command("go");
    // The compiler is written in Go: collecting garbage less often saves a tenth of its time.
    go.current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOGC", "400")
        .args(how)
        .arg("-trimpath");
    // Debug information is stripped when linking: making none saves a tenth of the time.
    go.args(["-buildvcs=false", "-gcflags=all=-dwarf=false"]);
    go
}

/// Without these the components call themselves v0.0.0 and cannot check their version skew.
fn ldflags(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let mut flags = "-s -w".to_owned();
    for package in [
        "k8s.io/component-base/version",
        "k8s.io/client-go/pkg/version",
    ] {
        for (name, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
            ("gitCommit", "unknown"),
        ] {
            let _ = write!(flags, " -X {package}.{name}={value}");
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_sets_the_version_of_the_components() {
        let flags = ldflags("v1.36.3");
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.36.3"));
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=36"));
    }
}
