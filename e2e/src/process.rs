//! Runs other programs, always with a deadline and with all their output.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::progress;

const HEARTBEAT: Duration = Duration::from_secs(10);
const TAIL_LINES: usize = 40;

/// A command with [`search_path`] as its PATH.
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// PATH with the folders of system programs: `su` without a dash leaves root with a user's PATH.
#[must_use]
pub fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !folders.iter().any(|known| known == Path::new(folder)) {
            folders.push(folder.into());
        }
    }
    env::join_paths(folders).unwrap_or(path)
}

/// Runs to the end and returns what was written, whatever the exit code.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let text = describe(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own, so that the deadline reaches grandchildren that hold the pipes too.
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("run {text}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, limit);
    let (stdout, stderr) = (join(stdout), join(stderr));
    match status? {
        Some(status) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        None => bail!(
            "{text}: not finished after {} s, killed; it wrote: {}",
            limit.as_secs(),
            String::from_utf8_lossy(&[stdout, stderr].concat()).trim()
        ),
    }
}

/// Runs to the end; returns standard output, or an error with all that the program wrote.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(command, limit)?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            describe(command),
            ending(output.status),
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs something that may take minutes: every ten seconds a line shows how long it runs, how
/// many lines it has printed, and the last of them.
pub fn run_long(what: &str, command: &mut Command, limit: Duration) -> Result<()> {
    let text = describe(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("run {text}"))?;
    let (sender, lines) = mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    drop(sender);
    let start = Instant::now();
    let mut beat = start;
    let mut count = 0_usize;
    let mut tail: VecDeque<String> = VecDeque::with_capacity(TAIL_LINES);
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                count += 1;
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if beat.elapsed() >= HEARTBEAT {
            beat = Instant::now();
            let last = tail.back().map_or("", |line| line.trim());
            let seconds = start.elapsed().as_secs();
            progress::say(format_args!(
                "  {what}: running for {seconds} s, line {count}: {last}"
            ));
        }
        if start.elapsed() > limit {
            kill_group(&mut child)?;
            bail!(
                "{what}: {text} not finished after {} s, killed",
                limit.as_secs()
            );
        }
    }
    let status = child.wait().with_context(|| format!("wait for {text}"))?;
    if !status.success() {
        let tail = tail.into_iter().collect::<Vec<_>>().join("\n  ");
        bail!(
            "{what}: {text} failed ({}). Its last lines:\n  {tail}",
            ending(status)
        );
    }
    Ok(())
}

/// A command as a user types it.
#[must_use]
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    let mut text = text.join(" ");
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// How a process ended, in words.
#[must_use]
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown ending".to_owned(),
    }
}

/// Waits for the end; `None` when the deadline came first and the process group was killed.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().context("wait for a child process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            kill_group(child)?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn kill_group(child: &mut Child) -> Result<()> {
    if let Ok(pid) = i32::try_from(child.id()) {
        // An error means that it has ended.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    child.wait().context("wait for a killed process")?;
    Ok(())
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Option<JoinHandle<Vec<u8>>> {
    let mut stream = stream?;
    Some(thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still useful.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }))
}

fn join(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader
        .and_then(|reader| reader.join().ok())
        .unwrap_or_default()
}
