//! `[metrics]`: where metrics are served.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::raw::{At, Place};
use super::values::SOCKET_PATH_LEN_MAX;

/// The keys of `[metrics]`.
pub(super) const KEYS: &[&str] = &["listen"];

/// What precedes the path of a Unix socket.
const UNIX: &str = "unix:";

/// `[metrics]` as the file spells it.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated section")]
pub struct RawMetrics {
    /// Of the section: where a missing key would stand.
    pub place: Place,
    pub listen: Option<At<String>>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsListen {
    /// On a TCP port.
    Tcp(SocketAddr),
    /// On a Unix socket. A relative path in the file is relative to the file.
    Unix(PathBuf),
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsListen::Tcp(address) => address.fmt(f),
            MetricsListen::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl MetricsListen {
    /// Reads "127.0.0.1:9586" or "unix:PATH", a relative path being one from `directory`.
    pub(super) fn parse(text: &str, directory: &Path) -> Result<MetricsListen, String> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return match text.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => Ok(MetricsListen::Tcp(address)),
                _ => Err(
                    "write an address and a port, such as \"127.0.0.1:9586\" or \"[::1]:9586\", or the path of a \
                          socket, such as \"unix:/run/ringway/metrics.sock\""
                        .into(),
                ),
            };
        };
        let whole = directory.join(path);
        match whole.as_os_str().len() {
            _ if path.is_empty() || path.contains('\0') => {
                Err("write the path of the socket behind \"unix:\", such as \"unix:/run/ringway/metrics.sock\"".into())
            }
            len if len > SOCKET_PATH_LEN_MAX => Err(format!(
                "a socket's path has at most {SOCKET_PATH_LEN_MAX} bytes, this one has {len}"
            )),
            _ => Ok(MetricsListen::Unix(whole)),
        }
    }

    /// What is unwise about it.
    pub(super) fn warning(&self) -> Option<&'static str> {
        match self {
            MetricsListen::Tcp(address) if !address.ip().is_loopback() => Some(
                "metrics have no password and tell the peers' names and keys: let a firewall keep others from this port, or \
                 listen on 127.0.0.1",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_sockets_are_read_and_shown() {
        let parse = |text: &str| MetricsListen::parse(text, Path::new("/etc/ringway"));
        for text in ["127.0.0.1:9586", "[::1]:9586", "unix:/run/m.sock"] {
            assert_eq!(parse(text).expect(text).to_string(), text);
        }
        assert_eq!(
            parse("unix:m.sock"),
            Ok(MetricsListen::Unix("/etc/ringway/m.sock".into()))
        );
        for wrong in [
            "",
            "9586",
            ":9586",
            "localhost:9586",
            "127.0.0.1",
            "127.0.0.1:0",
            "unix:",
        ] {
            assert!(parse(wrong).is_err_and(|error| error.starts_with("write ")), "{wrong}");
        }
        assert!(parse(&format!("unix:/{}", "x".repeat(200))).is_err_and(|error| error.contains("at most")));
    }

    #[test]
    fn only_what_others_can_reach_is_warned_of() {
        let warning = |text: &str| MetricsListen::parse(text, Path::new("")).expect(text).warning();
        assert!(warning("0.0.0.0:9586").is_some());
        assert!(warning("127.0.0.1:9586").is_none() && warning("[::1]:1").is_none() && warning("unix:x").is_none());
    }
}
