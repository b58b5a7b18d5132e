//! From the configuration that runs to the one that is wanted: what has to change, or what cannot change without a
//! restart. Decides only; [`super::live`] carries it out.
//!
//! This is the place where every key says what becomes of it when it changes: a key that is new in [`Interface`] or
//! [`Peer`] has no choice but to be named here.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use crate::config::{Config, Hooks, Interface, Mtu, Peer, PublicKey, Routing};
use crate::control::changes::{AllowedIp, Changes, PeerChanges};

/// What has to change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Keys, port and peers: the control thread's part. The mark is decided on with the routes.
    pub(super) protocol: Changes,
    /// Addresses to make, and those to take away, each in their order.
    pub(super) addresses: Difference,
    /// Something that decides on routes, or on the mark, has changed.
    pub(super) routes: bool,
    /// The name servers have changed.
    pub(super) dns: bool,
    /// Commands have changed, and there are some.
    pub(super) commands: bool,
    /// The MTU is another one, or what "auto" means may have changed.
    pub(super) mtu: bool,
    /// What changes, for people, a line each.
    pub(super) summary: Vec<String>,
}

/// From one list to another one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) add: Vec<IpNet>,
    pub(super) remove: Vec<IpNet>,
}

/// Keys that have changed and are read only when the tunnel comes up.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot change while the tunnel runs; nothing was changed; restart the tunnel, or put back what was there", .0.join(", "))]
pub(super) struct NeedsRestart(pub(super) Vec<&'static str>);

impl Plan {
    /// What has to change for `wanted` to run instead of `running`.
    pub(super) fn between(running: &Config, wanted: &Config) -> Result<Plan, NeedsRestart> {
        let old = &running.interface;
        let Interface {
            name,
            private_key,
            listen_port,
            addresses,
            mtu,
            workers,
            io,
            crypto,
            fwmark,
            control_socket,
            latency_log,
            offloads,
            pin,
            sandbox,
            lane_ports,
            routing,
            dns,
            save,
            hooks,
            lockdown,
            state_dir,
        } = &wanted.interface;
        let Routing {
            table,
            metric,
            exclude,
            bind_interface,
        } = routing;
        let fixed = [
            ("name", old.name != *name),
            ("workers", old.workers != *workers),
            ("io", old.io != *io),
            ("crypto", old.crypto != *crypto),
            ("control_socket", old.control_socket != *control_socket),
            ("latency_log", old.latency_log != *latency_log),
            ("udp_gso", old.offloads.udp_gso != offloads.udp_gso),
            ("udp_gro", old.offloads.udp_gro != offloads.udp_gro),
            ("tun_tso", old.offloads.tun_tso != offloads.tun_tso),
            ("tun_uso", old.offloads.tun_uso != offloads.tun_uso),
            ("pin", old.pin != *pin),
            ("sandbox", old.sandbox != *sandbox),
            ("lane_ports", old.lane_ports != *lane_ports),
            ("bind_interface", old.routing.bind_interface != *bind_interface),
            ("SaveConfig", old.save != *save),
            ("state_dir", old.state_dir != *state_dir),
            ("[metrics]", running.metrics != wanted.metrics),
        ];
        let changed: Vec<_> = fixed
            .iter()
            .filter(|(_, changed)| *changed)
            .map(|(key, _)| *key)
            .collect();
        if !changed.is_empty() {
            return Err(NeedsRestart(changed));
        }

        let mut plan = Plan::default();
        if old.private_key != *private_key {
            plan.protocol.private_key = Some(private_key.clone());
            plan.summary.push("private_key".into());
        }
        // A port that the kernel is to choose is the one that it has chosen.
        if old.listen_port != *listen_port && *listen_port != 0 {
            plan.protocol.listen_port = Some(*listen_port);
            plan.summary.push(format!("listen_port = {listen_port}"));
        }
        if old.fwmark != *fwmark {
            plan.summary.push(format!("fwmark = {}", fwmark.map_or(0, u32::from)));
        }
        plan.addresses = Difference::between(&old.addresses, addresses);
        plan.addresses.tell("address", &mut plan.summary);
        if !plan.addresses.is_empty() {
            plan.protocol.addresses = Some(addresses.clone());
        }
        let endpoints = |config: &Config| -> Vec<_> { config.peers.iter().map(|peer| peer.endpoint.clone()).collect() };
        // Where peers are decides on which way the tunnel's own packets must go.
        plan.routes = old.routing != *routing
            || old.fwmark != *fwmark
            || !plan.addresses.is_empty()
            || networks(running) != networks(wanted)
            || endpoints(running) != endpoints(wanted);
        if old.routing.table != *table {
            plan.summary.push(format!("table = {table}"));
        }
        if old.routing.metric != *metric {
            plan.summary.push(format!("metric = {}", metric.unwrap_or(0)));
        }
        Difference::between(&old.routing.exclude, exclude).tell("exclude", &mut plan.summary);
        plan.dns = old.dns != *dns;
        if plan.dns {
            plan.summary.push("dns".into());
        }
        if old.lockdown != *lockdown {
            plan.summary.push(format!("lockdown = {}", lockdown.is_some()));
        }
        if running.gateway != wanted.gateway {
            plan.summary.push("gateway".into());
        }
        // Those of the end; those of the start have run.
        if old.hooks != *hooks {
            plan.summary.push("commands".into());
            plan.commands = *hooks != Hooks::default();
        }
        plan.mtu = old.mtu != *mtu
            || (*mtu == Mtu::Auto
                && (old.fwmark != *fwmark || !plan.addresses.is_empty() || endpoints(running) != endpoints(wanted)));
        if old.mtu != *mtu {
            plan.summary.push(match mtu {
                Mtu::Auto => "mtu = auto".into(),
                Mtu::Bytes(bytes) => format!("mtu = {bytes}"),
            });
        }
        plan.peers(&running.peers, &wanted.peers);
        Ok(plan)
    }

    fn peers(&mut self, running: &[Peer], wanted: &[Peer]) {
        let kept: HashSet<PublicKey> = wanted.iter().map(|peer| peer.public_key).collect();
        for peer in running.iter().filter(|peer| !kept.contains(&peer.public_key)) {
            self.summary.push(format!("peer {}: removed", label(peer)));
            self.protocol.peers.push(PeerChanges {
                remove: true,
                ..PeerChanges::of(peer.public_key)
            });
        }
        let old: HashMap<PublicKey, &Peer> = running.iter().map(|peer| (peer.public_key, peer)).collect();
        for peer in wanted {
            match old.get(&peer.public_key) {
                None => {
                    self.summary.push(format!("peer {}: added", label(peer)));
                    self.protocol.peers.push(PeerChanges::configured(peer));
                }
                Some(old) if *old != peer => self.change_peer(old, peer),
                Some(_) => {}
            }
        }
    }

    /// Names what differs and nothing else: a peer whose endpoint did not change stays where it was heard last.
    fn change_peer(&mut self, old: &Peer, new: &Peer) {
        let Peer {
            name,
            public_key,
            preshared_key,
            endpoint,
            allowed_ips,
            persistent_keepalive,
            suite,
            policy,
        } = new;
        let mut changes = PeerChanges::of(*public_key);
        let mut what = Vec::new();
        if old.name != *name {
            changes.name = Some(name.clone());
            what.push("name");
        }
        if old.preshared_key != *preshared_key {
            changes.preshared_key = Some(preshared_key.clone());
            what.push("preshared_key");
        }
        if old.endpoint != *endpoint {
            changes.host = Some(endpoint.clone());
            what.push("endpoint");
        }
        if old.allowed_ips != *allowed_ips {
            let difference = Difference::between(&old.allowed_ips, allowed_ips);
            changes
                .allowed_ips
                .extend(difference.remove.into_iter().map(AllowedIp::Remove));
            changes
                .allowed_ips
                .extend(difference.add.into_iter().map(AllowedIp::Add));
            what.push("allowed_ips");
        }
        if old.persistent_keepalive != *persistent_keepalive {
            changes.persistent_keepalive = Some(*persistent_keepalive);
            what.push("persistent_keepalive");
        }
        if old.suite != *suite {
            changes.suite = Some(*suite);
            what.push("suite");
        }
        // What the gateway lets through is told to the kernel, not to the protocol.
        if old.policy != *policy {
            what.push("policy");
        }
        self.summary.push(format!("peer {}: {}", label(new), what.join(", ")));
        self.protocol.peers.push(changes);
    }
}

impl Difference {
    fn between(old: &[IpNet], new: &[IpNet]) -> Difference {
        let without = |list: &[IpNet], others: &[IpNet]| {
            let others: HashSet<&IpNet> = others.iter().collect();
            list.iter()
                .filter(|network| !others.contains(network))
                .copied()
                .collect()
        };
        Difference {
            add: without(new, old),
            remove: without(old, new),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    fn tell(&self, what: &str, summary: &mut Vec<String>) {
        summary.extend(self.remove.iter().map(|network| format!("{what} {network}: removed")));
        summary.extend(self.add.iter().map(|network| format!("{what} {network}: added")));
    }
}

/// All that peers are routed.
fn networks(config: &Config) -> HashSet<IpNet> {
    let allowed = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    allowed.copied().collect()
}

fn label(peer: &Peer) -> String {
    peer.name.clone().unwrap_or_else(|| peer.public_key.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const KEY: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";

    fn config(interface: &str, peers: &str) -> Config {
        let text = format!("[interface]\nname = \"rw0\"\nprivate_key = \"{KEY}\"\n{interface}\n{peers}");
        config::check(std::path::Path::new("/etc/ringway/rw0.toml"), &text, 0o600)
            .expect("a configuration")
            .config
    }

    fn peer(byte: u8, keys: &str) -> String {
        format!("[[peer]]\npublic_key = \"{}\"\n{keys}\n", PublicKey([byte; 32]))
    }

    fn plan(running: &Config, wanted: &Config) -> Plan {
        Plan::between(running, wanted).expect("no restart is needed")
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn the_same_configuration_changes_nothing() {
        let same = config("addresses = [\"10.0.0.1/24\"]", &peer(1, "endpoint = \"a.example:1\""));
        let plan = plan(&same, &same);
        assert_eq!(plan.protocol, Changes::default());
        assert!(plan.summary.is_empty() && plan.addresses.is_empty() && !plan.routes && !plan.dns && !plan.mtu);
    }

    #[test]
    fn what_cannot_change_live_is_named_and_refuses_everything() {
        let running = config("", "");
        let wanted = config("workers = 3\nio = \"syscall\"\nlisten_port = 5", "");
        let error = Plan::between(&running, &wanted).expect_err("two keys need a restart");
        assert_eq!(error, NeedsRestart(vec!["workers", "io"]));
        assert!(
            error
                .to_string()
                .starts_with("workers, io cannot change while the tunnel runs")
        );
    }

    #[test]
    fn peers_that_do_not_differ_are_not_named() {
        let running = config(
            "",
            &(peer(1, "name = \"a\"\nallowed_ips = [\"10.0.1.0/24\", \"10.0.2.0/24\"]") + &peer(2, "")),
        );
        let wanted = config(
            "",
            &(peer(3, "name = \"c\"")
                + &peer(2, "")
                + &peer(1, "name = \"a\"\nallowed_ips = [\"10.0.2.0/24\", \"10.0.3.0/24\"]")),
        );
        let plan = plan(&running, &wanted);
        let [added, changed] = &plan.protocol.peers[..] else {
            panic!("two peers: {:?}", plan.protocol)
        };
        assert_eq!((added.public_key, added.remove), (PublicKey([3; 32]), false));
        let expected = PeerChanges {
            allowed_ips: vec![
                AllowedIp::Remove("10.0.1.0/24".parse().expect("a network")),
                AllowedIp::Add("10.0.3.0/24".parse().expect("a network")),
            ],
            ..PeerChanges::of(PublicKey([1; 32]))
        };
        assert_eq!(*changed, expected, "no endpoint, no keepalive, no key");
        assert_eq!(plan.summary, ["peer c: added", "peer a: allowed_ips"]);
        assert!(plan.routes);
    }

    #[test]
    fn a_network_that_moves_to_another_peer_needs_no_other_route() {
        let of = |owner: u8| {
            let network = "allowed_ips = [\"10.0.1.0/24\"]";
            config(
                "",
                &[1, 2]
                    .map(|byte| peer(byte, if byte == owner { network } else { "" }))
                    .concat(),
            )
        };
        let plan = plan(&of(1), &of(2));
        assert!(!plan.routes);
        assert_eq!(plan.protocol.peers.len(), 2);
    }

    #[test]
    fn addresses_routes_and_name_servers_are_told_apart() {
        let peers = peer(1, "allowed_ips = [\"10.9.0.0/16\"]");
        let running = config("addresses = [\"10.0.0.1/24\"]", &peers);
        let moved = plan(&running, &config("addresses = [\"10.7.0.1/24\"]", &peers));
        assert_eq!(moved.protocol.addresses, Some(nets(&["10.7.0.1/24"])));
        assert!(moved.routes && moved.mtu && !moved.dns, "\"auto\" looks again");
        for keys in [
            "metric = 9",
            "table = \"off\"",
            "table = 77",
            "exclude = [\"10.9.1.0/24\"]",
            "fwmark = 5",
        ] {
            let plan = plan(
                &running,
                &config(&format!("addresses = [\"10.0.0.1/24\"]\n{keys}"), &peers),
            );
            assert!(plan.routes && !plan.dns && plan.summary.len() == 1, "{keys}: {plan:?}");
            assert_eq!(plan.protocol, Changes::default());
        }
        let named = config("addresses = [\"10.0.0.1/24\"]\ndns = [\"10.9.0.53\"]", &peers);
        let plan = plan(&running, &named);
        assert!(plan.dns && !plan.routes && !plan.mtu);
        assert_eq!(plan.summary, ["dns"]);
    }

    #[test]
    fn an_endpoint_that_is_not_given_any_more_leaves_the_peer_where_it_is() {
        let running = config("", &peer(1, "endpoint = \"192.0.2.1:5\""));
        let plan = plan(&running, &config("", &peer(1, "")));
        assert_eq!(plan.protocol.peers[0].host, Some(None));
        assert_eq!(plan.protocol.peers[0].endpoint, None);
    }
}
