"""What is measured: iperf3 runs from a to b through a tunnel, with what they cost the daemons."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time

from lab import process
from lab.process import Failed, Process
from lab.tunnels import Tunnel

_PORT = 5201


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One iperf3 run. a is the client, so a sends, except where `arguments` say otherwise."""

    key: str
    label: str
    arguments: tuple[str, ...]
    udp: bool = False
    ipv6: bool = False

    @property
    def unit(self) -> str:
        """Of the headline figure."""
        return "packet/s" if self.udp else "bit/s"


TCP_1 = Measurement("tcp_1", "TCP, 1 stream", ())
TCP_4 = Measurement("tcp_4", "TCP, 4 streams", ("-P", "4"))
TCP_REVERSE = Measurement("tcp_reverse", "TCP, reverse", ("-R",))
TCP_BOTH_WAYS = Measurement("tcp_both_ways", "TCP, both ways", ("--bidir",))
TCP_V6 = Measurement("tcp_v6", "TCP over IPv6", (), ipv6=True)
UDP_64 = Measurement("udp_64", "UDP, 64 B", ("-u", "-b", "0", "-l", "64"), udp=True)
UDP_1300 = Measurement("udp_1300", "UDP, 1300 B", ("-u", "-b", "0", "-l", "1300"), udp=True)

ALL = (TCP_1, TCP_4, TCP_REVERSE, TCP_BOTH_WAYS, TCP_V6, UDP_64, UDP_1300)


@dataclasses.dataclass
class Result:
    """One measurement of one tunnel. None: not measured by this kind of run."""

    tunnel: str
    measurement: str
    unit: str
    rate: float  # received, in `unit`; both directions together
    rates: list[float]  # per direction: a to b, or b to a in the reverse run; both where both run
    bytes: int  # of payload, received
    seconds: float
    retransmits: int | None = None
    lost_percent: float | None = None
    out_of_order: int | None = None  # TCPOFOQueue of the receivers: segments that came before their turn
    cpu_s_per_gb: list[float] = dataclasses.field(default_factory=list)  # per daemon: a, b
    rss_bytes_peak: list[int] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict:
        """For JSON."""
        return dataclasses.asdict(self)


def run(tunnel: Tunnel, measurement: Measurement, seconds: int, progress=lambda fraction, rate: None) -> Result:
    """Runs it; `progress(fraction, bit/s)` is called about ten times a second."""
    lab = tunnel.lab
    server_address = (tunnel.v6 if measurement.ipv6 else tunnel.v4)[1]
    cpu = [daemon.cpu_seconds() for daemon in tunnel.daemons]
    out_of_order = [end.tcp_counter("TCPOFOQueue") for end in lab.ends]
    report = _iperf3(tunnel, server_address, measurement.arguments, seconds, progress)
    cpu = [daemon.cpu_seconds() - before for daemon, before in zip(tunnel.daemons, cpu)]
    out_of_order = [end.tcp_counter("TCPOFOQueue") - before for end, before in zip(lab.ends, out_of_order)]
    for daemon in tunnel.daemons:
        daemon.check_alive()

    result = _result_udp(report) if measurement.udp else _result_tcp(report)
    result.tunnel, result.measurement, result.unit = tunnel.key, measurement.key, measurement.unit
    if not measurement.udp:
        result.out_of_order = sum(out_of_order)
    if result.bytes:
        result.cpu_s_per_gb = [spent / (result.bytes / 1e9) for spent in cpu]
    result.rss_bytes_peak = [daemon.rss_bytes() for daemon in tunnel.daemons]
    return result


def ping_average_ms(tunnel: Tunnel, count: int = 50) -> float:
    """Average round trip of pings through an otherwise idle tunnel, in milliseconds."""
    output = tunnel.lab.a.run("ping", "-n", "-q", "-c", str(count), "-i", "0.01", "-W", "1", tunnel.v4[1])
    summary = next((line for line in output.splitlines() if "min/avg/max" in line), None)
    if summary is None:
        raise Failed(f"ping {tunnel.v4[1]}: no answer\n{output}")
    return float(summary.split("=")[1].split("/")[1])


