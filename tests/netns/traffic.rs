//! What is sent through a tunnel, and the checks that it arrives as it left.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use blake2::{Blake2s256, Digest as _};
use serde_json::Value;

use crate::lab::{Lab, Namespace, wait_until};

/// A transfer that makes no progress for so long has failed.
const STALL: Duration = Duration::from_secs(40);
/// A transfer that takes so long has failed; it is a second's work.
const PATIENCE: Duration = Duration::from_secs(120);

/// A TCP connection from a to `address` of b: both its ends.
pub(crate) fn connect(lab: &Lab, address: IpAddr) -> (TcpStream, TcpStream) {
    let any = if address.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let listener = lab.b.enter(|| TcpListener::bind((any, 0)).expect("a free port"));
    let port = listener.local_addr().expect("it is bound").port();
    let a = lab
        .a
        .enter(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), STALL).expect("b listens"));
    let (b, _) = listener.accept().expect("a has connected");
    for stream in [&a, &b] {
        stream.set_read_timeout(Some(STALL)).expect("not zero");
        stream.set_write_timeout(Some(STALL)).expect("not zero");
    }
    (a, b)
}

/// Sends `len` bytes from one end of a connection to the other, which stays open.
pub(crate) fn carry([mut from, mut to]: [&TcpStream; 2], len: u64) {
    let mut bytes = vec![0; usize::try_from(len).expect("it fits into memory")];
    let sent = bytes.clone();
    thread::scope(|scope| {
        scope.spawn(move || from.write_all(&sent).expect("the connection stands"));
        to.read_exact(&mut bytes).expect("the connection stands");
    });
}

/// Sends a random file of `len` bytes each way over one connection at the same time; compares hashes.
pub(crate) fn exchange_files(connection: (TcpStream, TcpStream), len: u64) {
    transfer(&connection, [len, len]);
}

/// Sends a random file of `len` bytes from a to b; compares hashes.
pub(crate) fn send_one_file(connection: (TcpStream, TcpStream), len: u64) {
    transfer(&connection, [len, 0]);
}

fn transfer(connection: &(TcpStream, TcpStream), lens: [u64; 2]) {
    thread::scope(|scope| {
        let received = Transfer::start(scope, connection, lens).complete();
        assert_eq!(received, lens, "bytes received");
    });
}

/// Random bytes each way over one connection at the same time, checked by hash when it ends.
pub(crate) struct Transfer<'scope> {
    senders: [ScopedJoinHandle<'scope, File>; 2],
    receivers: [ScopedJoinHandle<'scope, File>; 2],
    received: [Arc<AtomicU64>; 2],
    end: EndOnDrop<'scope>,
}

/// Length and hash of what was sent or received.
type File = (u64, [u8; 32]);

/// Ends the threads also where the test panics, for their scope waits for them.
struct EndOnDrop<'scope> {
    stop: Arc<AtomicBool>,
    streams: [&'scope TcpStream; 2],
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for stream in self.streams {
            // An error means that it has been closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl<'scope> Transfer<'scope> {
    /// Begins it: at most `lens` bytes from a to b and from b to a.
    pub(crate) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        (a, b): &'scope (TcpStream, TcpStream),
        lens: [u64; 2],
    ) -> Transfer<'scope> {
        let end = EndOnDrop {
            stop: Arc::default(),
            streams: [a, b],
        };
        let received = [Arc::<AtomicU64>::default(), Arc::default()];
        let senders = [(a, 1, lens[0]), (b, 2, lens[1])].map(|(stream, seed, len)| {
            let stop = Arc::clone(&end.stop);
            scope.spawn(move || send_file(stream, seed, len, &stop))
        });
        let receivers = [(b, Arc::clone(&received[0])), (a, Arc::clone(&received[1]))]
            .map(|(stream, received)| scope.spawn(move || receive_file(stream, &received)));
        Transfer {
            senders,
            receivers,
            received,
            end,
        }
    }

    /// Waits until both ends have received more than now.
    pub(crate) fn wait_for_progress(&self) {
        let now = || {
            self.received
                .each_ref()
                .map(|received| received.load(Ordering::Relaxed))
        };
        let before = now();
        wait_until("progress both ways", STALL, || {
            before.iter().zip(now()).all(|(before, now)| now > *before)
        });
    }

    /// Stops sending and compares what arrived with what was sent.
    pub(crate) fn finish(self) {
        self.end.stop.store(true, Ordering::Relaxed);
        self.complete();
    }

    /// Waits for the end and compares what arrived with what was sent. The bytes received at b and at a.
    pub(crate) fn complete(self) -> [u64; 2] {
        let threads = self.senders.iter().chain(&self.receivers);
        wait_until("the end of the transfer", PATIENCE, || {
            threads.clone().all(ScopedJoinHandle::is_finished)
        });
        let [sent, received] = [self.senders.map(join), self.receivers.map(join)];
        assert!(sent == received, "corrupted or cut short on its way");
        received.map(|file| file.0)
    }
}

