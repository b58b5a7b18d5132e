//! Which way packets and names go while `ringway run` is up, and that all is as before when it ends, however it ends.
//! Needs root (or the namespaces that `scripts/test` makes); elsewhere each test prints "skipped: needs root" and passes.
//!
//! Run them one at a time: `cargo test --test routing -- --test-threads=1`.

mod hosts;
#[path = "../netns/lab.rs"]
#[expect(dead_code, reason = "another program's tests use the rest of the lab")]
mod lab;
mod names;
mod resolved;
#[path = "../netns/says.rs"]
mod says;

use nix::sys::signal::Signal;

use crate::hosts::{Daemon, FAR, Hosts, INTERFACE, PATIENCE, RINGWAY, SERVER, UNDERLAY, join};
use crate::lab::wait_until;

const ALL: &str = r#"allowed_ips = ["0.0.0.0/0", "::/0"]"#;
const EXCLUDE: &str = r#"exclude = ["198.18.0.0/15", "2001:db8:e::/48"]"#;

#[test]
fn a_full_tunnel_takes_all_packets_but_its_own_and_what_is_excluded() {
    for endpoint in SERVER {
        let Some(hosts) = Hosts::new() else { return };
        // The strict reverse path filter of RFC 3704, under which answers need the tunnel's mark.
        for interface in ["all", UNDERLAY] {
            hosts
                .client()
                .run(&["sysctl", "-qw", &format!("net.ipv4.conf.{interface}.rp_filter=1")]);
        }
        let before = hosts.state();
        hosts.expect("router", &FAR);
        let config = hosts.write_config(endpoint, EXCLUDE, ALL);
        let mut daemon = hosts.start(&config);
        hosts.expect("server", &[FAR[0], FAR[2]]);
        hosts.expect("router", &[FAR[1], FAR[3], "192.0.2.254", "2001:db8:1::254"]);
        let during = hosts.state();
        for expected in [
            "not from all fwmark 0xca6c lookup main suppress_prefixlength 0 proto 114",
            "not from all fwmark 0xca6c lookup 51820 proto 114",
            "src_valid_mark = 1",
            "iifname != \"rw0\" ip daddr 10.99.0.1 fib saddr type != local drop",
            "iifname != \"rw0\" ip6 daddr fd99::1 fib saddr type != local drop",
        ] {
            assert!(during.contains(expected), "{expected}:\n{during}");
        }
        let refused = hosts.client().try_run(&[RINGWAY, "cleanup", INTERFACE]);
        assert!(
            refused
                .unwrap_err()
                .contains("the interface rw0 exists, so its tunnel runs; end that first")
        );
        assert_eq!(hosts.state(), during, "a tunnel that runs is not cleaned up after");

        assert!(daemon.end_by(Signal::SIGTERM).success(), "{}", daemon.log());
        assert_eq!(hosts.state(), before);
        hosts.expect("router", &FAR);
    }
}

