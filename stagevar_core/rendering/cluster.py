"""The engine of many machines: an actor pool of Ray Data, every actor with models of its own."""

import importlib
import logging
import os
import pickle
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices import is_out_of_memory
from .said import collected, repeated
from .work import Done, Item, Load, Result, Task, Worker

LOCAL, AUTO = "local", "auto"
PATIENCE = 5.0  # seconds for a machine to answer; Ray itself tries for minutes
QUEUED = 2  # items that wait at an actor, the one it works on included: more would be unshared at the end
# What a worker may raise is a result like any other: of an error that leaves it, Ray hands on the text alone.
EXPECTED = (ValueError, OSError, ImportError, MemoryError)


@dataclass(frozen=True)
class Cluster:
    """Workers of Ray. ``address``: of a cluster, or 'local' for one on this machine.

    ``cpus``, ``gpus``: of each worker; a share of a GPU lets several workers use it.
    """

    address: str
    workers: int
    cpus: float = 1.0
    gpus: float = 0.0


class OnRay:
    """Every item to the actor that is free next.

    Ray starts a worker that died again and gives its item to another one.
    """

    def __init__(self, cluster: Cluster, load: Load) -> None:
        self.cluster, self._load = cluster, load
        self._ray: Any = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Start Ray on this machine, or join a cluster; ``ValueError`` where there is none, or no Ray."""
        reached(self.cluster.address)
        self._ray = _imported()
        _join(self._ray, self.cluster)
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # the commands have one of their own
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            yield
        finally:
            self._ray.shutdown()

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[Done[Result]]:
        """Every item once, as they come out; raises what a worker raises."""
        if not items:
            return
        ray, load, cluster = self._ray, self._load, self.cluster

        class Actor:
            """A worker as Ray Data calls it: rows in, rows out, all in bytes, which need no conversion."""

            def __init__(self) -> None:
                self.worker: Worker[Item, Result] | None = None
                self.loading: list[str] = []

            def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
                try:
                    found = self.done(*pickle.loads(row["numbered"]))
                except (*EXPECTED, RuntimeError) as error:
                    if not isinstance(error, EXPECTED) and not is_out_of_memory(error):
                        raise  # a fault of ours: Ray's report has its traceback
                    found = error, self.loading
                return {"found": pickle.dumps(found)}

            def done(self, number: int, item: Item) -> tuple[Done[Result], list[str]]:
                if self.worker is None:
                    with collected() as self.loading:
                        self.worker = Worker(task, load)
                with collected() as said:
                    done = self.worker(number, item)
                return done, [*self.loading, *said]

        rows = [{"numbered": pickle.dumps(numbered)} for numbered in enumerate(items)]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Actor,
            compute=ray.data.ActorPoolStrategy(
                size=min(cluster.workers, len(rows)), max_tasks_in_flight_per_actor=QUEUED
            ),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        for row in done.iter_rows():
            found, said = pickle.loads(row["found"])
            repeated(said)
            if isinstance(found, Exception):
                raise found
            yield found


def reached(address: str, patience: float = PATIENCE) -> None:
    """Raise ``ValueError`` where no Ray answers at an address within ``patience`` seconds.

    'local' has none yet; that of 'auto' is the one that Ray has noted, where it did.
    """
    at = _noted() if address == AUTO else address
    if at in (LOCAL, AUTO):
        return
    found = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^:/\[\]]+):(\d{1,5})", at)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise _absent(address, f"{at} is no HOST:PORT")
    try:
        with socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=patience) as opened:
            speaks = bool(os.environ.get("RAY_USE_TLS")) or _greeted(opened)
    except OSError as error:
        raise _absent(address, error.strerror or str(error)) from error
    if not speaks:
        raise _absent(address, "what answers is no server of Ray")


def _noted() -> str:
    """The address that 'auto' stands for; 'auto' where Ray has to look for its processes."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    told = os.environ.get("RAY_ADDRESS") or (file.read_text("utf-8") if file.is_file() else "")
    return told.strip() or AUTO


def _greeted(opened: socket.socket) -> bool:
    """Whether the other end takes a greeting of HTTP/2, which gRPC begins with, as a server of Ray does."""
    opened.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
    answer = b""
    while len(answer) < 4 and (more := opened.recv(9)):
        answer += more
    return answer[3:4] == b"\x04"  # a frame with its settings


def _imported() -> Any:
    try:
        ray: Any = importlib.import_module("ray")  # an engine that users may choose, never a requirement
        importlib.import_module("ray.data")
    except ImportError as error:
        raise ValueError(
            f"--ray needs the package ray with its data library ({error}); install ComfyUI-StageVAR's extra "
            "with pip install 'ray[data]', or leave --ray out"
        ) from error
    return ray


def _join(ray: Any, cluster: Cluster) -> None:
    """Start Ray on this machine, or join the cluster at an address."""
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster.address == LOCAL:
            cpus = max(1, round(cluster.workers * cluster.cpus + 1))  # one for what hands the items out
            ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, **options)
        else:
            ray.init(address=cluster.address, **options)
    except ImportError as error:
        raise ValueError(
            f"--ray is {cluster.address!r}, which needs more of Ray ({error}); install it with pip install "
            "'ray[client]', or give the cluster's own address such as head:6379"
        ) from error
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise _absent(cluster.address, " ".join(str(error).split())[:300]) from error


def _absent(address: str, found: str) -> ValueError:
    return ValueError(
        f"--ray is {address!r}; no cluster of Ray there ({found}). Expected its address such as "
        "ray://head:10001 or head:6379, auto for the one of this machine, or local for workers on it"
    )
