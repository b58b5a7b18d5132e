"""What `scripts/compare` measures, and under which circumstances."""

from __future__ import annotations

import dataclasses

from lab import flood, measure, process, udpgen
from lab.netns import UNDERLAY, Lab
from lab.tunnels import OVERHEAD, Shape, Tunnel


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure. `unit`: bit/s, packet/s, s/GB, B or ns."""

    key: str
    label: str
    unit: str
    higher_is_better: bool


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One run that yields figures."""

    key: str
    label: str
    metrics: tuple[Metric, ...]
    overhead_s: float  # what it takes beside the seconds asked for
    runs: int = 1  # how often it takes those
    everywhere: bool = True  # in every case that does not say what it measures

    def duration_s(self, seconds: int) -> float:
        """About how long it takes."""
        return self.overhead_s + self.runs * seconds


@dataclasses.dataclass(frozen=True)
class Case:
    """A state of the lab. `measurements` and `tunnels` are what is run in it unless told otherwise; None: everything."""

    key: str
    label: str
    mtu: int = 1500  # of the underlay
    uso: bool = True  # the underlay's tx-udp-segmentation
    idle_peers: int = 0
    forged_sources: bool = False
    measurements: tuple[str, ...] | None = None
    tunnels: tuple[str, ...] | None = None

    def lab(self, suffix: str = "") -> Lab:
        """The lab, not built."""
        return Lab(self.mtu, suffix)

    def prepare(self, lab: Lab) -> None:
        """Brings a lab that stands into this state."""
        if not self.uso:
            for end in lab.ends:
                end.run("ethtool", "-K", UNDERLAY, "tx-udp-segmentation", "off")
        if self.forged_sources:
            flood.prepare(lab)

    def shape(self) -> Shape:
        """What it asks of tunnels."""
        return Shape(mtu=self.mtu - OVERHEAD, idle_peers=self.idle_peers)


_CORE = ("bare", "native-uring-1", "native-uring-2", "wireguard-uring-2", "wireguard-go")
_RINGWAYS = ("native-uring-2", "wireguard-uring-2")
_HANDSHAKING = (*_RINGWAYS, "wireguard-go")
CASES = (
    Case("plain", "MTU 1500"),
    Case("uso_off", "outer USO off", uso=False, measurements=("tcp_1", "tcp_4", "udp_1300"), tunnels=_CORE),
    Case("mtu_9000", "outer MTU 9000", mtu=9000, measurements=("tcp_1", "tcp_4", "rtt_bulk"), tunnels=_CORE),
    Case("flood", f"{flood.RATE:,} bogus initiations/s", forged_sources=True, measurements=("flood",), tunnels=_HANDSHAKING),
    Case("peers_10000", "10,000 peers", idle_peers=9_999, measurements=("tcp_1", "tcp_4", "ping"), tunnels=_RINGWAYS),
    Case("peers_1000", "1,000 peers", idle_peers=999, measurements=("tcp_1", "udp_64", "ping"), tunnels=_CORE),
)

_TCP = (measure.TCP_1, measure.TCP_4, measure.TCP_REVERSE, measure.TCP_BOTH_WAYS)
_UDP = {"udp_64": (64, False), "udp_1300": (1300, False), "udp_64_gso": (64, True), "udp_1300_gso": (1300, True)}
_RTT_BULK_PERCENTILES = (("p50", "p50", 0.5), ("p99", "p99", 0.01), ("p99_9", "p99.9", 0.001))  # the last: what part is beyond it
_RTT_RATE = 1000  # round trips per second: a load that nobody notices
_BEYOND_MIN = 5  # a percentile that fewer of a run's round trips, lost ones too, are beyond is an accident's figure: none
_RAMP_UP_S = 0.5  # until one TCP stream has found its rate


def _tcp(m: measure.Measurement) -> Measurement:
    metrics = [Metric(m.key, m.label, "bit/s", True)]
    if m is measure.TCP_1:
        metrics.append(Metric("cpu_s_per_gb", "CPU seconds per GB, both daemons, 1 stream", "s/GB", False))
    return Measurement(m.key, m.label, tuple(metrics), 0.8)


def _udp(key: str, size: int, gso: bool) -> Measurement:
    label = f"UDP {size} B delivered{', generator with UDP_SEGMENT' if gso else ''}"
    return Measurement(key, label, (Metric(key, label, "packet/s", True),), 0.8)


