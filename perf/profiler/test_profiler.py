"""What needs no perf: `PYTHONPATH=scripts:perf python3 -m unittest profiler.test_profiler`."""

import os
import tempfile
import unittest
import unittest.mock
import xml.dom.minidom

from lab.process import Failed
from profiler import common, flamegraph, groups, samples
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


class Windows(unittest.TestCase):
    def test_events_and_packets_are_divided_by_their_own_seconds(self):
        carried = common.Carried(seconds=4.0, packets=[4000.0, 2000.0], counted=True, bits_per_second=1e9)
        window = common.Window(carried, seconds=[5.0, 8.0])
        # 1,000 packets/s at a and 500 at b, 2,000 events/s at a and 250 at b.
        self.assertAlmostEqual(window.per_packet(0, 10_000), 2.0)
        self.assertAlmostEqual(window.per_packet(1, 2_000), 0.5)

    def test_a_longer_count_of_the_same_rates_gives_the_same_figures(self):
        carried = [common.Carried(seconds, [1000 * seconds] * 2, True, 0.0) for seconds in (1.0, 3.0)]
        short, long = common.Window(carried[0], [2.0, 2.0]), common.Window(carried[1], [3.5, 3.5])
        self.assertAlmostEqual(short.per_packet(0, 7 * 2.0), long.per_packet(0, 7 * 3.5))

    def test_what_is_not_counted_is_told_from_none(self):
        lines = ["# started on Thu\n", "\n"]
        lines.append('{"counter-value" : "12.500000", "unit" : "msec", "event" : "task-clock", "event-runtime" : 1, "pcnt-running" : 100.00}\n')
        lines.append('{"counter-value" : "0.000000", "unit" : "", "event" : "page-faults", "event-runtime" : 1, "pcnt-running" : 100.00}\n')
        lines.append('{"counter-value" : "<not supported>", "unit" : "", "event" : "cycles", "event-runtime" : 0, "pcnt-running" : 100.00}\n')
        self.assertEqual(common.parse_stat(lines), {"task-clock": 12.5, "page-faults": 0.0, "cycles": None})


class Switch(unittest.TestCase):
    """`common.Perf` with a script in perf's place."""

    def perf(self, script):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.orders = f"{directory.name}/orders"
        program = f"{directory.name}/perf"
        with open(program, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\norders={self.orders}\n{script}")
        os.chmod(program, 0o755)
        with unittest.mock.patch.dict(os.environ, {"PATH": f"{directory.name}:{os.environ['PATH']}"}):
            perf = common.Perf("stat", ["-e", "cycles"], f"{directory.name}/stat")
        self.addCleanup(perf.close)
        return perf

    def test_it_counts_from_one_answer_to_the_other(self):
        perf = self.perf(
            'fifos=${5#fifo:}; echo "$1 $2 $3 $4 $6 $7" >"$orders"; exec 3<>"${fifos%,*}" 4<>"${fifos#*,}"\n'
            'while read -r order <&3; do echo "$order" >>"$orders"; echo ack >&4; done\n'
        )
        perf.enable()
        perf.disable()
        perf.finish()
        self.assertGreater(perf.seconds, 0)
        with open(self.orders, encoding="utf-8") as file:
            self.assertEqual(file.read().splitlines(), ["stat -D -1 --control -e cycles", "enable", "disable"])

    def test_what_perf_says_when_it_can_not_attach_is_passed_on(self):
        perf = self.perf("echo event syntax error >&2; exit 129\n")
        with self.assertRaisesRegex(Failed, "status 129\nevent syntax error"):
            perf.enable()


class Flamegraph(unittest.TestCase):
    def test_widths_are_shares_and_the_picture_is_xml(self):
        stacks = {(("t", ""), ("a<b>", "TUN")): 3, (("t", ""), ("c", "UDP")): 1}
        document = xml.dom.minidom.parseString(flamegraph.draw("title & more", stacks, ("TUN", "UDP")))
        boxes = {g.getAttribute("data-n"): g for g in document.getElementsByTagName("g")}
        self.assertEqual({name: float(g.getAttribute("data-w")) for name, g in boxes.items()}, {"all": 1, "t": 1, "a<b>": 0.75, "c": 0.25})
        self.assertEqual(float(boxes["c"].getAttribute("data-x")), 0.75)


if __name__ == "__main__":
    unittest.main()
