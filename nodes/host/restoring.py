"""One execution of StageVAR Restore: pictures, tile by tile, with memory, progress and cancelling."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, cast

import comfy.model_management as mm
import comfy.utils
import numpy as np
import torch
from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel
from torch import Tensor, nn
from tqdm import tqdm

from ...stagevar_core.autoencoders.tiles import enlarged, in_tiles, tile_count
from ...stagevar_core.conditioning.types import TextConditioning
from ...stagevar_core.models.contract import Noise
from ...stagevar_core.models.restoring import RestoringLayout
from ...stagevar_core.sampling.noise import SeededNoise
from ...stagevar_core.sampling.restoring import Restorer, restoring_memory
from . import bridge
from .attached import options_of
from .packed import pack
from .pairing import Pair
from .pictures import to_bytes

_LOG = logging.getLogger(__name__)
_RESERVES = (1.0, 1.5)  # how much of the estimate is set free before the first and the second try


class UpscaleModel(Protocol):
    """What we use of an UPSCALE_MODEL. ``scale``: how many times larger its pictures are."""

    scale: int
    input_channels: int
    output_channels: int


@dataclass(frozen=True)
class RestoreJob:
    """What does not change between pictures.

    ``size``: (height, width) of what comes out. ``shared``: pixels that neighbouring tiles share, half of one
    at the most. ``before``: a network that the pictures go through first.
    """

    pair: Pair
    conditioning: TextConditioning | None
    seed: int
    size: tuple[int, int]
    shared: int
    before: UpscaleModel | None = None

    @property
    def layout(self) -> RestoringLayout:
        """The tokens of a tile."""
        return RestoringLayout.of(self.pair.trained)

    @property
    def side(self) -> int:
        """Pixels of a tile's side."""
        return self.pair.trained.image_size(self.layout.schedule)[0]

    @property
    def overlap(self) -> int:
        """Pixels that neighbouring tiles share."""
        return min(self.shared, self.side // 2)

    @property
    def tiles(self) -> int:
        """Tiles of a picture."""
        return tile_count(self.size, self.side, self.overlap)

    @property
    def memory(self) -> int:
        """Bytes that a tile needs beside the weights."""
        text = 0 if self.conditioning is None else self.conditioning.tokens
        return restoring_memory(self.pair.network, self.layout, text).total


class RestoreRun:
    """The tiles of all pictures of a job; close it with ``with``."""

    def __init__(self, job: RestoreJob, pictures: int) -> None:
        self.job, self._restorer, self._needed = job, None, 0
        self._steps = job.pair.network.config.depth + 2  # of a tile: encode, every block, decode
        self._bar = comfy.utils.ProgressBar(pictures * job.tiles * self._steps)
        disabled = not getattr(comfy.utils, "PROGRESS_BAR_ENABLED", True)
        self._console = tqdm(total=pictures * job.tiles, desc="StageVAR", unit="tile", disable=disabled)

    def __enter__(self) -> "RestoreRun":
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()

    def picture(self, index: int, image: Tensor, out: Tensor) -> None:
        """Restore one picture (H, W, C) in 0..1 into ``out`` (height, width, C) on the CPU.

        Alpha is scaled along.
        """
        job = self.job
        colours, *alpha = (to_bytes(part) for part in image[..., :4].split(3, dim=-1))
        noise = SeededNoise(job.seed + index, 1)
        whole = _scaled(colours, job)
        in_tiles(whole, job.side, job.overlap, partial(self._tile, noise=noise), out[..., :3])
        for part in alpha:
            out[..., 3] = torch.from_numpy(enlarged(part[..., 0], job.size).astype(np.float32) / 255.0)

    def _tile(self, tile: Tensor, noise: Noise) -> Tensor:
        """One tile (1, side, side, 3) in 0..1."""
        mm.throw_exception_if_processing_interrupted()
        pair, start = self.job.pair, self._console.n * self._steps
        features = pair.vae.features(tile)
        self._show(start + 1)
        f_hat = self._again_with_more_memory(lambda: self._codes(features, noise, start + 2))
        changed = pair.vae.decode(f_hat)
        self._console.update(1)
        self._show(start + self._steps)
        return changed

    def _codes(self, features: Tensor, noise: Noise, start: int) -> Tensor:
        pair = self.job.pair
        mm.load_models_gpu([pair.model, pair.vae.patcher], memory_required=self._needed)
        pack(cast(nn.Module, pair.network), pair.model.load_device)
        if self._restorer is None:
            self._restorer = Restorer(
                pair.network,
                self.job.layout,
                pair.vae.quantizer(pair.network.config.patch),
                self.job.conditioning,
                attention=bridge.attention_for(options_of(pair.model.model_options)),
                device=pair.model.load_device,
            )

        def after_block(layer: int) -> None:
            mm.throw_exception_if_processing_interrupted()
            self._show(start + layer)

        return self._restorer(features, noise, after_block).f_hat.to(mm.intermediate_device())

    def _again_with_more_memory(self, compute: Callable[[], Tensor]) -> Tensor:
        failure = ""
        for reserve in _RESERVES:
            if failure:
                _LOG.warning("StageVAR: out of memory; once more with more memory set free")
            self._needed = int(self.job.memory * reserve)
            try:
                return compute()
            except Exception as error:
                if not bridge.is_out_of_memory(error):
                    raise
                failure = str(error)
            self._restorer = None
            mm.soft_empty_cache()
        self._out_of_memory(failure)

    def _show(self, step: int) -> None:
        self._bar.update_absolute(step)

    def _out_of_memory(self, failure: str) -> NoReturn:
        model, side, gib = self.job.pair.model, self.job.side, 2**30
        free = bridge.free_memory(model.load_device)
        raise RuntimeError(
            f"Out of memory: a tile of {side}x{side} needs about {self._needed / gib:.1f} GiB beside up to "
            f"{model.model_size() / gib:.1f} GiB of weights; {free / gib:.1f} GiB are free on "
            f"{model.load_device}. Load the model with weight_dtype fp8_e4m3fn, or start ComfyUI with "
            f"--lowvram. ({failure[:200]})"
        )


def restored(job: RestoreJob, image: Tensor) -> Tensor:
    """Pictures (B, H, W, C) in 0..1 to (B, height, width, C); only what comes out is held as a whole."""
    out = torch.empty(len(image), *job.size, min(image.shape[3], 4))
    with RestoreRun(job, len(image)) as run:
        for index, picture in enumerate(image):
            run.picture(index, picture, out[index])
    return out.to(mm.intermediate_device())


def _scaled(colours: np.ndarray, job: RestoreJob) -> np.ndarray:
    """A picture (H, W, 3) uint8 at the job's size; through the network before or after that, by its scale."""
    if job.before is None:
        return enlarged(colours, job.size)
    if job.before.scale == 1:
        return _through(job.before, enlarged(colours, job.size))
    return enlarged(_through(job.before, colours), job.size)


def _through(network: UpscaleModel, colours: np.ndarray) -> np.ndarray:
    """What the host's own node makes of a picture (H, W, 3) uint8."""
    image = torch.from_numpy(colours.astype(np.float32) / 255.0)[None]
    found: Any = ImageUpscaleWithModel.execute(network, image)
    return to_bytes(found.args[0][0])
