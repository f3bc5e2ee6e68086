//! Kubernetes' own end-to-end tests, and the images that their pods run, from the module of Kubernetes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cache;
use super::go;
use super::image::{self, PAUSE};
use crate::{paths, process, progress};

const PATIENCE: Duration = Duration::from_hours(1);
/// The suite, ginkgo, which runs it in several processes, and the program of most of its pods.
const SUITE: &str = "k8s.io/kubernetes/test/e2e";
const PROGRAMS: [&str; 2] = [
    "k8s.io/kubernetes/test/images/agnhost",
    "github.com/onsi/ginkgo/v2/ginkgo",
];
/// Files of agnhost's folder that belong to its image.
const KEYS: [&str; 2] = ["porter/localhost.crt", "porter/localhost.key"];
/// Debian packages of the images.
const PACKAGES: &str = "bash busybox-static curl iproute2 netcat-openbsd";
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
/// More names of images, by `test/utils/image/manifest.go` of Kubernetes. Tests of nginx only want it to run.
pub const NAMES: [(&str, &str); 3] = [
    (AGNHOST, "registry.k8s.io/e2e-test-images/agnhost:2.55"),
    (AGNHOST, "registry.k8s.io/e2e-test-images/nginx:1.15-4"),
    (PAUSE, "registry.k8s.io/pause:3.10.2"),
];

/// The folder of the module, the Containerfile and the list of tests.
#[must_use]
pub fn sources() -> PathBuf {
    paths::sources().join("conformance")
}

/// A folder with `e2e.test`, `ginkgo`, and what goes into the images.
pub fn programs() -> Result<PathBuf> {
    let module = sources();
    let packages = paths::root().join("enforcer/packages");
    let files = ["go.mod", "go.sum", "passwd", "group"].map(|name| module.join(name));
    let inputs = files
        .iter()
        .chain([&packages])
        .try_fold(go::inputs()?, |inputs, file| inputs.file(file))?
        .value(PACKAGES);
    cache::get("conformance", inputs, |folder| {
        progress::say(
            "building Kubernetes' own tests from their Go module (10 to 20 minutes, once)",
        );
        let mut build = go::go_build(&module);
        build.args(["-ldflags=-s -w", "-o"]).arg(folder.join(""));
        process::run_long("agnhost and ginkgo", build.args(PROGRAMS), PATIENCE)?;
        let mut build = go::go_test(&module);
        build
            .args(["-ldflags=-s -w", "-o"])
            .arg(folder.join("e2e.test"));
        process::run_long("Kubernetes' own tests", build.arg(SUITE), PATIENCE)?;
        let mut list = process::command("go");
        list.current_dir(&module);
        list.args(["list", "-f", "{{.Dir}}", PROGRAMS[0]]);
        let agnhost = process::run(&mut list, Duration::from_mins(2))?;
        let keys = KEYS.map(|key| Path::new(agnhost.trim()).join(key));
        for file in keys.iter().chain(&files[2..]) {
            let name = file.file_name().context("a file without a name")?;
            fs::copy(file, folder.join(name))
                .with_context(|| format!("copy {}", file.display()))?;
        }
        let mut unpack = process::command(&packages);
        unpack.env("PACKAGES", PACKAGES).arg(folder);
        process::run_long("Debian packages of the images", &mut unpack, PATIENCE)
    })
}

/// The images of the suite's pods.
pub fn images(programs: &Path) -> Result<Vec<PathBuf>> {
    [("agnhost", AGNHOST), ("busybox", BUSYBOX)]
        .into_iter()
        .map(|(stage, name)| {
            let file = sources().join("Containerfile");
            image::of_stage(name, &file, stage, &programs.join("agnhost"), programs)
        })
        .collect()
}
