//! Faults of other programs that flush rules.

use anyhow::Result;

use super::{Backend, Chaos, Fault, rules};

impl Chaos {
    /// The rules of others are loaded again at once, as by a firewall that reloads.
    pub(super) fn flush(&self, fault: Fault, node: &str) -> Result<()> {
        self.record.unreachable(node);
        let nftables = self.uses_nftables(node)?;
        // The fault before may have removed the chain or table: it comes back when the enforcer repairs it, or
        // after a reboot when the enforcer runs.
        let patiently = |command: &str| {
            format!("for _ in $(seq 60); do {command} && exit; sleep 0.5; done; exit 1")
        };
        let script = match fault {
            Fault::FlushChains if nftables => patiently("nft flush chain inet portmapping prerouting"),
            Fault::FlushNat if nftables => patiently("nft delete table inet portmapping"),
            Fault::FlushChains => patiently("iptables -t nat -F PORTMAPPING"),
            Fault::FlushNat => {
                "set -e; saved=$(iptables-save -t nat | grep -v PORTMAPPING || :); iptables -t nat -F
                 echo \"$saved\" | iptables-restore".to_owned()
            }
            // Where no chain translates, or none asks for connection tracking, the kernel stops translating
            // established connections as well, and the product cannot prevent that. So the same transaction
            // leaves empty nat chains, and one rule that needs connection tracking.
            _ => {
                "set -e; four=$(iptables-save | grep -v PORTMAPPING || :); six=$(ip6tables-save | grep -v PORTMAPPING || :)
                 { echo 'flush ruleset'; for family in ip ip6; do echo \"table $family nat {
                     chain PREROUTING { type nat hook prerouting priority dstnat; }
                     chain INPUT { type nat hook input priority 100; }
                     chain OUTPUT { type nat hook output priority -100; }
                     chain POSTROUTING { type nat hook postrouting priority srcnat; }
                 }\"; done
                 echo 'table inet tracked { chain asks { type filter hook input priority 0; ct state established; }; }'
                 } | nft -f -
                 echo \"$four\" | iptables-restore; echo \"$six\" | ip6tables-restore
                 nft delete table inet tracked".to_owned()
            }
        };
        self.run(node, &["sh", "-c", &script]).map(drop)
    }

    /// Whether the enforcer of a node uses nftables now.
    fn uses_nftables(&self, node: &str) -> Result<bool> {
        if self.backend != Backend::Auto {
            return Ok(self.backend == Backend::Nftables);
        }
        let tables = self.run(node, &["nft", "list", "tables"])?;
        let ours = rules::TABLE.join(" ");
        Ok(tables.lines().any(|line| line == ours))
    }
}
