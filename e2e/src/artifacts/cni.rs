//! CNIs as users install them, built from their Go modules.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{cache, go, packages};
use crate::cluster::config::Cni;
use crate::{paths, process, progress};

const PATIENCE: Duration = Duration::from_mins(40);

/// A folder with the agent and the plugins of a CNI; `None` where the harness's own plugins are all.
pub fn programs(cni: Cni) -> Result<Option<PathBuf>> {
    let modules: &[&str] = match cni {
        Cni::Bridge => return Ok(None),
        Cni::Flannel => &["flannel", "flannel-plugin"],
        Cni::KubeRouter => &["kube-router"],
    };
    if cni == Cni::KubeRouter {
        packages::ensure_file("/usr/sbin/ipset", "ipset")?;
    }
    let sources = paths::sources().join("cni");
    let inputs = modules.iter().try_fold(go::inputs()?, |inputs, module| {
        let module = sources.join(module);
        inputs
            .file(&module.join("go.mod"))?
            .file(&module.join("go.sum"))
    })?;
    let folder = cache::get(&format!("cni-{cni}"), inputs, |folder| {
        progress::say(format_args!(
            "building {cni} from its Go modules (2 to 5 minutes, once)"
        ));
        for module in modules {
            let mut build = go::go_build(&sources.join(module));
            if *module == "flannel" {
                // its udp backend is written in C
                build.env("CGO_ENABLED", "1");
            }
            // the plugin has the name of the agent
            let target = if module.ends_with("-plugin") {
                folder.join("bin")
            } else {
                folder.to_owned()
            };
            build.arg("-ldflags=-s -w").arg("-o");
            build.arg(target.join("")).arg("tool");
            process::run_long(module, &mut build, PATIENCE)?;
        }
        Ok(())
    })?;
    Ok(Some(folder))
}
