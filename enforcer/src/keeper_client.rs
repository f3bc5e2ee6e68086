//! Client of the keeper: take over, hold, release, list.
//!
//! Every request can be repeated safely. If the connection fails, the request is sent once more over a
//! new connection. The keeper at its other end may have just started and hold nothing:
//! [`KeeperClientError::Restarted`] says so once, and the caller asks for its ports again.
//! [`RoleWatch`] reports what happens without a request: the keeper died, or retired.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portmapping_shared::{Backoff, PortKey};
use tokio::time::{Instant, sleep, timeout_at};

use portmapping_keeper::wire::{HoldOutcome, KeeperRole, MAX_PORTS, Reply, Request, VERSION};

mod error;
mod reacquire;
mod role;
mod stream;

pub use error::KeeperClientError;
pub use role::follow as follow_role;
use stream::Stream;

/// How long a keeper may take to answer; [`MAX_PORTS`] binds take a few milliseconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for a keeper that is being restarted: as long as damage may last without a
/// word in the condition.
pub const RECONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Waits between two tries to connect. They are short: until the keeper answers, no port may be
/// held.
const WAITS: Backoff = Backoff {
    first: Duration::from_millis(2),
    longest: Duration::from_millis(20),
};

/// A connection to a keeper. One request at a time.
#[derive(Debug)]
pub struct KeeperClient {
    path: PathBuf,
    /// None during a request, and after a cancelled one, whose reply may still arrive.
    stream: Option<Stream>,
    instance: u64,
}

impl KeeperClient {
    /// Connects as soon as a keeper listens at `path`, or fails after `within`.
    pub async fn connect(
        path: impl Into<PathBuf>,
        within: Duration,
    ) -> Result<Self, KeeperClientError> {
        let path = path.into();
        let (stream, instance) = open(&path, within).await?;
        Ok(Self {
            path,
            stream: Some(stream),
            instance,
        })
    }

    /// Holds the ports; returns one outcome per port, in order. Holding a port twice is no error.
    pub async fn hold(&mut self, ports: &[PortKey]) -> Result<Vec<HoldOutcome>, KeeperClientError> {
        let mut outcomes = Vec::with_capacity(ports.len());
        for chunk in ports.chunks(MAX_PORTS) {
            match self.ask("hold", Request::Hold(chunk.to_vec())).await? {
                Reply::Holding(some) if some.len() == chunk.len() => outcomes.extend(some),
                reply => return Err(self.unexpected_reply("hold", &reply)),
            }
        }
        Ok(outcomes)
    }

    /// Releases the ports; returns how many of them were held.
    pub async fn release(&mut self, ports: &[PortKey]) -> Result<usize, KeeperClientError> {
        let mut released = 0;
        for chunk in ports.chunks(MAX_PORTS) {
            match self
                .ask("release", Request::Release(chunk.to_vec()))
                .await?
            {
                Reply::Released(count) => released += count,
                reply => return Err(self.unexpected_reply("release", &reply)),
            }
        }
        Ok(released)
    }

    /// Makes the keeper active; returns its role. It is not active if another keeper takes over at the
    /// same time: ask again.
    pub async fn take_over(&mut self) -> Result<KeeperRole, KeeperClientError> {
        match self.ask("take over", Request::TakeOver).await? {
            Reply::Role(role) => Ok(role),
            reply => Err(self.unexpected_reply("take over", &reply)),
        }
    }

    /// Returns every port that the keeper holds.
    pub async fn list(&mut self) -> Result<BTreeSet<PortKey>, KeeperClientError> {
        let mut all = BTreeSet::new();
        loop {
            let after = all.last().copied();
            match self.ask("list", Request::List { after }).await? {
                // a page without a new port would make this loop endless
                Reply::Held { ports, more } if !more || ports.last().copied() > after => {
                    all.extend(ports);
                    if !more {
                        return Ok(all);
                    }
                }
                reply => return Err(self.unexpected_reply("list", &reply)),
            }
        }
    }

    async fn ask(
        &mut self,
        what: &'static str,
        request: Request,
    ) -> Result<Reply, KeeperClientError> {
        let reply = match self.try_ask(what, &request).await {
            Err(KeeperClientError::Lost { .. }) => {
                let (stream, instance) = open(&self.path, RECONNECT_TIMEOUT).await?;
                self.stream = Some(stream);
                if std::mem::replace(&mut self.instance, instance) != instance {
                    return Err(KeeperClientError::Restarted {
                        path: self.path.clone(),
                    });
                }
                self.try_ask(what, &request).await?
            }
            other => other?,
        };
        match reply {
            Reply::Retired => Err(KeeperClientError::Retired {
                path: self.path.clone(),
            }),
            Reply::Error(message) => {
                self.stream = None; // the keeper closed it
                Err(KeeperClientError::Rejected {
                    what,
                    path: self.path.clone(),
                    message,
                })
            }
            reply => Ok(reply),
        }
    }

