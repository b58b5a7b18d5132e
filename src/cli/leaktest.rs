//! `leaktest`: does anything leave beside the tunnel?

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Failure};
use super::unblock::now;
use crate::config::default_control_socket;
use crate::control::client::{Client, ClientError};
use crate::firewall::leaktest::{self, Report, Tunnel};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The tunnel's interface; its daemon need not run
    name: String,
    /// How long to watch
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// The daemon's control socket, where it is not /run/ringway/NAME.sock
    #[arg(long, value_name = "PATH")]
    control_socket: Option<std::path::PathBuf>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn leaktest(options: &Options) -> Result<(), Failure> {
    let watch = now(leaktest::watch(&options.name, tunnel(options)?))?;
    let report = watch
        .run(Duration::from_secs(options.seconds.into()))
        .map_err(|error| {
            let Failure { exit, message } = Failure::of(&error);
            Failure::new(exit, format!("cannot watch the interfaces: {message}"))
        })?;
    let text = if options.json {
        serde_json::to_string(&report).map_err(io::Error::from)? + "\n"
    } else {
        shown(&report)
    };
    io::stdout().write_all(text.as_bytes())?;
    match report.leaked_packets {
        0 => Ok(()),
        _ => Err(Failure::new(Exit::Leak, verdict(&report))),
    }
}

/// What a running daemon says of itself; nothing where none runs.
fn tunnel(options: &Options) -> Result<Tunnel, Failure> {
    let default = default_control_socket(&options.name);
    let socket = options.control_socket.as_ref().unwrap_or(&default);
    let status = match Client::connect(socket).and_then(|mut client| client.status()) {
        Ok(status) => status,
        Err(ClientError::NoDaemon { .. }) => return Ok(Tunnel::default()),
        Err(error) => return Err(error.into()),
    };
    Ok(Tunnel {
        listen_port: Some(status.listen_port),
        endpoints: status.peers.iter().filter_map(|peer| peer.endpoint).collect(),
    })
}

fn shown(report: &Report) -> String {
    let mut out = String::new();
    let is = |yes| if yes { "holds" } else { "is off" };
    let up = if report.is_up { "up" } else { "not there" };
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "{}: {up}, kill switch {}; watched {} for {:.1} s\n",
        report.name,
        is(report.lockdown),
        report.underlay.join(" "),
        Duration::from_millis(report.duration_ms).as_secs_f64(),
    );
    let width = report.probes.iter().map(|probe| probe.probe.len()).max().unwrap_or(0);
    let _ = writeln!(out, "{:width$}  sent  inside  beside", "probe");
    for probe in &report.probes {
        let _ = write!(
            out,
            "{:width$}  {:4}  {:6}  {:6}",
            probe.probe, probe.sent, probe.inside, probe.outside
        );
        let _ = match &probe.refused {
            Some(why) if probe.outside == 0 && probe.inside == 0 => writeln!(out, "  {why}"),
            _ => writeln!(out),
        };
    }
    let allowed = report.allowed;
    let _ = writeln!(
        out,
        "\nbeside the tunnel by right: {} of its own, {} for the link, {} to allowed networks",
        allowed.tunnel, allowed.link, allowed.outside
    );
    for leak in &report.leaks {
        let _ = writeln!(out, "LEAK {}: {} ({} x)", leak.interface, leak.packet, leak.packets);
    }
    if report.missed > 0 {
        let _ = writeln!(
            out,
            "some packets were missed; run it again with less traffic to be sure"
        );
    }
    if report.leaked_packets == 0 {
        let _ = writeln!(out, "{}", verdict(report));
    }
    out
}

fn verdict(report: &Report) -> String {
    match report.leaked_packets {
        0 => "no leak".into(),
        packets if report.lockdown => {
            format!("{packets} packets left beside the tunnel although its kill switch holds")
        }
        packets => format!("{packets} packets left beside the tunnel; lockdown = true would have stopped them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::leaktest::{Leak, ProbeReport};

    #[test]
    fn a_report_shows_what_became_of_each_probe_and_what_leaked() {
        let mut report = Report {
            name: "rw0".into(),
            is_up: true,
            underlay: vec!["eth0".into()],
            duration_ms: 5200,
            probes: vec![ProbeReport {
                probe: "DNS to 192.0.2.1:53".into(),
                sent: 5,
                inside: 0,
                outside: 0,
                refused: Some("not permitted".into()),
            }],
            ..Report::default()
        };
        let expected = "rw0: up, kill switch is off; watched eth0 for 5.2 s\n\n\
                        probe                sent  inside  beside\n\
                        DNS to 192.0.2.1:53     5       0       0  not permitted\n\n\
                        beside the tunnel by right: 0 of its own, 0 for the link, 0 to allowed networks\n\
                        no leak\n";
        assert_eq!(shown(&report), expected);
        report.leaked_packets = 2;
        report.leaks.push(Leak {
            interface: "eth0".into(),
            packet: "DNS 192.0.2.7 -> 192.0.2.1:53".into(),
            packets: 2,
        });
        assert!(shown(&report).ends_with("LEAK eth0: DNS 192.0.2.7 -> 192.0.2.1:53 (2 x)\n"));
        assert!(verdict(&report).starts_with("2 packets left"));
    }
}
