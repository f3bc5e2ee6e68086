//! Makes the jumps from the built-in chains, one by one, through the `iptables` crate.
//!
//! The jumps lead to empty chains until the next transaction fills them, so they do not affect
//! packets yet. That transaction also corrects jumps that existed before and are now missing or in
//! the wrong place.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;

use iptables::IPTables;

use crate::{DataplaneError, ExecError};

use super::commands::{Commands, LOCK_WAIT_SECONDS};
use super::layout::{Jump, NAT};

/// The chains and jumps that were made, so that they can be removed again.
#[derive(Debug, Default)]
pub(super) struct Made {
    chains: BTreeSet<&'static str>,
    jumps: Vec<Jump>,
}

/// Makes the jumps, each as the first rule of its chain, and the chains they lead to.
pub(super) fn make(commands: &Commands, missing: &[Jump]) -> Result<Made, DataplaneError> {
    let mut made = Made::default();
    for jump in missing {
        match on_thread(commands, jump, make_one) {
            Ok(true) => _ = made.chains.insert(jump.to),
            Ok(false) => {}
            Err(error) => {
                made.undo(commands);
                return Err(error);
            }
        }
        made.jumps.push(*jump);
    }
    Ok(made)
}

impl Made {
    /// Removes what was made; continues after failures. A jump into a chain that existed before is
    /// a repair and stays.
    pub(super) fn undo(&self, commands: &Commands) {
        for jump in self
            .jumps
            .iter()
            .filter(|jump| self.chains.contains(jump.to))
        {
            if let Err(error) = on_thread(commands, jump, remove_one) {
                tracing::debug!(%error, "a jump stays in place without use");
            }
        }
    }
}

/// Returns whether the chain is new.
fn make_one(iptables: &IPTables, jump: &Jump) -> Result<bool, String> {
    let new = match execute(iptables, &format!("-N {}", jump.to)) {
        Ok(()) => true,
        Err(message) if message.contains("Chain already exists") => false,
        Err(message) => return Err(message),
    };
    let rule = bounded(jump.rule);
    if iptables
        .exists(NAT, jump.from, &rule)
        .map_err(|error| error.to_string())?
    {
        return Ok(new);
    }
    iptables
        .insert(NAT, jump.from, &rule, 1)
        .map_err(|error| error.to_string())?;
    Ok(new)
}

fn remove_one(iptables: &IPTables, jump: &Jump) -> Result<(), String> {
    let removed = iptables.delete(NAT, jump.from, &bounded(jump.rule));
    removed.map_err(|error| error.to_string())?;
    // the kernel refuses this while another jump leads to the chain
    let _ = execute(iptables, &format!("-X {}", jump.to));
    Ok(())
}

fn execute(iptables: &IPTables, command: &str) -> Result<(), String> {
    let output = iptables
        .execute(NAT, &bounded(command))
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// Adds a time limit to a rule: the crate's own `--wait` waits for the lock forever.
fn bounded(rule: &str) -> String {
    format!("{rule} -w {LOCK_WAIT_SECONDS}")
}

/// Runs a call on its own thread and stops waiting for it at the deadline, because the crate has no
/// time limit. The thread starts in the network namespace of the caller.
fn on_thread<T: Send + 'static>(
    commands: &Commands,
    jump: &Jump,
    work: fn(&IPTables, &Jump) -> Result<T, String>,
) -> Result<T, DataplaneError> {
    let program = commands.programs().iptables;
    // one outcome
    let (sender, receiver) = mpsc::sync_channel(1);
    let jump = *jump;
    thread::spawn(move || {
        let iptables = IPTables {
            cmd: program,
            has_check: true,
            has_wait: false,
            is_numeric: true,
        };
        // the receiver is dropped after the deadline
        let _ = sender.send(work(&iptables, &jump));
    });
    let deadline = commands.tools.deadline;
    match receiver.recv_timeout(deadline) {
        Ok(outcome) => outcome.map_err(|message| DataplaneError::Jump {
            program,
            chain: jump.from,
            message,
        }),
        Err(_) => Err(ExecError::Deadline {
            program,
            deadline,
            stderr: String::new(),
        }
        .into()),
    }
}
