//! Runs external programs with input, output and a time limit, so that none can block the enforcer.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::system_error::limit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How many bytes of a program's standard error an error contains.
const STDERR_BYTES: usize = 2_000;

/// The error of a program that could not be started or did not end in time.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The program is not installed.
    #[error("{program} is not installed (or not on PATH)")]
    Missing {
        /// Name of the program.
        program: &'static str,
    },
    /// The system could not start it, or write to it or read from it.
    #[error("cannot run {program}{}", limit(source))]
    Io {
        /// Name of the program.
        program: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {} s and was killed; it had said: {stderr:?}", .deadline.as_secs_f32())]
    Deadline {
        /// Name of the program.
        program: &'static str,
        /// Its time limit.
        deadline: Duration,
        /// What it had written to its standard error.
        stderr: String,
    },
}

/// The exit status and the output of a program.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

/// Where programs are searched, and how long each may take.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The only directory to search; None for PATH.
    pub directory: Option<PathBuf>,
    /// Longest time one program may take; it is killed after that.
    pub deadline: Duration,
}

impl Default for Tools {
    fn default() -> Self {
        // rebuilding 20,000 rules takes less than a second on an idle node
        Self {
            directory: None,
            deadline: Duration::from_secs(20),
        }
    }
}

impl Tools {
    /// Runs a program until it exits, with `input` as its standard input.
    pub(super) fn run<S: AsRef<OsStr>>(
        &self,
        program: &'static str,
        args: &[S],
        input: &[u8],
    ) -> Result<Finished, ExecError> {
        let path = self
            .directory
            .as_ref()
            .map_or(PathBuf::from(program), |dir| dir.join(program));
        let mut child = Command::new(path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ExecError::Missing { program },
                _ => ExecError::Io { program, source },
            })?;
        let mut pipes = Pipes::default();
        let ended = pipes.carry(&mut child, input, Instant::now() + self.deadline);
        if !matches!(ended, Ok(true)) {
            // fails only if the child has exited already; in both cases it is reaped below
            let _ = child.kill();
        }
        let status = child.wait();
        let stderr = text_of(&pipes.stderr);
        let io_error = |source| ExecError::Io { program, source };
        if ended.map_err(io_error)? {
            let status = status.map_err(io_error)?;
            Ok(Finished {
                status,
                stdout: pipes.stdout,
                stderr,
            })
        } else {
            Err(ExecError::Deadline {
                program,
                deadline: self.deadline,
                stderr,
            })
        }
    }
}

/// The output of a child so far.
#[derive(Default)]
struct Pipes {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Pipes {
    /// Writes input and reads output until the child exits; returns false if the deadline comes
    /// first.
    ///
    /// It stops at the exit, not at the end of the output: a grandchild may keep the pipes open.
    fn carry(&mut self, child: &mut Child, input: &[u8], deadline: Instant) -> io::Result<bool> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("child has no process id"))?;
        let exit = pidfd_open(pid, PidfdFlags::empty())?;
        let (mut stdin, mut stdout, mut stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        unblock(stdin.as_ref())?;
        unblock(stdout.as_ref())?;
        unblock(stderr.as_ref())?;
        let mut rest = input;
        loop {
            if rest.is_empty() {
                stdin = None;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Ok(false);
            };
            let mut fds = vec![PollFd::new(&exit, PollFlags::IN)];
            fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
            fds.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            fds.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            match poll(
                &mut fds,
                Some(&Timespec::try_from(left).map_err(io::Error::other)?),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let exited = !fds.first().is_none_or(|fd| fd.revents().is_empty());
            if let Some(pipe) = &mut stdin {
                feed(pipe, &mut rest);
            }
            drain(&mut stdout, &mut self.stdout);
            drain(&mut stderr, &mut self.stderr);
            if exited {
                return Ok(true);
            }
        }
    }
}

fn unblock(pipe: Option<&impl AsFd>) -> io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
    Ok(())
}

/// Writes as much as the pipe accepts; drops the rest if the reader has closed its end.
fn feed(pipe: &mut impl Write, rest: &mut &[u8]) {
    while !rest.is_empty() {
        match pipe.write(rest) {
            Ok(written) => *rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => *rest = &[],
        }
    }
}

/// Reads what is available; closes the pipe at the end of the output.
fn drain<P: Read>(pipe: &mut Option<P>, into: &mut Vec<u8>) {
    let ended = pipe
        .as_mut()
        .is_some_and(|pipe| match pipe.read_to_end(into) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        });
    if ended {
        *pipe = None;
    }
}

fn text_of(bytes: &[u8]) -> String {
    let bytes = bytes.get(..STDERR_BYTES).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).trim().to_owned()
}

#[cfg(test)]
mod tests;
