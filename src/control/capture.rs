//! Captures for clients of the control socket: workers copy, and the client's own task turns the copies into pcapng.
//!
//! A client that reads slowly costs nobody else anything: while its chunks wait for it, workers count what they can't copy.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::api::{ApiError, CaptureRequest, ErrorCode};
use super::{Control, pcapng};
use crate::path::capture::filter::Filter;
use crate::path::capture::{CHUNKS, Chunk, Tap, Wanted};
use crate::proto::{PeerId, Time};
use crate::worker;
use crate::worker::mailbox::{Command, WorkerPort};

/// Captures that may be on at once: each takes 4 MiB per worker.
const CAPTURES_MAX: usize = 4;
/// How long captures that are ended may take to be told so.
const LAST_PACKETS_TIME_MAX: Duration = Duration::from_millis(500);
/// Largest packet that is copied whole: an IP packet has at most 65,575 bytes (IPv6).
pub(super) const SNAP_LEN_MAX: u32 = 65_575;

/// What the control thread keeps of captures.
pub(super) struct Captures {
    seats: Arc<Semaphore>,
    begun: u64,
    /// What people call the peers, for captures that are on.
    names: watch::Sender<Arc<BTreeMap<PeerId, String>>>,
}

impl Default for Captures {
    fn default() -> Captures {
        Captures {
            seats: Arc::new(Semaphore::new(CAPTURES_MAX)),
            begun: 0,
            names: watch::Sender::new(Arc::default()),
        }
    }
}

/// A capture that is on; it ends when this is dropped.
pub struct Feed {
    number: u64,
    /// The interface.
    pub(super) name: String,
    chunks: mpsc::Receiver<(u8, Chunk)>,
    ports: Vec<WorkerPort>,
    names: watch::Receiver<Arc<BTreeMap<PeerId, String>>>,
    /// Of the workers' clock, since 1970.
    clock_began: Duration,
    _seat: OwnedSemaphorePermit,
}

impl Drop for Feed {
    fn drop(&mut self) {
        for port in &self.ports {
            // A worker that has ended captures nothing.
            let _ = port.send(Command::EndCapture(self.number));
        }
    }
}

impl Control {
    /// Begins to capture.
    pub(super) fn begin_capture(&mut self, request: &CaptureRequest) -> Result<Feed, ApiError> {
        let refused = |code, message: String| ApiError { code, message };
        let filter: Filter = request
            .filter
            .parse()
            .map_err(|error: crate::path::capture::filter::FilterError| {
                refused(ErrorCode::BadRequest, error.to_string())
            })?;
        let peer = match &request.peer {
            Some(peer) => Some(self.peers.find(peer).ok_or_else(|| {
                let message = format!("no peer is called {peer:?}; write a name or public key of \"ringway status\"");
                refused(ErrorCode::NotFound, message)
            })?),
            None => None,
        };
        let seat = self.captures.seats.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{CAPTURES_MAX} captures are on already; end one of them");
            refused(ErrorCode::Unavailable, message)
        })?;
        self.captures.begun += 1;
        self.name_captured_peers();
        let number = self.captures.begun;
        let snap_len = request.snap_len.map_or(SNAP_LEN_MAX, |len| len.clamp(1, SNAP_LEN_MAX));
        let (to, chunks) = mpsc::channel(CHUNKS * self.workers.len());
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let feed = Feed {
            number,
            name: self.facts.name.clone(),
            chunks,
            ports: self.workers.iter().map(|worker| worker.port.clone()).collect(),
            names: self.captures.names.subscribe(),
            clock_began: unix.saturating_sub(worker::time_now() - Time::default()),
            _seat: seat,
        };
        for worker in &self.workers {
            let wanted = Wanted {
                peer,
                filter: filter.clone(),
                snap_len: snap_len as usize,
            };
            let begin = Command::BeginCapture(Box::new(Tap::new(number, wanted)), to.clone());
            self.tell(worker, begin)
                .map_err(|error| refused(ErrorCode::Unavailable, error.to_string()))?;
        }
        Ok(feed)
    }

    /// Ends all captures, and waits a moment until those who look have been told their ends.
    pub(super) async fn end_captures(&self) {
        if self.captures.seats.available_permits() == CAPTURES_MAX {
            return;
        }
        if self.broadcast(|| Command::EndCaptures).is_ok() {
            let seats = self.captures.seats.acquire_many(CAPTURES_MAX as u32);
            // A client that does not read finds its capture cut off.
            let _ = tokio::time::timeout(LAST_PACKETS_TIME_MAX, seats).await;
        }
    }

    /// Tells captures that are on what the peers are called.
    pub(super) fn name_captured_peers(&self) {
        if self.captures.seats.available_permits() < CAPTURES_MAX {
            let names = self.peers.iter().map(|(id, peer)| (id, peer.label()));
            self.captures.names.send_replace(Arc::new(names.collect()));
        }
    }
}

impl Feed {
    /// Streams the capture as pcapng until the client says or closes anything, `request` has had enough, or the tunnel goes
    /// down.
    pub(super) async fn stream(
        mut self,
        request: &CaptureRequest,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let deadline = request
            .seconds
            .map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut out = Vec::new();
        let snap_len = request.snap_len.unwrap_or(SNAP_LEN_MAX);
        pcapng::write_head(&mut out, &self.name, snap_len, &request.filter);
        writer.write_all(&out).await?;
        let (mut left, mut captured, mut lost) = (request.packets.unwrap_or(u64::MAX), 0u64, 0u64);
        let mut said = [0; 1];
        while left > 0 {
            let at_deadline = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let (worker, chunk) = tokio::select! {
                chunk = self.chunks.recv() => match chunk {
                    Some(chunk) => chunk,
                    None => break,
                },
                _ = reader.read(&mut said) => break,
                () = at_deadline => break,
            };
            out.clear();
            let written = self.write(&mut out, worker, &chunk, left);
            left -= written;
            captured += written;
            lost += chunk.lost();
            // The worker needs it more than we do, who wait for the client.
            if let Some(port) = self.ports.get(usize::from(worker))
                && port.send(Command::ReturnChunk(self.number, chunk)).is_err()
            {
                break;
            }
            writer.write_all(&out).await?;
        }
        out.clear();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        pcapng::write_end(&mut out, now, captured + lost, lost);
        writer.write_all(&out).await?;
        writer.shutdown().await
    }

    /// Writes at most `most` packets of `chunk`; how many there were.
    fn write(&mut self, out: &mut Vec<u8>, worker: u8, chunk: &Chunk, most: u64) -> u64 {
        use std::fmt::Write as _;
        let names = self.names.borrow_and_update();
        let mut comment = String::new();
        let mut written = 0;
        for record in chunk.records() {
            if written == most {
                break;
            }
            written += 1;
            comment.clear();
            // Writing to a String can't fail.
            let _ = match names.get(&record.peer) {
                Some(name) => write!(comment, "peer {name}, worker {worker}"),
                None => write!(comment, "a peer that was removed, worker {worker}"),
            };
            let time = self.clock_began + (record.time - Time::default());
            pcapng::write_packet(
                out,
                time,
                record.direction,
                record.original_len,
                record.packet,
                &comment,
            );
        }
        written
    }
}
