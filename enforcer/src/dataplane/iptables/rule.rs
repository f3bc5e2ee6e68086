//! One rule as iptables writes it, read with tolerance: anything may stand there.

use std::net::{IpAddr, SocketAddr};

use portmapping_shared::contract::{CHAIN_PREFIX, RULE_COMMENT_PREFIX};
use portmapping_shared::{ContainerPort, HostPort, Mapping, Protocol};

use super::family::Family;

/// A rule without its chain, in an order and spelling of our own, so that two ways to write the
/// same rule compare equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    options: Vec<(String, Vec<String>)>,
}

impl Rule {
    /// None where the quoting is broken.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut options: Vec<(String, Vec<String>)> = Vec::new();
        let mut negated = false;
        for token in tokens(text)? {
            if token.text == "!" && !token.quoted {
                negated = true;
            } else if token.text.starts_with('-') && !token.quoted {
                let name = if negated {
                    format!("! {}", token.text)
                } else {
                    token.text
                };
                negated = false;
                options.push((name, Vec::new()));
            } else {
                options.last_mut()?.1.push(token.text);
            }
        }
        // -m only loads what the options after it need, and versions differ in where they say so
        options.retain(|(name, _)| name != "-m");
        for (name, values) in &mut options {
            for value in values {
                normalize(name, value);
            }
        }
        options.sort();
        Some(Self { options })
    }

    /// The chain that `-j` or `-g` names.
    pub(super) fn target(&self) -> Option<&str> {
        self.value("-j").or_else(|| self.value("-g"))
    }

    /// The only value of an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let (_, values) = self.options.iter().find(|(option, _)| option == name)?;
        match values.as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// The mapping that this rule carries; None where it differs from ours in anything.
    pub(super) fn mapping(&self, family: Family) -> Option<Mapping> {
        let known = ["--comment", "--dport", "--to-destination", "-d", "-j", "-p"];
        let ours = self
            .options
            .iter()
            .all(|(name, _)| known.contains(&name.as_str()));
        if !ours || self.value("-j") != Some("DNAT") {
            return None;
        }
        let protocol = self.value("-p")?;
        let protocol = Protocol::ALL
            .into_iter()
            .find(|p| p.as_kernel_str() == protocol)?;
        let host_ip = if self.options.iter().any(|(name, _)| name == "-d") {
            Some(self.value("-d")?.parse::<IpAddr>().ok()?)
        } else {
            None
        };
        let to: SocketAddr = self.value("--to-destination")?.parse().ok()?;
        let mapping = Mapping {
            protocol,
            host_port: HostPort::new(self.value("--dport")?.parse().ok()?)?,
            host_ip,
            pod_ip: to.ip(),
            container_port: ContainerPort::new(to.port())?,
            owner: self
                .value("--comment")?
                .strip_prefix(RULE_COMMENT_PREFIX)?
                .parse()
                .ok()?,
        };
        let same_family = |ip: IpAddr| Family::of(ip) == family;
        (same_family(mapping.pod_ip) && host_ip.is_none_or(same_family)).then_some(mapping)
    }
}

/// The mapping of a rule that is spelled exactly as we spell it. Reading tens of thousands back is
/// mostly this; [`Rule::parse`] understands every other spelling, and takes ten times as long.
pub(super) fn written_by_us(text: &str, family: Family) -> Option<Mapping> {
    let (host_ip, rest) = match text.strip_prefix("-d ") {
        Some(rest) => {
            let (host, rest) = rest.split_once(" -p ")?;
            let (ip, length) = host.split_once('/')?;
            if length != family.host_length() {
                return None;
            }
            (Some(ip.parse::<IpAddr>().ok()?), rest)
        }
        None => (None, text.strip_prefix("-p ")?),
    };
    let (protocol, rest) = rest.split_once(" -m ")?;
    let rest = rest.strip_prefix(protocol)?.strip_prefix(" --dport ")?;
    let (host_port, rest) = rest.split_once(" -m comment --comment \"")?;
    let rest = rest.strip_prefix(RULE_COMMENT_PREFIX)?;
    let (owner, to) = rest.split_once("\" -j DNAT --to-destination ")?;
    let protocol = Protocol::ALL
        .into_iter()
        .find(|p| p.as_kernel_str() == protocol)?;
    let to: SocketAddr = to.parse().ok()?;
    let mapping = Mapping {
        protocol,
        host_port: HostPort::new(host_port.parse().ok()?)?,
        host_ip,
        pod_ip: to.ip(),
        container_port: ContainerPort::new(to.port())?,
        owner: owner.parse().ok()?,
    };
    let same_family = |ip: IpAddr| Family::of(ip) == family;
    (same_family(mapping.pod_ip) && host_ip.is_none_or(same_family)).then_some(mapping)
}

/// Whether a chain is one of ours by name.
pub(super) fn is_our_chain(name: &str) -> bool {
    name.strip_prefix(CHAIN_PREFIX)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

struct Token {
    text: String,
    quoted: bool,
}

/// Splits as iptables-save quotes: words, or text between double quotes with `\` before `"`, `\`
/// and `'`.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(char::is_ascii_whitespace).is_some() {}
        let Some(&first) = chars.peek() else {
            return Some(tokens);
        };
        let quoted = first == '"';
        let mut text = String::new();
        if quoted {
            chars.next();
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => text.push(chars.next()?),
                    c => text.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace()) {
                text.push(c);
            }
        }
        tokens.push(Token { text, quoted });
    }
}

fn normalize(name: &str, value: &mut String) {
    match name {
        "-s" | "-d" => {
            let (ip, length) = value.split_once('/').unwrap_or((value, ""));
            match ip.parse::<IpAddr>() {
                Ok(ip) if length.is_empty() || length == Family::of(ip).host_length() => {
                    *value = ip.to_string();
                }
                _ => {}
            }
        }
        // images without /etc/protocols may print the number
        "-p" => {
            let name = match value.as_str() {
                "6" => Protocol::Tcp,
                "17" => Protocol::Udp,
                "132" => Protocol::Sctp,
                _ => return,
            };
            name.as_kernel_str().clone_into(value);
        }
        "--dport" => {
            if let Some((first, last)) = value.split_once(':')
                && first == last
            {
                *value = first.to_owned();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
