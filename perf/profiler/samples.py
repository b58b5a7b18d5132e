"""Reads what `perf record` has recorded, as `perf script` prints it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterable, Iterator

from lab.process import Failed
from profiler.groups import Frame

# "comm  pid/tid  event: " as in `ringway-0  812/813  cpu-clock:ppp: `, then a line per frame, then an empty one.
_HEADER = re.compile(r"^\s*(?P<comm>.+?)\s+(?P<pid>\d+)/(?P<tid>\d+)\s+(?:(?P<period>\d+)\s+)?(?P<event>\S+):\s*$")
# An address, a symbol, and in brackets a path, something like [vdso], or a name such as inlined code has.
_FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<name>.*?) \((?P<file>[/\[].*?|[^()]*)( \(deleted\))?\)$")


@dataclasses.dataclass
class Sample:
    """One interrupt: which thread was where, innermost frame first, and for how much it counts."""

    thread: str
    pid: int
    weight: int
    stack: list[Frame]


def read(path: str) -> Iterator[Sample]:
    """Every sample of a recording."""
    fields = "comm,pid,tid,period,event,ip,sym,dso"
    argv = ["perf", "script", "-i", path, "-F", fields, "--no-inline", "--max-stack", "127"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") as perf:
        yield from parse(perf.stdout)
        problems = perf.stderr.read()
        if perf.wait() != 0:
            raise Failed(f"perf script: {problems}")


def parse(lines: Iterable[str]) -> Iterator[Sample]:
    """As `perf script -F comm,pid,tid,period,event,ip,sym,dso` prints them."""
    sample = None
    for line in lines:
        if not line.strip():
            if sample is not None:
                yield sample
            sample = None
        elif sample is None:
            header = _HEADER.match(line)
            if header:
                sample = Sample(header["comm"], int(header["pid"]), int(header["period"] or 1), [])
        else:
            frame = _FRAME.match(line.rstrip("\n"))
            if frame:
                sample.stack.append(Frame(readable(frame["name"]), frame["file"]))
    if sample is not None:
        yield sample


_ESCAPES = {"$LT$": "<", "$GT$": ">", "$RF$": "&", "$BP$": "*", "$LP$": "(", "$RP$": ")", "$C$": ",", "$u20$": " ",
            "$u27$": "'", "$u5b$": "[", "$u5d$": "]", "$u7b$": "{", "$u7d$": "}", "$u3b$": ";", "$u2b$": "+", "$u22$": '"'}  # fmt: skip


def readable(symbol: str) -> str:
    """A symbol without its offset, its hash and what compilers append; Rust's older mangling undone (perf does the newer)."""
    symbol = re.sub(r"(\.(llvm|cold|part|isra|constprop|lto_priv)[.\d]*)+$", "", symbol)
    mangled = re.match(r"_ZN((?:\d+[^E]*)+)E$", symbol)
    if not mangled:
        return re.sub(r"::h[0-9a-f]{16}$", "", symbol)
    rest, parts = mangled[1], []
    while length := re.match(r"\d+", rest):
        end = length.end() + int(length[0])
        parts.append(rest[length.end() : end])
        rest = rest[end:]
    if parts and re.fullmatch(r"h[0-9a-f]{16}", parts[-1]):
        parts.pop()
    text = "::".join(part.removeprefix("_") if part.startswith("_$") else part for part in parts)
    for escape, plain in _ESCAPES.items():
        text = text.replace(escape, plain)
    return text.replace("..", "::")
