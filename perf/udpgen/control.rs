//! What the two ends say to each other over TCP: a line asks, a line answers.
//!
//! ```text
//! count SIZE   the server forgets what it counted; datagrams to come are SIZE bytes long      ready
//! report       the server waits until nothing has arrived for a while                         a Delivered as JSON
//! ```

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An answer may have to pass a queue that is still full of datagrams, and a few retransmissions.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What a server received since `count`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delivered {
    /// Datagrams.
    pub(crate) datagrams: u64,
    /// Receives that they came in.
    pub(crate) receives: u64,
    /// From the first to the last of them.
    pub(crate) seconds: f64,
}

/// The asking end.
pub(crate) struct Client {
    lines: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(server: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(Client {
            lines: BufReader::new(stream),
        })
    }

    /// Has the server begin anew, with datagrams of `size` bytes.
    pub(crate) fn count(&mut self, size: usize) -> io::Result<()> {
        self.ask(&format!("count {size}")).map(drop)
    }

    /// What has arrived since then.
    pub(crate) fn report(&mut self) -> io::Result<Delivered> {
        Ok(serde_json::from_str(&self.ask("report")?)?)
    }

    fn ask(&mut self, line: &str) -> io::Result<String> {
        writeln!(self.lines.get_mut(), "{line}")?;
        let mut answer = String::new();
        if self.lines.read_line(&mut answer)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up"));
        }
        Ok(answer)
    }
}

/// The answering end of one connection, until the client hangs up.
pub(crate) fn answer(
    stream: TcpStream,
    mut count: impl FnMut(usize),
    mut report: impl FnMut() -> Delivered,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("count", size)) => {
                let size: usize = size.parse().map_err(io::Error::other)?;
                count(size.max(1));
                writeln!(answers, "ready")?;
            }
            _ if line == "report" => writeln!(answers, "{}", serde_json::to_string(&report())?)?,
            _ => return Err(io::Error::other(format!("a client asked for {line:?}"))),
        }
    }
    Ok(())
}
