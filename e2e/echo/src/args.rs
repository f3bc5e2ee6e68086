//! The command line: `--http PORT --tcp PORT --talk PORT --whom PORT --udp PORT --stream PORT`, each as
//! often as needed, and `--announce ADDRESS`.

use std::net::SocketAddr;
use std::time::Duration;

pub(crate) const USAGE: &str =
    "usage: echo [--http PORT]... [--tcp PORT]... [--talk PORT]... [--whom PORT]... [--udp PORT]...
            [--stream PORT]... [--announce ADDRESS] [--exit-after SECONDS] [--pause]";

/// What to listen on, and for how long.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) http: Vec<u16>,
    pub(crate) tcp: Vec<u16>,
    pub(crate) talk: Vec<u16>,
    pub(crate) whom: Vec<u16>,
    pub(crate) udp: Vec<u16>,
    pub(crate) stream: Vec<u16>,
    /// Where to announce the start of this pod.
    pub(crate) announce: Option<SocketAddr>,
    pub(crate) exit_after: Option<Duration>,
}

impl Args {
    /// Reads the arguments after the program's name; the error is a sentence for the user.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut args = Self::default();
        let mut pause = false;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            if name == "--pause" {
                pause = true;
                continue;
            }
            let list = match name.as_str() {
                "--http" => Some(&mut args.http),
                "--tcp" => Some(&mut args.tcp),
                "--talk" => Some(&mut args.talk),
                "--whom" => Some(&mut args.whom),
                "--udp" => Some(&mut args.udp),
                "--stream" => Some(&mut args.stream),
                "--announce" | "--exit-after" => None,
                _ => return Err(format!("unknown argument {name:?}")),
            };
            let value = value
                .or_else(|| arguments.next())
                .ok_or(format!("{name} needs a value"))?;
            let invalid = |error: std::num::ParseIntError| format!("{name} {value:?}: {error}");
            if let Some(ports) = list {
                ports.push(value.parse().map_err(invalid)?);
            } else if name == "--announce" {
                let address = value.parse();
                args.announce = Some(address.map_err(|e| format!("{name} {value:?}: {e}"))?);
            } else {
                let seconds = value.parse().map_err(invalid)?;
                args.exit_after = Some(Duration::from_secs(seconds));
            }
        }
        if !pause && args == Self::default() {
            return Err("nothing to do".to_owned());
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn repeats_collect() {
        let line =
            "--http 80 --http=81 --udp 53 --talk 7 --whom 8 --exit-after 3 --announce 10.0.0.1:90";
        let args = parse(line).expect("valid");
        assert_eq!(args.announce, Some(([10, 0, 0, 1], 90).into()));
        assert_eq!((args.http, args.udp), (vec![80, 81], vec![53]));
        assert_eq!((args.talk, args.whom), (vec![7], vec![8]));
        assert_eq!(args.exit_after, Some(Duration::from_secs(3)));
    }

    #[test]
    fn invalid_arguments_are_refused() {
        for line in [
            "",
            "--http",
            "--http x",
            "--tcp 70000",
            "--sctp 1",
            "--exit-after -1",
            "--announce nowhere",
        ] {
            assert!(parse(line).is_err(), "{line:?} was accepted");
        }
        assert!(parse("--pause").is_ok());
    }
}
