//! Counters with one writer: a worker adds, the control thread reads at any time.
//!
//! With a single writer an increment needs no atomic read-modify-write: it is a plain load, add and store, which the
//! relaxed ordering lets the CPU treat as such. A reader sees each counter whole, but not all counters of one instant.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::AddAssign;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::path::drops::Drop;

/// A number that one thread changes and any thread reads. A second writer would lose counts, not soundness.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `count`; wraps after 2^64, which is 500 years at 1 Gcount/s.
    #[inline]
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Replaces the number.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! worker_counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What one worker counts, on cache lines of its own: 128 bytes, because CPUs fetch lines in pairs.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerCounters {
            $($(#[doc = $doc])+ pub $name: Cell,)+
            drops: DropCells,
        }

        /// [`WorkerCounters`] as they were when read, or a sum of several.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct CounterSnapshot {
            $($(#[doc = $doc])+ #[serde(default)] pub $name: u64,)+
            /// Dropped packets by [`Drop::name`]; reasons that never happened are left out.
            #[serde(default)]
            pub drops: BTreeMap<String, u64>,
        }

        impl WorkerCounters {
            /// Counters that go on from a snapshot, or from nothing.
            pub fn counting_from(earlier: Option<&CounterSnapshot>) -> WorkerCounters {
                let counters = WorkerCounters::default();
                if let Some(earlier) = earlier {
                    $(counters.$name.set(earlier.$name);)+
                    for &reason in Drop::ALL {
                        counters.dropped(reason, earlier.drops.get(reason.name()).copied().unwrap_or(0));
                    }
                }
                counters
            }

            /// Reads every counter.
            pub fn snapshot(&self) -> CounterSnapshot {
                let count = |&reason: &Drop| (reason.name().to_owned(), self.dropped_so_far(reason));
                CounterSnapshot {
                    $($name: self.$name.get(),)+
                    drops: Drop::ALL.iter().map(count).filter(|&(_, count)| count != 0).collect(),
                }
            }
        }

        impl CounterSnapshot {
            /// What was counted since `earlier`, a snapshot of the same worker; drops that have not grown are left out.
            pub fn since(&self, earlier: &CounterSnapshot) -> CounterSnapshot {
                let grown = |(reason, count): (&String, &u64)| {
                    let grown = count.wrapping_sub(earlier.drops.get(reason).copied().unwrap_or(0));
                    (grown != 0).then(|| (reason.clone(), grown))
                };
                CounterSnapshot {
                    $($name: self.$name.wrapping_sub(earlier.$name),)+
                    drops: self.drops.iter().filter_map(grown).collect(),
                }
            }
        }

        impl AddAssign<&CounterSnapshot> for CounterSnapshot {
            fn add_assign(&mut self, other: &CounterSnapshot) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
                for (reason, count) in &other.drops {
                    *self.drops.entry(reason.clone()).or_default() += count;
                }
            }
        }
    };
}

worker_counters! {
    /// IP packets sealed and handed to the UDP socket, after segmentation.
    packets_out,
    /// Bytes of those IP packets.
    bytes_out,
    /// IP packets opened and handed to the TUN, before coalescing.
    packets_in,
    /// Bytes of those IP packets.
    bytes_in,
    /// Reads from the TUN; each is one super-packet or one packet.
    tun_reads,
    /// IP packets that those reads were cut into.
    tun_read_packets,
    /// Writes to the TUN; each is one super-packet or one packet.
    tun_writes,
    /// IP packets that those writes were made of.
    tun_write_packets,
    /// UDP sends; each is one GSO batch or one datagram.
    udp_sends,
    /// Datagrams in those sends.
    udp_send_datagrams,
    /// UDP receives; each is one GRO batch or one datagram.
    udp_receives,
    /// Datagrams in those receives.
    udp_receive_datagrams,
    /// Data messages that left from the lane's own port (`lane_ports`).
    lane_port_datagrams,
    /// Datagrams that reached a worker other than the one that owns their session.
    mis_steered,
    /// Passes of the worker's loop.
    loops,
}

/// One cell per reason. (The standard library's arrays have a default up to a length of 32.)
#[derive(Debug)]
struct DropCells([Cell; Drop::COUNT]);

impl Default for DropCells {
    fn default() -> DropCells {
        DropCells(std::array::from_fn(|_| Cell::default()))
    }
}

