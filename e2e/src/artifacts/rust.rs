//! The static binaries that go into images, built by cargo from this workspace.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::progress::Step;
use crate::{paths, process};

const PATIENCE: Duration = Duration::from_mins(30);

/// Builds the packages and returns the folder with their binaries. Cargo knows what is up to date.
/// Works inside `cargo run` and `cargo test` too: its target folder is not theirs.
pub fn release(packages: &[&str]) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
    ensure_target(&target)?;
    let folder = paths::image_target();
    let mut cargo = process::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(paths::root())
        .args(["build", "--release", "--locked"]);
    cargo
        .args(["--target", &target, "--target-dir"])
        .arg(&folder);
    for package in packages {
        cargo.args(["-p", package]);
    }
    let compiler = format!("CC_{}", target.replace('-', "_"));
    if env::var_os(&compiler).is_none() {
        cargo.env(compiler, "musl-gcc");
    }
    // Flags meant for the build that runs us, such as coverage, must not end up in the images.
    cargo
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER");
    let what = format!("static release binaries of {}", packages.join(", "));
    let step = Step::start(&what);
    process::run_long(&what, &mut cargo, PATIENCE)?;
    step.done("built");
    Ok(folder.join(target).join("release"))
}

/// rustup installs what rust-toolchain.toml names, but not for a toolchain chosen by hand.
fn ensure_target(target: &str) -> Result<()> {
    let limit = Duration::from_mins(1);
    let sysroot = process::run(
        process::command("rustc").args(["--print", "sysroot"]),
        limit,
    )?;
    let library = PathBuf::from(sysroot.trim())
        .join("lib/rustlib")
        .join(target);
    if library.is_dir() {
        return Ok(());
    }
    let mut rustup = process::command("rustup");
    rustup
        .current_dir(paths::root())
        .args(["target", "add", target]);
    process::run_long(
        &format!("rustup target {target}"),
        &mut rustup,
        Duration::from_mins(10),
    )
    .with_context(|| format!("add Rust's {target} target (by hand: rustup target add {target})"))
}
