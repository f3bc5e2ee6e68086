//! A cgroup per cluster and one per node inside it, each the root of a cgroup namespace. All
//! cgroups of kubelet and containerd are below one name, and are removed by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const ROOT: &str = "/sys/fs/cgroup";

/// How the machine's cgroups are laid out.
#[derive(Debug)]
pub(crate) enum Layout {
    /// A folder per controller, and links from aliases to them. There may also be a `unified` one.
    V1 {
        hierarchies: Vec<String>,
        links: Vec<(String, PathBuf)>,
    },
    /// One tree.
    V2,
}

impl Layout {
    fn detect() -> Result<Self> {
        if Path::new(ROOT).join("cgroup.controllers").exists() {
            return Ok(Self::V2);
        }
        let (mut hierarchies, mut links) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(ROOT).with_context(|| format!("list {ROOT}"))? {
            let entry = entry.with_context(|| format!("list {ROOT}"))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(target) = fs::read_link(entry.path()) {
                links.push((name, target));
            } else if entry.path().join("cgroup.procs").exists() {
                hierarchies.push(name);
            }
        }
        Ok(Self::V1 { hierarchies, links })
    }
}

/// Moves this process into the cgroup `name` of every hierarchy and makes that its root.
/// [`remount`] then shows it as such.
pub(crate) fn enter(name: &str) -> Result<Layout> {
    let layout = Layout::detect()?;
    match &layout {
        Layout::V1 { hierarchies, .. } => {
            for hierarchy in hierarchies {
                let parent = Path::new(ROOT).join(hierarchy);
                let own = parent.join(name);
                create(&own)?;
                if hierarchy
                    .split(',')
                    .any(|controller| controller == "cpuset")
                {
                    // A new cpuset has no processors and no memory: no process can run in it.
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let value = read(&parent.join(file))?;
                        write(&own.join(file), value.trim())?;
                    }
                }
                write(&own.join("cgroup.procs"), "0")?;
            }
            unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
        }
        Layout::V2 => {
            let parent = Path::new(ROOT);
            delegate(parent);
            let own = parent.join(name);
            create(&own)?;
            write(&own.join("cgroup.procs"), "0")?;
            unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
            // A cgroup with processes of its own cannot hand controllers to its children.
            let leaf = own.join("init");
            create(&leaf)?;
            write(&leaf.join("cgroup.procs"), "0")?;
            delegate(&own);
        }
    }
    Ok(layout)
}

/// Mounts the hierarchies again: a mount shows the cgroup namespace in which it was made.
pub(crate) fn remount(layout: &Layout) -> Result<()> {
    let (hierarchies, links) = match layout {
        Layout::V2 => return mount_on("cgroup2", ROOT, "cgroup2", None),
        Layout::V1 { hierarchies, links } => (hierarchies, links),
    };
    mount_on("tmpfs", ROOT, "tmpfs", Some("mode=755"))?;
    for hierarchy in hierarchies {
        let target = format!("{ROOT}/{hierarchy}");
        fs::create_dir(&target).with_context(|| format!("create {target}"))?;
        match hierarchy.as_str() {
            "unified" => mount_on("cgroup2", &target, "cgroup2", None)?,
            "systemd" => mount_on("cgroup", &target, "cgroup", Some("none,name=systemd"))?,
            controllers => mount_on("cgroup", &target, "cgroup", Some(controllers))?,
        }
    }
    for (name, target) in links {
        let link = Path::new(ROOT).join(name);
        std::os::unix::fs::symlink(target, &link)
            .with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}

/// Removes the cgroup `name` and everything below it, once the last of its processes is gone.
/// Best effort within `limit`; returns what is left.
pub(crate) fn sweep(name: &str, limit: Duration) -> Vec<PathBuf> {
    let end = Instant::now() + limit;
    loop {
        let mut left = Vec::new();
        for folder in roots(name) {
            remove_tree(&folder, &mut left);
        }
        if left.is_empty() || Instant::now() >= end {
            return left;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn roots(name: &str) -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    let mut roots = vec![root.join(name)];
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        roots.push(entry.path().join(name));
    }
    roots.retain(|folder| folder.is_dir());
    roots
}

fn remove_tree(folder: &Path, left: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), left);
        }
    }
    if fs::remove_dir(folder).is_err() && folder.exists() {
        left.push(folder.to_owned());
    }
}

/// Best effort: kubelet reports a missing controller itself.
fn delegate(folder: &Path) {
    for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
        let _ = fs::write(
            folder.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create the cgroup {}", folder.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}

fn mount_on(source: &str, target: &str, kind: &str, options: Option<&str>) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {target}"))
}
