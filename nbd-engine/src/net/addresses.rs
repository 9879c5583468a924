//! Which TCP addresses are listened on, and with which port.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;

/// What binds: this machine's sockets, or a model of them.
pub(super) trait Machine {
    type Listener;

    /// Listens on one address; on IPv6 alone if that is an IPv6 wildcard and `v6_only`.
    fn bind(&mut self, address: SocketAddr, v6_only: bool) -> io::Result<Self::Listener>;

    /// The address of a listener, with its port.
    fn local_addr(listener: &Self::Listener) -> io::Result<SocketAddr>;

    /// Whether there are addresses of this family at all.
    fn has_family_of(&mut self, address: SocketAddr) -> bool;
}

/// Times that a free port is chosen anew because it is in use on another one of the addresses.
const ATTEMPTS: usize = 16;

/// Listens on all addresses of all hosts, as [`bind_tcp`](super::bind_tcp) documents.
pub(super) fn bind<M: Machine>(
    hosts: &[impl AsRef<[SocketAddr]>],
    machine: &mut M,
) -> io::Result<Vec<M::Listener>> {
    let chosen = distinct(hosts);
    if chosen.is_empty() {
        let text = "there is no address to listen on";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut attempt = 1;
    loop {
        match bind_once(&chosen, machine) {
            Err(Failure::FreePortInUse(_)) if attempt < ATTEMPTS => attempt += 1,
            Err(Failure::FreePortInUse(error) | Failure::Final(error)) => return Err(error),
            Ok(listeners) => return Ok(listeners),
        }
    }
}

/// An address to listen on.
#[derive(Debug)]
struct Chosen {
    address: SocketAddr,
    /// The indices of the hosts that are reached by it.
    hosts: Vec<usize>,
    v6_only: bool,
}

/// Each address once, and a wildcard address for those that it stands for, which can't be listened on beside it.
fn distinct(hosts: &[impl AsRef<[SocketAddr]>]) -> Vec<Chosen> {
    let all: Vec<SocketAddr> = hosts.iter().flat_map(|host| host.as_ref()).copied().collect();
    let wildcard_for = |address: SocketAddr| {
        let like =
            |it: &SocketAddr| it.is_ipv4() == address.is_ipv4() && it.port() == address.port();
        all.iter().copied().find(|it| it.ip().is_unspecified() && like(it))
    };
    // On most systems a listener on [::] takes the IPv4 connections of its port as well, so that no other can listen on
    // an IPv4 address with that port.
    let v6_only = |address: SocketAddr| {
        let has_v4 = || all.iter().any(|it| it.is_ipv4() && it.port() == address.port());
        address.is_ipv6() && address.ip().is_unspecified() && has_v4()
    };
    let mut chosen: Vec<Chosen> = Vec::new();
    for (host, addresses) in hosts.iter().enumerate() {
        for address in addresses.as_ref() {
            let address = wildcard_for(*address).unwrap_or(*address);
            match chosen.iter_mut().find(|earlier| earlier.address == address) {
                Some(earlier) => earlier.hosts.push(host),
                None => {
                    let v6_only = v6_only(address);
                    chosen.push(Chosen { address, hosts: vec![host], v6_only });
                }
            }
        }
    }
    chosen
}

enum Failure {
    /// The port that was free on one address is not on another.
    FreePortInUse(io::Error),
    Final(io::Error),
}

fn bind_once<M: Machine>(chosen: &[Chosen], machine: &mut M) -> Result<Vec<M::Listener>, Failure> {
    let (mut listeners, mut free_port) = (Vec::with_capacity(chosen.len()), None);
    // Hosts with an address that is listened on, and what could not be for want of its family.
    let (mut bound, mut left_out) = (HashSet::<usize>::new(), Vec::new());
    for Chosen { address, hosts, v6_only } in chosen {
        let address = *address;
        let wants_free_port = address.port() == 0;
        let mut wanted = address;
        if wants_free_port {
            wanted.set_port(free_port.unwrap_or(0));
        }
        let failed = match machine.bind(wanted, *v6_only) {
            Ok(listener) => {
                if wants_free_port && free_port.is_none() {
                    let local = M::local_addr(&listener).map_err(Failure::Final)?;
                    free_port = Some(local.port());
                }
                bound.extend(hosts);
                listeners.push(listener);
                continue;
            }
            Err(failed) => failed,
        };
        let error = super::cannot_listen(wanted, &failed);
        if lacks_family(&failed, address, machine) {
            left_out.push((hosts, error));
        } else if wanted.port() != address.port() && failed.kind() == io::ErrorKind::AddrInUse {
            return Err(Failure::FreePortInUse(error));
        } else {
            return Err(Failure::Final(error));
        }
    }
    for (hosts, error) in left_out {
        if !hosts.iter().all(|host| bound.contains(host)) {
            return Err(Failure::Final(error));
        }
        tracing::info!(%error, "an address is left out");
    }
    Ok(listeners)
}

/// Whether binding failed because the machine has no address of that family.
fn lacks_family(error: &io::Error, address: SocketAddr, machine: &mut impl Machine) -> bool {
    match Errno::from_io_error(error) {
        Some(Errno::AFNOSUPPORT) => true,
        Some(Errno::ADDRNOTAVAIL) => !machine.has_family_of(address),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::net::IpAddr;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    /// A machine that has some addresses, with some ports in use.
    #[derive(Debug)]
    struct Model {
        own: Vec<IpAddr>,
        /// What has a listener, by others or by us, with whether a wildcard is for IPv6 alone.
        in_use: Rc<RefCell<Vec<(SocketAddr, bool)>>>,
        next_free: u16,
    }

    /// Takes its address while it lives.
    #[derive(Debug)]
    struct Listener(SocketAddr, bool, Rc<RefCell<Vec<(SocketAddr, bool)>>>);

    impl Drop for Listener {
        fn drop(&mut self) {
            self.2.borrow_mut().retain(|(address, _)| *address != self.0);
        }
    }

    /// Whether two sockets can't listen side by side.
    fn collide((a, a_only): (SocketAddr, bool), (b, b_only): (SocketAddr, bool)) -> bool {
        let reaches = |wild: SocketAddr, only: bool, other: SocketAddr| {
            wild.ip().is_unspecified()
                && (wild.is_ipv4() == other.is_ipv4() || wild.is_ipv6() && !only)
        };
        a.port() == b.port() && (a.ip() == b.ip() || reaches(a, a_only, b) || reaches(b, b_only, a))
    }

    impl Model {
        fn is_free(&self, address: SocketAddr, v6_only: bool) -> bool {
            !self.in_use.borrow().iter().any(|other| collide(*other, (address, v6_only)))
        }

        fn has_family(&self, v4: bool) -> bool {
            self.own.iter().any(|ip| ip.is_ipv4() == v4)
        }

        fn is_own(&self, ip: IpAddr) -> bool {
            self.own.contains(&ip) || ip.is_unspecified() && self.has_family(ip.is_ipv4())
        }
    }

    impl Machine for Model {
        type Listener = Listener;

        fn bind(&mut self, mut address: SocketAddr, v6_only: bool) -> io::Result<Listener> {
            if !self.is_own(address.ip()) {
                // Which of them it is depends on the system.
                let missing =
                    address.port().is_multiple_of(2) && !self.has_family(address.is_ipv4());
                let errno = if missing { Errno::AFNOSUPPORT } else { Errno::ADDRNOTAVAIL };
                return Err(errno.into());
            }
            while address.port() == 0 {
                self.next_free += 1;
                let mut candidate = address;
                candidate.set_port(self.next_free);
                if self.is_free(candidate, v6_only) {
                    address = candidate;
                }
            }
            if !self.is_free(address, v6_only) {
                return Err(Errno::ADDRINUSE.into());
            }
            self.in_use.borrow_mut().push((address, v6_only));
            Ok(Listener(address, v6_only, Rc::clone(&self.in_use)))
        }

        fn local_addr(listener: &Listener) -> io::Result<SocketAddr> {
            Ok(listener.0)
        }

        fn has_family_of(&mut self, address: SocketAddr) -> bool {
            self.has_family(address.is_ipv4())
        }
    }

    fn ips() -> impl Strategy<Value = IpAddr> {
        let texts = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "fd00::1"];
        prop::sample::select(texts.map(|text| text.parse().unwrap()).to_vec())
    }

    fn addresses(ports: core::ops::Range<u16>) -> impl Strategy<Value = SocketAddr> {
        (ips(), ports).prop_map(SocketAddr::from)
    }

    fn hosts() -> impl Strategy<Value = Vec<Vec<SocketAddr>>> {
        prop::collection::vec(prop::collection::vec(addresses(0..3), 0..4), 0..4)
    }

    proptest! {
        #[test]
        fn every_address_is_reached_or_the_error_says_why_not(
            hosts in hosts(),
            own in prop::collection::vec(ips().prop_filter("real", |ip| !ip.is_unspecified()), 0..4),
            others in prop::collection::vec(addresses(1..8), 0..3),
        ) {
            let all: Vec<_> = hosts.iter().flatten().copied().collect();
            let taken: Vec<_> = others.into_iter().map(|address| (address, true)).collect();
            let in_use = Rc::new(RefCell::new(taken.clone()));
            let mut machine = Model { own, in_use: Rc::clone(&in_use), next_free: 2 };
            match bind(&hosts, &mut machine) {
                Ok(listeners) => {
                    let reaches = |listener: &Listener, address: &SocketAddr| {
                        let port = address.port() == 0 || address.port() == listener.0.port();
                        port && collide((listener.0, listener.1), (
                            SocketAddr::new(address.ip(), listener.0.port()), true,
                        ))
                    };
                    for address in &all {
                        let reached = listeners.iter().any(|one| reaches(one, address));
                        prop_assert!(reached || !machine.has_family(address.is_ipv4()), "{address}");
                    }
                    for host in hosts.iter().filter(|host| !host.is_empty()) {
                        let reached = |one| host.iter().any(|address| reaches(one, address));
                        prop_assert!(listeners.iter().any(reached), "{host:?}");
                    }
                    let asked = |one: &&Listener| !all.iter().any(|it| it.port() == one.0.port());
                    let free: HashSet<u16> =
                        listeners.iter().filter(asked).map(|one| one.0.port()).collect();
                    prop_assert!(free.len() <= 1, "one free port for all: {free:?}");
                }
                Err(error) if all.is_empty() => {
                    prop_assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                }
                Err(error) => {
                    let text = error.to_string();
                    prop_assert!(all.iter().any(|it| text.contains(&it.ip().to_string())), "{text}");
                    let foreign = all.iter().any(|it| !machine.is_own(it.ip()));
                    let in_the_way = taken.iter().any(|it| all.iter().any(|address| {
                        address.port() == it.0.port() || address.port() == 0
                    }));
                    prop_assert!(foreign || in_the_way, "{text}");
                    prop_assert_eq!(&*in_use.borrow(), &taken, "nothing stays behind");
                }
            }
        }
    }

    #[test]
    fn a_free_port_that_is_in_use_on_another_address_is_chosen_anew() {
        let taken = vec![("127.0.0.2:101".parse().unwrap(), false)];
        let own = ["127.0.0.1", "127.0.0.2"].map(|text| text.parse().unwrap()).to_vec();
        let in_use = Rc::new(RefCell::new(taken));
        let mut machine = Model { own, in_use, next_free: 100 };
        let host = ["127.0.0.1:0", "127.0.0.2:0"].map(|text| text.parse().unwrap());
        let bound: Vec<_> = bind(&[host], &mut machine).unwrap().iter().map(|one| one.0).collect();
        assert_eq!(bound, ["127.0.0.1:102", "127.0.0.2:102"].map(|text| text.parse().unwrap()));
    }

    #[test]
    fn every_host_needs_an_address() {
        let own = vec!["127.0.0.1".parse().unwrap()];
        let mut machine = Model { own, in_use: Rc::default(), next_free: 100 };
        let addresses = ["127.0.0.1:1", "[::1]:1", "[::]:1"];
        let [v4, v6, any_v6] = addresses.map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(bind(&[vec![v6, v4]], &mut machine).unwrap().len(), 1);
        let error = bind(&[[v6], [v4]], &mut machine).unwrap_err();
        assert!(error.to_string().contains("cannot listen on [::1]:1"), "{error}");
        // The wildcard address that stands for it is left out, since its own host has another one.
        let error = bind(&[vec![v6], vec![any_v6, v4]], &mut machine).unwrap_err();
        assert!(error.to_string().contains("cannot listen on [::]:1"), "{error}");
    }
}
