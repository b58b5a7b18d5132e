//! Which packets a capture takes: a small part of tcpdump's language (pcap-filter(7)), with the same meaning.
//!
//! ```text
//! filter    = [ or ]                                       nothing: every packet
//! or        = and { ("or" | "||") and }
//! and       = not { [ "and" | "&&" ] not }
//! not       = [ "not" | "!" ] ( "(" or ")" | test )
//! test      = "ip" | "ip6" | "in" | "out" | "less" BYTES | "greater" BYTES
//!           | "tcp" | "udp" | "icmp" | "icmp6" | "proto" NUMBER
//!           | [ "src" | "dst" ] [ "host" ] ADDRESS
//!           | [ "src" | "dst" ] "net" ADDRESS/LENGTH
//!           | [ "tcp" | "udp" ] [ "src" | "dst" ] ( "port" NUMBER | "portrange" FIRST-LAST )
//! ```
//!
//! "or" binds less than "and", as in most languages; pcap-filter gives both the same rank. Later fragments have no ports.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

use super::Direction;
use crate::wire::ip::{Fragment, Ip};
use crate::wire::{tcp, udp};

/// Longest filter, in words: a bound for the work per packet and the depth of nesting.
const WORDS_MAX: usize = 200;
/// Deepest nesting of parentheses and negations.
const DEPTH_MAX: usize = 20;

/// ICMP for IPv4 and IPv6 (IANA protocol numbers).
const ICMP: [u8; 2] = [1, 58];

/// A filter that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Expression);

/// A text that is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the filter is wrong at {place}: {reason}")]
pub struct FilterError {
    /// The word, in quotes, or "its end".
    place: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    /// Any of these.
    Or(Vec<Expression>),
    /// All of these.
    And(Vec<Expression>),
    Not(Box<Expression>),
    Test(Test),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Version(u8),
    Direction(Direction),
    /// Bytes of the packet.
    Length(RangeInclusive<usize>),
    Protocol(u8),
    Network(Side, IpNet),
    Ports(Option<u8>, Side, RangeInclusive<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Either,
    Source,
    Destination,
}

impl Filter {
    /// Whether `word` may begin a filter: to tell a filter from an interface's name.
    pub fn begins_with(word: &str) -> bool {
        const WORDS: [&str; 19] = [
            "ip",
            "ip6",
            "in",
            "out",
            "less",
            "greater",
            "tcp",
            "udp",
            "icmp",
            "icmp6",
            "proto",
            "src",
            "dst",
            "host",
            "net",
            "port",
            "portrange",
            "not",
            "and",
        ];
        WORDS.contains(&word) || word.starts_with(['(', '!']) || word.parse::<IpAddr>().is_ok()
    }

