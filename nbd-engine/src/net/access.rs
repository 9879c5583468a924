//! Which peers may connect, by their address or their user.

use core::fmt;
use core::str::FromStr;
use std::net::IpAddr;

use crate::export::PeerAddr;

/// Which peers a server accepts.
///
/// A TCP peer is refused when its address is in a network that is denied, or when networks are allowed and it is in none of
/// them. A peer of a Unix socket is refused when users or groups are allowed and it is neither one of these users nor of
/// one of these groups, or when the system does not report whose it is. Of other kinds, such as vsock, and of unknown
/// addresses all are refused where networks are allowed or denied. By default all are accepted.
///
/// ```
/// use nbd_engine::net::Access;
///
/// let access = Access::new().allow("10.0.0.0/8".parse()?).deny("10.9.0.0/16".parse()?);
/// let peer = |text: &str| text.parse::<std::net::SocketAddr>().map(Into::into);
/// assert!(access.admits(&peer("10.1.2.3:1000")?));
/// assert!(!access.admits(&peer("10.9.2.3:1000")?));
/// assert!(!access.admits(&peer("192.0.2.1:1000")?));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    allowed: Vec<Network>,
    denied: Vec<Network>,
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Access {
    /// Accepts all.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts TCP peers of this network, and none but those of networks that are allowed.
    #[must_use]
    pub fn allow(mut self, network: Network) -> Self {
        self.allowed.push(network);
        self
    }

    /// Refuses TCP peers of this network, even if a network that is allowed has them.
    #[must_use]
    pub fn deny(mut self, network: Network) -> Self {
        self.denied.push(network);
        self
    }

    /// Accepts Unix peers of this user, and none but those of users and groups that are allowed.
    #[must_use]
    pub fn allow_user(mut self, uid: u32) -> Self {
        self.users.push(uid);
        self
    }

    /// Accepts Unix peers whose effective group this is, and none but those of users and groups that are allowed. The
    /// system does not report further groups of a peer.
    #[must_use]
    pub fn allow_group(mut self, gid: u32) -> Self {
        self.groups.push(gid);
        self
    }

    /// Whether a peer may connect.
    #[must_use]
    pub fn admits(&self, peer: &PeerAddr) -> bool {
        match peer {
            PeerAddr::Tcp(address) => {
                let within = |network: &Network| network.contains(address.ip());
                let allowed = self.allowed.is_empty() || self.allowed.iter().any(within);
                allowed && !self.denied.iter().any(within)
            }
            PeerAddr::Unix(peer) => {
                let all = self.users.is_empty() && self.groups.is_empty();
                all || peer.is_some_and(|peer| {
                    self.users.contains(&peer.uid) || self.groups.contains(&peer.gid)
                })
            }
            // A socket of another kind, or of which the peer's address is unknown, as that of a client that is gone.
            _ => self.allowed.is_empty() && self.denied.is_empty(),
        }
    }
}

/// A range of IP addresses, such as `10.0.0.0/8`, `fd00::/8` or a single address.
///
/// An IPv4 peer has its IPv4 address here even if it came by an IPv6 socket, as `::ffff:10.1.2.3`; a network in that form
/// is an IPv4 network. So `::/0` has all IPv6 peers, and no IPv4 peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Without bits beyond the prefix.
    ip: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of the addresses that begin with the same `prefix` bits.
    ///
    /// # Errors
    /// When there are not so many bits, or when the address has further ones set: then it is that of a machine, and it is
    /// not clear which network is meant.
    pub fn new(ip: IpAddr, prefix: u8) -> Result<Self, InvalidNetwork> {
        if prefix > width(ip) {
            return Err(InvalidNetwork::Prefix(width(ip)));
        }
        let (ip, prefix) = match (ip.to_canonical(), prefix.checked_sub(96)) {
            (v4 @ IpAddr::V4(_), Some(prefix)) if ip.is_ipv6() => (v4, prefix),
            _ => (ip, prefix),
        };
        let first = masked(ip, prefix);
        if first != ip {
            return Err(InvalidNetwork::Host(Self { ip: first, prefix }));
        }
        Ok(Self { ip, prefix })
    }

    /// Whether an address belongs to it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.ip.is_ipv4() && masked(ip, self.prefix) == self.ip
    }
}

/// The bits of an address.
const fn width(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with zeroes after the first `prefix` bits, of which it has as many.
fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| InvalidNetwork::Syntax)?;
        let Some(prefix) = prefix else { return Self::new(ip, width(ip)) };
        // Alone, parse would take a sign.
        let digits = Some(prefix).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let prefix = digits.and_then(|digits| digits.parse().ok());
        Self::new(ip, prefix.ok_or(InvalidNetwork::Prefix(width(ip)))?)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Why a text, or an address and a prefix, is no [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidNetwork {
    /// It does not begin with an IP address.
    Syntax,
    /// What follows the slash is no number up to this one.
    Prefix(u8),
    /// The address has bits beyond the prefix; this is the network that it belongs to.
    Host(Network),
}

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax => {
                f.write_str("give an IP address, or a network such as 10.0.0.0/8 or fd00::/8")
            }
            Self::Prefix(max) => write!(f, "what follows the / is a number from 0 to {max}"),
            Self::Host(network) => {
                write!(f, "the address has bits after the prefix: give {network} for the network")
            }
        }
    }
}