impl WorkerCounters {
    /// Counts `packets` that died for `reason`.
    #[inline]
    pub fn dropped(&self, reason: Drop, packets: u64) {
        self.drops.0[reason as usize].add(packets);
    }

    /// How many packets died for `reason`.
    pub fn dropped_so_far(&self, reason: Drop) -> u64 {
        self.drops.0[reason as usize].get()
    }
}

impl Sum for CounterSnapshot {
    fn sum<I: Iterator<Item = CounterSnapshot>>(workers: I) -> CounterSnapshot {
        let mut sum = CounterSnapshot::default();
        workers.for_each(|worker| sum += &worker);
        sum
    }
}

/// What one worker counts of one peer: a cache line. Times are nanoseconds of the monotonic clock, 0 = never.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PeerCell {
    /// UDP payload bytes sent to the peer.
    pub tx_bytes: Cell,
    /// Authentic UDP payload bytes received from the peer.
    pub rx_bytes: Cell,
    /// Data messages sent to the peer.
    pub tx_packets: Cell,
    /// Authentic data messages received from the peer.
    pub rx_packets: Cell,
    /// When data (not a keepalive) last went out.
    pub last_data_sent_ns: Cell,
    /// When data (not a keepalive) last came in.
    pub last_data_received_ns: Cell,
    /// When anything authenticated last went out, keepalives included.
    pub last_any_sent_ns: Cell,
    /// When anything authenticated last came in, keepalives included.
    pub last_any_received_ns: Cell,
}

const _: () = assert!(size_of::<PeerCell>() == 64);

/// One peer's cells, one per worker: share them, and let worker *i* write to `worker(i)` only. They take their memory with
/// the first use, since most of many peers are idle.
#[derive(Debug)]
pub struct PeerCells {
    workers: u8,
    cells: OnceLock<Box<[PeerCell]>>,
}

impl PeerCells {
    /// Zeroed cells for `workers` workers, at most 255.
    pub fn new(workers: usize) -> PeerCells {
        PeerCells {
            workers: u8::try_from(workers).unwrap_or(u8::MAX),
            cells: OnceLock::new(),
        }
    }

    /// The cell that worker `index` writes.
    ///
    /// # Panics
    /// When there are not that many workers.
    #[inline]
    pub fn worker(&self, index: usize) -> &PeerCell {
        let zeroed = || (0..self.workers).map(|_| PeerCell::default()).collect();
        &self.cells.get_or_init(zeroed)[index]
    }

    /// Goes on from what was counted elsewhere. To be called before any worker counts.
    pub fn count_from(&self, earlier: &PeerSnapshot) {
        if *earlier == PeerSnapshot::default() {
            return;
        }
        let cell = self.worker(0);
        cell.tx_bytes.set(earlier.tx_bytes);
        cell.rx_bytes.set(earlier.rx_bytes);
        cell.tx_packets.set(earlier.tx_packets);
        cell.rx_packets.set(earlier.rx_packets);
        cell.last_data_sent_ns.set(earlier.last_data_sent_ns);
        cell.last_data_received_ns.set(earlier.last_data_received_ns);
        cell.last_any_sent_ns.set(earlier.last_any_sent_ns);
        cell.last_any_received_ns.set(earlier.last_any_received_ns);
    }

    /// Sums of all workers' counts and the latest of their times.
    pub fn snapshot(&self) -> PeerSnapshot {
        let cells: &[PeerCell] = self.cells.get().map_or(&[], |cells| cells);
        let sum = |field: fn(&PeerCell) -> &Cell| cells.iter().map(|cell| field(cell).get()).sum();
        let latest = |field: fn(&PeerCell) -> &Cell| cells.iter().map(|cell| field(cell).get()).max().unwrap_or(0);
        PeerSnapshot {
            tx_bytes: sum(|cell| &cell.tx_bytes),
            rx_bytes: sum(|cell| &cell.rx_bytes),
            tx_packets: sum(|cell| &cell.tx_packets),
            rx_packets: sum(|cell| &cell.rx_packets),
            last_data_sent_ns: latest(|cell| &cell.last_data_sent_ns),
            last_data_received_ns: latest(|cell| &cell.last_data_received_ns),
            last_any_sent_ns: latest(|cell| &cell.last_any_sent_ns),
            last_any_received_ns: latest(|cell| &cell.last_any_received_ns),
        }
    }
}

