//! Starting the long-lived programs of a cluster. Each has its own log. Each end is recorded in
//! one file, which the owner reads while the cluster boots.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::config::Spec;
use crate::process;
use crate::wait::{self, Probe};

const INTERVAL: Duration = Duration::from_millis(5);

/// How often a program written in Go collects garbage (`GOGC`, <https://go.dev/doc/gc-guide>).
#[derive(Clone, Copy)]
pub(crate) enum Collects {
    /// When its heap has doubled: what Go does by itself.
    Often,
    /// When its heap has grown to five times its size. An API server of 100 MB collects for 0.1 s. On a
    /// machine of two cores, requests take three times as long in that time.
    Seldom,
}

/// The same as [`start_with`], without more variables.
pub(crate) fn start(
    spec: &Spec,
    log: &str,
    program: &Path,
    arguments: &[String],
    collects: Collects,
) -> Result<()> {
    start_with(spec, log, program, arguments, &[], collects)
}

/// Starts a program of the cluster. It ends with its PID namespace. It is started again only after
/// an end that [`pause_file`] announced, when that file is gone.
pub(crate) fn start_with(
    spec: &Spec,
    log: &str,
    program: &Path,
    arguments: &[String],
    environment: &[(&'static str, &str)],
    collects: Collects,
) -> Result<()> {
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let mut child = spawn(spec, log, program, arguments, &environment, collects)?;
    let (spec, log) = (spec.clone(), log.to_owned());
    let (program, arguments) = (program.to_owned(), arguments.to_vec());
    thread::spawn(move || {
        while let Ok(status) = child.wait() {
            let pause = pause_file(&spec, &log);
            if !pause.exists() {
                record_end(&spec, &log, &process::ending(status));
                return;
            }
            if let Err(error) = fs::write(&pause, DOWN) {
                return record_end(
                    &spec,
                    &log,
                    &format!("cannot write that it is down: {error}"),
                );
            }
            while pause.exists() {
                thread::sleep(INTERVAL);
            }
            match spawn(&spec, &log, &program, &arguments, &environment, collects) {
                Ok(again) => child = again,
                Err(error) => return record_end(&spec, &log, &format!("{error:#}")),
            }
        }
    });
    Ok(())
}

fn spawn(
    spec: &Spec,
    log: &str,
    program: &Path,
    arguments: &[String],
    environment: &[(&'static str, String)],
    collects: Collects,
) -> Result<Child> {
    let mut command = Command::new(program);
    if let Collects::Seldom = collects {
        command.env("GOGC", "400");
    }
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("PATH", search_path(spec))
        .process_group(0);
    let file = create_log(spec, log)?;
    command
        .stdin(Stdio::null())
        .stderr(clone(&file)?)
        .stdout(file);
    command
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// The content of the pause file when the end of the component has been seen.
const DOWN: &str = "down";

/// While this file exists, the component of this log stays down. It starts again when the file is
/// removed. Remove it only after [`is_down`]; before that, the end would count as a failure.
pub(crate) fn pause_file(spec: &Spec, log: &str) -> PathBuf {
    spec.state.join("paused").join(log)
}

/// Whether the component of a pause file has ended, and will come back when the file goes.
pub(crate) fn is_down(pause: &Path) -> bool {
    fs::read_to_string(pause).is_ok_and(|text| text == DOWN)
}

/// A fresh log file.
pub(crate) fn create_log(spec: &Spec, name: &str) -> Result<File> {
    let path = spec.log(name);
    // Appending: two processes share some logs, and a reader may truncate one.
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

pub(crate) fn clone(file: &File) -> Result<File> {
    file.try_clone()
        .context("duplicate a log file's descriptor")
}

/// Records that a part of the cluster has ended, for the process that waits for it to boot.
pub(crate) fn record_end(spec: &Spec, log: &str, ending: &str) {
    let line = format!("{log} ended: {ending}\n");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(ends_file(spec));
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("cannot record that {log} ended: {error}");
    }
}

/// The first part that ended, with the last lines of its log.
pub(crate) fn first_end(spec: &Spec) -> Option<String> {
    let ends = fs::read_to_string(ends_file(spec)).ok()?;
    let first = ends.lines().next()?;
    let log = spec.log(first.split(' ').next()?);
    Some(format!(
        "{first}\nThe end of {}:\n{}",
        log.display(),
        tail(&log)
    ))
}

/// The last lines of a file, for an error message.
pub(crate) fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn ends_file(spec: &Spec) -> PathBuf {
    spec.state.join("log/ended")
}

/// PATH of everything inside the cluster: its own programs first.
pub(crate) fn search_path(spec: &Spec) -> OsString {
    let own = [spec.kubernetes.clone(), spec.node_tools.clone()];
    let path = process::search_path();
    let folders = own.into_iter().chain(spec.cni.clone());
    let folders = folders.chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

/// Waits until something accepts connections.
pub(crate) fn wait_for_port(address: &str, limit: Duration) -> Result<()> {
    let socket: SocketAddr = address
        .parse()
        .with_context(|| format!("address {address}"))?;
    wait::until(&format!("{address} to accept"), limit, INTERVAL, || {
        Ok(
            match TcpStream::connect_timeout(&socket, Duration::from_secs(1)) {
                Ok(_) => Probe::Done(()),
                Err(error) => Probe::Missing(error.to_string()),
            },
        )
    })
}

/// The same for a unix socket.
pub(crate) fn wait_for_socket(path: &str, limit: Duration) -> Result<()> {
    wait::until(&format!("{path} to accept"), limit, INTERVAL, || {
        Ok(match UnixStream::connect(path) {
            Ok(_) => Probe::Done(()),
            Err(error) => Probe::Missing(error.to_string()),
        })
    })
}
