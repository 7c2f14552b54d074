"""A run on a CPU that others use, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stagevar_core.sampling import sharing
from stagevar_core.sampling.result import Monitor
from stagevar_core.schedule import ScaleSchedule

SCALE = ScaleSchedule.of([(1, 1), (2, 2)])[0]
CPU = torch.device("cpu")


class Clocks:
    """The two clocks of a run, moved by hand: seconds that passed, and in how many of them it had a core."""

    def __init__(self) -> None:
        self.wall = self.busy = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.busy

    def passed(self, seconds: float, share: float) -> None:
        self.wall += seconds
        self.busy += seconds * share


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clocks]:
    before, found = torch.get_num_threads(), Clocks()
    monkeypatch.setattr(sharing, "time", found)
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(before)


def test_a_run_without_its_cores_goes_on_alone_until_they_are_free(clocks: Clocks) -> None:
    seen = []
    with sharing.Sharing(Monitor(), CPU) as shared:
        for seconds, share in ((0.1, 1.0), (0.03, 0.1), (0.02, 0.1), (0.5, 0.6), (0.5, 0.9), (0.5, 1.0)):
            clocks.passed(seconds, share)
            shared.block(SCALE, 0)
            seen.append(torch.get_num_threads())
    assert seen == [2, 2, 1, 1, 1, 2]


def test_threads_are_what_they_were_after_an_error(clocks: Clocks) -> None:
    with pytest.raises(KeyError), sharing.Sharing(Monitor(), CPU) as shared:
        clocks.passed(1.0, 0.2)
        shared.block(SCALE, 0)
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_what_the_caller_waits_for_does_not_count(clocks: Clocks) -> None:
    class Waits(Monitor):
        def scale(self, scale: object, f_hat: object) -> None:
            clocks.passed(5.0, 0.0)

    with sharing.Sharing(Waits(), CPU) as shared:
        shared.scale(SCALE, torch.zeros(1))
        clocks.passed(0.1, 1.0)
        shared.block(SCALE, 0)
        assert torch.get_num_threads() == 2


def test_other_devices_keep_their_threads(clocks: Clocks) -> None:
    with sharing.Sharing(Monitor(), torch.device("meta")) as shared:
        clocks.passed(1.0, 0.1)
        shared.block(SCALE, 0)
        assert torch.get_num_threads() == 2
