//! CNIs as users install them, built from their Go modules.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{cache, go, packages};
use crate::versions::Cni;
use crate::{paths, process, progress};

const PATIENCE: Duration = Duration::from_mins(40);
/// Compiles Cilium's BPF programs on each node; Cilium needs version 18 or later.
const CLANG: &str = "/usr/bin/clang-19";

/// A folder with the agent and the plugins of a CNI; `None` where the harness's own plugins are all.
pub fn programs(cni: Cni) -> Result<Option<PathBuf>> {
    let modules: &[&str] = match cni {
        Cni::Bridge => return Ok(None),
        Cni::Flannel => &["flannel", "flannel-plugin"],
        Cni::KubeRouter => &["kube-router"],
        Cni::Cilium(_) => &["cilium"],
    };
    // one build for all modes
    let (name, time) = match cni {
        Cni::Cilium(_) => ("cilium".to_owned(), "7 to 25"),
        _ => (cni.to_string(), "2 to 5"),
    };
    if let Cni::Cilium(_) = cni {
        packages::ensure_file(CLANG, "clang-19")?;
    }
    let sources = paths::sources().join("cni");
    let inputs = modules.iter().try_fold(go::inputs()?, |inputs, module| {
        let module = sources.join(module);
        inputs
            .file(&module.join("go.mod"))?
            .file(&module.join("go.sum"))
    })?;
    let folder = cache::get(&format!("cni-{name}"), inputs, |folder| {
        progress::say(format_args!(
            "building {name} from its Go modules ({time} minutes, once)"
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
        if let Cni::Cilium(_) = cni {
            arrange_cilium(&sources.join("cilium"), folder)?;
        }
        Ok(())
    })?;
    Ok(Some(folder))
}

/// Puts Cilium's programs where the harness expects an agent and its plugins, with the sources of its BPF
/// programs, the compiler of those, and its custom resource definitions.
fn arrange_cilium(module: &Path, folder: &Path) -> Result<()> {
    let plugins = folder.join("bin");
    fs::create_dir(&plugins).with_context(|| format!("create {}", plugins.display()))?;
    for (from, to) in [("daemon", "cilium-agent"), ("cilium-cni", "bin/cilium-cni")] {
        fs::rename(folder.join(from), folder.join(to)).with_context(|| format!("name {to}"))?;
    }
    symlink(CLANG, folder.join("clang")).with_context(|| format!("link {CLANG}"))?;
    let mut list = process::command("go");
    list.current_dir(module);
    list.args(["list", "-m", "-f", "{{.Dir}}", "github.com/cilium/cilium"]);
    let source = process::run(&mut list, PATIENCE)?;
    for (from, to) in [
        ("bpf", "bpf"),
        ("pkg/k8s/apis/cilium.io/client/crds", "crds"),
    ] {
        let mut copy = process::command("cp");
        copy.args(["-r", "--no-preserve=mode"]);
        copy.arg(Path::new(source.trim()).join(from));
        process::run(copy.arg(folder.join(to)), PATIENCE)?;
    }
    Ok(())
}
