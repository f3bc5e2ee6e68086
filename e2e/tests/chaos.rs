//! Sixty rounds of chaos on a new cluster; `e2e chaos --rounds 1000` does more.

use anyhow::Result;
use e2e::chaos::{Options, run};

#[test]
fn sixty_rounds_of_faults_break_nothing() -> Result<()> {
    run(&Options {
        rounds: 60,
        seed: Some(20_261_121),
        only: Vec::new(),
        program: Some(env!("CARGO_BIN_EXE_e2e").into()),
    })
}
