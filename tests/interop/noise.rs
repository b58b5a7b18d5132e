//! A Noise implementation in Python (noise_peer.py) as ringway's peer, in both suites.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;

use crate::device::{Device, Keys};
use crate::lab::{Namespace, UNDERLAY_V4, wait_until};
use crate::pair::{A, B, INNER_V4, PATIENCE, PORTS, ip, lab, socket};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/noise_peer.py");

/// The interpreter of the virtual environment that scripts/setup makes; a printed line says what is missing.
fn python() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in target");
    let python = target.join("noise-venv/bin/python");
    let imported = Command::new(&python).args(["-c", "import noise.connection"]).output();
    if imported.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!("skipped: needs PyPI noiseprotocol in target/noise-venv (scripts/setup test makes it)");
    None
}

/// It initiates: two handshakes, and sealed pings whose sealed answers are read byte by byte.
pub(crate) fn it_initiates(suite: &str) {
    let Some(python) = python() else { return };
    let Some(lab) = lab() else { return };
    let keys = Keys::new();
    let device = ringway(&lab, suite, &keys);
    let mut command = peer(&lab.b, &python, "initiate", suite, &device, &keys);
    let output = command.output().expect("the interpreter is there");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("the handshake is done").count(), 2, "{told}");
    assert_eq!(told.matches("is answered").count(), 8, "{told}");
}

/// It responds: ringway's own ping comes back through it.
pub(crate) fn it_responds(suite: &str) {
    let Some(python) = python() else { return };
    let Some(lab) = lab() else { return };
    let keys = Keys::new();
    let device = ringway(&lab, suite, &keys);
    let endpoint = socket(UNDERLAY_V4[B], PORTS[B]);
    device.wg("set", &["peer", &keys.public, "endpoint", &endpoint]);
    let mut command = peer(&lab.b, &python, "respond", suite, &device, &keys);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("the interpreter is there");
    let mut told = BufReader::new(child.stdout.take().expect("piped")).lines();
    let first = told.next().expect("it tells that it listens").expect("text");
    assert_eq!(first, "listening");
    for size in [0, 56, 1300] {
        wait_until(&format!("an answer to {size} bytes"), PATIENCE, || {
            lab.a.ping(ip(INNER_V4[B]), size)
        });
    }
    assert!(
        child.try_wait().expect("it is our child").is_none(),
        "it found a mistake"
    );
    child.kill().expect("it is our child");
    child.wait().expect("it is our child");
}

/// ringway-wg at a with this one peer, which it does not know the address of.
fn ringway(lab: &crate::lab::Lab, suite: &str, peer: &Keys) -> Device {
    let device = Device::start(lab, &lab.a, &["--suite", suite]);
    device.set_private_key();
    let psk = device.file("psk", &peer.private);
    let inner = format!("{}/32", INNER_V4[B]);
    device.wg("set", &["listen-port", &PORTS[A].to_string()]);
    let settings = ["preshared-key", &psk, "allowed-ips", &inner];
    device.wg("set", &[&["peer", &peer.public], &settings[..]].concat());
    let address = format!("{}/24", INNER_V4[A]);
    lab.a.ip(&["address", "add", &address, "dev", &device.name]);
    lab.a.ip(&["link", "set", &device.name, "up"]);
    device
}

/// The command of the Python end; its private key serves as preshared key too.
fn peer(namespace: &Namespace, python: &Path, what: &str, suite: &str, device: &Device, keys: &Keys) -> Command {
    let setup = serde_json::json!({
        "suite": suite,
        "private": hex(&keys.private),
        "remote_public": hex(&device.keys.public),
        "psk": hex(&keys.private),
        "outer": [UNDERLAY_V4[B], UNDERLAY_V4[A]],
        "port": PORTS[B],
        "remote_port": PORTS[A],
        "inner": [INNER_V4[B], INNER_V4[A]],
    });
    let mut command = namespace.command(python);
    // It warns of ephemeral keys that are not its own.
    command.args(["-W", "ignore", SCRIPT, what, &setup.to_string()]);
    command
}

fn hex(key: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(key).expect("base64");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
