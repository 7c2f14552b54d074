"""Work in parts: a task says what a worker makes of an item, and an engine who works.

Drawing a sheet, scoring captions, comparing presets and calibrating are tasks. Every engine runs any of them.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..pipeline import Pipeline

Item = TypeVar("Item")
Given = TypeVar("Given", contravariant=True)
Result = TypeVar("Result")
Made = TypeVar("Made", covariant=True)
Load = Callable[[], Pipeline]  # gives the models; a task that needs none does not call it


class Task(Protocol[Given, Made]):
    """What is sent to every worker, as it is: plain values that can be pickled, no models."""

    def begin(self, load: Load) -> Callable[[Given], Made]:
        """Once in every worker: get the models ready; the answer is called with one item after the other.

        What it makes of an item depends on the item alone, never on those before it.
        """
        ...


@dataclass(frozen=True)
class Done(Generic[Result]):
    """Item ``number`` is done: what came of it, the seconds it took, and who did it."""

    number: int
    result: Result
    seconds: float
    machine: str
    process: int


class Worker(Generic[Item, Result]):
    """A task that has begun, here or in a process of its own."""

    def __init__(self, task: Task[Item, Result], load: Load) -> None:
        self._work = task.begin(load)

    def __call__(self, number: int, item: Item) -> Done[Result]:
        """Work on one item."""
        started = time.perf_counter()
        result = self._work(item)
        seconds = time.perf_counter() - started
        return Done(number, result, seconds, socket.gethostname(), os.getpid())


@dataclass(frozen=True)
class Question(Generic[Result]):
    """The task of answering something about the models; its only item says nothing."""

    question: Callable[[Pipeline], Result]

    def begin(self, load: Load) -> Callable[[None], Result]:
        """Ask the loaded models."""
        pipeline = load()
        return lambda _: self.question(pipeline)


def advanced(
    done: Iterable[Done[Result]], items: Sequence[Sized], advance: Callable[[int], object]
) -> Iterator[Done[Result]]:
    """What is done as it comes; ``advance`` is told the size of its item once it was used."""
    for one in done:
        yield one
        advance(len(items[one.number]))


def in_order(done: Iterable[Done[Result]]) -> Iterator[Done[Result]]:
    """What is done by its number from 0 on; what came early is held back."""
    early: dict[int, Done[Result]] = {}
    wanted = 0
    for one in done:
        early[one.number] = one
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1


def spans(count: int, size: int) -> list[range]:
    """The numbers below ``count`` in parts of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
