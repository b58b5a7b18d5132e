//! Tests on the kernel, each in a network namespace of its own.
//!
//! A namespace belongs to a thread, and changing it takes an unsafe call; so each test starts this test binary once more
//! under unshare(1), which runs the test's inner half there.

use std::net::IpAddr;
use std::process::Command;

use ipnet::IpNet;

use super::*;

/// Set for the inner half.
const INNER: &str = "RINGWAY_TEST_IN_NAMESPACE";

/// Runs `inner` in a new network namespace with the loopback interface up. Prints why where that can't be.
fn in_namespace<F: Future<Output = ()>>(test: &str, inner: impl FnOnce() -> F) {
    if std::env::var_os(INNER).is_some() {
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(inner());
    }
    // With a user namespace, so that it works for everyone where that is allowed.
    let unshare = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).args(args);
        command
    };
    match unshare(&["ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"]).output() {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => {
            return println!(
                "skipped: no namespaces here: {}",
                String::from_utf8_lossy(&probe.stderr).trim()
            );
        }
        Err(error) => return println!("skipped: unshare: {error}"),
    }
    let binary = std::env::current_exe().unwrap();
    let args = ["--exact", "--nocapture", &format!("link::tests::{test}")];
    let output = unshare(&[binary.to_str().unwrap()])
        .args(args)
        .env(INNER, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(stdout.contains("1 passed"), "the inner half did not run: {stdout}");
}

/// `ip ARGS`, which must succeed; its output.
fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the pair `rw0`-`far0`, with the far end up, and gives rw0's index.
fn make_pair() -> u32 {
    ip("link add rw0 type veth peer name far0");
    ip("link set far0 up");
    let show = ip("-o link show rw0");
    show.split(':').next().unwrap().parse().unwrap()
}

fn nets<const N: usize>(texts: [&str; N]) -> [IpNet; N] {
    texts.map(|text| text.parse().unwrap())
}

#[test]
fn setting_up_makes_what_was_asked_and_tearing_down_leaves_nothing_of_it() {
    in_namespace(
        "setting_up_makes_what_was_asked_and_tearing_down_leaves_nothing_of_it",
        || async {
            let index = make_pair();
            ip("address add 10.1.1.1/24 dev rw0");
            let addresses = nets(["10.99.0.1/24", "fd99::1/64", "10.98.0.1/32"]);
            let routes = nets([
                "10.99.0.2/32",
                "10.50.0.0/16",
                "fd99::2/128",
                "fd50::/48",
                "192.0.2.7/32",
            ]);
            let plan = Plan {
                index,
                name: "rw0",
                mtu: 1381,
                addresses: &addresses,
                routes: Routes {
                    networks: &routes,
                    ..Routes::default()
                },
            };
            let link = set_up(plan).await.unwrap();

            let show = ip("-o link show rw0");
            assert!(show.contains("mtu 1381") && show.contains("UP"), "{show}");
            let show = ip("-o address show dev rw0");
            for address in ["10.99.0.1/24", "10.98.0.1/32", "fd99::1/64", "10.1.1.1/24"] {
                assert!(show.contains(address), "{show}");
            }
            assert!(!show.contains("fe80"), "{show}");
            let show = ip("-4 route show dev rw0");
            for route in ["10.50.0.0/16", "192.0.2.7"] {
                assert!(show.contains(&format!("{route} proto 114 scope link")), "{show}");
            }
            assert!(
                !show.contains("10.99.0.2"),
                "covered by the interface's own network: {show}"
            );
            let show = ip("-6 route show dev rw0");
            assert!(show.contains("fd50::/48") && !show.contains("fd99::2"), "{show}");

            // A second time changes nothing, and does not count as made: tearing it down leaves all in place.
            let again = set_up(plan).await.unwrap();
            again.tear_down().await.unwrap();
            ip("link set rw0 up");
            assert!(ip("-o address show dev rw0").contains("10.99.0.1/24"));

            link.tear_down().await.unwrap();
            let show = ip("-o address show dev rw0");
            assert!(show.contains("10.1.1.1/24"), "what was there before stays: {show}");
            assert!(
                !show.contains("10.99.0.1") && !show.contains("10.98.0.1") && !show.contains("fd99"),
                "{show}"
            );
            assert!(ip("-o link show rw0").contains("state DOWN"));
            assert_eq!(ip("-4 route show dev rw0"), "");
        },
    );
}

