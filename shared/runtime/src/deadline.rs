//! No call to the outside without an end.

use std::future::Future;
use std::time::Duration;

/// Why a call to the outside failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError<E: std::error::Error + 'static> {
    /// No answer in time; whether it had an effect is unknown.
    #[error("{what}: no answer within {limit:?}")]
    TimedOut {
        /// The call.
        what: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// An answer that is an error.
    #[error("{what} failed")]
    Failed {
        /// The call.
        what: &'static str,
        /// The answer.
        #[source]
        source: E,
    },
}

/// Runs a call to the outside, giving up after `limit`.
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

/// An error with all its causes on one line, for logs: error texts here do not repeat their cause.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // some libraries do repeat it
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