#[test]
fn what_a_killed_daemon_leaves_goes_with_the_next_start_or_by_cleanup() {
    let Some(hosts) = Hosts::new() else { return };
    let before = hosts.state();
    let config = hosts.write_config(SERVER[0], EXCLUDE, ALL);
    let kill = || {
        let mut daemon = hosts.start(&config);
        daemon.end_by(Signal::SIGKILL);
        wait_until("the interface to go", PATIENCE, || {
            !hosts.client().has_interface(INTERFACE)
        });
        assert!(
            hosts.state().contains("lookup 51820 proto 114"),
            "rules outlive the daemon"
        );
    };
    kill();
    // Nobody's table has routes any more, so packets go outside.
    hosts.expect("router", &FAR);
    let mut daemon = hosts.start(&config);
    hosts.expect("server", &[FAR[0], FAR[2]]);
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(hosts.state(), before);

    kill();
    let cleaned = hosts.client().run(&[RINGWAY, "cleanup", INTERFACE]);
    for what in [
        "a routing rule to table 51820",
        "an exception in table 51820",
        "the packet filter of rw0",
    ] {
        assert!(cleaned.contains(&format!("removed {what}\n")), "{cleaned}");
    }
    assert_eq!(hosts.state(), before);
    let again = hosts.client().run(&[RINGWAY, "cleanup", INTERFACE]);
    assert_eq!(again, "nothing is left of rw0\n");

    // Also by a tunnel that needs none of it itself.
    kill();
    let config = hosts.write_config(SERVER[0], "", r#"allowed_ips = ["203.0.113.0/24"]"#);
    let mut daemon = hosts.start(&config);
    hosts.expect("server", &[FAR[0]]);
    assert!(!hosts.state().contains("51820"), "{}", hosts.state());
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(hosts.state(), before);
}

#[test]
fn halves_of_the_default_route_that_hold_the_endpoint_do_not_go_round_in_circles() {
    let Some(hosts) = Hosts::new() else { return };
    let before = hosts.state();
    let halves = r#"allowed_ips = ["0.0.0.0/1", "128.0.0.0/1", "10.99.0.2"]"#;
    let config = hosts.write_config(SERVER[0], "fwmark = 0x77", halves);
    let mut daemon = hosts.start(&config);
    hosts.expect("server", &[FAR[0], FAR[1], "10.99.0.2"]);
    hosts.expect("router", &[FAR[2]]);
    let during = hosts.state();
    assert!(
        during.contains("not from all fwmark 0x77 lookup 119 proto 114"),
        "{during}"
    );
    assert!(daemon.end_by(Signal::SIGINT).success());
    assert_eq!(hosts.state(), before);
}

#[test]
fn a_split_tunnel_leaves_excluded_networks_outside_without_rules() {
    let Some(hosts) = Hosts::new() else { return };
    let before = hosts.state();
    let interface = "exclude = [\"203.0.113.0/28\", \"2001:db8:e::/48\"]\nmetric = 77";
    let peer = r#"allowed_ips = ["203.0.112.0/20", "198.18.0.0/15", "2001:db8:e::/47"]"#;
    let mut daemon = hosts.start(&hosts.write_config(SERVER[0], interface, peer));
    hosts.expect("server", &[FAR[1], FAR[2]]);
    hosts.expect("router", &[FAR[0], FAR[3]]);
    let during = hosts.state();
    assert!(
        during.contains("198.18.0.0/15 dev rw0 proto 114 scope link metric 77"),
        "{during}"
    );
    assert!(
        !during.contains("fwmark") && !during.contains("throw") && !during.contains("table inet"),
        "{during}"
    );
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(hosts.state(), before);
}

#[test]
fn a_table_of_ones_own_gets_all_routes_and_no_rules() {
    let Some(hosts) = Hosts::new() else { return };
    let before = hosts.state();
    let config = hosts.write_config(SERVER[0], &format!("{EXCLUDE}\ntable = 1234\nmetric = 77"), ALL);
    let mut daemon = hosts.start(&config);
    let routes = |family| hosts.client().run(&["ip", family, "route", "show", "table", "1234"]);
    assert_eq!(
        routes("-4").replace(" \n", "\n"),
        "default dev rw0 proto 114 scope link metric 77\nthrow 198.18.0.0/15 proto 114\n"
    );
    assert!(
        routes("-6").contains("default dev rw0 proto 114 metric 77"),
        "{}",
        routes("-6")
    );
    assert!(routes("-6").contains("throw 2001:db8:e::/48"), "{}", routes("-6"));
    hosts.expect("router", &FAR);
    // Rules are for others to make.
    hosts
        .client()
        .ip(&["rule", "add", "to", "203.0.113.0/24", "lookup", "1234"]);
    hosts
        .client()
        .ip(&["rule", "add", "to", "198.18.0.0/15", "lookup", "1234"]);
    hosts.expect("server", &[FAR[0]]);
    hosts.expect("router", &[FAR[1]]);
    for network in ["203.0.113.0/24", "198.18.0.0/15"] {
        hosts.client().ip(&["rule", "delete", "to", network, "lookup", "1234"]);
    }
    daemon.end_by(Signal::SIGKILL);
    wait_until("the interface to go", PATIENCE, || {
        !hosts.client().has_interface(INTERFACE)
    });
    assert!(routes("-4").contains("throw"), "exceptions outlive the daemon");

    let config = hosts.write_config(SERVER[0], "table = \"off\"", ALL);
    let mut daemon = hosts.start(&config);
    assert!(
        !hosts.state().contains("proto 114"),
        "no routes, and none left: {}",
        hosts.state()
    );
    hosts.expect("router", &FAR);
    assert!(daemon.end_by(Signal::SIGTERM).success());
    assert_eq!(hosts.state(), before);
}

#[test]
fn a_start_that_fails_half_way_leaves_nothing() {
    let Some(hosts) = Hosts::new() else { return };
    hosts
        .client()
        .ip(&["route", "add", "198.18.0.0/15", "dev", UNDERLAY, "scope", "link"]);
    let before = hosts.state();
    let peer = r#"allowed_ips = ["0.0.0.0/0", "::/0", "198.18.0.0/15"]"#;
    let config = hosts.write_config(SERVER[0], "", peer);
    let mut daemon = Daemon::start(hosts.client().command(RINGWAY), &config);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("ip route del 198.18.0.0/15"), "{}", daemon.log());
    assert_eq!(hosts.state(), before);

    // Name servers come last.
    let config = hosts.write_config(
        SERVER[0],
        "dns = [\"10.99.0.2\"]\ndns_domains = [\"corp.example\"]",
        ALL,
    );
    let mut daemon = Daemon::start(names::with_etc(&hosts, "nameserver 192.0.2.53\n"), &config);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(
        daemon.log().contains("dns_domains needs systemd-resolved"),
        "{}",
        daemon.log()
    );
    assert_eq!(hosts.state(), before);

    let config = hosts.write_config(SERVER[0], "bind_interface = \"none0\"", ALL);
    let mut daemon = Daemon::start(hosts.client().command(RINGWAY), &config);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(
        daemon
            .log()
            .contains("bind_interface = \"none0\": there is no such interface"),
        "{}",
        daemon.log()
    );
    assert_eq!(hosts.state(), before);
}

