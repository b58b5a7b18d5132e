//! What lackey traces: whose turn it is, what each worker does in it, and which cache lines workers share.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead};
use std::sync::atomic::{AtomicU8, Ordering};

/// Two hosts of at most 32 workers.
const TURNS_MAX: usize = 2 * WORKERS_MAX;
/// As many as a word has bits.
pub(super) const WORKERS_MAX: usize = 32;
/// CPUs fetch lines of 64 bytes in pairs.
const LINE_SHIFT: u32 = 7;

/// A store to one of these begins a turn: of worker `i` of host 0, of worker `i` of host 1, of nobody.
static MARKS: [[AtomicU8; WORKERS_MAX]; 2] = [const { [const { AtomicU8::new(0) }; WORKERS_MAX] }; 2];
static NOBODY: AtomicU8 = AtomicU8::new(0);

/// What worker `worker` of host `host` does begins here.
pub(super) fn turn_of(host: usize, worker: usize) {
    MARKS[host][worker].store(1, Ordering::SeqCst);
}

/// What follows counts for nobody.
pub(super) fn turn_of_nobody() {
    NOBODY.store(1, Ordering::SeqCst);
}

/// Tells the reader of the trace where the marks are, and the program's code.
pub(super) fn announcement() -> io::Result<String> {
    let program = std::env::current_exe()?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let first = maps.lines().find(|line| line.ends_with(&*program.to_string_lossy()));
    let base = first
        .and_then(|line| line.split_once('-'))
        .and_then(|(base, _)| u64::from_str_radix(base, 16).ok());
    Ok(format!(
        "marks {} {} {}",
        MARKS.as_ptr().addr(),
        (&raw const NOBODY).addr(),
        base.unwrap_or(0)
    ))
}

/// A cache line of one host.
#[derive(Default)]
struct Line {
    /// A bit for each worker that touches it.
    workers: u32,
    loads: u64,
    stores: u64,
    /// The instructions that store to it.
    code: Vec<u64>,
}

impl Line {
    /// Whether it would travel between cores: a worker writes to it, and another one reads or writes.
    fn is_shared(&self) -> bool {
        self.workers.count_ones() > 1 && self.stores > 0
    }
}

/// A trace, as far as it counts.
#[derive(Default)]
pub(super) struct Trace {
    packets: u64,
    instructions: u64,
    /// Where the instruction is that the next accesses are of.
    instruction: u64,
    loads: u64,
    stores: u64,
    lines: HashMap<(usize, u64), Line>,
    /// Where the program's code begins.
    base: u64,
}

/// What a trace comes to.
pub(super) struct Count {
    pub(super) packets: u64,
    pub(super) instructions: u64,
    pub(super) loads: u64,
    pub(super) stores: u64,
    /// Of the sending host and of the receiving one.
    pub(super) shared: [Shared; 2],
    /// What is to be said of the shared lines, one each.
    pub(super) lines: Vec<String>,
}

impl Count {
    pub(super) fn instructions_per_packet(&self) -> f64 {
        self.instructions as f64 / self.packets as f64
    }
}