#[test]
fn a_route_that_leads_elsewhere_is_reported_and_everything_undone() {
    in_namespace(
        "a_route_that_leads_elsewhere_is_reported_and_everything_undone",
        || async {
            let index = make_pair();
            ip("address add 10.2.0.1/24 dev far0");
            ip("route add 10.50.0.0/16 dev far0 scope link");
            let (addresses, routes) = (nets(["10.99.0.1/24"]), nets(["10.51.0.0/16", "10.50.0.0/16"]));
            let plan = Plan {
                index,
                name: "rw0",
                mtu: 1420,
                addresses: &addresses,
                routes: Routes {
                    networks: &routes,
                    ..Routes::default()
                },
            };
            let error = set_up(plan).await.err().unwrap();
            assert!(matches!(error, LinkError::RouteTaken { .. }), "{error}");
            assert!(error.to_string().contains("ip route del 10.50.0.0/16"), "{error}");
            let show = ip("route show");
            assert!(
                show.contains("10.50.0.0/16 dev far0") && !show.contains("10.51.0.0/16"),
                "{show}"
            );
            assert_eq!(ip("-4 -o address show dev rw0"), "");
        },
    );
}

#[test]
fn routes_and_the_mtu_change_while_the_link_is_up() {
    in_namespace("routes_and_the_mtu_change_while_the_link_is_up", || async {
        let index = make_pair();
        let plan = Plan {
            index,
            name: "rw0",
            mtu: 1420,
            addresses: &[],
            routes: Routes::default(),
        };
        let mut link = set_up(plan).await.unwrap();
        let networks = nets(["10.60.0.0/16", "10.61.0.0/16"]);
        let routes = Routes {
            networks: &networks,
            ..Routes::default()
        };
        link.set_mtu(1300).await.unwrap();
        ip("route add 10.61.0.0/16 dev rw0 scope link");
        link.route(&routes, &[]).await.unwrap();
        link.route(&routes, &[]).await.unwrap();
        assert!(ip("-o link show rw0").contains("mtu 1300"));
        let show = ip("route show dev rw0");
        assert!(show.contains("10.60.0.0/16") && show.contains("10.61.0.0/16"), "{show}");
        link.route(&Routes::default(), &[]).await.unwrap();
        let show = ip("route show dev rw0");
        assert!(!show.contains("10.60.0.0/16"), "{show}");
        assert!(show.contains("10.61.0.0/16"), "not ours, not removed: {show}");

        // The interface may be gone before it is torn down.
        link.route(&routes, &[]).await.unwrap();
        ip("link del rw0");
        link.tear_down().await.unwrap();
    });
}

#[test]
fn the_automatic_mtu_follows_the_routes_to_the_endpoints() {
    in_namespace("the_automatic_mtu_follows_the_routes_to_the_endpoints", || async {
        make_pair();
        ip("link set far0 mtu 1400");
        ip("address add 10.2.0.1/24 dev far0");
        ip("address add fd02::1/64 dev far0 nodad");
        ip("link set rw0 up");
        ip("route add 10.3.0.0/16 dev far0 mtu 1300");
        let remote = |text: &str| [text.parse::<IpAddr>().unwrap()];
        assert_eq!(
            auto_mtu(remote("10.2.0.7"), None, None, false, false).await.unwrap(),
            1340
        );
        assert_eq!(
            auto_mtu(remote("10.2.0.7"), Some(7), None, false, false).await.unwrap(),
            1340
        );
        assert_eq!(
            auto_mtu(remote("fd02::7"), None, None, false, true).await.unwrap(),
            1320
        );
        assert_eq!(
            auto_mtu(remote("10.3.0.1"), None, None, false, false).await.unwrap(),
            1240
        );
        assert_eq!(
            auto_mtu(remote("203.0.113.1"), None, None, false, false).await.unwrap(),
            MTU_DEFAULT,
            "no route"
        );
        assert_eq!(auto_mtu([], None, None, false, false).await.unwrap(), MTU_DEFAULT);
    });
}

/// Both families' rules.
fn rules() -> String {
    ip("-4 rule show") + &ip("-6 rule show")
}

