//! The program as its users meet it: arguments, standard streams, exit codes.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PRIVATE: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
const PUBLIC: &str = "9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=";
const PEER: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("ringway-cli-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ringway(arguments: &[&str]) -> Output {
    ringway_with(arguments, "")
}

fn ringway_with(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(arguments)
        .env_remove("NO_COLOR")
        .env_remove("RINGWAY_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads no input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    assert!(
        out.contains(stdout) && (!stdout.is_empty() || out.is_empty()),
        "stdout: {out}"
    );
    assert!(
        err.contains(stderr) && (!stderr.is_empty() || err.is_empty()),
        "stderr: {err}"
    );
}

/// Serves `answer` once to whoever connects to `path`; the request is returned.
fn daemon(path: &str, answer: &str) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    let answer = format!("{answer}\n");
    std::thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut request = String::new();
        stream.read_line(&mut request).unwrap();
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
        request
    })
}

fn status_answer(name: &str) -> String {
    format!(
        r#"{{"status":{{"name":"{name}","version":"0.1.0","pid":7,"public_key":"{PUBLIC}","listen_port":51820,"mtu":1420,
        "crypto":"aws-lc","offloads":{{"udp_gso":true,"udp_gro":true,"tun_tso":true,"tun_uso":true,"tun_csum":true}},
        "started_unix_s":1,"uptime_s":61,"workers":[],"peers":[],"of_the_future":1}}}}"#
    )
    .replace('\n', "")
}

#[test]
fn help_tells_of_every_command_and_exit_code() {
    let output = ringway(&["--help"]);
    assert_ends(&output, 0, "Usage: ringway [OPTIONS] <COMMAND>", "");
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "run",
        "check",
        "genkey",
        "pubkey",
        "genpsk",
        "status",
        "latency",
        "Exit codes:",
        "--log-level",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert_ends(
        &ringway(&["--version"]),
        0,
        concat!("ringway ", env!("CARGO_PKG_VERSION"), "\n"),
        "",
    );
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["run"],
        &["status", "--jsn"],
        &["-v", "--log-level", "info", "genkey"],
        &["genkey", "x"],
    ] {
        assert_ends(&ringway(arguments), 2, "", "Usage: ");
    }
}

#[test]
fn keys_are_those_of_wg() {
    assert_ends(
        &ringway_with(&["pubkey"], &format!("{PRIVATE}\n")),
        0,
        &format!("{PUBLIC}\n"),
        "",
    );
    for input in ["", "short\n", &format!("{PRIVATE}{PRIVATE}"), &"x".repeat(100_000)] {
        assert_ends(
            &ringway_with(&["pubkey"], input),
            3,
            "",
            "ringway: standard input is no private key: ",
        );
    }

    let made = ringway(&["genkey"]);
    let private = String::from_utf8(made.stdout.clone()).unwrap();
    assert_ends(&made, 0, "=\n", "");
    assert_eq!(private.len(), 45);
    let public = String::from_utf8(ringway_with(&["pubkey"], &private).stdout).unwrap();
    assert_ne!(private, public);
    assert_ends(&ringway(&["genpsk"]), 0, "=\n", "");
    assert_ne!(ringway(&["genpsk"]).stdout, ringway(&["genpsk"]).stdout);

    let wg = Command::new("wg")
        .arg("pubkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut wg) = wg else {
        return println!("skipped: comparison with wg, which is not installed");
    };
    wg.stdin.take().unwrap().write_all(private.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(wg.wait_with_output().unwrap().stdout).unwrap(),
        public
    );
}

#[test]
fn keys_that_go_to_a_file_which_others_can_read_are_warned_of() {
    let scratch = Scratch::new("world");
    for (mode, warns) in [(0o644, true), (0o640, false), (0o600, false)] {
        let path = scratch.0.join(format!("{mode:o}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ringway"))
            .arg("genkey")
            .stdout(file)
            .output()
            .unwrap();
        assert_ends(&output, 0, "", if warns { "ringway: warning: others can" } else { "" });
        assert_eq!(fs::read(path).unwrap().len(), 45, "the key is written all the same");
    }
}

