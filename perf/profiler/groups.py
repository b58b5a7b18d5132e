"""Which kind of work a sample belongs to.

What a function does by itself decides where it is known (crypto, copies, checksums). Otherwise the innermost frame that
belongs to a part of the kernel does: an allocation made by `tun_get_user` is the TUN's, one made by `udp_sendmsg` is UDP's.
What remains in the daemon's program is its own code.
"""

from __future__ import annotations

import dataclasses
import re

_KERNEL = "[kernel"


@dataclasses.dataclass(frozen=True)
class Frame:
    """One function on a stack: its name, and the file that holds it."""

    name: str
    file: str

    @property
    def is_kernel(self) -> bool:
        """Whether it is the kernel's."""
        return self.file.startswith(_KERNEL)


# By the innermost frame alone, wherever it is called from.
_SELF = (
    ("crypto", r"aes|gcm|ghash|chacha|poly1305|aead|vaes|clmul|blake2|x25519|curve25519|aws_lc"),
    ("copies", r"^(rep_(movs|stos)|copy_(user|to|from|page|mc)|_copy_(to|from)_|__?(memcpy|memmove|memset)|mem(cpy|move|set)"
               r"|__copy_user|skb_copy_datagram|simple_copy_to_iter|csum_and_copy|clear_(page|user))|runtime\.memmove|copy_nonoverlapping"),
    ("checksums", r"^(csum_partial|do_csum|__skb_checksum|ip_fast_csum)|wire::checksum"),
)
# By the innermost frame that one of these knows.
_NEAREST = (
    ("TUN", r"^(__)?tun_"),
    ("TCP", r"^(__)?(tcp|inet_csk|tcp4|tcp6)_"),
    ("UDP", r"^(__)?(udp|udpv6|udp4|udp6|ip_make_skb|ip6_make_skb|__ip_append|__ip6_append|ip_send_skb|ip6_send_skb|skb_consume_udp)"
            r"|^(____?sys|___sys|__sys)_(send|recv)m?msg|^sock_(send|recv)msg"),
    ("io_uring", r"^(__)?io_|^__(do|se|x64)_sys_io_uring"),
    ("polling and wake-ups", r"epoll|^do_(sys_)?p?poll|eventfd|futex|^(__)?schedule|wake_up|^do_nanosleep|hrtimer"),
    ("IP, veth, softirq", r"^(__)?(ip|ip6|ipv6|veth|netif|napi|dev|net_rx|net_tx|process_backlog|neigh|nf|inet|gro|fib|sch|qdisc)_?"
                          r"|^process_backlog|softirq|skb_segment"),
)
OWN, USER, KERNEL = "own code", "libraries", "other kernel"
NAMES = (*(name for name, _ in _SELF), *(name for name, _ in _NEAREST), OWN, USER, KERNEL)

_SELF_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _SELF)
_NEAREST_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in _NEAREST)


def group_of(stack: list[Frame], program: str) -> str:
    """The group of a stack, innermost frame first; `program` is the daemon's file."""
    if not stack:
        return USER
    innermost = stack[0]
    for name, pattern in _SELF_COMPILED:
        if pattern.search(innermost.name):
            return name
    if not innermost.is_kernel:
        return OWN if innermost.file == program or innermost.file.endswith(f"/{program.rpartition('/')[2]}") else USER
    for frame in stack:
        if not frame.is_kernel:
            break
        for name, pattern in _NEAREST_COMPILED:
            if pattern.search(frame.name):
                return name
    return KERNEL
