"""What needs no network: `PYTHONPATH=scripts python3 -m unittest lab.test_lab`."""

import contextlib
import io
import types
import unittest
from unittest import mock

from lab import cases, chart, compare, compare_report, contenders, figures
from lab.process import Failed


def _run(tunnel, turn, value):
    return {"case": "plain", "tunnel": tunnel, "round": turn, "measurement": "tcp_1", "metrics": {"tcp_1": value}, "detail": {}}


class Figures(unittest.TestCase):
    def test_a_figure_is_the_median_and_its_ratio_that_of_the_ratios_within_rounds(self):
        runs = [_run("ours", turn, value) for turn, value in enumerate((30.0, 10.0, 20.0, 7.0))]
        runs += [_run("theirs", turn, value) for turn, value in enumerate((3.0, 100.0, 4.0))]
        runs.append({"case": "plain", "tunnel": "theirs", "round": 3, "measurement": "tcp_1", "error": "it broke"})
        ours, theirs = figures.summarise(runs, "theirs", "bare")
        self.assertEqual((ours.median, ours.low, ours.high, ours.to_reference), (15.0, 7.0, 30.0, 5.0))
        self.assertEqual((theirs.median, theirs.to_reference, theirs.to_base), (4.0, 1.0, None))
        self.assertEqual(figures.errors(runs), {("plain", "theirs", "tcp_1"): "it broke"})

    def test_a_ratio_has_its_standard_error_and_is_none_of_nothing(self):
        runs = [_run("one", turn, 10.0) for turn in range(3)] + [_run("two", turn, value) for turn, value in enumerate((9.0, 10.0, 11.0))]
        ratio, error = figures.ratio(runs, "plain", "tcp_1", "two", "one")
        self.assertEqual(ratio, 1.0)
        self.assertAlmostEqual(error, 0.1 * (3.14159 / 2 / 3) ** 0.5, 4)
        self.assertEqual(figures.ratio(runs[:4], "plain", "tcp_1", "two", "one"), (0.9, None))
        self.assertIsNone(figures.ratio([_run("one", 0, 0.0), _run("two", 0, 0.0)], "plain", "tcp_1", "two", "one"))
        # What is mostly 0 is not compared where it happens not to be.
        lost = [("one", (0.0, 0.0, 0.1)), ("two", (5.0, 5.0, 0.1))]
        runs = [_run(tunnel, turn, value) for tunnel, values in lost for turn, value in enumerate(values)]
        self.assertIsNone(figures.ratio(runs, "plain", "tcp_1", "two", "one"))
        self.assertIsNone(figures.summarise(runs, "one", "one")[1].to_reference)

    def test_values_are_shown_in_units_that_people_use(self):
        shown = [compare_report.value_text(value, unit) for value, unit in ((12.3e9, "bit/s"), (5e8, "packet/s"), (87_654, "ns"), (3.2e6, "ns"))]
        self.assertEqual(shown, ["12.30 Gbit/s", "500000 kpps", "87.7 µs", "3.20 ms"])


class AgainstItself(unittest.TestCase):
    def _judge(self, runs):
        """Whether it is good, and what is printed."""
        result = {
            "tunnels": [{"key": "one", "label": "one"}, {"key": "two", "label": "two"}],
            "cases": [{"key": "plain", "label": "plain"}],
            "metrics": [{"key": "tcp_1", "label": "tcp_1", "unit": "bit/s"}],
            "figures": [figure.as_dict() for figure in figures.summarise(runs, "", "")],
            "runs": runs,
        }
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            return compare_report.print_self(result, 0.05), printed.getvalue()

    def _is_good(self, runs):
        return self._judge(runs)[0]

    def test_equal_figures_are_good_and_others_or_none_are_not(self):
        self.assertTrue(self._is_good([_run("one", 0, 100.0), _run("two", 0, 104.0)]))
        self.assertFalse(self._is_good([_run("one", 0, 100.0), _run("two", 0, 106.0)]))
        self.assertFalse(self._is_good([]))
        self.assertFalse(self._is_good([_run("one", 0, 100.0)]))
        self.assertFalse(self._is_good([_run("one", 0, 0.0), _run("two", 0, 5.0)]))
        broken = {"case": "plain", "tunnel": "two", "round": 1, "measurement": "tcp_1", "error": "it broke"}
        self.assertFalse(self._is_good([_run("one", 0, 100.0), _run("two", 0, 100.0), broken]))

    def test_a_figure_that_only_one_has_is_shown_as_that(self):
        for tunnel in ("one", "two"):
            good, printed = self._judge([_run(tunnel, 0, 2e9)])
            self.assertFalse(good)
            row = next(line for line in printed.splitlines() if "plain: tcp_1" in line)
            values = r"\s+".join(("2.00 Gbit/s", "none") if tunnel == "one" else ("none", "2.00 Gbit/s"))
            self.assertRegex(row, rf"{values}\s+only one has it")