    async fn try_ask(
        &mut self,
        what: &'static str,
        request: &Request,
    ) -> Result<Reply, KeeperClientError> {
        let lost = |source| KeeperClientError::Lost {
            what,
            path: self.path.clone(),
            source,
        };
        let mut stream = self
            .stream
            .take()
            .ok_or_else(|| lost(io::ErrorKind::NotConnected.into()))?;
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        match timeout_at(deadline, stream.ask(request.clone())).await {
            Ok(Ok(reply)) => {
                self.stream = Some(stream);
                Ok(reply)
            }
            Ok(Err(source)) => Err(lost(source)),
            Err(_) => {
                let path = self.path.clone();
                Err(KeeperClientError::Timeout {
                    what,
                    path,
                    after: REQUEST_TIMEOUT,
                })
            }
        }
    }

    fn unexpected_reply(&mut self, what: &'static str, reply: &Reply) -> KeeperClientError {
        self.stream = None;
        let reply = format!("{reply:?}").chars().take(200).collect();
        KeeperClientError::UnexpectedReply {
            what,
            path: self.path.clone(),
            reply,
        }
    }
}

/// Receives the keeper's role, over a connection of its own. A keeper serves only its newest watch.
#[derive(Debug)]
pub struct RoleWatch {
    path: PathBuf,
    stream: Stream,
}

impl RoleWatch {
    /// Connects as soon as a keeper listens at `path`, or fails after `within`.
    pub async fn connect(
        path: impl Into<PathBuf>,
        within: Duration,
    ) -> Result<Self, KeeperClientError> {
        let path = path.into();
        let (mut stream, _) = open(&path, within).await?;
        match timeout_at(
            Instant::now() + REQUEST_TIMEOUT,
            stream.send(Request::Watch),
        )
        .await
        {
            Ok(Ok(())) => Ok(Self { path, stream }),
            Ok(Err(source)) => Err(KeeperClientError::Lost {
                what: "watch",
                path,
                source,
            }),
            Err(_) => Err(KeeperClientError::Timeout {
                what: "watch",
                path,
                after: REQUEST_TIMEOUT,
            }),
        }
    }

    /// Returns the role: at once the first time, then at each change. [`KeeperClientError::Lost`]
    /// means that the keeper died, or that another watch replaced this one. Cancel-safe.
    pub async fn next(&mut self) -> Result<KeeperRole, KeeperClientError> {
        match self.stream.recv().await {
            Ok(Reply::Role(role)) => Ok(role),
            Ok(reply) => {
                let reply = format!("{reply:?}");
                Err(KeeperClientError::UnexpectedReply {
                    what: "watch",
                    path: self.path.clone(),
                    reply,
                })
            }
            Err(source) => Err(KeeperClientError::Lost {
                what: "watch",
                path: self.path.clone(),
                source,
            }),
        }
    }
}

/// Connects and reads the greeting. Tries again until `within` is over.
async fn open(path: &Path, within: Duration) -> Result<(Stream, u64), KeeperClientError> {
    let deadline = Instant::now() + within;
    let mut failures = 0;
    loop {
        failures += 1;
        let pause = WAITS.after(failures, 0.0);
        let tried = timeout_at(deadline, greet(path)).await;
        let failed = |source| KeeperClientError::Connect {
            path: path.to_owned(),
            within,
            source,
        };
        match tried {
            Ok(Ok((_, Reply::Hello { v, .. }))) if v < VERSION => {
                return Err(KeeperClientError::Version {
                    path: path.to_owned(),
                    theirs: v,
                });
            }
            Ok(Ok((stream, Reply::Hello { instance, .. }))) => return Ok((stream, instance)),
            Ok(Ok((_, reply))) => {
                let reply = format!("{reply:?}");
                return Err(KeeperClientError::UnexpectedReply {
                    what: "connect",
                    path: path.to_owned(),
                    reply,
                });
            }
            // another try would fail in the same way
            Ok(Err(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(source));
            }
            Ok(Err(source)) if Instant::now() + pause >= deadline => return Err(failed(source)),
            Ok(Err(_)) => sleep(pause).await,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }
}

async fn greet(path: &Path) -> io::Result<(Stream, Reply)> {
    let mut stream = Stream::connect(path).await?;
    let greeting = stream.recv().await?;
    Ok((stream, greeting))
}

#[cfg(test)]
pub(crate) mod tests;