#[test]
fn check_reports_every_problem_with_file_and_line() {
    let scratch = Scratch::new("check");
    scratch.write("rw0.key", &format!("{PRIVATE}\n"), 0o600);
    let good = format!("[interface]\nprivate_key_file = \"rw0.key\"\n\n[[peer]]\npublic_key = \"{PEER}\"\n");
    let path = scratch.write("rw0.toml", &good, 0o644);
    assert_ends(
        &ringway(&["check", &path]),
        0,
        &format!("{path}: ok: interface rw0, 1 peer\n"),
        "",
    );

    scratch.write("rw0.key", &format!("{PRIVATE}\n"), 0o644);
    let expected = format!(
        "ringway: {path}:2: interface.private_key_file = \"rw0.key\": other users can access this file (mode 0644); \
         run: chmod 600 {}\n",
        scratch.path("rw0.key")
    );
    assert_ends(&ringway(&["check", &path]), 3, "", &expected);
    assert_ends(&ringway(&["run", &path]), 3, "", &expected);

    let path = scratch.write("bad.toml", "[interface]\nmtuu = 7\nmtu = 7\n", 0o600);
    let output = ringway(&["check", &path]);
    assert_ends(
        &output,
        3,
        "",
        &format!("ringway: {path}:2: interface.mtuu: unknown key; did you mean \"mtu\"?\n"),
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).lines().count(),
        3,
        "one line per problem"
    );

    let path = scratch.write(
        "rw1.toml",
        &format!("[interface]\nprivate_key = \"{PRIVATE}\"\n"),
        0o644,
    );
    let warning = format!("ringway: warning: {path}:2: interface.private_key: other users can access this file");
    assert_ends(
        &ringway(&["check", &path]),
        0,
        ": ok: interface rw1, 0 peers\n",
        &warning,
    );

    assert_ends(
        &ringway(&["check", "/no/such.toml"]),
        3,
        "",
        "ringway: /no/such.toml: No such file or directory",
    );
}

#[test]
fn status_shows_one_daemon_or_all_in_a_directory() {
    let scratch = Scratch::new("status");
    let directory = format!("{}/", scratch.0.display());
    assert_ends(
        &ringway(&["status", &directory]),
        4,
        "",
        "ringway: no tunnel runs here (none in ",
    );
    assert_ends(
        &ringway(&["status", &scratch.path("rw0.sock")]),
        4,
        "",
        "no daemon serves this socket",
    );
    assert_ends(
        &ringway(&["status", "ringway-test-no-such-name"]),
        4,
        "",
        "/run/ringway/ringway-test-no-such-name.sock: ",
    );

    // Left behind by a daemon that was killed: passed over. Nobody has listened there, for a child of another test's that is on its
    // way to its own program would go on doing so.
    let dead = tokio::net::UnixSocket::new_stream().unwrap();
    dead.bind(scratch.path("dead.sock")).unwrap();
    drop(dead);
    let servers = ["rw0", "rw1"].map(|name| daemon(&scratch.path(&format!("{name}.sock")), &status_answer(name)));
    let output = ringway(&["status", &directory]);
    assert_ends(&output, 0, "interface: rw0\n  public key: 9CpH", "");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\n\ninterface: rw1\n"));
    for server in servers {
        assert_eq!(server.join().unwrap(), "{\"command\":\"status\"}\n");
    }

    fs::remove_file(scratch.path("rw0.sock")).unwrap();
    let server = daemon(&scratch.path("rw0.sock"), &status_answer("rw0"));
    let output = ringway(&["status", "--json", &scratch.path("rw0.sock")]);
    server.join().unwrap();
    assert_ends(&output, 0, "\n", "");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (report["name"].as_str(), report["listen_port"].as_u64()),
        (Some("rw0"), Some(51820))
    );
}

#[test]
fn watching_repeats_until_the_daemon_is_gone() {
    let scratch = Scratch::new("watch");
    let socket = scratch.path("rw0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        for _ in 0..2 {
            stream.read_line(&mut String::new()).unwrap();
            stream
                .get_mut()
                .write_all(format!("{}\n", status_answer("rw0")).as_bytes())
                .unwrap();
        }
    });
    let output = ringway(&["status", "--watch", &socket]);
    server.join().unwrap();
    assert_ends(
        &output,
        4,
        "interface: rw0\n",
        "rw0.sock: no daemon serves this socket (",
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("interface: rw0\n").count(), 2, "{text}");
    assert!(!text.contains('\x1b'), "no terminal, no escape sequences: {text}");
}

#[test]
fn latency_asks_for_a_name_where_several_run_and_writes_histogram_logs() {
    let scratch = Scratch::new("latency");
    let directory = format!("{}/", scratch.0.display());
    let answer = r#"{"latency":{"name":"rw0","since_unix_ms":1000,"until_unix_ms":3500,"stages":[]}}"#;
    let server = daemon(
        &scratch.path("rw0.sock"),
        &answer.replace("[]", &format!("[{}]", stage_of_three())),
    );
    let log = scratch.path("rw0.hlog");
    let output = ringway(&["latency", &directory, "--hlog", &log, "--reset"]);
    assert_ends(&output, 0, "interface: rw0, the last 2.5 s\n  stage       count", "");
    assert_eq!(server.join().unwrap(), "{\"command\":\"latency\",\"reset\":true}\n");
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.starts_with("#[Histogram log format version 1.3]\n") && log.contains("Tag=tun_to_udp,"),
        "{log}"
    );

    // A child of another test may still hold the listener between its fork and its exec.
    while UnixStream::connect(scratch.path("rw0.sock")).is_ok() {
        std::thread::yield_now();
    }
    let _others = ["rw1", "rw2"].map(|name| UnixListener::bind(scratch.path(&format!("{name}.sock"))).unwrap());
    let expected = "ringway: several tunnels run; name one of: rw1, rw2\n";
    assert_ends(&ringway(&["latency", &directory]), 2, "", expected);
    let unwritable = ["latency", &scratch.path("rw1.sock"), "--hlog", "/no/such/file"];
    assert_ends(
        &ringway(&unwritable),
        1,
        "",
        "ringway: /no/such/file: No such file or directory",
    );
}

