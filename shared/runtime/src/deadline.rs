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
    let mut text = String::new();
    let mut link = Some(error);
    while let Some(error) = link {
        let refusal = match error.downcast_ref::<kube::Error>() {
            // its own text, and its cause's, have the whole response in them, as a Rust value
            Some(kube::Error::Api(status)) => Some(status.message.clone()),
            _ => None,
        };
        link = error.source().filter(|_cause| refusal.is_none());
        let own = refusal.unwrap_or_else(|| error.to_string());
        // some libraries repeat the cause
        if text.is_empty() {
            text = own;
        } else if !text.ends_with(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
    }
    text
}

#[cfg(test)]
mod tests;
