"""What the user sees of a run: progress by cost, a preview per scale, and that cancelling works."""

import logging
from collections.abc import Sequence

import comfy.model_management as mm
import comfy.utils
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ...stagevar_core.autoencoders.colours import LinearColours
from ...stagevar_core.models.contract import Config
from ...stagevar_core.sampling.result import Monitor
from ...stagevar_core.schedule import Scale
from . import bridge
from .vae import TokenizerVAE

_LOG = logging.getLogger(__name__)
Preview = tuple[str, Image.Image, int]  # format, picture, longest side on the page in pixels
PROGRESS = "stagevar.progress"  # the event that the page's script listens to
_TOTAL = 10_000  # steps of the progress bar
_SIDE = 16  # latent pixels of the long side of a preview; the decoder's cost grows with the area
_SMALLEST = 8  # below this the decoder's zero padding dominates


class HostMonitor(Monitor):
    """ComfyUI's progress bar and previews for one execution of the sampler; close it with ``with``."""

    def __init__(
        self, config: Config, vae: TokenizerVAE, size: tuple[int, int], shares: Sequence[float]
    ) -> None:
        """``size``: (height, width) in pixels. ``shares``: part of the work of every scale, together 1."""
        self.previews = args.preview_method != LatentPreviewMethod.NoPreviews
        self.decodes = args.preview_method == LatentPreviewMethod.TAESD
        self._vae, self._size, self._depth = vae, size, config.depth
        self._colours = self._fitted() if self.previews and not self.decodes else None
        self._patch = config.patch
        self._shares = shares
        self._bar = comfy.utils.ProgressBar(_TOTAL)
        disabled = not comfy.utils.PROGRESS_BAR_ENABLED
        self._console = tqdm(total=len(shares), desc="StageVAR", unit="scale", disable=disabled)
        self._shown, self._run, self._runs, self._last = 0, 0, 1, 0
        self._told = (-1, -1)  # run and scale of the last event
        self._begun: int | None = None  # the first scale that runs, of runs that go on from others

    def __enter__(self) -> "HostMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()

    def restart(self, runs: int) -> None:
        """The images are made in ``runs`` runs from now on, from the first scale."""
        self._run, self._runs, self._shown, self._last = 0, runs, 0, 0
        self._told = (-1, -1)
        self._console.reset(total=runs * len(self._shares))

    def finish(self) -> None:
        """All runs are done, whatever their last scales were."""
        self._console.update(self._console.total - self._console.n)
        if self._shown < _TOTAL:
            self._shown = _TOTAL
            self._bar.update_absolute(_TOTAL, _TOTAL)

    def block(self, scale: Scale, layer: int) -> None:
        """After a block: move the bar; raises the host's exception when the user cancels."""
        mm.throw_exception_if_processing_interrupted()
        if scale.index < self._last:  # the last scales of the run before may have been skipped
            self._run += 1
        self._last = scale.index
        if self._begun is None:
            self._begun = scale.index
        self._tell(scale.index)
        # The last share of a scale is kept for its end, so that a preview moves the bar, too.
        self._update(scale, (layer + 1) / (self._depth + 1), None)

    def scale(self, scale: Scale, f_hat: Tensor) -> None:
        """After a scale: move the bar, and show what ``f_hat`` (B, C, h, w) holds by then."""
        mm.throw_exception_if_processing_interrupted()
        preview = self._preview(scale, f_hat) if self.previews else None
        self._update(scale, 1.0, preview)
        done = self._run * len(self._shares) + scale.index + 1
        self._console.update(done - self._console.n)

    def _tell(self, index: int) -> None:
        """Tell the page which scale runs, once each."""
        if self._told != (self._run, index):
            self._told = (self._run, index)
            of = {"scale": index + 1, "scales": len(self._shares)}
            bridge.send(PROGRESS, {**of, "image": self._run + 1, "images": self._runs})

    def _update(self, scale: Scale, part: float, preview: Preview | None) -> None:
        begun = self._begun or 0
        done = sum(self._shares[begun : scale.index]) + part * self._shares[scale.index]
        done /= sum(self._shares[begun:])
        value = int(_TOTAL * (self._run + done) / self._runs + 0.5)
        if preview is None and value <= self._shown:
            return
        self._shown = max(value, min(self._shown + 1, _TOTAL))
        self._bar.update_absolute(self._shown, _TOTAL, preview)

    def _fitted(self) -> LinearColours | None:
        """The tokenizer's map to colours; without one there are no previews."""
        try:
            return self._vae.colours()
        except Exception as error:
            if not (isinstance(error, ValueError) or bridge.is_out_of_memory(error)):
                raise
            self._without(error)
            return None

    def _preview(self, scale: Scale, f_hat: Tensor) -> Preview | None:
        """The first image so far: a colour per latent pixel, or what the decoder makes of it."""
        try:
            latent = f_hat[:1]
            image = self._decoded(scale, latent) if self._colours is None else self._colours(latent)
        except Exception as error:
            if not bridge.is_out_of_memory(error):
                raise
            self._without(error)
            return None
        pixels = image[0].add(1).mul(127.5).clamp(0, 255).byte().movedim(0, -1).cpu().numpy()
        shrink = min(1.0, args.preview_size / max(self._size))
        shown = (round(self._size[1] * shrink), round(self._size[0] * shrink))
        return "JPEG", Image.fromarray(pixels).resize(shown, Image.Resampling.BICUBIC), args.preview_size

    def _decoded(self, scale: Scale, latent: Tensor) -> Tensor:
        """The decoder's picture of a latent (1, C, h, w). Early scales hold little, and are decoded small."""
        height, width = latent.shape[-2:]
        detail = max(scale.height, scale.width) * self._patch
        side = min(max(detail, _SMALLEST), _SIDE, max(height, width))
        grid = [max(1, round(length * side / max(height, width))) for length in (height, width)]
        if grid != [height, width]:
            latent = F.interpolate(latent, size=grid, mode="area")
        return self._vae.first_stage_model.preview(latent.to(self._vae.device))

    def _without(self, error: Exception) -> None:
        """No previews from now on."""
        reason = "no memory" if bridge.is_out_of_memory(error) else str(error)
        _LOG.warning("StageVAR: no previews (%s); going on without", reason)
        self.previews = self.decodes = False