/// Runs `trouble` while bytes go both ways, and checks that the transfer goes on and nothing is missing.
pub(crate) fn under_traffic(connection: (TcpStream, TcpStream), trouble: impl FnOnce()) {
    thread::scope(|scope| {
        let transfer = Transfer::start(scope, &connection, [u64::MAX; 2]);
        transfer.wait_for_progress();
        trouble();
        transfer.wait_for_progress();
        transfer.finish();
    });
}

/// Sends runs of datagrams of these sizes to b, which sends them back; every one must return unchanged, in its order.
/// A run leaves at once, so it must fit a socket buffer. Fragments may overtake whole packets, for they are hashed to
/// queues by other fields: whoever asks for sizes beyond the MTU puts them into runs of their own.
pub(crate) fn echo_datagrams(lab: &Lab, address: IpAddr, runs: &[Vec<usize>]) {
    let any = if address.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let [a, b] = [&lab.a, &lab.b].map(|namespace| namespace.enter(|| UdpSocket::bind((any, 0)).expect("a free port")));
    let to = SocketAddr::new(address, b.local_addr().expect("it is bound").port());
    for socket in [&a, &b] {
        socket
            .set_read_timeout(Some(Duration::from_secs(15)))
            .expect("not zero");
    }
    let mut random = Random(4);
    let mut buffer = vec![0; 65536];
    for run in runs {
        let payloads: Vec<Vec<u8>> = run.iter().map(|&len| random.bytes(len)).collect();
        for payload in &payloads {
            a.send_to(payload, to).expect("a may send");
        }
        for payload in &payloads {
            let (len, from) = b
                .recv_from(&mut buffer)
                .unwrap_or_else(|error| lost(payload, "a", "b", &error));
            assert!(
                buffer[..len] == payload[..],
                "b received {len} bytes instead of {} that a sent",
                payload.len()
            );
            b.send_to(payload, from).expect("b may answer");
        }
        for payload in &payloads {
            let (len, _) = a
                .recv_from(&mut buffer)
                .unwrap_or_else(|error| lost(payload, "b", "a", &error));
            assert!(
                buffer[..len] == payload[..],
                "a received {len} bytes instead of {} that b sent",
                payload.len()
            );
        }
    }
}

/// Runs iperf3 from a to `address` of b for one second with more `arguments`; its report's `end`.
pub(crate) fn iperf3(lab: &Lab, address: IpAddr, arguments: &[&str]) -> Value {
    iperf3_report(lab, address, arguments)["end"].take()
}

/// As [`iperf3`], the whole report.
pub(crate) fn iperf3_report(lab: &Lab, address: IpAddr, arguments: &[&str]) -> Value {
    let mut command = lab.b.command("iperf3");
    command.args(["-s", "-1"]).stdout(Stdio::null());
    let mut server = Server(command.spawn().expect("setpriv is installed"));
    wait_until("iperf3 to listen", Duration::from_secs(20), || {
        assert!(
            server.0.try_wait().expect("it is our child").is_none(),
            "the iperf3 server ended"
        );
        listens(&lab.b, 5201)
    });
    let address = address.to_string();
    let output = lab
        .a
        .run(&[&["iperf3", "-J", "-t", "1", "-c", &address], arguments].concat());
    serde_json::from_str(&output).expect("JSON")
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // With -1 it ends by itself after one client; then both are errors of no interest.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listens(namespace: &Namespace, port: u16) -> bool {
    !namespace
        .run(&["ss", "-Hltn", "sport", "=", &port.to_string()])
        .trim()
        .is_empty()
}

/// Writes random bytes in pieces of random sizes, `len` of them or fewer when told to stop, then closes that direction.
fn send_file(mut stream: &TcpStream, seed: u64, len: u64, stop: &AtomicBool) -> File {
    let mut random = Random(seed);
    let mut hash = Blake2s256::new();
    let mut left = len;
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let piece = left.min(1 + random.next() % 200_000);
        let bytes = random.bytes(piece.try_into().expect("at most 200,000"));
        stream
            .write_all(&bytes)
            .unwrap_or_else(|error| panic!("{left} of {len} bytes left to send: {error}"));
        hash.update(&bytes);
        left -= piece;
    }
    stream.shutdown(Shutdown::Write).expect("it is connected");
    (len - left, hash.finalize().into())
}

/// Reads to the end, counting in `received`.
fn receive_file(mut stream: &TcpStream, received: &AtomicU64) -> File {
    let mut hash = Blake2s256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut len = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (len, hash.finalize().into()),
            Ok(count) => {
                hash.update(&buffer[..count]);
                len += count as u64;
                received.store(len, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("after {len} bytes received: {error}"),
        }
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn lost<T>(payload: &[u8], from: &str, to: &str, error: &std::io::Error) -> T {
    panic!(
        "a datagram of {} bytes from {from} did not reach {to}: {error}",
        payload.len()
    );
}

/// SplitMix64 (Steele, Lea, Flood 2014): incompressible, and the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
