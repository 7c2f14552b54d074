"""How often a run hands work to a GPU: kernels, copies and fills by scale, which each cost the host time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from stagevar_core.acceleration.policy import AccelerationPolicy
from stagevar_core.sampling.result import Monitor
from stagevar_core.schedule import Scale

from .models import PROMPT, MeasuredPipeline, pictured

# What the runtimes of CUDA and of AMD call a launch.
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemcpy", "cudaMemset", "cudaGraphLaunch", "hipLaunch", "hipMem")
MARK = "after scale "


class _Marks(Monitor):
    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        with record_function(f"{MARK}{scale.index}"):
            pass


def measure(
    pipeline: MeasuredPipeline, request: dict[str, Any], policy: AccelerationPolicy
) -> dict[str, Any]:
    """Launches of one run: by scale, those after the last one (of decoding), and in all.

    The text counts to the first scale. Profiling slows a run down, so it tells no times.
    """
    activities = [ProfilerActivity.CPU]
    if pipeline.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        pipeline(PROMPT, monitor=_Marks(), policy=policy, **pictured(pipeline, request))
    counts = by_scale((event.name, event.time_range.start) for event in seen.events())
    return {"scales": counts[:-1], "decode": counts[-1], "total": sum(counts)}


def by_scale(events: Iterable[tuple[str, float]]) -> Sequence[int]:
    """Launches up to every mark, and after the last one, of events as names and their beginnings."""
    counts = [0]
    for name, _ in sorted(events, key=lambda event: event[1]):
        if name.startswith(MARK):
            counts.append(0)
        elif name.startswith(LAUNCHES):
            counts[-1] += 1
    return counts
