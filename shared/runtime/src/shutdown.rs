//! SIGTERM and SIGINT: the first asks every task to finish, the second ends the wait.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that end the program.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    token: CancellationToken,
}

impl Shutdown {
    /// Takes the signals over: from here on they no longer kill the program. Needs a runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            token: CancellationToken::new(),
        })
    }

    /// Cancelled at the first signal.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Cancels the token at the first signal and returns at the second, when the caller should
    /// end at once. Select it against the program's work.
    pub async fn until_forced(mut self) {
        self.signal().await;
        self.token.cancel();
        self.signal().await;
        tracing::warn!("second signal: ending at once");
    }

    async fn signal(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "asked to end");
    }
}
