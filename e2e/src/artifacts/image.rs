//! Container images, built by buildah from Containerfiles and kept as archives. No registry is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::cache::{self, Inputs};
use super::rust;
use crate::{paths, process};

/// What the sandbox of every pod runs; the name is in the containerd configuration.
pub const PAUSE: &str = "localhost/pause:1";
/// The test server.
pub const ECHO: &str = "localhost/echo:1";
/// The package and the binary of the test server.
const TEST_SERVER: &str = "portmapping-echo";
const WEBHOOK: &str = "localhost/portmapping-webhook:dev";
const ENFORCER: &str = "localhost/portmapping-enforcer:dev";
/// The enforcer of a later build, for upgrades.
pub const NEXT_ENFORCER: &str = "localhost/portmapping-enforcer:next";
const PATIENCE: Duration = Duration::from_mins(5);

/// The archives that every cluster needs (pause and the test server) and, if asked for, the product's.
pub fn archives(with_product: bool) -> Result<Vec<PathBuf>> {
    if !with_product {
        return basic(&rust::release(&[TEST_SERVER])?);
    }
    // One cargo builds all binaries. At the same time the enforcer's packages are downloaded.
    thread::scope(|scope| {
        let packages = scope.spawn(packages);
        let binaries = rust::release(&[TEST_SERVER, "webhook", "enforcer"])?;
        let mut archives = basic(&binaries)?;
        archives.extend(of_product(&binaries, &joined(packages)?)?);
        Ok(archives)
    })
}

/// The archives of the product.
pub fn product() -> Result<Vec<PathBuf>> {
    of_product(&rust::release(&["webhook", "enforcer"])?, &packages()?)
}

/// The archive of the enforcer's image as a later build has it: another version, so another image.
pub fn next_enforcer() -> Result<PathBuf> {
    enforcer(
        NEXT_ENFORCER,
        &rust::release(&["webhook", "enforcer"])?,
        &packages()?,
    )
}

fn joined(thread: ScopedJoinHandle<'_, Result<PathBuf>>) -> Result<PathBuf> {
    let ended = thread.join();
    ended.map_err(|_| anyhow!("the thread that unpacks the enforcer's packages panicked"))?
}

fn basic(binaries: &Path) -> Result<Vec<PathBuf>> {
    let file = paths::root().join("e2e/echo/Containerfile");
    let binary = binaries.join(TEST_SERVER);
    [("pause", PAUSE), ("echo", ECHO)]
        .into_iter()
        .map(|(stage, name)| {
            Recipe {
                name,
                file: &file,
                content: &binary,
                source: Source::Target {
                    stage,
                    packages: None,
                },
            }
            .archive()
        })
        .collect()
}

/// The archive of one stage of a Containerfile, with a program in its context and a folder `packages`.
pub fn of_stage(
    name: &str,
    file: &Path,
    stage: &str,
    content: &Path,
    packages: &Path,
) -> Result<PathBuf> {
    let packages = Some(packages);
    let source = Source::Target { stage, packages };
    Recipe {
        name,
        file,
        content,
        source,
    }
    .archive()
}

fn of_product(binaries: &Path, packages: &Path) -> Result<Vec<PathBuf>> {
    let webhook = Recipe {
        name: WEBHOOK,
        file: &paths::root().join("webhook/Containerfile"),
        content: &binaries.join("webhook"),
        source: Source::Builder { packages: None },
    };
    Ok(vec![
        webhook.archive()?,
        enforcer(ENFORCER, binaries, packages)?,
    ])
}

fn enforcer(name: &str, binaries: &Path, packages: &Path) -> Result<PathBuf> {
    Recipe {
        name,
        file: &paths::root().join("enforcer/Containerfile"),
        content: &binaries.join("enforcer"),
        source: Source::Builder {
            packages: Some(packages),
        },
    }
    .archive()
}

/// A folder with the Debian packages of the enforcer's image, unpacked.
fn packages() -> Result<PathBuf> {
    let script = paths::root().join("enforcer/packages");
    let inputs = Inputs::default().file(&script)?;
    cache::get("enforcer-packages", inputs, |folder| {
        let mut unpack = process::command(&script);
        process::run_long(
            "Debian packages of the enforcer's image",
            unpack.arg(folder),
            PATIENCE,
        )
    })
}

