//! Tasks and signals: an executable of its own, because a signal goes to every test of a process.

// the helpers of a test may fail it
#![allow(clippy::unwrap_used, clippy::panic)]

use std::future::pending;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use portmapping_runtime::supervisor::{Supervisor, SupervisorError};
use rustix::process::{Signal, getpid, kill_process};

const LIMIT: Duration = Duration::from_secs(10);
/// One test at a time: each reads the signals of the whole process.
static SIGNALS: Mutex<()> = Mutex::new(());

fn run(start: impl FnOnce(&mut Supervisor), signals: &[Signal]) -> Result<(), SupervisorError> {
    let _alone = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut supervisor = Supervisor::install().unwrap();
        start(&mut supervisor);
        let token = supervisor.token();
        let running = tokio::spawn(supervisor.run());
        for signal in signals {
            kill_process(getpid(), *signal).unwrap();
            // two signals that are pending at once are one
            token.cancelled().await;
        }
        tokio::time::timeout(LIMIT, running).await.unwrap().unwrap()
    })
}

#[test]
fn a_signal_ends_every_task() {
    let start = |supervisor: &mut Supervisor| {
        for name in ["one", "two"] {
            let token = supervisor.token();
            supervisor.spawn(name, async move { token.cancelled().await });
        }
    };
    run(start, &[Signal::TERM]).unwrap();
    run(start, &[Signal::INT]).unwrap();
}

#[test]
fn a_future_beside_the_tasks_ends_with_a_signal_and_with_a_failed_task() {
    let _alone = SIGNALS.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut supervisor = Supervisor::install().unwrap();
        let token = supervisor.token();
        supervisor.spawn("waits", async move { token.cancelled().await });
        assert_eq!(supervisor.during(async { 1 }).await.unwrap(), Some(1));
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(supervisor.during(pending::<u8>()).await.unwrap(), None);
        supervisor.try_spawn("fails", async { Err(io::Error::other("no")) });
        supervisor.during(pending::<u8>()).await.unwrap_err();
        supervisor.token().cancel();
        assert_eq!(supervisor.during(pending::<u8>()).await.unwrap(), None);
    });
}

#[test]
fn a_task_may_end_the_program_as_a_signal_does() {
    let start = |supervisor: &mut Supervisor| {
        let (token, ending) = (supervisor.token(), supervisor.token());
        supervisor.spawn("waits", async move { token.cancelled().await });
        supervisor.spawn("ends", async move { ending.cancel() });
    };
    run(start, &[]).unwrap();
}

#[test]
fn the_first_error_ends_the_program_and_names_its_task() {
    let start = |supervisor: &mut Supervisor| {
        supervisor.spawn("waits", pending());
        supervisor.try_spawn("fails", async { Err(io::Error::other("no such thing")) });
    };
    let error = run(start, &[]).unwrap_err();
    assert!(matches!(
        error,
        SupervisorError::Failed { task: "fails", .. }
    ));
    let text = portmapping_runtime::deadline::chain(&error);
    assert_eq!(text, "task fails failed: no such thing");
}

#[test]
fn a_task_that_ends_early_or_panics_ends_the_program() {
    let early = run(
        |supervisor| {
            supervisor.spawn("waits", pending());
            supervisor.spawn("early", async {});
        },
        &[],
    );
    assert!(matches!(early, Err(SupervisorError::Ended("early"))));
    let panicked = run(
        |supervisor| {
            supervisor.spawn("waits", pending());
            supervisor.spawn("panics", async { panic!("on purpose") });
        },
        &[],
    );
    assert!(matches!(panicked, Err(SupervisorError::Panicked(_))));
}

#[test]
fn a_second_signal_does_not_wait_for_the_tasks() {
    let start = |supervisor: &mut Supervisor| supervisor.spawn("never", pending());
    let forced = run(start, &[Signal::TERM, Signal::TERM]);
    assert!(matches!(forced, Err(SupervisorError::Forced)));
}