_FLOOD_LABELS = {"no_mac1": "without mac1", "mac1": "with mac1", "unknown_key": "from unknown keys"}
_FLOOD = tuple(
    metric
    for key, label in _FLOOD_LABELS.items()
    for metric in (
        Metric(f"flood_{key}", f"TCP, 1 stream, under initiations {label}", "bit/s", True),
        Metric(f"flood_{key}_kept", f"of what it is beside initiations {label}", "%", True),
    )
)
MEASUREMENTS = (
    *(_tcp(m) for m in _TCP),
    *(_udp(key, size, gso) for key, (size, gso) in _UDP.items()),
    Measurement("ping", "ping, idle", (Metric("ping_idle", "ping, idle, average", "ns", False),), 1.2, runs=0),
    Measurement(
        "rtt_bulk",
        "round trips under one bulk stream",
        (
            *(Metric(f"rtt_bulk_{key}", f"RTT under one bulk stream, {label}", "ns", False) for key, label, _ in _RTT_BULK_PERCENTILES),
            Metric("rtt_bulk_lost", "lost round trips under one bulk stream", "%", False),
        ),
        1.5,
    ),
    Measurement("flood", "throughput under floods", _FLOOD, 6.0, runs=2 * len(flood.KINDS), everywhere=False),
)
# Not measured by a run of its own: known when a tunnel is taken down.
RSS = Metric("rss", "peak RSS, the larger daemon", "B", False)
METRICS = tuple(metric for measurement in MEASUREMENTS for metric in measurement.metrics) + (RSS,)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Figures by metric, and whatever else was seen, for the JSON report."""

    metrics: dict[str, float]
    detail: dict


def run(key: str, tunnel: Tunnel, server: udpgen.Server, floodgen: str, seconds: int, flows: int, progress) -> Outcome:
    """Runs a measurement."""
    if key in _UDP:
        size, gso = _UDP[key]
        blast = server.blast(size, seconds, gso, flows)
        return Outcome({key: blast["pps"]}, blast)
    if key == "ping":
        return Outcome({"ping_idle": measure.ping_average_ms(tunnel, 100) * 1e6}, {})
    if key == "flood":
        return Outcome(*flood.run(tunnel, floodgen, seconds, progress))
    if key == "rtt_bulk":
        return _rtt_bulk(tunnel, server, seconds, progress)
    result = measure.run(tunnel, next(m for m in _TCP if m.key == key), seconds, progress)
    metrics = {key: result.rate}
    if key == measure.TCP_1.key and result.cpu_s_per_gb:
        metrics["cpu_s_per_gb"] = sum(result.cpu_s_per_gb)
    return Outcome(metrics, result.as_dict())


def rss(tunnel: Tunnel) -> Outcome:
    """What the daemons needed so far."""
    peaks = [daemon.rss_bytes() for daemon in tunnel.daemons]
    return Outcome({RSS.key: max(peaks)} if peaks else {}, {"rss_bytes_peak": peaks})


def offloads(lab: Lab) -> dict[str, str]:
    """The underlay's, as ethtool names them: those that are switched on or can be."""
    lines = lab.a.run("ethtool", "-k", UNDERLAY).splitlines()[1:]
    states = (line.strip().partition(": ") for line in lines)
    return {name: state for name, _, state in states if state and state != "off [fixed]"}


def _rtt_bulk(tunnel: Tunnel, server: udpgen.Server, seconds: int, progress) -> Outcome:
    with server.rtt_meanwhile(seconds, _RTT_RATE, _RAMP_UP_S) as finish:
        bulk = measure.run(tunnel, measure.TCP_1, seconds + 1, progress)
        rtt = finish()
    if not rtt["count"]:
        raise process.Failed("no round trip succeeded under load")
    # By what was sent: a tunnel that loses some would else be without the figure where it is worst.
    metrics = {f"rtt_bulk_{key}": rtt[key] for key, _, beyond in _RTT_BULK_PERCENTILES if rtt["sent"] * beyond >= _BEYOND_MIN}
    metrics["rtt_bulk_lost"] = 100 * rtt["lost"] / rtt["sent"]
    return Outcome(metrics, {"rtt": rtt, "bulk_bits_per_second": bulk.rate})
