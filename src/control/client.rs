//! The control protocol's client: what `ringway status` and the like are made of. Blocking, with a time limit.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::api::{
    ApiError, CaptureRequest, ChangeReport, ExplainReport, ExplainRequest, LatencyReport, Request, Response,
    StatsReport, StatusReport,
};

/// A daemon answers within milliseconds, or not at all.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// An upgrade is answered by a program that has yet to start.
const UPGRADE_TIME_MAX: Duration = Duration::from_secs(60);

/// What is wrong with an answer of which there is nothing.
const HUNG_UP: &str = "the daemon hung up";

/// Longest response taken: reports of 10,000 peers with a histogram each fit several times.
const RESPONSE_LEN_MAX: u64 = 1 << 28;

/// Why a daemon did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or no longer.
    #[error("{}: no daemon serves this socket ({error})", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// Not found, connection refused, or hung up.
        #[source]
        error: io::Error,
    },
    /// Somebody listens there, but not for us.
    #[error("{}: permission denied; run as root or as a member of the group ringway", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The daemon's answer makes no sense to this program; they may be of different versions.
    #[error("{}: unexpected answer: {reason}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon ended before another program went on with its tunnel.
    #[error(
        "{}: the daemon ended before the other program went on with the tunnel; what it had set up is put back (but a kill \
         switch holds), and its log says more", path.display()
    )]
    UpgradeLost {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon declined.
    #[error("{}: {error}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        error: ApiError,
    },
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    /// How long an answer is waited for.
    patience: Duration,
}

impl Client {
    /// Connects to the daemon whose control socket is at `path`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
            stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
            Ok(stream)
        };
        let stream = connect().map_err(|error| failed(path, error, ANSWER_TIME_MAX))?;
        Ok(Client {
            stream: BufReader::new(stream),
            path: path.to_owned(),
            patience: ANSWER_TIME_MAX,
        })
    }

    /// The socket that this is connected to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tunnel as it is.
    pub fn status(&mut self) -> Result<StatusReport, ClientError> {
        match self.request(&Request::Status {})? {
            Response::Status(report) => Ok(*report),
            other => Err(self.mismatch(&other)),
        }
    }

    /// Latency since the last reset; `reset` begins a new interval.
    pub fn latency(&mut self, reset: bool) -> Result<LatencyReport, ClientError> {
        match self.request(&Request::Latency { reset })? {
            Response::Latency(report) => Ok(*report),
            other => Err(self.mismatch(&other)),
        }
    }

    /// Changes something.
    pub fn change(&mut self, request: &Request) -> Result<ChangeReport, ClientError> {
        match self.request(request)? {
            Response::Changed(report) => Ok(report),
            other => Err(self.mismatch(&other)),
        }
    }

    /// Has another process go on with the tunnel: the program at `binary`, or the one that is where the running one was
    /// started from.
    pub fn upgrade(&mut self, binary: Option<PathBuf>) -> Result<ChangeReport, ClientError> {
        self.patience = UPGRADE_TIME_MAX;
        let patience = self.stream.get_ref().set_read_timeout(Some(self.patience));
        patience.map_err(|error| self.failed(error))?;
        match self.change(&Request::Upgrade { binary }) {
            Err(ClientError::Protocol { path, reason }) if reason == HUNG_UP => Err(ClientError::UpgradeLost { path }),
            result => result,
        }
    }

    /// What was counted since the last reset; `reset` begins a new interval.
    pub fn stats(&mut self, reset: bool) -> Result<StatsReport, ClientError> {
        match self.request(&Request::Stats { reset })? {
            Response::Stats(report) => Ok(*report),
            other => Err(self.mismatch(&other)),
        }
    }

    /// What would become of a packet.
    pub fn explain(&mut self, request: &ExplainRequest) -> Result<ExplainReport, ClientError> {
        match self.request(&Request::Explain(request.clone()))? {
            Response::Explain(report) => Ok(*report),
            other => Err(self.mismatch(&other)),
        }
    }

    /// Begins a capture: what can be read from here on is pcapng, up to its end. Shutting the writing half down ends it.
    pub fn capture(mut self, request: &CaptureRequest) -> Result<BufReader<UnixStream>, ClientError> {
        match self.request(&Request::Capture(request.clone()))? {
            Response::Capture(_) => {}
            other => return Err(self.mismatch(&other)),
        }
        // Packets come when they come.
        match self.stream.get_ref().set_read_timeout(None) {
            Ok(()) => Ok(self.stream),
            Err(error) => Err(failed(&self.path, error, ANSWER_TIME_MAX)),
        }
    }

    /// Sends one request and waits for its response; an error response is an `Err`.
    pub fn request(&mut self, request: &Request) -> Result<Response, ClientError> {
        let line = self.exchange(request).map_err(|error| self.failed(error))?;
        let protocol = |reason| ClientError::Protocol {
            path: self.path.clone(),
            reason,
        };
        if !line.ends_with('\n') {
            return Err(protocol(
                if line.is_empty() { HUNG_UP } else { "it is cut off" }.to_owned(),
            ));
        }
        match serde_json::from_str(&line) {
            Ok(Response::Error(error)) => Err(ClientError::Refused {
                path: self.path.clone(),
                error,
            }),
            Ok(response) => Ok(response),
            Err(error) => Err(protocol(error.to_string())),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<String> {
        // It may hold a key.
        let mut line = Zeroizing::new(serde_json::to_string(request)?);
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        let mut line = String::new();
        (&mut self.stream).take(RESPONSE_LEN_MAX).read_line(&mut line)?;
        Ok(line)
    }

    fn failed(&self, error: io::Error) -> ClientError {
        failed(&self.path, error, self.patience)
    }

    fn mismatch(&self, response: &Response) -> ClientError {
        let kind = match response {
            Response::Status(_) => "a status report",
            Response::Latency(_) => "a latency report",
            Response::Stats(_) => "a report of counters",
            Response::Explain(_) => "an explanation",
            Response::Capture(_) => "a capture",
            Response::Changed(_) => "a report of changes",
            Response::Error(_) => "an error",
        };
        ClientError::Protocol {
            path: self.path.clone(),
            reason: format!("{kind} was not asked for"),
        }
    }
}

/// The control sockets in `directory`, in order of their names. A directory that does not exist has none.
pub fn sockets_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            sockets.push(path);
        }
    }
    sockets.sort();
    Ok(sockets)
}

