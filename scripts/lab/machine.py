"""What the figures were measured on."""

from __future__ import annotations

import os
import platform

from lab import process


# What decides which kernels seal packets, and what names a CPU that hides its model's name.
_FEATURES = ("aes", "avx2", "vaes", "vpclmulqdq", "avx512f", "pmull")


def fingerprint(repository: str) -> dict:
    """CPU, kernel, versions and the settings that move figures; for reports."""
    return {
        "cpu": _cpu_model(),
        "cpu_features": [flag for flag in _FEATURES if flag in _cpuinfo("flags", "Features").split()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "system": _system(),
        "tcp_congestion_control": _read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "iperf3": _first_line(["iperf3", "--version"]),
        "commit": _first_line(["git", "-C", repository, "describe", "--always", "--dirty", "--abbrev=12"]),
    }


def summary(machine: dict) -> str:
    """One line for people."""
    cores = machine["cores"]
    features = " ".join(machine.get("cpu_features", []))
    return f"{machine['cpu']} ({features}), {cores} core{'s' if cores != 1 else ''}, Linux {machine['kernel']}, {machine['system']}"


def _cpu_model() -> str:
    name = _cpuinfo("model name", "Model", "cpu model") or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def _cpuinfo(*keys: str) -> str:
    """The first processor's value of one of these."""
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _system() -> str:
    for line in _read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _first_line(argv: list[str]) -> str:
    try:
        return (process.run(argv).splitlines() or [""])[0]
    except process.Failed:
        return ""
