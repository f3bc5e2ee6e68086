//! Rounds of chaos on a new cluster; `e2e chaos --rounds 1000` does more.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use e2e::chaos::{Backend, Options, run};

/// One cluster at a time: the product's time limits are those of a machine that it does not share.
static MACHINE: Mutex<()> = Mutex::new(());

fn rounds(rounds: u32, backend: Backend) -> Result<()> {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    run(&Options {
        rounds,
        seed: Some(20_261_121),
        only: Vec::new(),
        backend,
        program: Some(env!("CARGO_BIN_EXE_e2e").into()),
    })
}

/// Enough for each kind of fault.
const ROUNDS: u32 = 25;

#[test]
fn faults_break_nothing() -> Result<()> {
    rounds(ROUNDS, Backend::Auto)
}

#[test]
fn faults_break_nothing_with_nftables() -> Result<()> {
    rounds(ROUNDS, Backend::Nftables)
}