#[test]
fn a_second_full_tunnel_is_refused_and_disturbs_nothing() {
    let Some(hosts) = Hosts::new() else { return };
    let mut first = hosts.start(&hosts.write_config(SERVER[0], "", ALL));
    hosts.expect("server", &[FAR[0]]);
    let during = hosts.state();
    let config = hosts.write_wg_quick("rw1", SERVER[0], "", "AllowedIPs = 0.0.0.0/0");
    let mut second = Daemon::start(hosts.client().command(RINGWAY), &config);
    assert_eq!(second.wait().code(), Some(1));
    assert!(
        second
            .log()
            .contains("another tunnel has the IPv4 default route already"),
        "{}",
        second.log()
    );
    assert_eq!(hosts.state(), during);
    assert!(first.end_by(Signal::SIGTERM).success());
}

#[test]
fn the_outer_socket_keeps_to_its_interface() {
    let Some(hosts) = Hosts::new() else { return };
    let config = hosts.write_config(SERVER[0], &format!("bind_interface = \"{UNDERLAY}\""), ALL);
    let mut daemon = hosts.start(&config);
    hosts.expect("server", &[FAR[0], FAR[2]]);
    let sockets = hosts.client().run(&["ss", "-Hulnp"]);
    let ours: Vec<_> = sockets.lines().filter(|line| line.contains("ringway")).collect();
    assert!(
        !ours.is_empty() && ours.iter().all(|line| line.contains("%under0:")),
        "{sockets}"
    );
    assert!(daemon.end_by(Signal::SIGTERM).success());
}

#[test]
fn outer_packets_leave_by_the_bound_interface_though_routes_prefer_another() {
    let Some(hosts) = Hosts::new() else { return };
    let (client, router) = (hosts.client(), &hosts.router);
    join(
        (client, "under1"),
        (router, "r2"),
        ["192.0.3.1/24", "2001:db8:3::1/64"],
        ["192.0.3.254/24", "2001:db8:3::254/64"],
    );
    for (family, gateway) in [("-4", "192.0.3.254"), ("-6", "2001:db8:3::254")] {
        let default = [family, "route", "add", "default", "via", gateway, "dev", "under1"];
        client.ip(&[&default[..], &["metric", "5000"]].concat());
    }
    // The loose reverse path filter: answers come by the way that routes do not prefer.
    client.run(&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2"]);
    let count = "table inet seen; delete table inet seen; table inet seen {
        counter r0 {}; counter r2 {}
        chain from {
            type filter hook prerouting priority 0
            iifname r0 udp dport 51820 counter name r0
            iifname r2 udp dport 51820 counter name r2
        }
    }";
    let packets_by = |interface: &str| {
        let counter = router.run(&["nft", "list", "counter", "inet", "seen", interface]);
        !counter.contains("packets 0 ")
    };
    for endpoint in SERVER {
        for (key, by, not_by) in [("", "r0", "r2"), ("bind_interface = \"under1\"", "r2", "r0")] {
            let way = client.run(&["ip", "route", "get", endpoint]);
            assert!(way.contains(&format!("dev {UNDERLAY}")), "{way}");
            router.run(&["nft", count]);
            let mut daemon = hosts.start(&hosts.write_config(endpoint, key, ALL));
            hosts.expect("server", &[FAR[0], FAR[2]]);
            assert!(packets_by(by), "{endpoint} {key}: none came by {by}");
            assert!(!packets_by(not_by), "{endpoint} {key}: some came by {not_by}");
            assert!(daemon.end_by(Signal::SIGTERM).success());
        }
    }
}