fn failed(path: &Path, error: io::Error, patience: Duration) -> ClientError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => ClientError::NoDaemon { path, error },
        io::ErrorKind::PermissionDenied => ClientError::Permission { path },
        // SO_RCVTIMEO and SO_SNDTIMEO end in EAGAIN, whose own text ("temporarily unavailable") misleads.
        io::ErrorKind::WouldBlock => {
            let text = format!("no answer within {} s", patience.as_secs());
            ClientError::Io {
                path,
                error: io::Error::new(io::ErrorKind::TimedOut, text),
            }
        }
        _ => ClientError::Io { path, error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A socket at which one client gets `answers`, one per request; the requests are returned.
    fn daemon(name: &str, answers: &'static [&'static str]) -> (PathBuf, std::thread::JoinHandle<Vec<String>>) {
        let path = std::env::temp_dir().join(format!("ringway-client-{}-{name}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut requests = Vec::new();
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                requests.push(line);
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (path, server)
    }

    #[test]
    fn requests_and_responses_are_lines_of_json_on_one_connection() {
        let (path, server) = daemon(
            "lines",
            &[
                "{\"latency\":{\"name\":\"rw0\",\"since_unix_ms\":1,\"until_unix_ms\":2,\"stages\":[],\"later\":7}}\n",
                "{\"error\":{\"code\":\"unavailable\",\"message\":\"shutting down\"}}\n",
                "{\"error\":{\"code\":\"of_the_future\",\"message\":\"?\"}}\n",
            ],
        );
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.latency(true).unwrap().name, "rw0");
        let refused = client.status().unwrap_err();
        assert!(refused.to_string().ends_with(".sock: shutting down"), "{refused}");
        assert!(matches!(client.status().unwrap_err(), ClientError::Refused { .. }));
        assert_eq!(
            server.join().unwrap(),
            [
                "{\"command\":\"latency\",\"reset\":true}\n",
                "{\"command\":\"status\"}\n",
                "{\"command\":\"status\"}\n"
            ]
        );
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn answers_that_make_no_sense_are_told_apart() {
        let latency = r#"{"latency":{"name":"rw0","since_unix_ms":1,"until_unix_ms":2,"stages":[]}}"#;
        let latency: &'static str = format!("{latency}\n").leak();
        let (path, server) = daemon("sense", &*vec!["nonsense\n", latency, "{\"sta"].leak());
        let mut client = Client::connect(&path).unwrap();
        for reason in [
            "unexpected answer: expected",
            "a latency report was not asked for",
            "it is cut off",
        ] {
            let error = client.status().unwrap_err();
            assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
        server.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_missing_and_an_abandoned_socket_are_no_daemon() {
        let (path, server) = daemon("gone", &[]);
        Client::connect(&path).unwrap();
        server.join().unwrap();
        assert!(
            matches!(Client::connect(&path), Err(ClientError::NoDaemon { .. })),
            "nobody accepts any more"
        );
        std::fs::remove_file(&path).unwrap_or_default();
        assert!(matches!(Client::connect(&path), Err(ClientError::NoDaemon { .. })));
    }

    #[test]
    fn requests_with_unknown_commands_or_fields_are_refused() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"command":"status"}"#).unwrap(), Request::Status {});
        assert_eq!(
            read(r#"{"command":"latency"}"#).unwrap(),
            Request::Latency { reset: false }
        );
        for text in [
            r#"{"command":"dance"}"#,
            r#"{"command":"status","x":1}"#,
            r#"{"command":"latency","rest":true}"#,
            "{}",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sockets_are_listed_in_order_and_a_missing_directory_has_none() {
        let directory = std::env::temp_dir().join(format!("ringway-sockets-{}", std::process::id()));
        assert_eq!(sockets_in(&directory).unwrap(), Vec::<PathBuf>::new());
        std::fs::create_dir(&directory).unwrap();
        for name in ["b.sock", "a.sock", "a.pid"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        assert_eq!(
            sockets_in(&directory).unwrap(),
            [directory.join("a.sock"), directory.join("b.sock")]
        );
        std::fs::remove_dir_all(directory).unwrap();
    }
}
