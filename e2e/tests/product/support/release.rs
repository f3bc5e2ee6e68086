//! What `release/build` writes, and pushes into a registry of this machine that asks for a login.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::artifacts::packages;
use e2e::{Cluster, paths, process};
use serde_json::Value;

use super::registry::buildah::Buildah;
use super::registry::servers::{LOGIN, Servers};

/// The version of the programs, and what makes it another one than a real release.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-test");
pub(crate) const SOURCE: &str = "https://git.example.com/portmapping";
pub(crate) const IMAGES: [&str; 2] = ["webhook", "enforcer"];
const BUILD_LIMIT: Duration = Duration::from_mins(90);
const LIMIT: Duration = Duration::from_mins(2);
/// A file of each Debian package that a release for arm64 needs on amd64: compiler, headers, and an emulator to try it.
const CROSS: [(&str, &str); 3] = [
    ("/usr/bin/aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    (
        "/usr/aarch64-linux-gnu/include/stdlib.h",
        "libc6-dev-arm64-cross",
    ),
    ("/usr/bin/qemu-aarch64", "qemu-user"),
];

/// A release; its registry ends with this value, its files stay until the next build.
pub(crate) struct Release {
    pub architectures: Vec<String>,
    /// How images and chart are named: the registry's address and a path.
    pub registry: String,
    address: String,
    folder: PathBuf,
    _servers: Servers,
}

impl Release {
    /// Builds it for the architectures that the environment names, or else for all.
    pub(crate) fn build() -> Result<Self> {
        let names = std::env::var("ARCHITECTURES").unwrap_or_else(|_| "amd64 arm64".to_owned());
        let architectures: Vec<_> = names.split_whitespace().map(str::to_owned).collect();
        packages::ensure()?;
        if architectures.iter().any(|one| one == "arm64") {
            for (file, package) in CROSS {
                packages::ensure_file(file, package)?;
            }
        }
        let folder = paths::clusters().with_file_name("release");
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        // a free port of this machine: another registry may have the usual one
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let release = Self {
            architectures,
            registry: format!("{address}/team"),
            _servers: Servers::here(&folder, &address)?,
            address,
            folder,
        };
        release.run_build(&names)?;
        Ok(release)
    }

    fn run_build(&self, architectures: &str) -> Result<()> {
        let login = self.folder.join("config.json");
        let secret = format!(r#"{{"auths":{{"{}":{{"auth":"{LOGIN}"}}}}}}"#, self.address);
        fs::write(&login, secret).with_context(|| format!("write {}", login.display()))?;
        let work = self.folder.join("buildah");
        fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
        let buildah = Buildah::new(&work)?;
        // stands for the images that the Containerfiles start from: those are in a registry that is not here
        let base = format!("{}/base:1", self.registry);
        let start = || process::command("buildah");
        let container = buildah.run(&mut start(), &["from", "--pull-never", "scratch"])?;
        let to = format!("docker://{base}");
        let flags = ["--tls-verify=false", "--authfile", &login.to_string_lossy()];
        let words = [&flags[..], &[container.trim(), &to]].concat();
        buildah.transfer(&mut start(), "commit", &words)?;

        let mut build = self.command(paths::root().join("release/build"));
        build
            .args([&self.registry, VERSION])
            .arg(self.files())
            .envs([("PLAIN_HTTP", "1"), ("SOURCE", SOURCE)])
            .envs([("BUILDER", &base), ("DEBIAN", &base)])
            .env("ARCHITECTURES", architectures)
            .env("CONTAINERS_CONF", buildah.configuration())
            // debug flags of the build that runs this test must not end up in the images
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER");
        process::run_long("release/build", &mut build, BUILD_LIMIT)
    }

    /// A program with the login to the registry where programs look for it.
    fn command(&self, program: PathBuf) -> Command {
        let mut command = process::command(program);
        command.env("REGISTRY_AUTH_FILE", self.folder.join("config.json"));
        command.env("DOCKER_CONFIG", &self.folder);
        for kind in ["CONFIG", "CACHE", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), self.folder.join("helm"));
        }
        command
    }

    /// Runs one of the programs that `release/build` has built: crane or helm.
    pub(crate) fn tool(&self, name: &str, words: &[&str]) -> Result<String> {
        let program = paths::root().join("target/release-build/bin").join(name);
        process::run(self.command(program).args(words), LIMIT)
    }

    /// The folder with what the release offers.
    pub(crate) fn files(&self) -> PathBuf {
        self.folder.join("out")
    }

    /// The text of one of its files.
    pub(crate) fn text(&self, name: &str) -> Result<String> {
        let path = self.files().join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The names of the images, by digest, from `images.txt`.
    pub(crate) fn images(&self) -> Result<Vec<String>> {
        Ok(self
            .text("images.txt")?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Unpacks an image for one architecture, as it is in the registry.
    pub(crate) fn unpack(&self, image: &str, architecture: &str) -> Result<PathBuf> {
        let name = image.rsplit('/').next().unwrap_or(image);
        let name = name.split('@').next().unwrap_or(name);
        let root = self.folder.join(format!("{name}-{architecture}"));
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        let archive = root.with_extension("tar");
        let file = archive.to_string_lossy();
        let platform = format!("linux/{architecture}");
        self.tool("crane", &["export", "--platform", &platform, image, &file])?;
        let mut unpack = process::command("tar");
        unpack.arg("--extract").arg("--file").arg(&archive);
        process::run(unpack.arg("--directory").arg(&root), LIMIT)?;
        Ok(root)
    }

    /// Serves images and chart on every node, where no login is needed.
    pub(crate) fn serve(&self, cluster: &Cluster) -> Result<Servers> {
        Servers::on_nodes(cluster, &self.folder, &self.address)
    }

    /// Removes what a passed test needs no more.
    pub(crate) fn remove(self) -> Result<()> {
        let Self { folder, .. } = self;
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }
}

/// What a program of an unpacked image prints. Where it is for another machine than this one, an emulator runs it.
pub(crate) fn run_in(root: &Path, architecture: &str, words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let mut command = if architecture == "arm64" && std::env::consts::ARCH != "aarch64" {
        let mut emulator = process::command("qemu-aarch64");
        emulator.arg("-L").arg(root);
        emulator.arg(root.join(program.trim_start_matches('/')));
        emulator
    } else {
        let mut chroot = process::command("chroot");
        chroot.arg(root).arg(program);
        chroot
    };
    process::run(command.args(arguments), LIMIT)
}

/// The names of an SBOM's packages whose address begins with this.
pub(crate) fn listed(sbom: &Value, kind: &str) -> Result<BTreeSet<String>> {
    let packages = sbom["packages"].as_array().context("no packages")?;
    let is_of_kind = |package: &&Value| {
        let addresses = package["externalRefs"].as_array();
        addresses.into_iter().flatten().any(|reference| {
            let locator = reference["referenceLocator"].as_str();
            reference["referenceType"] == "purl" && locator.is_some_and(|at| at.starts_with(kind))
        })
    };
    let names = packages.iter().filter(is_of_kind);
    let names = names.map(|package| package["name"].as_str().map(str::to_owned));
    let names: Option<BTreeSet<_>> = names.collect();
    let names = names.context("a package without a name")?;
    ensure!(!names.contains(""), "a package with an empty name");
    Ok(names)
}