fn stage_of_three() -> String {
    use ringway::stats::hlog::EncodedHistogram;
    use ringway::stats::latency::{Stage, StageHistogram};
    let mut histogram = StageHistogram::new(Stage::TunToUdp);
    histogram.record(5000, 3);
    let values = EncodedHistogram::encode(&histogram).values;
    format!(
        r#"{{"name":"tun_to_udp","unit":"ns","count":3,"mean":5000.0,"p50":5000,"p90":5000,"p99":5000,"p99_9":5000,
        "max":5000,"histogram":"{values}"}}"#
    )
    .replace('\n', "")
}

#[test]
fn a_daemon_that_declines_is_a_failure_and_so_is_one_of_another_version() {
    let scratch = Scratch::new("declines");
    let cases = [
        (
            r#"{"error":{"code":"unavailable","message":"shutting down"}}"#,
            ".sock: shutting down\n",
        ),
        (
            r#"{"status":{"name":"rw0"}}"#,
            ".sock: unexpected answer: missing field",
        ),
    ];
    for (i, (answer, expected)) in cases.into_iter().enumerate() {
        let socket = scratch.path(&format!("{i}.sock"));
        let server = daemon(&socket, answer);
        assert_ends(&ringway(&["status", &socket]), 1, "", expected);
        server.join().unwrap();
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let scratch = Scratch::new("pipe");
    let server = daemon(&scratch.path("rw0.sock"), &status_answer("rw0"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_ringway"))
        .args(["status", &scratch.path("rw0.sock")])
        .stdout(writer)
        .output()
        .unwrap();
    server.join().unwrap();
    assert_ends(&output, 0, "", "");
}

#[test]
fn sockets_and_configurations_that_may_not_be_read_are_a_matter_of_permission() {
    let scratch = Scratch::new("permission");
    let config = scratch.write("rw0.toml", "", 0o000);
    if fs::read(Path::new(&config)).is_ok() {
        return println!("skipped: this user may read everything");
    }
    assert_ends(&ringway(&["check", &config]), 5, "", "Permission denied");
    let _listener = UnixListener::bind(scratch.path("rw0.sock")).unwrap();
    fs::set_permissions(scratch.path("rw0.sock"), Permissions::from_mode(0o000)).unwrap();
    assert_ends(
        &ringway(&["status", &scratch.path("rw0.sock")]),
        5,
        "",
        "permission denied; run as root",
    );
}

#[test]
fn a_file_of_wg_quick_without_a_key_is_converted_with_the_file_that_a_command_names() {
    let scratch = Scratch::new("convert-no-key");
    let convert = |commands: &str| {
        let config = format!("[Interface]\n{commands}[Peer]\nPublicKey = {PEER}\n");
        let output = ringway(&["convert", &scratch.write("wg0.conf", &config, 0o600)]);
        assert_eq!(output.status.code(), Some(0));
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        let checked = ringway(&["check", &scratch.write("wg0.toml", &out, 0o600)]);
        (out, err, checked.status.code())
    };
    let key = scratch.write("wg0.key", PRIVATE, 0o600);
    let command = format!("PostUp = wg set %i private-key {}\n", key.replace("wg0.key", "%i.key"));
    let (toml, warning, checked) = convert(&format!("{command}PostUp = echo up\n"));
    assert!(toml.contains(&format!("private_key_file = \"{key}\"\n")), "{toml}");
    assert!(toml.contains("post_up = [\"echo up\"]\n"), "{toml}");
    assert_eq!((warning.as_str(), checked), ("", Some(0)));

    // What only a shell understands is left to the reader.
    let (toml, warning, checked) = convert("PostUp = wg set %i private-key <(pass vpn)\n");
    assert!(
        toml.contains("# private_key_file = \"wg0.key\"\n") && toml.contains("pass vpn"),
        "{toml}"
    );
    assert!(
        warning.contains("there is no PrivateKey, and TOML needs a key"),
        "{warning}"
    );
    assert_eq!(checked, Some(3));
}
