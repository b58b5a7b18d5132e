"""What needs no perf: `PYTHONPATH=scripts:perf python3 -m unittest profiler.test_profiler`."""

import unittest
import xml.dom.minidom

from profiler import flamegraph, groups, samples
from profiler.groups import Frame

_SCRIPT = """\
ringway-w 0  812/813   500250 cpu-clock:ppp: 
	ffffffff8 rep_movs_alternative ([kernel.kallsyms])
	ffffffff9 tun_get_user ([kernel.kallsyms])
	    55d00 ringway::worker::run (/target/release/ringway (deleted))
	    55d10 _ZN7ringway4path7forward16Forward$LT$T$GT$3out17h0123456789abcdefE (/target/release/ringway)
	     7f00 [unknown] (/lib/libc.so.6)

iperf3  900/900  1 cycles: 
	    55d00 main (/usr/bin/iperf3)
"""  # fmt: skip


class Samples(unittest.TestCase):
    def test_threads_weights_and_frames_are_read(self):
        first, second = samples.parse(_SCRIPT.splitlines(keepends=True))
        self.assertEqual((first.thread, first.pid, first.weight), ("ringway-w 0", 812, 500250))
        names = ["rep_movs_alternative", "tun_get_user", "ringway::worker::run", "ringway::path::forward::Forward<T>::out", "[unknown]"]
        self.assertEqual([frame.name for frame in first.stack], names)
        self.assertEqual(second.stack, [Frame("main", "/usr/bin/iperf3")])

    def test_symbols_lose_what_compilers_append(self):
        self.assertEqual(samples.readable("udp_sendmsg.isra.0"), "udp_sendmsg")
        self.assertEqual(samples.readable("core::ptr::drop::h0123456789abcdef"), "core::ptr::drop")


class Groups(unittest.TestCase):
    def group(self, *names):
        stack = [Frame(name, "[kernel.kallsyms]" if not name.startswith("u:") else "/x/ringway") for name in names]
        return groups.group_of([Frame(frame.name.removeprefix("u:"), frame.file) for frame in stack], "/x/ringway")

    def test_what_a_function_does_itself_comes_first(self):
        self.assertEqual(self.group("rep_movs_alternative", "tun_get_user"), "copies")
        self.assertEqual(self.group("u:aes_gcm_encrypt_avx512", "u:ringway::path::forward"), "crypto")
        self.assertEqual(self.group("u:ringway::wire::checksum::sum"), "checksums")

    def test_helpers_belong_to_the_innermost_part_that_called_them(self):
        self.assertEqual(self.group("kmem_cache_alloc", "tun_get_user", "io_write"), "TUN")
        self.assertEqual(self.group("_raw_spin_lock", "tcp_v4_rcv", "ip_rcv", "tun_get_user"), "TCP")
        self.assertEqual(self.group("__alloc_skb", "udp_sendmsg", "io_sendmsg"), "UDP")
        self.assertEqual(self.group("kfree", "io_free_batch_list"), "io_uring")

    def test_the_rest_is_our_own_code_a_library_or_the_kernel(self):
        self.assertEqual(self.group("u:ringway::worker::run"), groups.OWN)
        self.assertEqual(groups.group_of([Frame("malloc", "/lib/libc.so.6")], "/x/ringway"), groups.USER)
        self.assertEqual(self.group("entry_SYSCALL_64"), groups.KERNEL)
        self.assertEqual(groups.group_of([], "/x/ringway"), groups.USER)


class Flamegraph(unittest.TestCase):
    def test_widths_are_shares_and_the_picture_is_xml(self):
        stacks = {(("t", ""), ("a<b>", "TUN")): 3, (("t", ""), ("c", "UDP")): 1}
        document = xml.dom.minidom.parseString(flamegraph.draw("title & more", stacks, ("TUN", "UDP")))
        boxes = {g.getAttribute("data-n"): g for g in document.getElementsByTagName("g")}
        self.assertEqual({name: float(g.getAttribute("data-w")) for name, g in boxes.items()}, {"all": 1, "t": 1, "a<b>": 0.75, "c": 0.25})
        self.assertEqual(float(boxes["c"].getAttribute("data-x")), 0.75)


if __name__ == "__main__":
    unittest.main()
