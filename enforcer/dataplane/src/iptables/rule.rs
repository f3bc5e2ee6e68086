//! Parses one rule as iptables prints it. Any text is accepted, because other programs make rules
//! too.

use std::net::{IpAddr, SocketAddr};

use portmapping_shared::contract::{CHAIN_PREFIX, RULE_COMMENT_PREFIX};
use portmapping_shared::{ContainerPort, HostPort, Mapping, PodUid, Protocol};

use crate::family::Family;

/// A rule without its chain, with its options in a normal order and spelling, so that two ways to
/// write the same rule compare equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    options: Vec<(String, Vec<String>)>,
}

impl Rule {
    /// Parses a rule; None if its quoting is broken.
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
        // -m only loads the match for later options, and versions print it at different places
        options.retain(|(name, _)| name != "-m");
        for (name, values) in &mut options {
            for value in values {
                normalize(name, value);
            }
        }
        options.sort();
        Some(Self { options })
    }

    /// Returns the chain that `-j` or `-g` names.
    pub(super) fn target(&self) -> Option<&str> {
        self.value("-j").or_else(|| self.value("-g"))
    }

    /// Returns the only value of an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let (_, values) = self.options.iter().find(|(option, _)| option == name)?;
        match values.as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }

    /// Returns where this rule sends a port; None if it differs from our rules in any way.
    pub(super) fn route(&self, family: Family) -> Option<Route> {
        let known = ["--comment", "--dport", "--to-destination", "-d", "-j", "-p"];
        let ours = self
            .options
            .iter()
            .all(|(name, _)| known.contains(&name.as_str()));
        if !ours || self.value("-j") != Some("DNAT") {
            return None;
        }
        let protocol = self.value("-p")?;
        let host_ip = if self.has("-d") {
            Some(self.value("-d")?.parse::<IpAddr>().ok()?)
        } else {
            None
        };
        let owner = if self.has("--comment") {
            let comment = self.value("--comment")?;
            Some(comment.strip_prefix(RULE_COMMENT_PREFIX)?.parse().ok()?)
        } else {
            None
        };
        let route = Route {
            protocol: protocol_of(protocol)?,
            host_port: HostPort::new(self.value("--dport")?.parse().ok()?)?,
            host_ip,
            to: self.value("--to-destination")?.parse().ok()?,
            owner,
        };
        route.is_of(family).then_some(route)
    }

    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| option == name)
    }
}

/// Where a rule sends a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) protocol: Protocol,
    pub(super) host_port: HostPort,
    pub(super) host_ip: Option<IpAddr>,
    pub(super) to: SocketAddr,
    /// The owner; None if the rule of the pod's address names it, and in a rule of a snapshot before
    /// 0.1.0, which wrote owners to another chain.
    pub(super) owner: Option<PodUid>,
}

impl Route {
    /// Returns the route as a mapping of that pod; None if the container port is invalid.
    pub(super) fn owned_by(&self, owner: PodUid) -> Option<Mapping> {
        Some(Mapping {
            protocol: self.protocol,
            host_port: self.host_port,
            host_ip: self.host_ip,
            pod_ip: self.to.ip(),
            container_port: ContainerPort::new(self.to.port())?,
            owner,
        })
    }

    /// Returns the rule, as iptables-save writes it.
    pub(super) fn rule(&self) -> String {
        let Self {
            host_port,
            host_ip,
            to,
            owner,
            ..
        } = self;
        let protocol = self.protocol.as_kernel_str();
        let host = host_ip.map_or(String::new(), |ip| {
            format!("-d {ip}/{} ", Family::of(ip).host_length())
        });
        let comment = owner.as_ref().map_or(String::new(), |owner| {
            format!("-m comment --comment \"{RULE_COMMENT_PREFIX}{owner}\" ")
        });
        format!(
            "{host}-p {protocol} -m {protocol} --dport {host_port} {comment}-j DNAT --to-destination {to}"
        )
    }

    fn is_of(&self, family: Family) -> bool {
        let host_ip = self.host_ip.unwrap_or(self.to.ip());
        Family::of(self.to.ip()) == family && Family::of(host_ip) == family
    }
}

/// Returns the DNAT rule of a mapping. A packet that matches it passes no more rules of the table.
pub(super) fn mapping_rule(mapping: &Mapping) -> String {
    route(mapping, Some(mapping.owner.clone())).rule()
}

/// Returns the same rule without the comment that names the owner.
pub(super) fn rule_without_owner(mapping: &Mapping) -> String {
    route(mapping, None).rule()
}

fn route(mapping: &Mapping, owner: Option<PodUid>) -> Route {
    Route {
        protocol: mapping.protocol,
        host_port: mapping.host_port,
        host_ip: mapping.host_ip,
        to: SocketAddr::new(mapping.pod_ip, mapping.container_port.get()),
        owner,
    }
}

/// Returns the route of a rule in exactly our spelling, which nearly every rule has.
/// [`Rule::parse`] accepts every other spelling, and takes several times as long.
pub(super) fn written_by_us(text: &str, family: Family) -> Option<Route> {
    let words: Vec<&str> = text.split(' ').collect();
    let (host_ip, words) = match words.as_slice() {
        ["-d", host, words @ ..] => (Some(host.split_once('/')?.0.parse().ok()?), words),
        words => (None, words),
    };
    let ["-p", protocol, "-m", _, "--dport", port, words @ ..] = words else {
        return None;
    };
    let (owner, words) = match words {
        ["-m", "comment", "--comment", comment, words @ ..] => {
            let owner = comment
                .trim_matches('"')
                .strip_prefix(RULE_COMMENT_PREFIX)?;
            (Some(owner.parse().ok()?), words)
        }
        words => (None, words),
    };
    let ["-j", "DNAT", "--to-destination", to] = words else {
        return None;
    };
    let route = Route {
        protocol: protocol_of(protocol)?,
        host_port: HostPort::new(port.parse().ok()?)?,
        host_ip,
        to: to.parse().ok()?,
        owner,
    };
    (route.is_of(family) && route.rule() == text).then_some(route)
}

fn protocol_of(name: &str) -> Option<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.as_kernel_str() == name)
}

/// Returns whether a chain is ours, by its name.
pub(super) fn is_our_chain(name: &str) -> bool {
    name.strip_prefix(CHAIN_PREFIX)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

struct Token {
    text: String,
    quoted: bool,
}

/// Splits a rule by the quoting of iptables-save: words, or text between double quotes with `\`
/// before `"`, `\` and `'`.
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
        // without /etc/protocols, iptables may print the number
        "-p" => {
            let numbered = |protocol: &Protocol| protocol.number().to_string() == *value;
            if let Some(protocol) = Protocol::ALL.into_iter().find(numbered) {
                protocol.as_kernel_str().clone_into(value);
            }
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
