"""A place of our own: this process moves into fresh mount and network namespaces.

Nothing of a lab can outlive it: namespaces made with `ip netns` are mounts below a /run that only we see, interfaces live
in those namespaces, and the kernel drops all of them with the last process inside. Every child is started so that it dies with
this process (process.py), so that holds after SIGKILL too.
"""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)

# linux/sched.h, linux/mount.h
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21


class CannotIsolate(Exception):
    """The machine refuses what a lab needs; the text says what would allow it."""


def enter() -> str:
    """Moves this (single-threaded) process into its own namespaces with an empty, private /run.

    Returns "root" or "rootless" (a user namespace, as `unshare -Urnm` makes).
    """
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise CannotIsolate(_tun_refused())
    rootless = not is_privileged()
    if rootless:
        uid, gid = os.geteuid(), os.getegid()
        _call("unshare", _LIBC.unshare(_CLONE_NEWUSER), _userns_refused)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    _call("unshare", _LIBC.unshare(_CLONE_NEWNS | _CLONE_NEWNET))
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    _mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    os.makedirs("/run/netns")
    return "rootless" if rootless else "root"


def is_privileged() -> bool:
    """True if this process may make namespaces and interfaces without a user namespace of its own."""
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return all(effective >> capability & 1 for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN))


def _tun_refused() -> str:
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun does not exist: load the module (modprobe tun), or give the container the device"
    return "/dev/net/tun can't be opened by this user: run as root, or chmod 666 /dev/net/tun"


def _userns_refused() -> str:
    knobs = (
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "1000"),
    )
    for knob, refuses, allows in knobs:
        try:
            with open(f"/proc/sys/{knob}", encoding="ascii") as file:
                if file.read().strip() == refuses:
                    return f"user namespaces are off; run as root, or: sysctl {knob.replace('/', '.')}={allows}"
        except OSError:
            continue
    return "user namespaces are refused here (a container's seccomp profile?); run as root"


def _mount(source, target, kind, flags, data) -> None:
    def encoded(text):
        return None if text is None else text.encode()

    result = _LIBC.mount(encoded(source), encoded(target), encoded(kind), ctypes.c_ulong(flags), encoded(data))
    _call(f"mount {target}", result)


def _call(what: str, result: int, hint=None) -> None:
    if result != 0:
        error = os.strerror(ctypes.get_errno())
        raise CannotIsolate(f"{what}: {error}" + (f": {hint()}" if hint else ""))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