/// Accesses to lines that one worker of a host writes to, and another one touches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) loads: u64,
    pub(super) stores: u64,
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
            if line.starts_with(b"marks ") {
                let numbers = words(&line).filter_map(|word| word.parse().ok());
                let numbers: Vec<u64> = numbers.collect();
                let [of_workers, of_nobody, base] = numbers[..] else {
                    return Err(io::Error::other("the traced program does not say where its marks are"));
                };
                (marks, nobody, trace.base) = (of_workers, of_nobody, base);
            } else if line.starts_with(b"packets ") {
                trace.packets = words(&line).nth(1).and_then(|count| count.parse().ok()).unwrap_or(0);
            } else if marks != 0
                && let Some((kind, address, size)) = access(&line)
            {
                if kind != b'I' && address == nobody {
                    turn = None;
                } else if kind != b'I' && (marks..marks + TURNS_MAX as u64).contains(&address) {
                    let index = (address - marks) as usize;
                    turn = Some((index / WORKERS_MAX, index % WORKERS_MAX));
                } else if let Some((host, worker)) = turn {
                    trace.access(kind, address, size, host, worker);
                }
            }
        }
        Ok(trace)
    }

    fn access(&mut self, kind: u8, address: u64, size: u64, host: usize, worker: usize) {
        if kind == b'I' {
            self.instructions += 1;
            self.instruction = address;
            return;
        }
        let (is_load, is_store) = (kind != b'S', kind != b'L');
        self.loads += u64::from(is_load);
        self.stores += u64::from(is_store);
        for line in address >> LINE_SHIFT..=(address + size.max(1) - 1) >> LINE_SHIFT {
            let line = self.lines.entry((host, line)).or_default();
            line.workers |= 1 << worker;
            line.loads += u64::from(is_load);
            line.stores += u64::from(is_store);
            if is_store && !line.code.contains(&self.instruction) {
                line.code.push(self.instruction);
            }
        }
    }

    /// `None` when no packet was carried, or nobody's turn was seen.
    pub(super) fn count(&self) -> Option<Count> {
        let mut shared = [Shared::default(); 2];
        let mut lines: Vec<_> = self.lines.iter().filter(|(_, line)| line.is_shared()).collect();
        lines.sort_unstable_by_key(|(_, line)| std::cmp::Reverse(line.loads + line.stores));
        for ((host, _), line) in &lines {
            shared[*host].loads += line.loads;
            shared[*host].stores += line.stores;
        }
        (self.packets > 0 && self.instructions > 0).then(|| Count {
            packets: self.packets,
            instructions: self.instructions,
            loads: self.loads,
            stores: self.stores,
            shared,
            lines: lines.iter().map(|(place, line)| self.describe(**place, line)).collect(),
        })
    }

    fn describe(&self, (host, line): (usize, u64), what: &Line) -> String {
        let code: Vec<String> = what
            .code
            .iter()
            .map(|at| format!("{:#x}", at.wrapping_sub(self.base)))
            .collect();
        format!(
            "host {host}, line {:#x}: {} loads and {} stores of {} workers; stored to by {}",
            line << LINE_SHIFT,
            what.loads,
            what.stores,
            what.workers.count_ones(),
            code.join(" ")
        )
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = &str> {
    str::from_utf8(line).unwrap_or_default().split_ascii_whitespace()
}

/// `I  0401ab20,3`, ` L 1ffeffe7e,8`, ` S ...`, ` M ...`: instruction, load, store, both.
fn access(line: &[u8]) -> Option<(u8, u64, u64)> {
    let text = str::from_utf8(line).ok()?.trim_ascii();
    let kind = *text.as_bytes().first()?;
    let (address, size) = text.get(1..)?.trim_ascii_start().split_once(',')?;
    b"ILSM".contains(&kind).then_some(())?;
    Some((kind, u64::from_str_radix(address, 16).ok()?, size.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS_AT: u64 = 4096;
    const NOBODY_AT: u64 = 8192;

    /// The trace of a program with two packets, and one access of each of these workers of host 0 between its marks.
    fn count(accesses: &[(u64, &str)]) -> Option<Count> {
        let mut text = format!("I  10,3\nmarks {MARKS_AT} {NOBODY_AT} 0\n");
        for (worker, access) in accesses {
            text += &format!(
                " S {:x},1\nI  20,3\n{access}\n S {NOBODY_AT:x},1\nI  30,3\n",
                MARKS_AT + worker
            );
        }
        Trace::read((text + "packets 2\n").as_bytes())
            .expect("it is in memory")
            .count()
    }

    #[test]
    fn lines_are_shared_that_one_writes_and_another_touches() {
        let shared = |accesses: &[(u64, &str)]| count(accesses).expect("turns were seen").shared;
        let [out, into] = shared(&[(0, " S 10000,8"), (1, " L 10078,8")]);
        assert_eq!((out, into), (Shared { loads: 1, stores: 1 }, Shared::default()));
        for apart in [
            [(0, " S 10000,8"), (1, " L 10080,8")],
            [(0, " L 10000,8"), (1, " L 10078,8")],
            [(0, " S 10000,8"), (0, " M 10078,8")],
        ] {
            assert_eq!(shared(&apart), [Shared::default(); 2], "{apart:?}");
        }
    }

    #[test]
    fn a_trace_without_turns_is_no_count() {
        assert!(count(&[]).is_none());
        let count = count(&[(0, " L 10000,8")]).expect("a turn was seen");
        assert_eq!(
            (count.packets, count.instructions, count.loads, count.stores),
            (2, 1, 1, 0)
        );
    }
}