/// [`PeerCells`] as they were when read. Times are nanoseconds of the monotonic clock, 0 = never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// UDP payload bytes sent to the peer.
    pub tx_bytes: u64,
    /// Authentic UDP payload bytes received from the peer.
    pub rx_bytes: u64,
    /// Data messages sent to the peer.
    pub tx_packets: u64,
    /// Authentic data messages received from the peer.
    pub rx_packets: u64,
    /// When data (not a keepalive) last went out.
    pub last_data_sent_ns: u64,
    /// When data (not a keepalive) last came in.
    pub last_data_received_ns: u64,
    /// When anything authenticated last went out, keepalives included.
    pub last_any_sent_ns: u64,
    /// When anything authenticated last came in, keepalives included.
    pub last_any_received_ns: u64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn workers_share_no_pair_of_cache_lines() {
        let workers: [WorkerCounters; 2] = Default::default();
        let distance = (&raw const workers[1]).addr() - (&raw const workers[0]).addr();
        assert_eq!(((&raw const workers[0]).addr() % 128, distance % 128), (0, 0));
    }

    #[test]
    fn a_sum_adds_every_worker_and_every_reason() {
        let workers: [WorkerCounters; 3] = Default::default();
        for (index, worker) in (1..).zip(&workers) {
            worker.packets_out.add(index);
            worker.bytes_in.add(100 * index);
            worker.dropped(Drop::Forged, index);
        }
        workers[2].dropped(Drop::NoRoute, 7);
        let sum: CounterSnapshot = workers.iter().map(WorkerCounters::snapshot).sum();
        let drops = BTreeMap::from([("forged".to_owned(), 6), ("no_route".to_owned(), 7)]);
        assert_eq!(
            sum,
            CounterSnapshot {
                packets_out: 6,
                bytes_in: 600,
                drops,
                ..Default::default()
            }
        );
    }

    #[test]
    fn a_snapshot_survives_json_and_an_older_one_without_some_counter_still_reads() {
        let worker = WorkerCounters::default();
        worker.loops.add(9);
        worker.dropped(Drop::TooBig, 1);
        let json = serde_json::to_string(&worker.snapshot()).expect("plain numbers");
        assert_eq!(
            serde_json::from_str::<CounterSnapshot>(&json).expect("own output"),
            worker.snapshot()
        );
        let older: CounterSnapshot = serde_json::from_str(r#"{"loops": 9}"#).expect("missing counters are 0");
        assert_eq!(
            older,
            CounterSnapshot {
                loops: 9,
                ..Default::default()
            }
        );
    }

    #[test]
    fn counters_go_on_from_a_snapshot() {
        let worker = WorkerCounters::default();
        worker.loops.add(9);
        worker.dropped(Drop::TooBig, 1);
        let snapshot = worker.snapshot();
        assert_eq!(WorkerCounters::counting_from(Some(&snapshot)).snapshot(), snapshot);
        assert_eq!(
            WorkerCounters::counting_from(None).snapshot(),
            CounterSnapshot::default()
        );
        let cells = PeerCells::new(2);
        cells.worker(1).tx_bytes.add(7);
        cells.worker(0).last_any_sent_ns.set(3);
        let again = PeerCells::new(3);
        again.count_from(&cells.snapshot());
        assert_eq!(again.snapshot(), cells.snapshot());
    }

    #[test]
    fn a_reader_never_sees_a_counter_go_back_and_ends_with_the_writers_total() {
        let cells = Arc::new(PeerCells::new(2));
        let writer = |worker: usize| {
            let cells = Arc::clone(&cells);
            std::thread::spawn(move || (0..100_000).for_each(|_| cells.worker(worker).tx_bytes.add(3)))
        };
        let writers = [writer(0), writer(1)];
        let mut last = 0;
        while !writers.iter().all(|writer| writer.is_finished()) {
            let seen = cells.snapshot().tx_bytes;
            assert!(seen >= last);
            last = seen;
        }
        assert_eq!(cells.snapshot().tx_bytes, 600_000);
    }

    #[test]
    fn a_peers_times_are_the_latest_of_any_worker() {
        let cells = PeerCells::new(3);
        cells.worker(1).last_data_sent_ns.set(50);
        cells.worker(2).last_data_sent_ns.set(20);
        cells.worker(0).rx_packets.add(4);
        cells.worker(2).rx_packets.add(5);
        let expected = PeerSnapshot {
            last_data_sent_ns: 50,
            rx_packets: 9,
            ..Default::default()
        };
        assert_eq!(cells.snapshot(), expected);
    }
}
