//! What the system around the tunnel is made to do follows the file: routes, name servers, packet filters.

use std::{fs, slice};

use crate::end::{End, INTERFACE};
use crate::lab::{Lab, wait_until};
use crate::{PATIENCE, Pair};

const BEFORE: &str = "nameserver 192.0.2.53\n";

#[test]
fn routes_name_servers_and_filters_follow_the_file() {
    let Some(lab) = Lab::new() else { return };
    let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    let etc = lab.directory.join("etc");
    fs::create_dir(&etc).expect("a directory");
    for file in ["passwd", "group"] {
        fs::copy(format!("/etc/{file}"), etc.join(file)).expect("every system has it");
    }
    fs::write(etc.join("resolv.conf"), BEFORE).expect("it can be written");
    let home = b.as_peer_at_home();
    let all = home.replace("/32\"", "/32\", \"0.0.0.0/0\"");
    a.write("dns = [\"10.99.0.2\"]\n", slice::from_ref(&home));
    b.write("", &[a.as_peer("")]);
    b.start(&lab.b);
    let mount = format!("mount --bind {} /etc && exec \"$@\"", etc.display());
    a.start_under(&lab.a, &["unshare", "-m", "sh", "-c", &mount, "sh"]);
    let pair = Pair { a, b, lab };
    pair.wait_until_packets_pass();
    let Pair { a, lab, .. } = &pair;
    let handshake = a.handshake("b");
    let names = || fs::read_to_string(etc.join("resolv.conf")).unwrap_or_default();
    let rules = || lab.a.ip(&["rule"]);
    let table = |number: &str| lab.a.ip(&["route", "show", "table", number]);
    let tables = || {
        let output = lab.a.command("nft").args(["list", "tables"]).output();
        String::from_utf8_lossy(&output.expect("nft is installed").stdout).into_owned()
    };
    let reload = |interface: &str, peers: &[String]| {
        a.write(interface, peers);
        let answer = a.must(&["reload", "@"]);
        pair.wait_until_packets_pass();
        answer
    };
    assert!(names().starts_with("# ringway rw0") && names().ends_with("nameserver 10.99.0.2\n"));

    // Everything through the tunnel but one network.
    let full = "dns = [\"10.99.0.3\"]\nexclude = [\"10.96.0.0/16\"]\n";
    let answer = reload(full, slice::from_ref(&all));
    assert_eq!(answer, "exclude 10.96.0.0/16: added\ndns\npeer b: allowed_ips");
    assert!(rules().contains("fwmark 0xca6c"), "{}", rules());
    let own = table("51820");
    assert!(
        own.contains("default dev rw0") && own.contains("throw 10.96.0.0/16"),
        "{own}"
    );
    assert!(names().ends_with("nameserver 10.99.0.3\n"), "{}", names());
    assert!(tables().contains("route-rw0"), "{}", tables());

    // What can't be had is refused whole.
    let refused = |interface: &str, expected: &str| {
        a.write(interface, slice::from_ref(&all));
        let (_, text) = a.ringway(&["reload", "@"]).expect_err("it is refused");
        assert!(text.contains(expected), "{text}");
        assert!(rules().contains("fwmark 0xca6c") && names().ends_with("nameserver 10.99.0.3\n"));
    };
    refused(
        "fwmark = 9\ntable = \"auto\"\n",
        "fwmark cannot change while the tunnel runs",
    );
    refused("post_down = [\"true\"]\n", "commands cannot change to that");
    refused("bind_interface = \"eth9\"\n", "bind_interface cannot change");

    // Somebody else's rules lead there.
    reload("table = 77\nmetric = 5\nfwmark = 9\n", slice::from_ref(&all));
    assert!(!rules().contains("fwmark"), "{}", rules());
    assert!(
        table("77").contains("default dev rw0") && table("77").contains("metric 5"),
        "{}",
        table("77")
    );
    assert_eq!(names(), BEFORE);
    assert!(!tables().contains("rw0"), "{}", tables());

    // The kill switch, a gateway instead, and nothing of it.
    reload("table = \"off\"\nlockdown = true\n", slice::from_ref(&all));
    assert!(tables().contains("lockdown"), "{}", tables());
    assert_eq!(table("77"), "");
    let gateway = "[gateway]\negress = [\"under0\"]\n".to_owned();
    let answer = reload("", &[home.clone(), gateway]);
    assert!(answer.contains("lockdown = false\ngateway"), "{answer}");
    assert!(
        tables().contains("gateway") && !tables().contains("lockdown"),
        "{}",
        tables()
    );
    reload("", &[home]);
    assert!(!tables().contains(INTERFACE), "{}", tables());
    assert_eq!(a.handshake("b"), handshake, "the session is the same");

    // A kill switch that came later goes with the daemon, as one from the start does.
    reload("lockdown = true\n", &[all.replace(", \"0.0.0.0/0\"", "")]);
    let mut pair = pair;
    pair.a.end_by(nix::sys::signal::Signal::SIGTERM);
    let output = pair.lab.a.command("nft").args(["list", "tables"]).output();
    assert!(!String::from_utf8_lossy(&output.expect("nft is installed").stdout).contains("rw0"));
    wait_until("the interface to go", PATIENCE, || !pair.lab.a.has_interface(INTERFACE));
}
