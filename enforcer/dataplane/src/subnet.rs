//! Networks, as an administrator writes them.

pub use ipnet::IpNet as Subnet;

/// Returns the subnet written as `10.244.1.0/24`.
pub fn subnet(text: &str) -> Result<Subnet, InvalidSubnet> {
    let parsed: Result<Subnet, _> = text.trim().parse();
    let subnet = parsed.map_err(|_| InvalidSubnet(text.chars().take(60).collect()))?;
    // the kernel stores the masked address, so reads return that
    Ok(subnet.trunc())
}

/// The error for text that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no subnet: write 10.244.1.0/24 or fd00:10:244:1::/64")]
pub struct InvalidSubnet(String);

#[cfg(test)]
mod tests;
