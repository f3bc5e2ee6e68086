//! Client of the keeper: hold, release, list.
//!
//! Every request may be repeated without harm, so one that fails with its connection is sent once
//! more over a new one. Behind that connection there may be a keeper that has just started and
//! holds nothing: [`HoldError::Restarted`] says so once, and the caller asks for its ports anew.
//! For news that comes without a request (the keeper died, or retired) there is [`Watch`].

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use portmapping_keeper::wire::{Duty, MAX_PORTS, Outcome, Port, Reply, Request, VERSION};

mod error;
mod reacquire;
mod role;
mod stream;

pub use error::HoldError;
pub use role::follow as follow_duty;
use stream::Stream;

/// How long a keeper may take to answer; [`MAX_PORTS`] binds take it some milliseconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for a keeper that is being restarted.
pub const RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause between two tries to connect; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(2);
/// Longest pause between two tries to connect: while a keeper is looked for, nobody holds its ports.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// A keeper at the other end of a unix socket. One task asks at a time.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    /// None while a request is under way, and after one was cancelled: its answer may still come.
    stream: Option<Stream>,
    instance: u64,
}

impl Keeper {
    /// Connects as soon as a keeper listens at `path`, or fails after `within`.
    pub async fn connect(path: impl Into<PathBuf>, within: Duration) -> Result<Self, HoldError> {
        let path = path.into();
        let (stream, instance) = reach(&path, within).await?;
        Ok(Self {
            path,
            stream: Some(stream),
            instance,
        })
    }

    /// Holds the ports; the outcomes stand in their order. Holding one twice is no error.
    pub async fn hold(&mut self, ports: &[Port]) -> Result<Vec<Outcome>, HoldError> {
        let mut outcomes = Vec::with_capacity(ports.len());
        for chunk in ports.chunks(MAX_PORTS) {
            match self.ask("hold", Request::Hold(chunk.to_vec())).await? {
                Reply::Holding(some) if some.len() == chunk.len() => outcomes.extend(some),
                reply => return Err(self.garbled("hold", &reply)),
            }
        }
        Ok(outcomes)
    }

    /// Lets go of the ports; answers how many of them were held.
    pub async fn release(&mut self, ports: &[Port]) -> Result<usize, HoldError> {
        let mut released = 0;
        for chunk in ports.chunks(MAX_PORTS) {
            match self
                .ask("release", Request::Release(chunk.to_vec()))
                .await?
            {
                Reply::Released(count) => released += count,
                reply => return Err(self.garbled("release", &reply)),
            }
        }
        Ok(released)
    }

    /// Every port the keeper holds.
    pub async fn list(&mut self) -> Result<BTreeSet<Port>, HoldError> {
        let mut all = BTreeSet::new();
        loop {
            let after = all.last().copied();
            match self.ask("list", Request::List { after }).await? {
                // a page that brings nothing new would go on for ever
                Reply::Held { ports, more } if !more || ports.last().copied() > after => {
                    all.extend(ports);
                    if !more {
                        return Ok(all);
                    }
                }
                reply => return Err(self.garbled("list", &reply)),
            }
        }
    }

    async fn ask(&mut self, what: &'static str, request: Request) -> Result<Reply, HoldError> {
        let reply = match self.try_ask(what, &request).await {
            Err(HoldError::Lost { .. }) => {
                let (stream, instance) = reach(&self.path, RECONNECT_TIMEOUT).await?;
                self.stream = Some(stream);
                if std::mem::replace(&mut self.instance, instance) != instance {
                    return Err(HoldError::Restarted {
                        path: self.path.clone(),
                    });
                }
                self.try_ask(what, &request).await?
            }
            other => other?,
        };
        match reply {
            Reply::Retired => Err(HoldError::Retired {
                path: self.path.clone(),
            }),
            Reply::Error(message) => {
                self.stream = None; // the keeper closed it
                Err(HoldError::Rejected {
                    what,
                    path: self.path.clone(),
                    message,
                })
            }
            reply => Ok(reply),
        }
    }

    async fn try_ask(&mut self, what: &'static str, request: &Request) -> Result<Reply, HoldError> {
        let lost = |source| HoldError::Lost {
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
                Err(HoldError::Timeout {
                    what,
                    path,
                    after: REQUEST_TIMEOUT,
                })
            }
        }
    }

    fn garbled(&mut self, what: &'static str, reply: &Reply) -> HoldError {
        self.stream = None;
        let reply = format!("{reply:?}").chars().take(200).collect();
        HoldError::Garbled {
            what,
            path: self.path.clone(),
            reply,
        }
    }
}

/// News of the keeper's duty, over a connection of its own. Only the newest watch of a keeper
/// lives.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    stream: Stream,
}

impl Watch {
    /// Connects as soon as a keeper listens at `path`, or fails after `within`.
    pub async fn connect(path: impl Into<PathBuf>, within: Duration) -> Result<Self, HoldError> {
        let path = path.into();
        let (mut stream, _) = reach(&path, within).await?;
        match timeout_at(
            Instant::now() + REQUEST_TIMEOUT,
            stream.send(Request::Watch),
        )
        .await
        {
            Ok(Ok(())) => Ok(Self { path, stream }),
            Ok(Err(source)) => Err(HoldError::Lost {
                what: "watch",
                path,
                source,
            }),
            Err(_) => Err(HoldError::Timeout {
                what: "watch",
                path,
                after: REQUEST_TIMEOUT,
            }),
        }
    }

    /// The duty: at once the first time, then at each change. [`HoldError::Lost`] means that the
    /// keeper died, or another watch replaced this one. Cancel-safe.
    pub async fn next(&mut self) -> Result<Duty, HoldError> {
        match self.stream.recv().await {
            Ok(Reply::Duty(duty)) => Ok(duty),
            Ok(reply) => {
                let reply = format!("{reply:?}");
                Err(HoldError::Garbled {
                    what: "watch",
                    path: self.path.clone(),
                    reply,
                })
            }
            Err(source) => Err(HoldError::Lost {
                what: "watch",
                path: self.path.clone(),
                source,
            }),
        }
    }
}

/// Connects and reads the greeting, again and again until `within` is over.
async fn reach(path: &Path, within: Duration) -> Result<(Stream, u64), HoldError> {
    let deadline = Instant::now() + within;
    let mut pause = MIN_PAUSE;
    loop {
        let tried = timeout_at(deadline, greet(path)).await;
        let failed = |source| HoldError::Connect {
            path: path.to_owned(),
            within,
            source,
        };
        match tried {
            Ok(Ok((_, Reply::Hello { v, .. }))) if v < VERSION => {
                return Err(HoldError::Version {
                    path: path.to_owned(),
                    theirs: v,
                });
            }
            Ok(Ok((stream, Reply::Hello { instance, .. }))) => return Ok((stream, instance)),
            Ok(Ok((_, reply))) => {
                let reply = format!("{reply:?}");
                return Err(HoldError::Garbled {
                    what: "connect",
                    path: path.to_owned(),
                    reply,
                });
            }
            // connecting anew would not give us other rights
            Ok(Err(source)) if source.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(source));
            }
            Ok(Err(source)) if Instant::now() + pause >= deadline => return Err(failed(source)),
            Ok(Err(_)) => sleep(pause).await,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn greet(path: &Path) -> io::Result<(Stream, Reply)> {
    let mut stream = Stream::connect(path).await?;
    let greeting = stream.recv().await?;
    Ok((stream, greeting))
}

#[cfg(test)]
mod tests;
