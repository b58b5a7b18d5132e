"""Child processes that enter a network namespace and never outlive this one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A command of the lab ended with an error; the text holds the command and what it printed."""


def run(argv: list[str], netns_fd: int | None = None, stdin: str | None = None, timeout: float = 30) -> str:
    """Runs a command to its end and returns its standard output; raises Failed with its output when it fails."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            preexec_fn=_in_child(netns_fd),
        )
    except subprocess.TimeoutExpired as expired:
        raise Failed(f"{' '.join(argv)}: no end after {timeout:g} s") from expired
    except FileNotFoundError as missing:
        raise Failed(f"{argv[0]}: not installed (scripts/setup installs what is needed)") from missing
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stderr}{done.stdout}".rstrip())
    return done.stdout


class Process:
    """A long-running command. Start it from the main thread: the kernel ties its life to the thread that started it."""

    def __init__(self, argv: list[str], netns_fd: int | None = None, log: str = os.devnull, env: dict | None = None):
        self.name = os.path.basename(argv[0])
        self.log = log
        with open(log, "ab") as output:
            # A session of its own: Ctrl-C reaches only the script, which then stops its children in order.
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=None if env is None else {**os.environ, **env},
                preexec_fn=_in_child(netns_fd),
            )
        self.pid = self._child.pid

    def ended(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._child.poll()

    def wait(self, timeout: float) -> int:
        """Waits for its end and returns the exit status; raises Failed after `timeout` seconds."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired as expired:
            raise Failed(f"{self.name}: no end after {timeout:g} s\n{self.output()}") from expired

    def stop(self) -> None:
        """SIGTERM, three seconds of patience, then SIGKILL. Twice does no harm."""
        if self.ended() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(3)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def output(self, lines: int = 20) -> str:
        """The last lines of its log, for an error message."""
        if self.log == os.devnull:
            return ""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-lines:])

    def check_alive(self) -> None:
        """Raises Failed with the log's end if the process is no more."""
        status = self.ended()
        if status is not None:
            raise Failed(f"{self.name} ended with status {status}\n{self.output()}")

    def cpu_seconds(self) -> float:
        """User and system time so far, all threads (proc_pid_stat(5), fields 14 and 15)."""
        with open(f"/proc/{self.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def rss_bytes(self, peak: bool = True) -> int:
        """Resident memory: its peak (VmHWM) or what it is (VmRSS)."""
        key = "VmHWM:" if peak else "VmRSS:"
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def wait_until(condition, timeout: float, what: str, interval: float = 0.02):
    """Polls until `condition()` is true and returns its value; raises Failed naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise Failed(f"{what}: not within {timeout:g} s")
        time.sleep(interval)


def _in_child(netns_fd: int | None):
    """What the child does between fork and exec; every name it needs is bound beforehand."""
    setns, prctl, parent = _LIBC.setns, _LIBC.prctl, os.getpid()

    def prepare() -> None:
        if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(127)
        if netns_fd is not None and setns(netns_fd, _CLONE_NEWNET) != 0:
            os._exit(127)

    return prepare
