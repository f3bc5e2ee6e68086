//! The service account's token, which the kubelet replaces long before it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use http::header::{AUTHORIZATION, InvalidHeaderValue};
use http::{HeaderValue, Request};
use parking_lot::Mutex;

/// How long a token that was read is used; the kubelet replaces one ten minutes or more before its end.
const REREAD: Duration = Duration::from_mins(1);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file is not there, or not for us.
    #[error("cannot read the service account's token from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is empty, or cannot be sent. The cause never holds the text.
    #[error("{} holds no token", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The cause, if there is one.
        #[source]
        source: Option<InvalidHeaderValue>,
    },
}

/// The token in a file; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Token {
    path: Arc<PathBuf>,
    known: Arc<Mutex<(HeaderValue, Instant)>>,
}

impl Token {
    pub(super) fn read(path: PathBuf) -> Result<Self, TokenError> {
        let header = read(&path)?;
        Ok(Self {
            path: Arc::new(path),
            known: Arc::new(Mutex::new((header, Instant::now()))),
        })
    }

    /// The request in the service account's name.
    pub(super) fn sign<B>(&self, mut request: Request<B>) -> Request<B> {
        let header = self.at(Instant::now());
        request.headers_mut().insert(AUTHORIZATION, header);
        request
    }

    /// A file that cannot be read changes nothing: the token may last until it can.
    fn at(&self, now: Instant) -> HeaderValue {
        let mut known = self.known.lock();
        if now.saturating_duration_since(known.1) >= REREAD {
            known.1 = now;
            match read(&self.path) {
                Ok(header) => known.0 = header,
                Err(error) => tracing::warn!(%error, "keeping to the token that was known before"),
            }
        }
        known.0.clone()
    }
}

fn read(path: &PathBuf) -> Result<HeaderValue, TokenError> {
    let text = fs::read_to_string(path).map_err(|source| TokenError::Read {
        path: path.clone(),
        source,
    })?;
    let unusable = |source| TokenError::Text {
        path: path.clone(),
        source,
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(unusable(None));
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|source| unusable(Some(source)))?;
    // nobody prints it, and HTTP/2 keeps no copy
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests;