    /// Whether a capture takes `packet`, an IP packet that goes `direction`.
    pub fn matches(&self, direction: Direction, packet: &[u8]) -> bool {
        let is_all = matches!(&self.0, Expression::And(all) if all.is_empty());
        is_all || Ip::parse(packet).is_some_and(|ip| self.0.matches(direction, ip))
    }
}

impl Expression {
    fn matches(&self, direction: Direction, ip: Ip<'_>) -> bool {
        match self {
            Expression::Or(any) => any.iter().any(|one| one.matches(direction, ip)),
            Expression::And(all) => all.iter().all(|one| one.matches(direction, ip)),
            Expression::Not(one) => !one.matches(direction, ip),
            Expression::Test(test) => test.matches(direction, ip),
        }
    }
}

impl Test {
    fn matches(&self, direction: Direction, ip: Ip<'_>) -> bool {
        match self {
            Test::Version(version) => ip.bytes()[0] >> 4 == *version,
            Test::Direction(wanted) => direction == *wanted,
            Test::Length(bytes) => bytes.contains(&ip.bytes().len()),
            Test::Protocol(number) => ip.upper().protocol == *number,
            Test::Network(side, network) => {
                side.any(ip.source(), ip.destination(), |address| network.contains(address))
            }
            Test::Ports(protocol, side, ports) => {
                let upper = ip.upper();
                let has_ports = matches!(upper.protocol, tcp::PROTOCOL | udp::PROTOCOL)
                    && upper.fragment != Fragment::Later
                    && protocol.is_none_or(|protocol| protocol == upper.protocol);
                let Some(&[a, b, c, d]) = ip.bytes().get(upper.start..).and_then(<[u8]>::first_chunk) else {
                    return false;
                };
                let [source, destination] = [[a, b], [c, d]].map(u16::from_be_bytes);
                has_ports && side.any(source, destination, |port| ports.contains(port))
            }
        }
    }
}

impl Side {
    fn any<T>(self, source: T, destination: T, fits: impl Fn(&T) -> bool) -> bool {
        match self {
            Side::Either => fits(&source) || fits(&destination),
            Side::Source => fits(&source),
            Side::Destination => fits(&destination),
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Filter, FilterError> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('!', " ! ");
        let mut parser = Parser {
            words: spaced.split_whitespace().collect(),
            at: 0,
        };
        if parser.words.is_empty() {
            return Ok(Filter(Expression::And(Vec::new())));
        }
        if parser.words.len() > WORDS_MAX {
            parser.at = WORDS_MAX;
            return Err(parser.error(format!("a filter has at most {WORDS_MAX} words")));
        }
        let expression = parser.or(0)?;
        match parser.peek() {
            None => Ok(Filter(expression)),
            Some(")") => Err(parser.error("no parenthesis is open")),
            Some(_) => Err(parser.error("expected \"and\", \"or\" or the filter's end")),
        }
    }
}

struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn or(&mut self, depth: usize) -> Result<Expression, FilterError> {
        let mut any = vec![self.and(depth)?];
        while self.take_if(|word| matches!(word, "or" | "||")) {
            any.push(self.and(depth)?);
        }
        Ok(one_or(any, Expression::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Expression, FilterError> {
        let mut all = vec![self.not(depth)?];
        loop {
            let joined = self.take_if(|word| matches!(word, "and" | "&&"));
            match self.peek() {
                None | Some("or" | "||" | ")") if !joined => return Ok(one_or(all, Expression::And)),
                _ => all.push(self.not(depth)?),
            }
        }
    }

    fn not(&mut self, depth: usize) -> Result<Expression, FilterError> {
        if depth > DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {DEPTH_MAX} times")));
        }
        if self.take_if(|word| matches!(word, "not" | "!")) {
            return Ok(Expression::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.take_if(|word| word == "(") {
            let inner = self.or(depth + 1)?;
            return match self.take_if(|word| word == ")") {
                true => Ok(inner),
                false => Err(self.error("expected \")\"")),
            };
        }
        self.test().map(Expression::Test)
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        let Some(word) = self.peek() else {
            return Err(self.error("a test is missing, such as \"tcp port 443\" or \"host 10.0.0.1\""));
        };
        self.at += 1;
        Ok(match word {
            "ip" => Test::Version(4),
            "ip6" => Test::Version(6),
            "in" | "inbound" => Test::Direction(Direction::In),
            "out" | "outbound" => Test::Direction(Direction::Out),
            "less" => Test::Length(0..=self.number("bytes, 0 to 65535")?),
            "greater" => Test::Length(self.number("bytes, 0 to 65535")?..=usize::MAX),
            "tcp" | "udp" => {
                let protocol = if word == "tcp" { tcp::PROTOCOL } else { udp::PROTOCOL };
                let ahead = if matches!(self.peek(), Some("src" | "dst")) {
                    1
                } else {
                    0
                };
                match self.words.get(self.at + ahead) {
                    Some(&("port" | "portrange")) => {
                        let side = self.side();
                        self.ports(Some(protocol), side)?
                    }
                    _ => Test::Protocol(protocol),
                }
            }
            "icmp" => Test::Protocol(ICMP[0]),
            "icmp6" => Test::Protocol(ICMP[1]),
            "proto" => Test::Protocol(self.number("a protocol number, 0 to 255")?),
            _ => {
                self.at -= 1;
                let side = self.side();
                match self.peek() {
                    Some("port" | "portrange") => self.ports(None, side)?,
                    Some("net") => {
                        self.at += 1;
                        Test::Network(side, self.read("a network, such as 10.0.0.0/8")?)
                    }
                    Some("host") => {
                        self.at += 1;
                        Test::Network(side, IpNet::from(self.read::<IpAddr>("an address, such as 10.0.0.1")?))
                    }
                    _ => Test::Network(
                        side,
                        IpNet::from(self.read::<IpAddr>("a test, such as \"tcp\", \"port 53\" or an address")?),
                    ),
                }
            }
        })
    }

    fn side(&mut self) -> Side {
        match self.peek() {
            Some("src") => {
                self.at += 1;
                Side::Source
            }
            Some("dst") => {
                self.at += 1;
                Side::Destination
            }
            _ => Side::Either,
        }
    }

    fn ports(&mut self, protocol: Option<u8>, side: Side) -> Result<Test, FilterError> {
        let is_range = self.peek() == Some("portrange");
        self.at += 1;
        if !is_range {
            let port: u16 = self.number("a port number, 0 to 65535")?;
            return Ok(Test::Ports(protocol, side, port..=port));
        }
        let ports = self.peek().and_then(|word| {
            let (first, last) = word.split_once('-')?;
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        match ports {
            Some(ports) => {
                self.at += 1;
                Ok(Test::Ports(protocol, side, ports))
            }
            None => Err(self.error("expected two port numbers, such as 6000-6063")),
        }
    }

    fn number<T: FromStr>(&mut self, what: &str) -> Result<T, FilterError> {
        self.read(what)
    }

    fn read<T: FromStr>(&mut self, what: &str) -> Result<T, FilterError> {
        match self.peek().and_then(|word| word.parse().ok()) {
            Some(value) => {
                self.at += 1;
                Ok(value)
            }
            None => Err(self.error(format!("expected {what}"))),
        }
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take_if(&mut self, fits: impl Fn(&str) -> bool) -> bool {
        let taken = self.peek().is_some_and(fits);
        self.at += usize::from(taken);
        taken
    }

    fn error(&self, reason: impl Display) -> FilterError {
        FilterError {
            place: self.peek().map_or("its end".into(), |word| format!("{word:?}")),
            reason: reason.to_string(),
        }
    }
}

/// A list of one is that one.
fn one_or(mut list: Vec<Expression>, many: impl FnOnce(Vec<Expression>) -> Expression) -> Expression {
    match list.len() {
        1 => list.remove(0),
        _ => many(list),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::{Sample, Written};
    use super::*;

    fn packet(v6: bool, tcp: bool) -> Vec<u8> {
        // 10.0.1.1 or fd00:0:1::1, port 0x1234 = 4660, to 10.0.2.1 or fd00:0:2::1, port 0x5678 = 22136.
        let sample = if tcp {
            Sample::tcp(v6, 1, vec![0; 60])
        } else {
            Sample::udp(v6, vec![0; 60])
        };
        sample.bytes(Written::Complete)
    }

    #[track_caller]
    fn assert_takes(filter: &str, packet: &[u8], expected: bool) {
        let parsed: Filter = filter.parse().unwrap_or_else(|error| panic!("{filter}: {error}"));
        assert_eq!(parsed.matches(Direction::In, packet), expected, "{filter}");
    }

    #[test]
    fn filters_mean_what_they_mean_to_tcpdump() {
        let (v4, v6) = (packet(false, true), packet(true, false));
        let cases = [
            ("", true, true),
            ("ip", true, false),
            ("ip6", false, true),
            ("tcp", true, false),
            ("udp or tcp", true, true),
            ("proto 6", true, false),
            ("icmp or icmp6", false, false),
            ("port 4660", true, true),
            ("tcp port 4660", true, false),
            ("tcp dst port 4660", false, false),
            ("udp src port 4660", false, true),
            ("dst port 22136 and not ip6", true, false),
            ("portrange 4000-5000", true, true),
            ("dst portrange 4000-5000", false, false),
            ("host 10.0.2.1", true, false),
            ("src host 10.0.2.1", false, false),
            ("dst 10.0.2.1", true, false),
            ("src net 10.0.0.0/16", true, false),
            ("net fd00::/16", false, true),
            ("less 100", false, false),
            ("less 108", false, true),
            ("greater 109", true, false),
            ("in", true, true),
            ("out", false, false),
            ("!tcp", false, true),
            ("not (tcp or udp)", false, false),
            ("ip tcp port 4660", true, false),
            ("icmp or tcp && port 4660", true, false),
            ("(icmp or tcp) and port 9", false, false),
        ];
        assert_eq!((v4.len(), v6.len()), (112, 108));
        for (filter, takes_v4, takes_v6) in cases {
            assert_takes(filter, &v4, takes_v4);
            assert_takes(filter, &v6, takes_v6);
        }
    }

    #[test]
    fn later_fragments_and_cut_packets_have_no_ports() {
        let mut fragment = packet(false, true);
        fragment[7] = 9;
        assert_takes("port 4660", &fragment, false);
        assert_takes("tcp", &fragment, true);
        let mut short = packet(false, true)[..22].to_vec();
        short[3] = 22;
        assert_takes("port 4660", &short, false);
        assert_takes("tcp", &[], false);
    }

    #[test]
    fn a_wrong_filter_names_the_word_and_what_would_be_right() {
        let cases = [
            ("prot 80", "at \"prot\": expected a test"),
            ("port http", "at \"http\": expected a port number"),
            ("port 65536", "at \"65536\": expected a port number"),
            ("portrange 5", "at \"5\": expected two port numbers"),
            ("net 10.0.0.0", "at \"10.0.0.0\": expected a network"),
            ("host", "at its end: expected an address"),
            ("tcp and", "at its end: a test is missing"),
            ("or tcp", "at \"or\": expected a test"),
            ("(tcp", "at its end: expected \")\""),
            ("tcp)", "at \")\": no parenthesis is open"),
            ("proto 256", "at \"256\": expected a protocol number"),
        ];
        for (filter, expected) in cases {
            let error = filter.parse::<Filter>().expect_err(filter).to_string();
            assert!(error.contains(expected), "{filter}: {error}");
        }
        assert!(
            "!".repeat(150)
                .parse::<Filter>()
                .is_err_and(|error| error.to_string().contains("nested"))
        );
        assert!(
            "ip "
                .repeat(300)
                .parse::<Filter>()
                .is_err_and(|error| error.to_string().contains("200 words"))
        );
    }

    #[test]
    fn filters_are_told_from_interface_names() {
        for word in ["tcp", "not", "(tcp", "!tcp", "10.0.0.1", "fd00::1"] {
            assert!(Filter::begins_with(word), "{word}");
        }
        for word in ["rw0", "wg-home", "/run/ringway/rw0.sock"] {
            assert!(!Filter::begins_with(word), "{word}");
        }
    }
}
