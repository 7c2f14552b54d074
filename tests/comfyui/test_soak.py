"""A short soak of a real server, as ``scripts/soak.py`` does for hours: graphs, interrupts, a queue."""

from argparse import Namespace

from soak import Soak
from soaking.trials import Tally
from soaking.verdict import verdict
from testbed.comfy_server import ComfyServer

HALF_A_MINUTE = 0.4  # after which nothing more is begun


def test_a_short_soak_finds_no_fault(comfy_server: ComfyServer) -> None:
    options = Namespace(minutes=HALF_A_MINUTE, seed=7, graphs=12, interrupts=6, runs=3, files=0)
    tally = Tally()
    soak = Soak(comfy_server, options, tally)
    soak()
    assert not tally.faults, verdict(options, tally, soak.memory)
    assert tally.counts["references"] >= 1 and tally.counts["runs"] >= 1
