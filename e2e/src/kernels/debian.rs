//! Kernels of other Debian releases, from the package sources that this machine uses.

use std::fmt::{self, Display, Write as _};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::artifacts::cache::{self, Inputs};
use crate::process;

/// A program without libraries, for the initramfs.
pub(super) const BUSYBOX: &str = "/bin/busybox";
/// Signs the releases that are not this machine's own.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LIMIT: Duration = Duration::from_mins(10);
/// What the initramfs loads before it can see this machine's files.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// A series of kernels, and the Debian release that maintains it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Series {
    /// Debian 11.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V5_10, Self::V6_1, Self::V6_12];

    fn release(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
        }
    }
}

impl Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// What `uname -r` prints.
    pub(super) version: String,
    pub(super) image: PathBuf,
    pub(super) initramfs: PathBuf,
    /// What becomes `/usr/lib/modules`.
    pub(super) modules: PathBuf,
}

/// Returns the newest kernel of a series, downloaded and unpacked where it is missing.
pub(super) fn kernel(series: Series) -> Result<Kernel> {
    let inputs = Inputs::default().value(&series.to_string()).value(INIT);
    let folder = cache::get(&format!("kernel-{series}"), inputs, |folder| {
        unpack(series, folder)?;
        initramfs(folder)
    })?;
    let modules = folder.join("lib/modules");
    Ok(Kernel {
        version: only_entry(&modules)?,
        image: folder.join("vmlinuz"),
        initramfs: folder.join("initramfs"),
        modules,
    })
}

fn unpack(series: Series, folder: &Path) -> Result<()> {
    let work = folder.join("work");
    for dir in ["lists/partial", "cache/archives/partial"] {
        let dir = work.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let list = work.join("other.sources");
    fs::write(&list, sources(series.release())?)
        .with_context(|| format!("write {}", list.display()))?;
    let with_sources = |program: &str| {
        let mut apt = process::command(program);
        apt.current_dir(&work).arg("-q");
        let own = |name: &str| work.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::sourcelist={}", own("other.sources")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", own("lists")),
            format!("Dir::Cache={}", own("cache")),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            apt.args(["-o", &option]);
        }
        apt
    };
    let what = format!("the package lists of {}", series.release());
    process::run_long(&what, with_sources("apt-get").arg("update"), LIMIT)?;
    let pattern = format!(r"^linux-image-{series}\.[0-9].*-amd64$");
    let names = process::run(
        with_sources("apt-cache").args(["search", "--names-only", &pattern]),
        LIMIT,
    )?;
    let package =
        newest(&names).with_context(|| format!("{} has no kernel {series}", series.release()))?;
    process::run_long(
        &package,
        with_sources("apt-get").args(["download", &package]),
        LIMIT,
    )?;
    let root = work.join("root");
    let archive = fs::read_dir(&work)
        .with_context(|| format!("list {}", work.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .with_context(|| format!("apt-get has not downloaded {package}"))?;
    process::run(
        process::command("dpkg-deb")
            .arg("-x")
            .arg(&archive)
            .arg(&root),
        LIMIT,
    )?;
    // /lib is /usr/lib since Debian 13
    let modules = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let modules = modules.iter().find(|dir| dir.is_dir());
    let modules = modules.with_context(|| format!("{package} has no modules"))?;
    let version = only_entry(modules)?;
    let target = folder.join("lib/modules");
    fs::create_dir_all(folder.join("lib")).context("create lib")?;
    rename(modules, &target)?;
    rename(
        &root.join(format!("boot/vmlinuz-{version}")),
        &folder.join("vmlinuz"),
    )?;
    drop_drivers(&target.join(&version).join("kernel"))?;
    let mut depmod = process::command("depmod");
    process::run(depmod.arg("-b").arg(folder).arg(&version), LIMIT)?;
    fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
}

/// The release, from where this machine has its own.
fn sources(release: &str) -> Result<String> {
    let mut ask = process::command("apt-get");
    ask.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]);
    let targets = process::run(ask.arg("Created-By: Packages"), LIMIT)?;
    let mut text = String::new();
    for (label, suite) in [
        ("Debian", release.to_owned()),
        ("Debian-Security", format!("{release}-security")),
    ] {
        let prefix = format!("Debian|{label}|");
        let Some(uri) = targets.lines().find_map(|line| line.strip_prefix(&prefix)) else {
            continue;
        };
        let _ = write!(
            text,
            "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n"
        );
        if Path::new(KEYRING).is_file() {
            let _ = writeln!(text, "Signed-By: {KEYRING}");
        }
        text.push('\n');
    }
    if text.is_empty() {
        bail!("apt-get knows no package source of Debian: kernels come from Debian's packages");
    }
    Ok(text)
}

/// Returns the package with the highest numbers.
fn newest(names: &str) -> Option<String> {
    let numbers = |name: &str| -> Vec<u64> {
        let parts = name.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    let names = names.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| !["cloud", "-rt-"].iter().any(|part| name.contains(part)))
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

/// Removes what a machine without hardware does not need: nine tenths of the package.
fn drop_drivers(kernel: &Path) -> Result<()> {
    let drivers = kernel.join("drivers");
    let remove = |path: &Path| {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))
    };
    for entry in entries(&drivers)? {
        let keep = ["virtio", "net", "block", "char"];
        if entry.is_dir() && !keep.iter().any(|name| entry.ends_with(name)) {
            remove(&entry)?;
        }
    }
    for entry in entries(&drivers.join("net"))? {
        if entry.is_dir() {
            remove(&entry)?;
        }
    }
    if kernel.join("sound").is_dir() {
        remove(&kernel.join("sound"))?;
    }
    Ok(())
}

