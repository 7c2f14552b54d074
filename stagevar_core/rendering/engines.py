"""Who works: this process alone, or the workers of a Ray cluster. Both run any task over its items."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Protocol, TypeVar

from ..pipeline import Pipeline
from .work import Done, Item, Load, Question, Result, Task, Worker

Answer = TypeVar("Answer")


class Engine(Protocol):
    """What runs a task over items."""

    def open(self) -> AbstractContextManager[object]:
        """Around everything that is run: joins what works, and leaves it."""
        ...

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[Done[Result]]:
        """Every item once; what is done comes as it is ready, in any order."""
        ...


class Alone:
    """Item after item in this process; the models are loaded once, when the first task wants them."""

    def __init__(self, load: Load) -> None:
        self._load = cache(load)

    def open(self) -> AbstractContextManager[object]:
        """Nothing has to be joined."""
        return nullcontext()

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[Done[Result]]:
        """In their order."""
        if not items:
            return
        worker = Worker(task, self._load)
        for number, item in enumerate(items):
            yield worker(number, item)


def working(engine: Engine | Pipeline) -> Engine:
    """An engine; loaded models work alone."""
    return Alone(lambda: engine) if isinstance(engine, Pipeline) else engine


def ask(engine: Engine, question: Callable[[Pipeline], Answer]) -> Answer:
    """What the models of a worker have to say, before there is work for all of them."""
    return next(engine.run(Question(question), [None])).result
