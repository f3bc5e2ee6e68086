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
    /// Whether a rule of FORWARD drops every packet, and none before it can accept one: none reaches a pod.
    /// Conditions are not looked at.
    pub(super) closed: bool,
    /// The place of the first rule of FORWARD that can accept a packet.
    pub(super) accepts_at: Option<usize>,
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
            } else if let Some(declared) = line.strip_prefix(":FORWARD ") {
                found.drops |= declared.starts_with("DROP");
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
        found.sealed = end(before_ours, &chains, MAX_JUMPS) == End::Dropped;
        let drops = |rule: &&str| {
            let mut words = rule.split(' ');
            words.next() == Some("-j") && matches!(words.next(), Some("DROP" | "REJECT"))
        };
        found.accepts_at = rules.iter().position(may_accept);
        let end = rules.iter().position(drops);
        found.closed = end.is_some_and(|end| found.accepts_at.is_none_or(|open| end < open));
        found.drops &= !found.sealed;
        found
    }
}

/// Whether a packet that matches the rule may be accepted by it, or by the chain that it jumps to.
fn may_accept(rule: &&str) -> bool {
    const NEVER: [&str; 4] = ["DROP", "REJECT", "LOG", "NFLOG"];
    let words: Vec<&str> = rule.split(' ').collect();
    let mut targets = words
        .windows(2)
        .filter(|pair| ["-j", "-g"].contains(&pair[0]));
    targets.any(|pair| !NEVER.contains(&pair[1]))
}

/// Follows the rules without a condition. Where one with a condition leaves a chain that was jumped to, some
/// packets go on whatever comes after it.
fn end(rules: &[&str], chains: &Chains<'_>, jumps: u8) -> End {
    let mut some_go_on = false;
    for rule in rules {
        let Some(target) = rule
            .strip_prefix("-j ")
            .or_else(|| rule.strip_prefix("-g "))
        else {
            some_go_on |=
                jumps < MAX_JUMPS && (rule.ends_with(" -j RETURN") || rule.contains(" -g "));
            continue;
        };
        let end = match target.split(' ').next().unwrap_or_default() {
            "DROP" | "REJECT" => End::Dropped,
            "ACCEPT" => End::Accepted,
            "RETURN" => return End::GoesOn,
            chain => match (chains.get(chain), jumps.checked_sub(1)) {
                (Some(rules), Some(jumps)) => end(rules, chains, jumps),
                _ => End::GoesOn,
            },
        };
        if some_go_on && end == End::Dropped {
            return End::GoesOn;
        }
        if end != End::GoesOn || rule.starts_with("-g ") {
            return end;
        }
    }
    End::GoesOn
}