fn initramfs(folder: &Path) -> Result<()> {
    let modules = folder.join("lib/modules");
    let modules = modules.join(only_entry(&modules)?);
    let root = folder.join("work");
    for dir in ["bin", "modules"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("copy busybox")?;
    symlink("busybox", root.join("bin/sh")).context("link sh")?;
    fs::write(root.join("init"), INIT).context("write init")?;
    let mut executable = process::command("chmod");
    process::run(executable.arg("755").arg(root.join("init")), LIMIT)?;
    let dependencies = modules.join("modules.dep");
    let dependencies = fs::read_to_string(&dependencies)
        .with_context(|| format!("read {}", dependencies.display()))?;
    for (index, file) in load_order(&dependencies, &MODULES).iter().enumerate() {
        // insmod takes them in the order of their names
        let name = root.join(format!("modules/{index:02}.ko"));
        let source = modules.join(file);
        if source.extension().is_some_and(|end| end == "xz") {
            let to = File::create(&name).with_context(|| format!("create {}", name.display()))?;
            let mut unpack = Command::new(BUSYBOX);
            let unpacked = unpack.args(["xz", "-dc"]).arg(&source).stdout(to).status();
            if !unpacked.context("run busybox xz")?.success() {
                bail!("cannot unpack {}", source.display());
            }
        } else {
            fs::copy(&source, &name).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    let image = folder.join("initramfs");
    let to = File::create(&image).with_context(|| format!("create {}", image.display()))?;
    let mut pack = process::command("sh");
    pack.args(["-c", "find . | /bin/busybox cpio -o -H newc"]);
    let packed = pack.current_dir(&root).stdout(to).stderr(Stdio::null());
    if !packed.status().context("run busybox cpio")?.success() {
        bail!("cannot write {}", image.display());
    }
    fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))
}

/// Returns the files of these modules and of what they need, in the order in which they load.
/// A module that is built into the kernel has no file.
fn load_order<'a>(dependencies: &'a str, modules: &[&str]) -> Vec<&'a str> {
    let mut order: Vec<&str> = Vec::new();
    for module in modules {
        for (file, needs) in dependencies.lines().filter_map(|line| line.split_once(':')) {
            let name = file
                .rsplit('/')
                .next()
                .and_then(|name| name.split('.').next());
            if name != Some(module) {
                continue;
            }
            // depmod lists the deepest dependency last
            for file in needs.split_whitespace().rev().chain([file]) {
                if !order.contains(&file) {
                    order.push(file);
                }
            }
        }
    }
    order
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn only_entry(folder: &Path) -> Result<String> {
    let [entry] = &entries(folder)?[..] else {
        bail!("{} does not have exactly one entry", folder.display());
    };
    let name = entry.file_name().unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))
}

/// The first program of the guest. Each folder of this machine gets an overlay of its own: below one
/// overlay over all of them, mounts vanish. `switch_root`, because the kernel calls modprobe in the
/// first root.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /host /over /new
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in /modules/*.ko; do insmod $module; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host || echo "guest: no files"
mount -t tmpfs -o size=3g none /over
mount -t tmpfs -o size=4g none /new
for path in /host/*; do
    name=${path##*/}
    if [ -L "$path" ]; then cp -P "$path" /new/; continue; fi
    [ -d "$path" ] || continue
    mkdir -p "/new/$name"
    case $name in proc|sys|dev|run|var|boot|mnt|media|out|lost+found) continue;; esac
    mkdir -p "/over/$name/up" "/over/$name/work"
    mount -t overlay -o "lowerdir=$path,upperdir=/over/$name/up,workdir=/over/$name/work" overlay "/new/$name" || echo "guest: no overlay of $name"
done
mkdir -p /new/var/lib /new/var/tmp /new/out
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 out /new/out || echo "guest: no folder for results"
mkdir -p /new/usr/lib/modules
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose modules /new/usr/lib/modules || echo "guest: no modules"
mount -t proc none /new/proc; mount -t sysfs none /new/sys; mount --move /dev /new/dev
umount /proc /sys
exec switch_root /new /bin/bash /out/guest.sh
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need() {
        let dependencies = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
             kernel/fs/netfs/netfs.ko.xz:\n\
             kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n";
        assert_eq!(
            load_order(dependencies, &["9pnet_virtio", "9p", "overlay"]),
            [
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
            ]
        );
    }

    #[test]
    fn the_newest_package_has_the_highest_numbers() {
        let names = "linux-image-6.1.0-9-amd64 - Linux 6.1\n\
             linux-image-6.1.0-50-cloud-amd64 - Linux 6.1\n\
             linux-image-6.1.0-47-amd64 - Linux 6.1\n";
        assert_eq!(newest(names).as_deref(), Some("linux-image-6.1.0-47-amd64"));
        assert_eq!(newest(""), None);
    }
}
