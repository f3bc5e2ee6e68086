//! What iptables-save shows of a FORWARD chain.

use std::collections::BTreeMap;

use super::COMMENT;

/// Longest way through jumps that is followed; iptables itself allows few more.
const MAX_JUMPS: u8 = 16;

/// The state of a table's FORWARD chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Whether the policy drops packets that no rule matches.
    pub(super) drops: bool,
    /// Whether a rule that drops every packet comes first. A rule of ours after it has no effect, and we
    /// insert none before it.
    pub(super) sealed: bool,
    /// Whether a rule before that one may accept a new connection to a pod: such rules have conditions,
    /// which are not looked at.
    pub(super) may_accept: bool,
    /// Rules of ours, in order.
    pub(super) ours: Vec<String>,
}

/// What the rules of a chain do to a packet that no condition matches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Dropped,
    Accepted,
    /// It goes on with the next rule of the calling chain, or with the policy.
    GoesOn,
}

type Chains<'a> = BTreeMap<&'a str, Vec<&'a str>>;

impl Finding {
    /// Parses the output of iptables-save.
    pub(super) fn read(text: &str) -> Self {
        let mut found = Self::default();
        let mut chains = Chains::new();
        let mut in_filter = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                in_filter = table.trim_end() == "filter";
            } else if !in_filter {
            } else if let Some((chain, policy)) =
                line.strip_prefix(':').and_then(|it| it.split_once(' '))
            {
                found.drops |= chain == "FORWARD" && policy.starts_with("DROP");
                chains.entry(chain).or_default();
            } else if let Some((chain, rule)) = line
                .strip_prefix("-A ")
                .and_then(|rule| rule.split_once(' '))
            {
                chains.entry(chain).or_default().push(rule.trim_end());
            }
        }
        let rules = chains.get("FORWARD").map(Vec::as_slice).unwrap_or_default();
        let is_ours = |rule: &&str| rule.contains(COMMENT);
        found.ours = rules
            .iter()
            .copied()
            .filter(is_ours)
            .map(str::to_owned)
            .collect();
        let before_ours = rules.split(is_ours).next().unwrap_or_default();
        let end = end(before_ours, &chains, MAX_JUMPS, &mut found.may_accept);
        found.sealed = end == End::Dropped;
        found.drops &= !found.sealed;
        found
    }
}

/// Follows the rules without a condition, and notes whether one of the others may accept.
fn end(rules: &[&str], chains: &Chains<'_>, jumps: u8, may_accept: &mut bool) -> End {
    for rule in rules {
        let Some(target) = rule
            .strip_prefix("-j ")
            .or_else(|| rule.strip_prefix("-g "))
        else {
            *may_accept |= accepts(rule, chains, jumps);
            continue;
        };
        let end = match target.split(' ').next().unwrap_or_default() {
            "DROP" | "REJECT" => End::Dropped,
            "ACCEPT" => End::Accepted,
            "RETURN" => return End::GoesOn,
            chain => match (chains.get(chain), jumps.checked_sub(1)) {
                (Some(rules), Some(jumps)) => end(rules, chains, jumps, may_accept),
                _ => End::GoesOn,
            },
        };
        if end != End::GoesOn || rule.starts_with("-g ") {
            return end;
        }
    }
    End::GoesOn
}

/// Whether a rule with conditions may accept the first packet of a connection to a mapped port.
fn accepts(rule: &str, chains: &Chains<'_>, jumps: u8) -> bool {
    let has = |condition: &str| rule.contains(condition) && !rule.contains("! ");
    if has("--ctstate RELATED,ESTABLISHED ") || has("-p icmp ") || has("-p ipv6-icmp ") {
        return false;
    }
    let target = rule.rsplit_once(" -j ").or(rule.rsplit_once(" -g "));
    let Some((_, target)) = target else {
        return false;
    };
    match target.split(' ').next().unwrap_or_default() {
        "DROP" | "REJECT" | "RETURN" | "LOG" | "NFLOG" => false,
        chain => match (chains.get(chain), jumps.checked_sub(1)) {
            (Some(rules), Some(jumps)) => {
                let mut may_accept = false;
                let end = end(rules, chains, jumps, &mut may_accept);
                may_accept || end == End::Accepted
            }
            // ACCEPT, and what other programs or the kernel decide
            _ => true,
        },
    }
}
