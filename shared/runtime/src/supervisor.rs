//! The tasks of a program: they run together, and the first that fails ends the program.
//!
//! SIGTERM and SIGINT cancel the token of every task; a second signal ends the program at once.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a program ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A task returned an error.
    #[error("task {task} failed")]
    Failed {
        /// Name of the task.
        task: &'static str,
        /// Its error.
        #[source]
        source: BoxError,
    },
    /// A task returned while the program was to go on.
    #[error("task {0} ended, but nothing had asked it to")]
    Ended(&'static str),
    /// A task panicked.
    #[error("a task panicked")]
    Panicked(#[source] JoinError),
    /// A second signal came before all tasks had ended.
    #[error("a second signal came before every task had ended")]
    Forced,
}

/// The signals that ask a program to end. Each value of this type receives all of them.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// Takes over SIGTERM and SIGINT: from here on they no longer kill the process. Needs a runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal, and returns its name. Cancel-safe.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The tasks of a program and the signals that end it.
#[derive(Debug)]
pub struct Supervisor {
    signals: EndSignals,
    token: CancellationToken,
    tasks: JoinSet<Result<(), SupervisorError>>,
}

impl Supervisor {
    /// Takes over SIGTERM and SIGINT: from here on they no longer kill the process. Needs a runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            signals: EndSignals::install()?,
            token: CancellationToken::new(),
            tasks: JoinSet::new(),
        })
    }

    /// Returns the token that the first signal cancels. A task may cancel it as well, which ends
    /// the program as a signal does.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task. It must not end before the token is cancelled.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.try_spawn(name, async move {
            task.await;
            Ok::<(), BoxError>(())
        });
    }

    /// Starts a task that can fail. It must not end before the token is cancelled.
    pub fn try_spawn<E: Into<BoxError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let token = self.token();
        self.tasks.spawn(async move {
            match task.await {
                Err(error) => Err(SupervisorError::Failed {
                    task: name,
                    source: error.into(),
                }),
                Ok(()) if !token.is_cancelled() => Err(SupervisorError::Ended(name)),
                Ok(()) => Ok(()),
            }
        });
    }

    /// Runs a future next to the tasks that were started. Returns None if a signal comes first, or if the
    /// token is cancelled. Fails as soon as one of the tasks fails.
    pub async fn during<T>(
        &mut self,
        future: impl Future<Output = T>,
    ) -> Result<Option<T>, SupervisorError> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return Ok(Some(done)),
                () = self.token.cancelled() => return Ok(None),
                Some(ended) = self.tasks.join_next() => {
                    ended.map_err(SupervisorError::Panicked).flatten()?;
                }
                _ = self.signals.recv() => return Ok(None),
            }
        }
    }

    /// Runs until every task has ended after a signal. The first task that fails, and a second
    /// signal, end it at once: the other tasks are dropped.
    pub async fn run(mut self) -> Result<(), SupervisorError> {
        let mut asked_to_end = false;
        loop {
            let signal = tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    None => return Ok(()),
                    Some(ended) => {
                        ended.map_err(SupervisorError::Panicked).flatten()?;
                        continue;
                    }
                },
                signal = self.signals.recv() => signal,
            };
            if asked_to_end {
                return Err(SupervisorError::Forced);
            }
            tracing::info!(
                signal,
                "the program was asked to end; waiting for its tasks"
            );
            asked_to_end = true;
            self.token.cancel();
        }
    }
}
