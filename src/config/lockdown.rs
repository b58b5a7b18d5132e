//! The kill switch's keys, from the file to validated values. They stand in `[interface]`.

use std::num::NonZeroU32;

use ipnet::IpNet;

use super::host::Host;
use super::raw::{At, RawConfig, RawPeer};
use super::toml::Section;
use super::types::Interface;
use super::validate::Validation;
use super::{HostPort, values};

/// SO_MARK of the outer packets where the kill switch needs one and the file names none ("rw" in ASCII).
pub const MARK_DEFAULT: NonZeroU32 = NonZeroU32::new(0x7277).expect("not zero");

/// What `"lan"` stands for: private networks (RFC 1918, RFC 4193), link-local addresses (RFC 3927, RFC 4291), and
/// multicast that stays on the site (RFC 2365, RFC 4291).
const LAN: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "224.0.0.0/24",
    "239.0.0.0/8",
    "255.255.255.255/32",
    "fc00::/7",
    "fe80::/10",
    "ff02::/16",
    "ff05::/16",
];

/// The kill switch: nothing leaves except through the tunnel, and what keeps the tunnel and the link alive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lockdown {
    /// The only destinations that may be reached through the tunnel, where there is such a list.
    pub inside: Option<Vec<IpNet>>,
    /// Destinations that may be reached beside the tunnel. DNS goes to those of them only that are single addresses.
    pub outside: Vec<IpNet>,
    /// Whether it goes on when the daemon was ended in good order.
    pub keep: bool,
}

/// The keys as the file spells them.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated switch")]
pub struct RawLockdown {
    pub lockdown: Option<At<bool>>,
    pub inside: Option<Vec<At<String>>>,
    pub outside: Option<Vec<At<String>>>,
    pub keep: Option<At<bool>>,
}

impl RawLockdown {
    pub(super) fn read(section: &mut Section<'_, '_>) -> RawLockdown {
        RawLockdown {
            lockdown: section.flag("lockdown"),
            inside: section.optional_texts("lockdown_inside"),
            outside: section.optional_texts("lockdown_outside"),
            keep: section.flag("lockdown_keep"),
        }
    }
}

/// The mark of the outer packets: the configured one, or the one that the switch needs to know them by.
pub(super) fn mark(configured: Option<NonZeroU32>, lockdown: Option<&Lockdown>) -> Option<NonZeroU32> {
    configured.or(lockdown.map(|_| MARK_DEFAULT))
}

impl Validation<'_> {
    pub(super) fn lockdown(&mut self, raw: &RawLockdown) -> Option<Lockdown> {
        let is_on = raw.lockdown.as_ref().is_some_and(|at| at.value);
        if !is_on {
            let lists = raw.inside.iter().chain(&raw.outside).flatten().map(|at| &at.place);
            let places = raw.keep.iter().map(|at| &at.place).chain(lists);
            if let Some(place) = places.min_by_key(|place| place.line) {
                let text = "this belongs to the kill switch, which is off; write lockdown = true";
                self.problems.push(place.problem(None, text));
            }
            return None;
        }
        let inside = raw.inside.as_ref().map(|list| self.networks(list));
        let mut outside = Vec::new();
        for at in raw.outside.iter().flatten() {
            let networks = if at.value == "lan" {
                LAN.map(|network| network.parse().expect("a network")).to_vec()
            } else {
                let read = self.read(at, |text| {
                    values::parse_network(text).map_err(|error| format!("{error}; or \"lan\""))
                });
                read.map(|network: IpNet| network.trunc()).into_iter().collect()
            };
            for network in networks {
                if !outside.contains(&network) {
                    outside.push(network);
                }
            }
        }
        Some(Lockdown {
            inside,
            outside,
            keep: raw.keep.as_ref().is_some_and(|at| at.value),
        })
    }

    /// What must hold between the switch and the rest of the file.
    pub(super) fn check_lockdown(&mut self, interface: &Interface, raw: &RawConfig) {
        let Some(lockdown) = &interface.lockdown else { return };
        if let Some(gateway) = &raw.gateway {
            let text = "a gateway lets its peers' packets out beside the tunnel, and lockdown = true lets nothing out \
                        there; leave out one of both";
            self.problems.push(gateway.place.problem(None, text));
        }
        self.warn_of_names_under_lockdown(lockdown, &raw.peers);
    }

    /// While the switch holds, nobody answers what the address of an endpoint is.
    fn warn_of_names_under_lockdown(&mut self, lockdown: &Lockdown, peers: &[RawPeer]) {
        let has_resolver = lockdown
            .outside
            .iter()
            .any(|network| network.prefix_len() == network.max_prefix_len());
        for at in peers.iter().filter_map(|peer| peer.endpoint.as_ref()) {
            if let Ok(HostPort {
                host: Host::Name(_), ..
            }) = at.value.parse()
                && !has_resolver
            {
                self.warnings.push(at.place.problem(
                    Some(format!("{:?}", at.value)),
                    "after a crash the kill switch holds, and this name can't be looked up: write the endpoint's \
                     address, or add that of a DNS server to lockdown_outside",
                ));
            }
        }
    }
}
