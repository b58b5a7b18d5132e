//! `capture`: packets inside the tunnel, to a pcapng file or as lines.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Read as _, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use super::packet_line::packet_line;
use super::{signals, target, units};
use crate::control::api::CaptureRequest;
use crate::control::pcapng::Block;
use crate::path::capture::filter::Filter;

/// Bytes that are read at once.
const READ_LEN: usize = 256 * 1024;

/// The part of `--help` about filters.
pub(super) const HELP: &str = "\
Filters are a small part of tcpdump's language, with the same meaning:
  host 10.0.0.1, src host fd00::1, dst net 10.0.0.0/8     addresses
  tcp, udp, icmp, icmp6, ip, ip6, proto 47                protocols
  port 443, tcp dst port 22, udp portrange 6000-6063      ports
  in, out, less 100, greater 1000                         direction, length
  and, or, not, ( )                                       all of these together

Examples:
  ringway capture rw0 -w rw0.pcapng
  ringway capture rw0 -w - tcp port 443 | wireshark -k -i -
  ringway capture rw0 --peer b -c 10 icmp or icmp6";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The interface or control socket, and the filter [default: the one that runs, every packet]
    #[arg(value_name = "[NAME] [FILTER]", allow_hyphen_values = false)]
    words: Vec<String>,
    /// Only packets from and to this peer: its name or public key
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// Write pcapng to FILE, or to standard output for "-", instead of a line per packet
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Take at most so many bytes of each packet
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=65_575))]
    snap_len: Option<u32>,
}

pub(super) fn capture(options: &Options) -> Result<(), Failure> {
    let (name, filter) = split(&options.words);
    // Here too, so that a wrong filter is a matter of the command line.
    filter
        .parse::<Filter>()
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let request = CaptureRequest {
        peer: options.peer.clone(),
        filter,
        snap_len: options.snap_len,
        packets: options.count,
        seconds: options.seconds,
    };
    let mut out = Output::open(options)?;
    let mut stream = target::connect_one(name)?.capture(&request)?;
    end_on_signal(stream.get_ref().try_clone()?)?;
    let mut pending = Vec::new();
    let mut chunk = vec![0; READ_LEN];
    let mut ended = None;
    loop {
        let len = match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        pending.extend_from_slice(&chunk[..len]);
        let mut at = 0;
        while let Some((block, len)) = Block::parse(&pending[at..]).map_err(|error| Failure::of(&error))? {
            out.block(&block, &pending[at..at + len])?;
            at += len;
            if let Block::End { received, dropped } = block {
                ended = Some((received, dropped));
            }
        }
        pending.drain(..at);
        out.flush()?;
    }
    match ended {
        Some((received, dropped)) => {
            let captured = units::count(received - dropped);
            writeln!(
                io::stderr(),
                "{captured} packets captured, {} that matched were lost",
                units::count(dropped)
            )?;
            Ok(())
        }
        None => Err(Failure::new(
            Exit::Failure,
            "the capture is cut off: the tunnel went down",
        )),
    }
}

/// The name, and the words of the filter as one text. A first word that may begin a filter is no name.
fn split(words: &[String]) -> (Option<&str>, String) {
    match words.split_first() {
        Some((first, filter)) if !Filter::begins_with(first) && !first.contains(' ') => (Some(first), filter.join(" ")),
        _ => (None, words.join(" ")),
    }
}

/// Tells the daemon on SIGINT and SIGTERM that it is enough; it then sends the capture's end.
fn end_on_signal(stream: UnixStream) -> io::Result<()> {
    signals::on_end(move || {
        // A daemon that has hung up ends the capture as well.
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// Where packets go.
enum Output {
    /// As they come, pcapng.
    Pcapng(Box<dyn Write>),
    /// A line each.
    Lines,
}

impl Output {
    fn open(options: &Options) -> Result<Output, Failure> {
        match &options.write {
            None => Ok(Output::Lines),
            Some(path) if path.as_os_str() == "-" => Ok(Output::Pcapng(Box::new(io::stdout()))),
            Some(path) => {
                // What people send each other is nobody else's business.
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(path);
                let file = file.map_err(|error| {
                    let Failure { exit, message } = Failure::of(&error);
                    Failure::new(exit, format!("{}: {message}", path.display()))
                })?;
                Ok(Output::Pcapng(Box::new(BufWriter::new(file))))
            }
        }
    }

    fn block(&mut self, block: &Block, bytes: &[u8]) -> io::Result<()> {
        match (self, block) {
            (Output::Pcapng(file), _) => file.write_all(bytes),
            (Output::Lines, Block::Packet { .. }) => writeln!(io::stdout(), "{}", packet_line(block)),
            (Output::Lines, _) => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Pcapng(file) => file.flush(),
            Output::Lines => io::stdout().flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_from_a_filter() {
        let split = |text: &str| {
            let words: Vec<String> = text
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect();
            let (name, filter) = split(&words);
            (name.map(str::to_owned), filter)
        };
        let named = |name: &str, filter: &str| (Some(name.to_owned()), filter.to_owned());
        assert_eq!(split("rw0 tcp port 443"), named("rw0", "tcp port 443"));
        assert_eq!(split("./x.sock"), named("./x.sock", ""));
        assert_eq!(split("tcp port 443"), (None, "tcp port 443".into()));
        assert_eq!(split(""), (None, String::new()));
        assert_eq!(super::split(&["not icmp".into()]), (None, "not icmp".into()));
    }
}
