//! What lackey traces: whose turn it is, what each worker does in it, and which cache lines workers share.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::sync::atomic::{AtomicU8, Ordering};

/// Two hosts of at most 32 workers.
const TURNS_MAX: usize = 64;
/// What lies this near to the announcement's own variable is the stack. One thread plays all workers, which have stacks of
/// their own in truth.
const STACK_BYTES: u64 = 4 << 20;
/// CPUs fetch lines of 64 bytes in pairs.
const LINE_SHIFT: u32 = 7;

/// A store to one of these begins a turn: of worker `i` of host 0, of worker `i` of host 1, of nobody.
static MARKS: [[AtomicU8; TURNS_MAX / 2]; 2] = [const { [const { AtomicU8::new(0) }; TURNS_MAX / 2] }; 2];
static NOBODY: AtomicU8 = AtomicU8::new(0);

/// What worker `worker` of host `host` does begins here.
pub(super) fn turn_of(host: usize, worker: usize) {
    MARKS[host][worker].store(1, Ordering::SeqCst);
}

/// What follows counts for nobody.
pub(super) fn turn_of_nobody() {
    NOBODY.store(1, Ordering::SeqCst);
}

/// Tells the reader of the trace where the marks and the stack are.
pub(super) fn announcement() -> String {
    let on_the_stack = 0u8;
    format!(
        "marks {} {} {}",
        MARKS.as_ptr().addr(),
        (&raw const NOBODY).addr(),
        (&raw const on_the_stack).addr()
    )
}

/// Who touches a line: a bit per worker, of each host.
#[derive(Clone, Copy, Default)]
struct Line {
    users: [u32; 2],
    stores: [u64; 2],
}

/// A trace, as far as it counts.
#[derive(Default)]
pub(super) struct Trace {
    packets: u64,
    instructions: u64,
    stores: u64,
    lines: HashMap<u64, Line>,
    stack: u64,
}

/// What a trace comes to.
pub(super) struct Count {
    pub(super) packets: u64,
    pub(super) instructions: u64,
    pub(super) stores: u64,
    /// To lines that another worker of the same host touches too, of the sending and of the receiving host.
    pub(super) shared: [u64; 2],
}

impl Trace {
    /// Reads what valgrind and the traced program print.
    pub(super) fn read(mut output: impl BufRead) -> io::Result<Trace> {
        let mut trace = Trace::default();
        let (mut marks, mut nobody) = (0, 0);
        let mut turn: Option<(usize, usize)> = None;
        let mut line = Vec::new();
        while {
            line.clear();
            output.read_until(b'\n', &mut line)?
        } > 0
        {
            let text = std::str::from_utf8(&line).unwrap_or_default().trim_end();
            if let Some(addresses) = text.strip_prefix("marks ") {
                let mut addresses = addresses.split(' ').filter_map(|word| word.parse().ok());
                (marks, nobody) = (addresses.next().unwrap_or(0), addresses.next().unwrap_or(0));
                trace.stack = addresses.next().unwrap_or(0);
                continue;
            }
            if let Some(count) = text.strip_prefix("packets ") {
                trace.packets = count.parse().unwrap_or(0);
                continue;
            }
            if marks == 0 {
                continue;
            }
            let Some((kind, address, size)) = access(text) else {
                continue;
            };
            if kind != 'I' && address == nobody {
                turn = None;
            } else if kind != 'I' && (marks..marks + TURNS_MAX as u64).contains(&address) {
                let index = (address - marks) as usize;
                turn = Some((index / (TURNS_MAX / 2), index % (TURNS_MAX / 2)));
            } else if let Some((host, worker)) = turn {
                trace.access(kind, address, size, host, worker);
            }
        }
        Ok(trace)
    }

    fn access(&mut self, kind: char, address: u64, size: u64, host: usize, worker: usize) {
        if kind == 'I' {
            self.instructions += 1;
            return;
        }
        let is_store = kind != 'L';
        self.stores += u64::from(is_store);
        if address.abs_diff(self.stack) < STACK_BYTES {
            return;
        }
        for line in address >> LINE_SHIFT..=(address + size.max(1) - 1) >> LINE_SHIFT {
            let line = self.lines.entry(line).or_default();
            line.users[host] |= 1 << worker;
            line.stores[host] += u64::from(is_store);
        }
    }

    /// `None` when no packet was carried.
    pub(super) fn count(&self) -> Option<Count> {
        let shared = [0, 1].map(|host| {
            let is_shared = |line: &&Line| line.users[host].count_ones() > 1;
            self.lines
                .values()
                .filter(is_shared)
                .map(|line| line.stores[host])
                .sum()
        });
        (self.packets > 0).then_some(Count {
            packets: self.packets,
            instructions: self.instructions,
            stores: self.stores,
            shared,
        })
    }
}

/// `I  0401ab20,3`, ` L 1ffeffe7e,8`, ` S ...`, ` M ...`: instruction, load, store, both.
fn access(text: &str) -> Option<(char, u64, u64)> {
    let (kind, rest) = text.trim_start().split_once(' ')?;
    let kind = kind
        .chars()
        .next()
        .filter(|kind| "ILSM".contains(*kind) && text.len() > 4)?;
    let (address, size) = rest.trim_start().split_once(',')?;
    Some((kind, u64::from_str_radix(address, 16).ok()?, size.parse().ok()?))
}
