"""Who works for a command: this process, or the workers of a Ray cluster; and what they load."""

import argparse

from ..checks import number, whole
from ..rendering.cluster import Cluster, OnRay
from ..rendering.engines import Alone, Engine
from ..rendering.models import Models

MAX_WORKERS = 4096


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose the engine."""
    group = parser.add_argument_group("many workers")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="a Ray cluster, auto for the one that runs here, or local for workers started here",
    )
    group.add_argument("--workers", type=int, default=2, help="each loads the models (default: %(default)s)")
    group.add_argument("--cpus", type=float, default=1.0, help="of each worker (default: %(default)s)")
    group.add_argument("--gpus", type=float, default=0.0, help="of each worker, also a share such as 0.5")


def check_workers(arguments: argparse.Namespace) -> None:
    """Refuse numbers that no cluster could use before anything is loaded."""
    whole("--workers", arguments.workers, 1, MAX_WORKERS, f"1 to {MAX_WORKERS}")
    number("--cpus", arguments.cpus, 0.01, 1024.0)
    number("--gpus", arguments.gpus, 0.0, 64.0)


def engine_of(arguments: argparse.Namespace, models: Models) -> Engine:
    """The engine that the options choose; its models are loaded where it works."""
    if arguments.ray is None:
        return Alone(models.load)
    cluster = Cluster(arguments.ray, arguments.workers, arguments.cpus, arguments.gpus)
    return OnRay(cluster, models.load)