struct Recipe<'a> {
    name: &'a str,
    file: &'a Path,
    /// The program that goes into the image.
    content: &'a Path,
    source: Source<'a>,
}

/// Where a Containerfile finds the program.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// In the build context; the stage to build.
    Target {
        stage: &'a str,
        packages: Option<&'a Path>,
    },
    /// In place of the stage that compiles it, as a user can do too; unpacked packages likewise.
    Builder { packages: Option<&'a Path> },
}

impl Recipe<'_> {
    fn archive(&self) -> Result<PathBuf> {
        let mut inputs = Inputs::default().value(self.name);
        inputs = inputs.file(self.file)?.file(self.content)?;
        let (Source::Target { packages, .. } | Source::Builder { packages }) = self.source;
        if let Source::Target { stage, .. } = self.source {
            inputs = inputs.value(stage);
        }
        if let Some(folder) = packages {
            // The folder is named after its content.
            inputs = inputs.value(&folder.to_string_lossy());
        }
        let short: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let folder = cache::get(&format!("image-{short}"), inputs, |folder| {
            self.build(folder)
        })?;
        Ok(folder.join("image.tar"))
    }

    /// Each build has its own store, which is removed afterwards: no stale state, no shared lock.
    fn build(&self, folder: &Path) -> Result<()> {
        let work = folder.join("work");
        let context = work.join("context");
        fs::create_dir_all(&context).with_context(|| format!("create {}", context.display()))?;
        let builder = work.join("builder");
        let place = match self.source {
            Source::Target { .. } => context.clone(),
            Source::Builder { .. } => builder.join("out"),
        };
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        let file_name = self.content.file_name().context("an image needs a file")?;
        fs::copy(self.content, place.join(file_name))
            .with_context(|| format!("copy {}", self.content.display()))?;
        // Debian's buildah has no policy without its recommended packages.
        let policy = write(
            &work,
            "policy.json",
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )?;
        // Networks are not used, but their folder is made, in /etc by default.
        let networks = format!(
            "[network]\nnetwork_config_dir = \"{}\"\n",
            work.join("cni").display()
        );
        write(&work, "containers.conf", &networks)?;

        let mut bud = buildah(&work, "bud");
        bud.args(["--isolation", "chroot", "--timestamp", "0", "--pull-never"]);
        bud.arg("--signature-policy").arg(&policy);
        bud.arg("--file").arg(self.file).args(["--tag", self.name]);
        let version = self.name.rsplit(':').next().unwrap_or_default();
        bud.arg(format!("--build-arg=VERSION={version}"));
        let replaced = match self.source {
            Source::Target { stage, packages } => {
                bud.args(["--target", stage]);
                [("builder", None), ("packages", packages)]
            }
            Source::Builder { packages } => {
                [("builder", Some(builder.as_path())), ("packages", packages)]
            }
        };
        for (stage, folder) in replaced {
            if let Some(folder) = folder {
                bud.arg("--build-context")
                    .arg(format!("{stage}={}", folder.display()));
            }
        }
        process::run(bud.arg(&context), PATIENCE)
            .with_context(|| format!("build the image {}", self.name))?;

        let mut push = buildah(&work, "push");
        push.arg("--signature-policy").arg(&policy).arg(self.name);
        let archive = folder.join("image.tar");
        push.arg(format!(
            "docker-archive:{}:{}",
            archive.display(),
            self.name
        ));
        process::run(&mut push, PATIENCE)
            .with_context(|| format!("save the image {}", self.name))?;
        fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
    }
}

/// vfs: the overlay driver leaves a mount behind.
fn buildah(work: &Path, command: &str) -> Command {
    let mut buildah = process::command("buildah");
    buildah
        .arg("--root")
        .arg(work.join("store"))
        .arg("--runroot")
        .arg(work.join("run"));
    buildah.args(["--storage-driver", "vfs", command]);
    buildah
        .env("TMPDIR", work)
        .env("CONTAINERS_CONF", work.join("containers.conf"));
    buildah
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
