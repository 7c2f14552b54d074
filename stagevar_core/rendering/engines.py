"""Who draws: this process alone, or the workers of a Ray cluster. Both take batches and give drawn ones."""

import importlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.errors import CheckpointError
from .plan import Picture
from .worker import Drawn, Models, Worker

LOCAL = "local"


@dataclass(frozen=True)
class Cluster:
    """Workers of Ray. ``address``: of a cluster, or 'local' for one on this machine.

    ``cpus``, ``gpus``: of each worker; a share of a GPU lets several workers use it.
    """

    address: str
    workers: int
    cpus: float = 1.0
    gpus: float = 0.0


def alone(models: Models, folder: str, batches: Iterable[Sequence[Picture]]) -> Iterator[Drawn]:
    """Batch after batch in this process."""
    worker = Worker(models, folder)
    for batch in batches:
        yield worker.draw(batch)


def on_ray(
    cluster: Cluster, models: Models, folder: str, batches: Sequence[Sequence[Picture]]
) -> Iterator[Drawn]:
    """The same by an actor pool of Ray Data, each actor with models of its own, batches as they come out.

    Ray starts a worker that died again and gives its batch to another one. Raises ``ValueError`` where Ray is
    not installed or its cluster cannot be reached, and what a worker raises.
    """
    try:
        ray: Any = importlib.import_module("ray")  # an engine that users may choose, never a requirement
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ValueError(
            f"--ray needs the package ray with its data library ({error}); install ComfyUI-StageVAR's extra "
            "with pip install 'ray[data]', or leave --ray out"
        ) from error

    class Actor:
        """A worker as Ray Data calls it: rows in, rows out."""

        def __init__(self) -> None:
            self.worker = Worker(models, folder)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return {"drawn": self.worker.draw(row["batch"])}

    _join(ray, cluster)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the command has one of its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"batch": list(batch)} for batch in batches]
    drawn = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Actor,
        compute=ray.data.ActorPoolStrategy(size=min(cluster.workers, len(items))),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus or None,
        max_restarts=-1,
        max_task_retries=-1,
    )
    try:
        for row in drawn.iter_rows():
            yield row["drawn"]
    except ray.exceptions.RayError as error:
        raise _own(error) from error
    finally:
        if cluster.address == LOCAL:
            ray.shutdown()


def _join(ray: Any, cluster: Cluster) -> None:
    """Start Ray on this machine, or join the cluster at an address."""
    options = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        if cluster.address == LOCAL:
            cpus = max(1, round(cluster.workers * cluster.cpus + 1))  # one for what hands the batches out
            ray.init(address=LOCAL, num_cpus=cpus, **options)
        else:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--ray is {cluster.address!r}; no cluster of Ray there ({said}). Expected its address such as "
            "ray://head:10001 or head:6379, or local for workers on this machine"
        ) from error


def _own(error: BaseException) -> BaseException:
    """What a worker raised, without what Ray wraps it in."""
    inner: BaseException | None = error
    while inner is not None:
        cause = getattr(inner, "cause", None) or inner.__cause__
        if isinstance(cause, BaseException) and type(cause) in (
            ValueError,
            OSError,
            MemoryError,
            CheckpointError,
        ):
            return cause
        inner = cause if isinstance(cause, BaseException) else None
    return error
