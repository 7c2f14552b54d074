"""Engines run the same tasks: what comes out does not depend on who works, nor on the order; and clusters."""

import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from stagevar_core.acceleration.policy import FirstScales
from stagevar_core.acceleration.presets import preset
from stagevar_core.commands.render import summary
from stagevar_core.evaluation import judged
from stagevar_core.evaluation import score as evaluate
from stagevar_core.evaluation.calibrate import Calibration, Request
from stagevar_core.evaluation.compare import Compared, Job, compare, dense_first
from stagevar_core.pipeline import Pipeline
from stagevar_core.rendering.cluster import reached
from stagevar_core.rendering.engines import Alone, ask
from stagevar_core.rendering.plan import Shared, pictures
from stagevar_core.rendering.said import collected, repeated
from stagevar_core.rendering.sheet import Row
from stagevar_core.rendering.work import Done, Load, Task, Worker, in_order, spans

CAPTIONS = tuple(caption for _, caption in evaluate.held_out(5, 1))


class Square(NamedTuple):
    """A task that needs no models, unless it is told to load them."""

    loads: bool = False

    def begin(self, load: Load) -> Callable[[int], int]:
        if self.loads:
            load()
        return lambda item: item * item


class Scattered:
    """An engine whose items are done from the last to the first, every one by a worker of its own."""

    def __init__(self, load: Load) -> None:
        self.load = load

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def run(self, task: Task[Any, Any], items: Sequence[Any]) -> Iterator[Done[Any]]:
        for number in reversed(range(len(items))):
            yield Worker(task, self.load)(number, items[number])


def test_one_process_goes_through_the_items_and_loads_once() -> None:
    loaded: list[int] = []
    engine = Alone(lambda: loaded.append(1))  # type: ignore[arg-type]
    assert [done.result for done in engine.run(Square(), [3, 4])] == [9, 16] and not loaded
    for _ in range(2):
        assert [done.number for done in engine.run(Square(loads=True), [3, 4])] == [0, 1]
    assert loaded == [1] and not list(engine.run(Square(loads=True), []))
    assert ask(engine, str) == "None"


def test_what_comes_early_is_held_back() -> None:
    done = Scattered(lambda: pytest.fail("no model is needed")).run(Square(), [1, 2, 3])
    assert [one.result for one in in_order(done)] == [1, 4, 9]
    assert spans(5, 2) == [range(0, 2), range(2, 4), range(4, 5)] and spans(0, 2) == []


def test_scores_do_not_depend_on_who_works(pipeline: Pipeline) -> None:
    task = evaluate.Judged(evaluate.Generated(CAPTIONS, seed=4), CAPTIONS, shown=3)
    told: list[int] = []
    alone = evaluate.evaluated(pipeline, task, 2, told.append)
    other = evaluate.evaluated(Scattered(lambda: pipeline), task, 2)
    assert alone.reports == other.reports and alone.right == other.right and told == [2, 2, 1]
    assert np.array_equal(alone.images, other.images) and len(alone.images) == 3


def test_comparisons_do_not_depend_on_who_works(pipeline: Pipeline, tmp_path: Path) -> None:
    job, kept = Job(CAPTIONS[:3], seeds=2, batch=2), {}
    variants = {"balanced": preset("balanced")}
    alone = compare(pipeline, variants, job)
    other = compare(
        Scattered(lambda: pipeline),
        variants,
        job,
        store=tmp_path,
        keep=lambda name, index, picture: kept.update({(name, index): picture}),
    )
    assert set(kept) == {(name, index) for name in ("off", "balanced") for index in range(6)}
    for name, measures in alone.measures.items():
        for key, values in measures.items():
            assert np.array_equal(values, other.measures[name][key], equal_nan=True)
        assert np.array_equal(alone.work[name]["flops"], other.work[name]["flops"])