#[test]
fn a_default_route_leads_all_but_the_tunnels_own_packets_into_it() {
    in_namespace(
        "a_default_route_leads_all_but_the_tunnels_own_packets_into_it",
        || async {
            let index = make_pair();
            ip("link add lan0 type veth peer name lan1");
            ip("link set lan0 up");
            ip("link set lan1 up");
            ip("address add 192.0.2.1/24 dev lan0");
            ip("route add default via 192.0.2.254");
            let before = rules();
            let (addresses, networks) = (nets(["10.99.0.1/24"]), nets(["0.0.0.0/0", "::/0", "10.50.0.0/16"]));
            let exclude = nets(["198.51.100.0/24", "10.50.7.0/24"]);
            let mut routes = Routes {
                networks: &networks,
                exclude: &exclude,
                ..Routes::default()
            };
            let policy = policy_for(&routes, None)
                .await
                .unwrap()
                .expect("a default route needs one");
            assert_eq!((policy.mark, policy.table), (51820, 51820));
            routes.policy = Some(policy);
            let plan = Plan {
                index,
                name: "rw0",
                mtu: 1420,
                addresses: &addresses,
                routes,
            };
            if Command::new("nft").arg("--version").output().is_err() {
                return println!("skipped: no nft");
            }
            let mut link = set_up(plan).await.unwrap();
            let way = |arguments: &str| ip(&format!("route get {arguments}"));
            for inside in ["203.0.113.1", "10.50.1.1", "2001:db8::1"] {
                assert!(way(inside).contains("dev rw0"), "{}", way(inside));
            }
            for outside in ["203.0.113.1 mark 51820", "198.51.100.7", "10.50.7.1", "192.0.2.9"] {
                assert!(way(outside).contains("dev lan0"), "{outside}: {}", way(outside));
            }
            let another = Routes { policy: None, ..routes };
            let refused = policy_for(&another, None).await;
            assert!(matches!(refused, Err(LinkError::SecondDefault { family: "IPv4" })));
            assert_eq!(
                remove_leftovers("other0").await.unwrap(),
                [""; 0],
                "nothing of a tunnel that runs"
            );

            link.route(
                &Routes {
                    networks: &networks[2..],
                    ..Routes::default()
                },
                &addresses,
            )
            .await
            .unwrap();
            assert_eq!(rules(), before);
            assert!(way("203.0.113.1").contains("dev lan0") && way("10.50.1.1").contains("dev rw0"));
            link.route(&routes, &addresses).await.unwrap();
            assert!(way("203.0.113.1").contains("dev rw0"));
            link.tear_down().await.unwrap();
            assert_eq!((rules(), ip("route show table all proto 114")), (before, String::new()));
        },
    );
}

#[test]
fn what_a_killed_daemon_left_is_found_and_removed() {
    in_namespace("what_a_killed_daemon_left_is_found_and_removed", || async {
        let before = rules();
        let networks = nets(["0.0.0.0/0", "::/0"]);
        let exclude = nets(["198.51.100.0/24", "2001:db8::/32"]);
        let index = make_pair();
        let mut routes = Routes {
            networks: &networks,
            exclude: &exclude,
            ..Routes::default()
        };
        routes.policy = policy_for(&routes, Some(7)).await.unwrap();
        assert_eq!(routes.policy, Some(Policy { mark: 7, table: 7 }));
        if Command::new("nft").arg("--version").output().is_err() {
            return println!("skipped: no nft");
        }
        let plan = Plan {
            index,
            name: "rw0",
            mtu: 1420,
            addresses: &[],
            routes,
        };
        let link = set_up(plan).await.unwrap();
        ip("link del rw0");
        std::mem::forget(link);
        assert_ne!(rules(), before);
        let removed = remove_leftovers("rw0").await.unwrap();
        assert_eq!(removed.len(), 4 + 2 + 1, "{removed:?}");
        assert_eq!((rules(), ip("route show table all proto 114")), (before, String::new()));
        assert_eq!(remove_leftovers("rw0").await.unwrap(), [""; 0]);
    });
}

#[test]
fn errors_of_the_kernel_come_with_what_to_do() {
    let error = |action: &str, errno| LinkError::Kernel {
        action: action.into(),
        error: io::Error::from_raw_os_error(errno),
    };
    let denied = error("set the MTU to 1420 on rw0", libc::EPERM);
    assert!(denied.is_permission_denied());
    assert!(
        denied.to_string().ends_with("; this needs root or CAP_NET_ADMIN"),
        "{denied}"
    );
    let no_ipv6 = error("add the address fd99::1/64 to rw0", libc::EACCES);
    assert!(no_ipv6.to_string().contains("disable_ipv6"), "{no_ipv6}");
    assert!(!no_ipv6.is_permission_denied());
}