impl core::error::Error for InvalidNetwork {}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// The first bits of an address as text: another way to compare prefixes.
    fn bits(ip: IpAddr) -> String {
        match ip {
            IpAddr::V4(ip) => ip.octets().iter().map(|byte| format!("{byte:08b}")).collect(),
            IpAddr::V6(ip) => ip.octets().iter().map(|byte| format!("{byte:08b}")).collect(),
        }
    }

    /// An address without its IPv4-mapped form, made by hand.
    fn plain(ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V6(six) => match six.octets() {
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => {
                    Ipv4Addr::new(a, b, c, d).into()
                }
                _ => ip,
            },
            IpAddr::V4(_) => ip,
        }
    }

    fn ips() -> impl Strategy<Value = IpAddr> {
        let mapped = any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_ipv6_mapped());
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
            any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
            mapped.prop_map(IpAddr::V6),
        ]
    }

    /// An address that has some bits in common with another one.
    fn near(ip: IpAddr, common: u8, noise: u128) -> IpAddr {
        let keep = |width: u8| u128::MAX.checked_shl(u32::from(width.saturating_sub(common)));
        match ip {
            IpAddr::V4(ip) => {
                let mask = keep(32).unwrap_or(0) as u32;
                Ipv4Addr::from_bits(ip.to_bits() & mask | noise as u32 & !mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = keep(128).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask | noise & !mask).into()
            }
        }
    }

    proptest! {
        #[test]
        fn a_network_has_the_addresses_that_begin_like_it(
            ip in ips(), prefix in 0_u8..=128, common in 0_u8..=128, noise: u128, other in ips(),
        ) {
            prop_assume!(prefix <= width(ip));
            let network = match Network::new(ip, prefix) {
                Err(InvalidNetwork::Host(network)) => network,
                network => network.unwrap(),
            };
            for other in [near(ip, common, noise), other, ip] {
                let (own, other_bits) = (bits(plain(ip)), bits(plain(other)));
                let inside_of_v4 = plain(ip).is_ipv4() && ip.is_ipv6() && prefix >= 96;
                let (own, length) = match (inside_of_v4, ip.is_ipv6()) {
                    (true, _) => (own, usize::from(prefix) - 96),
                    (false, true) => (bits(ip), usize::from(prefix)),
                    (false, false) => (own, usize::from(prefix)),
                };
                let same_family = own.len() == other_bits.len();
                let expected = same_family && own[..length] == other_bits[..length];
                prop_assert_eq!(network.contains(other), expected, "{} in {}", other, network);
            }
            let again: Network = network.to_string().parse().unwrap();
            prop_assert_eq!(again, network);
        }

        #[test]
        fn who_is_denied_is_refused_and_where_some_are_allowed_all_others_are(
            allowed in prop::collection::vec((ips(), 0_u8..=32), 0..3),
            denied in prop::collection::vec((ips(), 0_u8..=32), 0..3),
            peer in ips(),
        ) {
            let network = |(ip, prefix): &(IpAddr, u8)| match Network::new(*ip, *prefix) {
                Err(InvalidNetwork::Host(network)) => network,
                network => network.unwrap(),
            };
            let (allowed, denied): (Vec<_>, Vec<_>) =
                (allowed.iter().map(network).collect(), denied.iter().map(network).collect());
            let access = allowed.iter().fold(Access::new(), |access, one| access.allow(*one));
            let access = denied.iter().fold(access, |access, one| access.deny(*one));
            let within = |networks: &[Network]| networks.iter().any(|one| one.contains(peer));
            let expected = !within(&denied) && (allowed.is_empty() || within(&allowed));
            prop_assert_eq!(access.admits(&PeerAddr::Tcp((peer, 1).into())), expected);
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f:./+-]{0,20}") {
            let _any: Result<Network, _> = text.parse();
        }
    }

    #[test]
    fn malformed_networks_have_a_remedy() {
        let said = |text: &str| text.parse::<Network>().unwrap_err().to_string();
        for text in ["", "x", "10.0.0", "10.0.0.0.0/8", "[::1]", "10.0.0.1:80", "/8"] {
            assert!(said(text).contains("give an IP address"), "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-1", "10.0.0.0/8/8"] {
            assert!(said(text).contains("from 0 to 32"), "{text}");
        }
        assert!(said("::/129").contains("from 0 to 128"));
        assert!(said("10.1.2.3/8").contains("give 10.0.0.0/8"));
        assert!(said("::ffff:10.1.2.3/104").contains("give 10.0.0.0/8"));
    }

    #[test]
    fn ipv4_peers_of_an_ipv6_socket_are_ipv4_peers() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert!(network("10.0.0.0/8").contains(mapped));
        assert!(!network("::/0").contains(mapped));
        assert!(network("0.0.0.0/0").contains(mapped));
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
    }

    #[test]
    fn unix_peers_are_known_by_user_or_group() {
        let (own, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = PeerAddr::unix(&own);
        drop(other);
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        assert!(Access::new().admits(&peer));
        assert!(Access::new().allow_user(uid).admits(&peer));
        assert!(!Access::new().allow_user(uid ^ 1).admits(&peer));
        assert!(Access::new().allow_user(uid ^ 1).allow_group(gid).admits(&peer));
        assert!(!Access::new().allow_group(gid ^ 1).admits(&PeerAddr::Unix(None)));
        // Networks are for TCP peers, users for Unix peers.
        assert!(Access::new().deny("0.0.0.0/0".parse().unwrap()).admits(&peer));
        let tcp = PeerAddr::Tcp(([127, 0, 0, 1], 1).into());
        assert!(Access::new().allow_user(uid ^ 1).admits(&tcp));
    }

    #[test]
    fn a_peer_of_unknown_address_is_refused_where_addresses_count() {
        let peer: PeerAddr = "tcp".into();
        assert!(Access::new().admits(&peer));
        assert!(!Access::new().allow("0.0.0.0/0".parse().unwrap()).admits(&peer));
        assert!(!Access::new().deny("10.0.0.0/8".parse().unwrap()).admits(&peer));
    }
}