class RoundTrips(unittest.TestCase):
    def _metrics(self, sent, lost):
        rtt = {"sent": sent, "count": sent - lost, "lost": lost, "p50": 1, "p99": 2, "p99_9": 3}
        server = types.SimpleNamespace(rtt_meanwhile=lambda *_: contextlib.nullcontext(lambda: rtt))
        with mock.patch.object(cases.measure, "run"):
            return cases.run("rtt_bulk", mock.Mock(), server, "", 5, 1, None).metrics

    def test_a_percentile_that_few_of_those_sent_are_beyond_is_none(self):
        self.assertEqual(self._metrics(4_999, 0).keys(), {"rtt_bulk_p50", "rtt_bulk_p99", "rtt_bulk_lost"})
        self.assertEqual(self._metrics(5_000, 0).keys(), {"rtt_bulk_p50", "rtt_bulk_p99", "rtt_bulk_p99_9", "rtt_bulk_lost"})

    def test_losses_take_no_percentile_away(self):
        self.assertEqual(self._metrics(5_000, 50).keys(), self._metrics(5_000, 0).keys())
        self.assertEqual(self._metrics(5_000, 50)["rtt_bulk_lost"], 1.0)


class Contenders(unittest.TestCase):
    def setUp(self):
        self.directory = contenders.Directory("/built/ringway", "/nowhere")

    def test_a_ringway_is_named_by_suite_engine_workers_settings_and_program(self):
        one = self.directory.contender("wireguard-syscall-2:crypto=aws-lc:tun_uso=false@/other/ringway")
        self.assertEqual((one.family, one.io, one.spread, one.programs), ("wireguard", "syscall", 2, ("/other/ringway",)))
        self.assertEqual(one.settings, (("crypto", '"aws-lc"'), ("tun_uso", "false")))
        self.assertEqual(self.directory.contender("native-uring-1").programs, ("/built/ringway",))

    def test_other_names_are_refused(self):
        for name in ("native", "native-uring-0", "native-epoll-1", "tls-uring-1", "native-uring-1:crypto", "nonsense"):
            with self.subTest(name), self.assertRaises(contenders.Unknown):
                self.directory.contender(name)


class Rounds(unittest.TestCase):
    """Rounds of tunnels that say what happens to them."""

    def setUp(self):
        self.events = []
        self.daemons_of = {}
        self.measured = types.SimpleNamespace(metrics={}, detail={})

    @contextlib.contextmanager
    def _up(self, what, value):
        self.events.append(f"{what} up")
        try:
            yield value
        finally:
            self.events.append(f"{what} down")

    def _contender(self, name):
        daemon = self.daemons_of[name] = mock.Mock()
        tunnel = mock.Mock(daemons=[daemon], key=name)
        return mock.Mock(**{"tunnel.side_effect": lambda *_: self._up(f"tunnel {name}", tunnel)}, label=name)

    def _measure(self, key, tunnel, *_):
        self.events.append(f"{key} {tunnel.key}")
        if (key, tunnel.key) == ("first", "one"):
            self.daemons_of["one"].check_alive.side_effect = Failed("it has ended")
            raise Failed("no answer")
        return self.measured

    def _run(self, server):
        case = mock.Mock(key="plain", **{"lab.side_effect": lambda suffix: self._up(f"lab {suffix}", None)})
        plan = types.SimpleNamespace(seconds=1, flows=1)
        result = {"offloads": {}, "described": {}, "runs": []}
        measurements = [mock.Mock(key=key, metrics=[]) for key in ("first", "second")]
        with (
            mock.patch.multiple(compare.cases, run=self._measure, offloads=mock.Mock(), rss=lambda _: self.measured),
            mock.patch.object(compare.udpgen, "Server", server),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.ExitStack() as labs,
        ):
            of_round = compare._Round(plan, case, 0, {"udpgen": "", "floodgen": ""}, result)
            of_round.run(labs, [self._contender(name) for name in ("one", "two")], measurements, "")
            self.events.append("end")
        return [(run["measurement"], run["error"]) for run in result["runs"] if "error" in run]

    def test_a_tunnel_that_fails_is_taken_down_before_anything_else_is_measured(self):
        errors = self._run(lambda tunnel, *_: self._up(f"server {tunnel.key}", None))
        self.assertEqual(errors, [("first", "no answer"), ("tunnel", "it has ended")])
        up = [f"{what} up" for what in ("lab 0", "tunnel one", "server one", "lab 1", "tunnel two", "server two")]
        one_down = ["first one", "server one down", "tunnel one down", "lab 0 down"]
        two_down = ["end", "server two down", "tunnel two down", "lab 1 down"]
        self.assertEqual(self.events, [*up, *one_down, "first two", "second two", *two_down])

    def test_so_is_one_that_does_not_come_up(self):
        def server(tunnel, *_):
            if tunnel.key == "one":
                raise Failed("nothing listens")
            return self._up("server two", None)

        self.assertEqual(self._run(server), [("tunnel", "nothing listens")])
        self.assertEqual(self.events[:5], ["lab 0 up", "tunnel one up", "tunnel one down", "lab 0 down", "lab 1 up"])


class Chart(unittest.TestCase):
    def test_a_bar_and_its_whisker_are_in_proportion(self):
        panel = chart.Ranges("t", [("x", "native", 50.0, 25.0, 100.0)], str)
        picture = chart.ranges([panel], ["bare", "native"], base="bare")
        left, width = 270, chart.WIDTH - 270 - 120
        self.assertIn(f"M{left + width / 4:.1f} ", picture)
        self.assertIn(f"H{left + width:.1f}", picture)
        self.assertIn('class="fill s0"', picture)


if __name__ == "__main__":
    unittest.main()
