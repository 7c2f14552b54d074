"""What every worker loads, said in plain values that can be sent to another machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..devices import DTYPES
from ..pipeline import Pipeline
from ..sampling.settings import SamplingSettings

Chosen = Callable[[Pipeline], SamplingSettings]  # a choice of settings, made where the models are


@dataclass(frozen=True)
class Models:
    """Files, options of ``Pipeline.load``, and the sampling numbers that a user chose."""

    transformer: str
    tokenizer: str
    text_encoder: str
    text_encoder_2: str | None = None
    dtype: str | None = None
    device: str | None = None
    task: str = "auto"
    loras: tuple[tuple[str, float], ...] = ()
    threads: int | None = None
    cfg: Any = None
    temperature: Any = None
    top_k: int | None = None
    top_p: float | None = None

    def load(self) -> Pipeline:
        """The pipeline; ``ValueError`` for files and devices that do not work on this machine."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Pipeline.load(
            *(self.transformer, self.tokenizer, self.text_encoder),
            dtype=DTYPES[self.dtype] if self.dtype else None,
            device=working_device(self.device),
            task=self.task,
            loras=self.loras,
            text_encoder_2=self.text_encoder_2,
        )

    def settings(self, pipeline: Pipeline) -> SamplingSettings:
        """Sampling settings, the model's own where they say nothing."""
        return pipeline.settings(self.cfg, self.temperature, self.top_k, self.top_p)


def working_device(name: str | None) -> torch.device | None:
    """A device by its name, tried once; ``ValueError`` where it does not work here."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device is {name!r}, which does not work here ({said}); try cpu") from error
    return device
