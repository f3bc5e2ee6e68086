//! What stays on the disk when tests share a cluster that ends with their process? Nothing after a green
//! run; the folder with its logs after a failed one.

use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::wait::{Probe, until};
use e2e::{Cluster, Config, paths};

/// Names the cluster of the process that uses it.
const NAME: &str = "E2E_HARNESS_CLUSTER";
/// Set to `yes`, it lets the test of that process pass.
const PASSES: &str = "E2E_HARNESS_PASSES";

#[test]
#[ignore = "a process that the other test starts"]
fn uses_a_shared_cluster() -> Result<()> {
    let cluster = Cluster::start(&Config {
        name: env::var(NAME).context("the cluster has no name")?,
        nodes: 0,
        product: false,
        program: Some(env!("CARGO_BIN_EXE_e2e").into()),
        ..Config::default()
    })?;
    // as the static cluster of a test program, this one is never dropped
    Box::leak(Box::new(cluster)).judged(|| {
        ensure!(
            env::var(PASSES).as_deref() == Ok("yes"),
            "this test is to fail"
        );
        Ok(())
    })
}

#[test]
fn a_green_run_leaves_no_folder_and_a_failed_run_leaves_its_logs() -> Result<()> {
    for (passes, stays) in [("yes", false), ("no", true)] {
        let name = format!("harness-{passes}-{}", std::process::id());
        let folder = paths::clusters().join(&name);
        let child = Command::new(env::current_exe()?)
            .args(["--ignored", "--exact", "uses_a_shared_cluster"])
            .env(NAME, &name)
            .env(PASSES, passes)
            .output()?;
        ensure!(child.status.success() != stays, "{passes}: {child:?}");
        let (limit, pause) = (Duration::from_mins(1), Duration::from_millis(50));
        until("the owner to end", limit, pause, || {
            Ok(match Cluster::find(&name)? {
                None => Probe::Done(()),
                Some(_) => Probe::Missing("the cluster is up".to_owned()),
            })
        })?;
        ensure!(
            folder.join("log/owner.log").exists() == stays,
            "{passes}: {}",
            folder.display()
        );
        Cluster::destroy(&name)?;
        ensure!(!folder.exists(), "{} is still there", folder.display());
    }
    Ok(())
}
