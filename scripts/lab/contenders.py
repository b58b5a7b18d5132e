"""The tunnels that are compared, by name.

    bare                              the veth itself
    SUITE-ENGINE-WORKERS              ringway: native or wireguard, uring or syscall, a number; settings of [interface]
                                      may follow, and the program to use instead of the one built here:
                                      native-uring-2:crypto=aws-lc:tun_uso=false@/path/to/ringway
    ringway-wg                        ringway set up through `wg`, as a drop-in for wireguard-go
    mixed                             ringway's WireGuard suite at a, wireguard-go at b
    wireguard-go boringtun gotatun openvpn
"""

from __future__ import annotations

import dataclasses
import os
import shutil

from lab import process, tunnels
from lab.netns import Lab
from lab.openvpn import Openvpn
from lab.process import Failed
from lab.tunnels import Shape, Tunnel

_WIREGUARDS = {
    "ringway-wg": ("ringway-wg", "-f"),
    "wireguard-go": ("wireguard-go", "-f"),
    "boringtun": ("boringtun-cli", "-f", "--disable-drop-privileges"),
    "gotatun": ("gotatun", "-f", "--disable-drop-privileges"),
}
_OWN = "ringway-wg"  # lies next to ringway
_MIXED = "wireguard-uring-2"  # what ringway is in the mixed pair
REFERENCE, BASE = "wireguard-go", "bare"


class Unknown(Exception):
    """No such tunnel; the text says which there are."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A name, and what it takes to make the tunnel."""

    name: str
    label: str
    family: str  # bare, native, wireguard, mixed or other: pictures colour by it
    programs: tuple[str, ...]  # absolute paths, of both ends where they differ
    spread: int = 1  # workers, for ringway
    suite: str = "native"
    io: str = "auto"
    settings: tuple[tuple[str, str], ...] = ()

    def tunnel(self, lab: Lab, logs: str, shape: Shape) -> Tunnel:
        """The tunnel, not started; its key is the contender's name."""
        tunnel = self._tunnel(lab, logs, shape)
        tunnel.key, tunnel.label = self.name.replace("/", "_"), self.label
        return tunnel

    def _tunnel(self, lab: Lab, logs: str, shape: Shape) -> Tunnel:
        if self.family == "bare":
            return tunnels.Bare(lab, logs, shape)
        if self.name == "openvpn":
            tunnel = Openvpn(lab, logs, shape)
            tunnel.binary = self.programs[0]
            return tunnel
        if self.name in _WIREGUARDS:
            return self._wireguard(lab, logs, shape, self.name, self.programs[0])
        ringway = tunnels.Ringway(
            lab, logs, self.programs[0], self.suite, self.io, str(self.spread), shape, dict(self.settings)
        )
        if self.family != "mixed":
            return ringway
        return tunnels.Mixed(ringway, self._wireguard(lab, logs, shape, REFERENCE, self.programs[1]))

    def _wireguard(self, lab: Lab, logs: str, shape: Shape, name: str, program: str) -> tunnels.Wireguard:
        return tunnels.Wireguard(lab, logs, [program, *_WIREGUARDS[name][1:]], shape)

    def version(self) -> str:
        """The first line that its programs say of themselves."""
        return "; ".join(filter(None, (_version(program) for program in self.programs)))


class Directory:
    """Finds contenders by name: the programs of others in `peers`, then in PATH; ringway is `binary`."""

    def __init__(self, binary: str, peers: str):
        self._binary = binary
        self._path = os.pathsep.join((peers, os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))

    def all_names(self) -> list[str]:
        """What is compared unless told otherwise, and is installed."""
        ringways = [f"native-{io}-{workers}" for io in ("uring", "syscall") for workers in (1, 2)]
        others = [name for name in (*_WIREGUARDS, "openvpn") if self._find(name)]
        mixed = ["mixed"] if REFERENCE in others else []
        return [BASE, *ringways, "wireguard-uring-1", "wireguard-uring-2", *mixed, *others]

    def contender(self, name: str) -> Contender:
        """Raises Unknown for a name that is none, and Failed for a program that is missing."""
        if name == BASE:
            return Contender(name, "bare veth", "bare", ())
        if name == "mixed":
            ringway = self._ringway(_MIXED)
            programs = (*ringway.programs, self._required(REFERENCE))
            return dataclasses.replace(ringway, name=name, label="ringway ↔ wireguard-go", family="mixed", programs=programs)
        if name in _WIREGUARDS or name == "openvpn":
            return Contender(name, name, "wireguard" if name == _OWN else "other", (self._required(name),))
        return self._ringway(name)

    def _ringway(self, name: str) -> Contender:
        head, _, program = name.partition("@")
        words, *settings = head.split(":")
        try:
            suite, io, workers = words.split("-")
            pairs = tuple(_setting(text) for text in settings)
            if suite not in ("native", "wireguard") or io not in ("uring", "syscall") or int(workers) < 1:
                raise ValueError(words)
        except ValueError as error:
            known = ", ".join(self.all_names())
            raise Unknown(f"{name}: no such tunnel. Known here: {known}; see `--help` for ringway's variants") from error
        label = f"ringway {suite}, {io}, {workers} worker{'s' if workers != '1' else ''}"
        label += "".join(f", {text}" for text in settings) + (f" ({os.path.basename(program)})" if program else "")
        program = os.path.abspath(program) if program else self._binary
        return Contender(name, label, suite, (program,), int(workers), suite, io, pairs)

    def _required(self, name: str) -> str:
        program = self._find(name)
        if program is None:
            raise Failed(f"{name} is not installed")
        return program

    def _find(self, name: str) -> str | None:
        if name == _OWN:
            return shutil.which(f"{os.path.dirname(self._binary)}/{name}")
        return shutil.which(_WIREGUARDS.get(name, (name,))[0], path=self._path)


def _setting(text: str) -> tuple[str, str]:
    """key=value -> key and value as TOML has it."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    is_bare = value in ("true", "false") or value.isdigit()
    return key, value if is_bare else f'"{value}"'


def _version(program: str) -> str:
    try:
        lines = process.run([program, "--version"]).splitlines()
    except Failed:
        return ""
    return lines[0].strip() if lines else ""
