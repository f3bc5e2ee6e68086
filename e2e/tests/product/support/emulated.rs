//! What programs of a release do, also those for another machine than this one: an emulator runs them.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{paths, process};
use serde_json::{Value, json};

use crate::support::ANNOTATION;

/// An emulator is slow.
const LIMIT: Duration = Duration::from_mins(5);
const BUILD_LIMIT: Duration = Duration::from_mins(30);
const TARGET: &str = "aarch64-unknown-linux-musl";

/// Runs a static program, in an emulator if it is for another machine.
fn command(program: &Path, architecture: &str) -> Command {
    if architecture == "arm64" && std::env::consts::ARCH != "aarch64" {
        let mut emulator = process::command("qemu-aarch64");
        emulator.arg(program);
        return emulator;
    }
    process::command(program)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // fails only if it has ended already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The webhook of an unpacked image answers a review of an annotated pod over TLS with a patch.
pub(crate) fn a_review_is_answered(root: &Path, architecture: &str) -> Result<()> {
    let tls = root.with_extension("tls");
    fs::create_dir_all(&tls).with_context(|| format!("create {}", tls.display()))?;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate = tls.join("tls.crt");
    fs::write(&certificate, made.cert.pem())?;
    fs::write(tls.join("tls.key"), made.signing_key.serialize_pem())?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();

    let mut webhook = command(&root.join("webhook"), architecture);
    webhook.arg("--listen").arg(format!("127.0.0.1:{port}"));
    webhook.args(["--admin-listen", "127.0.0.1:0", "--drain-delay", "0s"]);
    webhook.arg("--tls-dir").arg(&tls).stdin(Stdio::null());
    let _webhook = Running(webhook.spawn().context("start the webhook")?);

    let ports = json!([{ "containerPort": 9040 }]);
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "a-review",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "operation": "CREATE",
            "namespace": "default",
            "userInfo": {},
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": "web", "annotations": { ANNOTATION: "" } },
                "spec": { "containers": [{ "name": "web", "image": "web", "ports": ports }] },
            },
        },
    });
    let file = tls.join("review.json");
    fs::write(&file, review.to_string())?;
    let mut curl = process::command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "20"]);
    curl.args(["--retry", "60", "--retry-delay", "1", "--retry-connrefused"]);
    curl.arg("--cacert").arg(&certificate);
    curl.args(["--header", "Content-Type: application/json"]);
    curl.arg("--data-binary")
        .arg(format!("@{}", file.display()));
    let answer = process::run(curl.arg(format!("https://localhost:{port}/mutate")), LIMIT)?;
    let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
    let response = &answer["response"];
    ensure!(
        response["allowed"] == true && response["patch"].is_string(),
        "{architecture}: {answer}"
    );
    fs::remove_dir_all(&tls).with_context(|| format!("remove {}", tls.display()))
}

/// The keeper's own tests pass on the other machine.
pub(crate) fn the_keepers_tests_pass(architecture: &str) -> Result<()> {
    if architecture != "arm64" || std::env::consts::ARCH == "aarch64" {
        return Ok(());
    }
    let mut build = process::command("cargo");
    build.current_dir(paths::root());
    build.env("TARGET_CC", "aarch64-linux-gnu-gcc");
    build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
    build.args(["test", "--no-run", "--locked", "--target", TARGET]);
    build.args(["-p", "portmapping-keeper", "--message-format=json"]);
    let messages = process::run(&mut build, BUILD_LIMIT)?;
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let programs = messages.filter_map(|message: Value| {
        let is_test = message["profile"]["test"] == true;
        message["executable"]
            .as_str()
            .filter(|_| is_test)
            .map(str::to_owned)
    });
    let mut passed = 0;
    for program in programs {
        let output = process::run(&mut command(Path::new(&program), architecture), LIMIT)?;
        ensure!(output.contains("test result: ok"), "{program}: {output}");
        passed += output
            .lines()
            .filter(|line| line.ends_with("... ok"))
            .count();
    }
    ensure!(passed > 10, "only {passed} tests of the keeper ran");
    println!("{architecture}: {passed} tests of the keeper pass in the emulator");
    Ok(())
}
