//! buildah with a store of its own, for pushes to a registry without TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::process;

const LIMIT: Duration = Duration::from_mins(2);

/// A folder with buildah's store and its configuration.
pub(crate) struct Buildah {
    work: PathBuf,
    policy: String,
}

impl Buildah {
    /// Writes the configuration into a folder that exists.
    pub(crate) fn new(work: &Path) -> Result<Self> {
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = work.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        };
        let policy = write(
            "policy.json",
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )?;
        // networks are not used, but their folder is made, in /etc by default
        let networks = work.join("cni");
        let networks = format!(
            "[network]\nnetwork_config_dir = \"{}\"\n",
            networks.display()
        );
        write("containers.conf", &networks)?;
        Ok(Self {
            work: work.to_owned(),
            policy: policy.to_string_lossy().into_owned(),
        })
    }

    /// The file that keeps buildah from writing to /etc, for `CONTAINERS_CONF`.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.work.join("containers.conf")
    }

    /// Runs a subcommand that uses no registry.
    pub(crate) fn run(&self, program: &mut Command, words: &[&str]) -> Result<String> {
        let store = self.work.join("store");
        program.arg("--root").arg(store.join("root"));
        program.arg("--runroot").arg(store.join("run"));
        program.args(["--storage-driver", "vfs"]).args(words);
        program
            .env("TMPDIR", &self.work)
            .env("CONTAINERS_CONF", self.configuration());
        process::run(program, LIMIT)
    }

    /// Runs a subcommand that reads or writes images.
    pub(crate) fn transfer(
        &self,
        program: &mut Command,
        subcommand: &str,
        words: &[&str],
    ) -> Result<String> {
        let flags = [subcommand, "--quiet", "--signature-policy", &self.policy];
        self.run(program, &[&flags[..], words].concat())
    }
}