def test_what_a_judge_reads_does_not_depend_on_who_works() -> None:
    artwork = Pipeline.embedded(model="artwork", dtype=torch.float32, device="cpu")
    classes, variants = ("cat", "rocket", "7"), {"first five": FirstScales(5)}
    engine = Scattered(lambda: artwork)
    task = judged.Judged(evaluate.Generated(classes, seed=4, scales=5), classes, shown=2)
    alone, other = judged.evaluated(artwork, task, 2), judged.evaluated(engine, task, 2)
    assert alone.reports == other.reports and alone.right == other.right
    assert np.array_equal(alone.images, other.images) and len(alone.images) == 2
    job = Job(classes, batch=2)
    about = ask(engine, Compared(dense_first(variants), job).about)
    sent = pickle.loads(pickle.dumps(about))  # as another process sends it
    here, there = compare(artwork, variants, job), compare(engine, variants, job, about=sent)
    assert set(here.frechet) == {"off", "first five"} and here.frechet == there.frechet
    for name, measures in here.measures.items():
        assert set(measures) == {"psnr", "ssim", "top1", "edges"} == set(there.measures[name])
        for key, values in measures.items():
            assert np.array_equal(values, there.measures[name][key], equal_nan=True)


def test_calibrations_do_not_depend_on_who_works(pipeline: Pipeline) -> None:
    found = []
    for by in (pipeline, Scattered(lambda: pipeline)):
        work = Calibration(by, CAPTIONS[:3], Request(chunks=2))
        assert len(list(work.run())) == 3
        found.append(work.schedule().to_json())
    assert found[0] == found[1]


# ------------------------------------------------------------------------------------------------ rates
def test_rates_say_what_they_count() -> None:
    """Of the whole command, and of the workers while they draw."""
    todo = [pictures([Row("a")], Shared(images=4), "plain")] * 3
    drawn = [
        Done(0, (8, 8), 2.0, "one", 1),
        Done(1, (8, 8), 2.0, "one", 2),
        Done(2, (8, 8), 6.0, "one", 2),
    ]
    found = summary(14, todo, drawn, seconds=16.0)
    assert (found["drawn"], found["there_before"], found["images_per_second"]) == (12, 2, 0.75)
    assert found["warm_images_per_second"] == 3.0  # 4 in 2 seconds, beside 8 in 8
    assert found["machines"]["one"]["workers"] == 2 and found["machines"]["one"]["images"] == 12
    assert summary(2, [], [], 1.0)["warm_images_per_second"] is None


# --------------------------------------------------------------------------------------------- addresses
@pytest.fixture
def answering() -> Iterator[Callable[[bytes | None], str]]:
    """Servers that send some bytes to whoever connects; None: that never answer."""
    opened: list[socket.socket] = []

    def serve(answer: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        opened.append(server)

        def accept() -> None:
            connection, _ = server.accept()
            opened.append(connection)
            if answer is not None:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=accept, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield serve
    for each in opened:
        each.close()


def test_an_address_without_ray_is_refused_soon(answering, monkeypatch, tmp_path: Path) -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    silent, page = answering(None), answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    refused = {nobody: "refused", f"ray://{nobody}": "refused", silent: "timed out", page: "no server of Ray"}
    unread = ("head", "head:0", "head:70000", "", "http://127.0.0.1:1")
    for address, said in {**refused, **dict.fromkeys(unread, "no HOST:PORT")}.items():
        with pytest.raises(ValueError, match="no cluster of Ray there") as caught:
            reached(address, patience=0.5)
        assert said in str(caught.value) and repr(address) in str(caught.value)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    reached("auto")  # nothing is noted: Ray looks for itself, and says at once
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(nobody)
    with pytest.raises(ValueError, match="refused"):
        reached("auto")
    monkeypatch.setenv("RAY_ADDRESS", silent)
    with pytest.raises(ValueError, match="timed out"):
        reached("auto", patience=0.5)
    assert time.monotonic() - started < 10


def test_an_address_that_speaks_its_protocol_is_tried(answering) -> None:
    settings = bytes(3) + b"\x04" + bytes(5)
    reached(answering(settings))
    reached(f"ray://{answering(settings)}")
    reached("local")


def test_what_a_worker_says_is_said_once_here() -> None:
    with collected() as said:
        for _ in range(2):
            with collected() as elsewhere:
                logging.getLogger("stagevar_core.sampling").warning("cut off")
            repeated(elsewhere)
    assert said == ["cut off"] == elsewhere
