//! Time limits for calls to other programs.

use std::future::Future;
use std::time::Duration;

/// Why a call to another program failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError<E: std::error::Error + 'static> {
    /// No response within the limit. Whether the call had an effect is unknown.
    #[error("{what}: no response within {limit:?}")]
    TimedOut {
        /// The call.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The response is an error.
    #[error("{what} failed")]
    Failed {
        /// The call.
        what: &'static str,
        /// The error.
        #[source]
        source: E,
    },
}

/// Runs a call to another program, at most for `limit`.
pub async fn within<T, E>(
    limit: Duration,
    what: &'static str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, CallError<E>>
where
    E: std::error::Error + 'static,
{
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(CallError::Failed { what, source }),
        Err(_elapsed) => Err(CallError::TimedOut { what, limit }),
    }
}

/// Returns an error with all its causes on one line, for logs: the errors of this project do not
/// repeat their cause.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // those of some libraries do
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests;