@contextlib.contextmanager
def iperf3_meanwhile(tunnel: Tunnel, arguments: list[str], seconds: int):
    """Runs iperf3 from a to b without waiting for it; whatever is left of it is stopped on leaving."""
    server = tunnel.lab.b.start("iperf3", "-s", "-1", "-p", str(_PORT))
    client = None
    try:
        process.wait_until(lambda: listens(server, _PORT), 5, "iperf3 server")
        client = tunnel.lab.a.start("iperf3", "-c", tunnel.v4[1], "-p", str(_PORT), "-t", str(seconds), *arguments)
        yield
        client.check_alive()
    finally:
        if client is not None:
            client.stop()
        server.stop()


def _iperf3(tunnel: Tunnel, address: str, arguments, seconds: int, progress) -> dict:
    # One server per run: a run that was cut short can't leave it busy for the next.
    server = tunnel.lab.b.start("iperf3", "-s", "-1", "-p", str(_PORT))
    output = f"{tunnel.lab.directory}/iperf3.json"
    client = None
    try:
        process.wait_until(lambda: listens(server, _PORT), 5, "iperf3 server")
        if os.path.exists(output):
            os.unlink(output)
        argv = ["iperf3", "-c", address, "-p", str(_PORT), "-J", "-t", str(seconds), *arguments]
        if tunnel.ports:
            argv += ["--cport", str(next(tunnel.ports))]
        client = tunnel.lab.a.start(*argv, log=output)
        _watch(client, tunnel.interfaces[0], seconds, progress)
        client.wait(10)
    finally:
        if client is not None:
            client.stop()
        server.stop()
    with open(output, encoding="utf-8") as file:
        text = file.read()
    try:
        report = json.loads(text)
    except ValueError as error:
        raise Failed(f"iperf3 {' '.join(arguments)}: no report: {text[-500:]}") from error
    if "error" in report:
        raise Failed(f"iperf3 {' '.join(arguments)}: {report['error']}")
    return report


def _watch(client: Process, interface: str, seconds: int, progress) -> None:
    """Reports progress from the interface's byte counters until the client ends."""
    start = last_time = time.monotonic()
    last_bytes, rate = None, 0.0
    while client.ended() is None:
        time.sleep(0.1)
        now, total = time.monotonic(), interface_bytes(client.pid, interface)
        if now - start > seconds + 20:
            raise Failed(f"iperf3: no end within {seconds + 20} s")
        if total is None:
            continue
        if last_bytes is not None:
            rate = 0.5 * rate + 0.5 * (total - last_bytes) * 8 / (now - last_time)
        last_bytes, last_time = total, now
        progress(min(1.0, (now - start) / seconds), rate)


def interface_bytes(pid: int, interface: str) -> int | None:
    """Bytes in and out of an interface as the process sees it; None when it is no more."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            for line in file:
                name, _, counters = line.partition(":")
                if name.strip() == interface:
                    fields = counters.split()
                    return int(fields[0]) + int(fields[8])
    except OSError:
        pass
    return None


def listens(server: Process, port: int) -> bool:
    """True once something in the server's namespace listens on the TCP port (state 0A of /proc/net/tcp*)."""
    server.check_alive()
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{server.pid}/net/{table}", encoding="ascii") as file:
                fields = [line.split() for line in file][1:]
        except FileNotFoundError:
            continue
        if any(int(row[1].rpartition(":")[2], 16) == port and row[3] == "0A" for row in fields):
            return True
    return False


def _result_tcp(report: dict) -> Result:
    end = report["end"]
    directions = [(end["sum_sent"], end["sum_received"])]
    if "sum_received_bidir_reverse" in end:
        directions.append((end["sum_sent_bidir_reverse"], end["sum_received_bidir_reverse"]))
    rates = [received["bits_per_second"] for _, received in directions]
    return Result(
        tunnel="",
        measurement="",
        unit="",
        rate=sum(rates),
        rates=rates,
        bytes=sum(received["bytes"] for _, received in directions),
        seconds=directions[0][1]["seconds"],
        retransmits=sum(sent.get("retransmits", 0) for sent, _ in directions),
    )


def _result_udp(report: dict) -> Result:
    end = report["end"]
    delivered = end["sum"]["packets"] - end["sum"]["lost_packets"]
    seconds = end["sum"]["seconds"]
    size = report["start"]["test_start"]["blksize"]
    return Result(
        tunnel="",
        measurement="",
        unit="",
        rate=delivered / seconds,
        rates=[delivered / seconds],
        bytes=delivered * size,
        seconds=seconds,
        lost_percent=end["sum"]["lost_percent"],
    )
