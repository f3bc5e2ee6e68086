//! Programs that a test may replace.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use portmapping_dataplane::Flavour;
use portmapping_dataplane::iptables::Iptables;
use portmapping_dataplane::iptables::SavedTables;
use portmapping_dataplane::{DataplaneError, Tools};
use tempfile::TempDir;

use crate::lab::{self, range};

/// A directory of programs: the real ones, some of them replaced by scripts.
pub(crate) struct Programs {
    pub(crate) directory: TempDir,
    pub(crate) deadline: Duration,
}

impl Programs {
    pub(crate) fn new(flavour: Flavour) -> Self {
        let programs = Self {
            directory: tempfile::tempdir().unwrap(),
            deadline: lab::tools().deadline,
        };
        let kind = flavour.as_str().trim_start_matches("iptables");
        for family in ["iptables", "ip6tables"] {
            for suffix in ["-save", "-restore"] {
                let name = format!("{family}{kind}{suffix}");
                let real = format!("/usr/sbin/{name}");
                symlink(real, programs.directory.path().join(name)).unwrap();
            }
        }
        programs
    }

    /// Returns the names of all programs.
    pub(crate) fn names(&self) -> Vec<String> {
        let files = fs::read_dir(self.directory.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    pub(crate) fn replace(&self, name: &str, script: &str) {
        let path = self.directory.path().join(name);
        fs::remove_file(&path).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn restore_real(&self, name: &str) {
        self.remove(name);
        let real = format!("/usr/sbin/{name}");
        symlink(real, self.directory.path().join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.directory.path().join(name)).unwrap();
    }

    pub(crate) fn open(&self, flavour: Flavour) -> Result<Iptables, DataplaneError> {
        let tools = self.tools();
        let saved = SavedTables::read(flavour, &tools);
        let opened = Iptables::open(lab::settings_for(range("20000-29999")), tools, saved);
        opened.map(|(driver, _)| driver)
    }

    pub(crate) fn tools(&self) -> Tools {
        Tools {
            directory: Some(self.directory.path().to_owned()),
            deadline: self.deadline,
        }
    }
}
