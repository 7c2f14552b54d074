"""The image tokenizer as a core VAE, so that every core VAE node works on it."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import comfy.model_management as mm
import comfy.sd
import torch
from comfy.cli_args import args
from torch import Tensor, nn

from ...stagevar_core.autoencoders.colours import LinearColours, smooth_pictures
from ...stagevar_core.checkpoints.header import KEY, record
from ...stagevar_core.checkpoints.load import Checkpoint
from ...stagevar_core.devices import default_dtype
from ...stagevar_core.models.companions import Tokenizer, TokenizerConfig
from ...stagevar_core.models.compiling import CompiledTokenizer, Compiler
from ...stagevar_core.models.contract import Quantizer
from ...stagevar_core.sampling.numbers import check_decoded, extremes, finite
from ...stagevar_core.schedule import ScaleSchedule
from .bridge import fill, free_memory, host_operations, is_out_of_memory, module_of, wrap
from .carried import visible

_LOG = logging.getLogger(__name__)
_NO_WEIGHTS = "No VAE weights detected"
_SMOOTH = (16, 8)  # pictures, and latent pixels of their sides, that a linear map to colours is fitted to
_TILES = (512, 256)  # sides in pixels where memory is short; a quarter overlaps


class HostTokenizer(nn.Module):
    """Takes and returns float32; the encoder computes in it, as codes flip easily, the decoder need not."""

    tokenizer: Tokenizer

    def __init__(self, tokenizer: Tokenizer, decode_dtype: torch.dtype) -> None:
        super().__init__()
        self.tokenizer, self.decode_dtype = tokenizer, decode_dtype

    def encode(self, image: Tensor, **_: object) -> Tensor:
        """Features (B, C, h, w) of an image (B, 3, height, width) in [-1, 1].

        As in :meth:`decode`, what the host says to tokenizers of other kinds does not matter.
        """
        return self.tokenizer.encode(image.float())

    def decode(self, f_hat: Tensor, **_: object) -> Tensor:
        """An image (B, 3, height, width) in [-1, 1] of accumulated codes (B, C, h, w)."""
        return self.tokenizer.decode(f_hat.to(self.decode_dtype)).float()

    preview = decode  # of small latents of many sizes, which are never compiled


class CompiledHostTokenizer(HostTokenizer):
    """One that decodes through ``compiler``, previews aside."""

    def __init__(self, plain: HostTokenizer, compiler: Compiler) -> None:
        super().__init__(plain.tokenizer, plain.decode_dtype)
        self.compiled = CompiledTokenizer(plain.tokenizer, compiler)

    def decode(self, f_hat: Tensor, **_: object) -> Tensor:
        """As without a compiler."""
        return self.compiled.decode(f_hat.to(self.decode_dtype)).float()


class TokenizerVAE(comfy.sd.VAE):
    """An image tokenizer of any family behind the interface of ``comfy.sd.VAE``.

    Encoding returns what the tokenizer would store of the image, the sum of its codes over all scales, when
    the image has a size the models are trained on; for other sizes the features before quantization.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        _default_attributes(self)
        config: TokenizerConfig = checkpoint.config
        self.checkpoint, self.config = checkpoint, config
        self.device = mm.vae_device()
        decode_dtype = _decode_dtype(self.device, checkpoint.parameters)
        self.vae_dtype = torch.float32  # what core casts to; the module narrows for itself
        self.working_dtypes = [torch.float32]
        self.output_device = mm.intermediate_device()
        self.latent_channels = config.dim
        self.latent_dim = 2
        self.output_channels = 3
        self.downscale_ratio = self.upscale_ratio = config.stride
        self.process_input = lambda image: image * 2.0 - 1.0
        # Newer releases ignore what this returns and expect the argument to be changed.
        self.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        # Counted at the peak: 6 and 4 tensors of the first level's channels at full resolution; the rest is
        # for the convolutions' workspace.
        decoding = config.width * config.stride**2 * decode_dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: shape[2] * shape[3] * decoding * 9
        self.memory_used_encode = lambda shape, dtype: shape[2] * shape[3] * config.width * 4 * 6
        operations = host_operations(decode_dtype, None, self.device)
        tokenizer = _tokenizer(checkpoint, decode_dtype, operations=operations)
        self.first_stage_model = HostTokenizer(cast(Tokenizer, tokenizer), decode_dtype)
        self.patcher = wrap(self.first_stage_model, self.device, mm.vae_offload_device())
        fill(tokenizer, _tokenizer(checkpoint, decode_dtype), checkpoint.tensors, decode_dtype)
        self.size = None
        self._colours: LinearColours | None = None
        self.model_size()
        _LOG.info(
            "StageVAR: %s: %s tokenizer with %d channels, %s decoder",
            checkpoint.source,
            checkpoint.family,
            config.dim,
            decode_dtype,
        )

    def get_sd(self) -> dict[str, Tensor]:
        """What VAESave writes: the weights, and our header as a tensor, as it writes no metadata of ours."""
        return {**super().get_sd(), KEY: record(self.checkpoint.header())}

    def compiled(self, compiler: Compiler) -> "TokenizerVAE":
        """The same VAE, decoding through ``compiler``; weights and their place in memory are shared."""
        clone = copy.copy(self)
        clone.first_stage_model = CompiledHostTokenizer(self.first_stage_model, compiler)
        return clone

    def quantizer(self, patch: int = 1) -> Quantizer:
        """What turns tokens of ``patch`` x ``patch`` latent pixels into latents."""
        return self.first_stage_model.tokenizer.quantizer(patch)

    def features(self, pixel_samples: Tensor) -> Tensor:
        """The encoder's output for an image (B, H, W, 3) in 0..1, before quantization."""
        return self._encoded(super().encode(self._pixels(pixel_samples)), pixel_samples)

    def codes(self, pixel_samples: Tensor, schedule: ScaleSchedule, patch: int = 1) -> list[Tensor]:
        """What a run of ``schedule`` would draw for an image (B, H, W, 3) in 0..1, scale by scale."""
        return self.stored(self.features(pixel_samples), schedule, patch)[0]

    def colours(self) -> LinearColours:
        """A linear map from latents to colours, fitted once to what the encoder makes of smooth pictures."""
        if self._colours is None:
            pictures = smooth_pictures(_SMOOTH[0], _SMOOTH[1] * self.config.stride)
            shown = (pictures.movedim(1, -1) + 1.0) / 2.0
            self._colours = LinearColours.fit(self.features(shown), pictures)
        return self._colours

    def nearest(self, latent: Tensor, schedule: ScaleSchedule, patch: int = 1) -> list[Tensor]:
        """The codes that come nearest to a latent (B, C, h, w) in whose making nothing is known."""
        mm.load_models_gpu([self.patcher])
        return self.stored(latent.float().to(self.device), schedule, patch)[0]

    def decode(self, samples_in: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Images of latents; where memory runs out, in tiles, and where it does so again, in smaller ones.

        Channels behind those of the tokenizer are not shown; they hold what a run left.
        """
        samples_in = self.shown(samples_in)
        try:
            images = super().decode(samples_in, *args, **kwargs)  # falls back to decode_tiled_ on GPUs
            return self._decoded(images, samples_in)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        _LOG.warning("StageVAR: out of memory while decoding; trying again in small tiles")
        mm.soft_empty_cache()
        try:
            side = _TILES[1] // self.config.stride
            return self.decode_tiled(samples_in, tile_x=side, tile_y=side, overlap=side // 4)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error)
        mm.soft_empty_cache()
        raise RuntimeError(self._out_of_memory(samples_in, failure))

    def decode_tiled(self, samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As :meth:`decode`, in tiles from the beginning."""
        samples = self.shown(samples)
        return self._decoded(super().decode_tiled(samples, *args, **kwargs), samples)

    def decode_tiled_(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
    ) -> Tensor:
        """What core falls back to; its own 64 latent pixels would hold a whole megapixel here."""
        side = _TILES[0] // self.config.stride
        tiles = _tiles((side, side) if tile_x is None else (tile_x, tile_y or tile_x), overlap, 1)
        tiles.check(samples.shape[-2:])
        return super().decode_tiled_(samples, tiles.across, tiles.down, tiles.overlap)

    def encode(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Latents (B, C, h, w) of images (B, height, width, 3) in 0..1, quantized at trained sizes."""
        features = super().encode(self._pixels(pixel_samples), *args, **kwargs)
        return self._quantized(self._encoded(features, pixel_samples))

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As :meth:`encode`, features in tiles."""
        features = super().encode_tiled(self._pixels(pixel_samples), *args, **kwargs)
        return self._quantized(self._encoded(features, pixel_samples))

    def encode_tiled_(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
    ) -> Tensor:
        """Features of images (B, 3, height, width); sides of tiles are whole latent pixels."""
        side = _TILES[0]
        tiles = _tiles(
            (side, side) if tile_x is None else (tile_x, tile_y or tile_x), overlap, self.config.stride
        )
        tiles.check(pixel_samples.shape[-2:])
        return super().encode_tiled_(pixel_samples, tiles.across, tiles.down, tiles.overlap)

    def schedule_of(self, grid: tuple[int, int]) -> ScaleSchedule | None:
        """The trained schedule over latent pixels that ends at ``grid``; None when there is none."""
        table = self.checkpoint.trained
        if table is None:
            return None
        patch = max(1, table.pixels_per_token // self.config.stride)
        for ratio in table.grids:
            for budget in table.budgets:
                schedule = table.schedule(ratio, budget)
                if (schedule.final.height * patch, schedule.final.width * patch) == grid:
                    return ScaleSchedule.of([(h * patch, w * patch) for h, w in schedule.grids])
        return None

    def _encoded(self, features: Tensor | None, pixels: Tensor) -> Tensor:
        """The encoder's output in float32; ``ValueError`` where it is not finite, with what is to blame."""
        features = cast(Tensor, features).float()  # None only for no image at all
        if not finite(features):
            if not finite(pixels):
                raise ValueError("pixels: the image holds NaN or infinity; expected values from 0 to 1")
            raise ValueError(self._damaged("the encoder"))
        return features

    def _quantized(self, features: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        schedule = self.schedule_of((height, width))
        if schedule is None:
            _LOG.warning("StageVAR: %s", self._other_size(height, width))
            return features
        return self.stored(features, schedule)[1]

    def stored(
        self, features: Tensor, schedule: ScaleSchedule, patch: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """What is drawn at every scale for these features, and the latent that it adds up to."""
        codes, f_hat = self.quantizer(patch).encode(features, schedule)
        if not finite(f_hat):
            raise ValueError(self._damaged("the codebook"))
        return codes, f_hat

    def _damaged(self, part: str) -> str:
        return (
            f"vae: {part} of the tokenizer {self.checkpoint.source!r} gave NaN or infinity; its weights are "
            "damaged. Download the file again"
        )

    def _other_size(self, height: int, width: int) -> str:
        """That a latent is not quantized, and at which sizes it would be."""
        stride, table = self.config.stride, self.checkpoint.trained
        sizes = []
        if table is not None:
            budgets = [table.schedule(table.nearest_ratio(height, width), name) for name in table.budgets]
            sizes = [f"{w}x{h}" for h, w in map(table.image_size, budgets)]
        own = f"at this shape it has {', '.join(sizes)}" if sizes else "it does not know its sizes"
        return (
            f"{width * stride}x{height * stride} is no size of {self.checkpoint.source!r}; {own}. "
            "The latent holds the features as they are, not the codes that a model would draw"
        )

    def _pixels(self, pixels: Tensor) -> Tensor:
        if pixels.dim() != 4 or pixels.shape[3] < 3 or not len(pixels):
            raise ValueError(
                f"pixels: the image has shape {tuple(pixels.shape)}; expected (batch, height, width, 3)"
            )
        height, width = pixels.shape[1:3]
        if min(height, width) < self.config.stride:
            raise ValueError(
                f"pixels: the image is {width}x{height}; this tokenizer needs at least "
                f"{self.config.stride}x{self.config.stride}. Use a larger image"
            )
        return pixels[..., :3]

    def _decoded(self, images: Tensor, samples: Tensor) -> Tensor:
        """The same images (B, H, W, 3); ``ValueError`` where they are not finite."""
        check_decoded(extremes(images), samples, f"vae: the tokenizer {self.checkpoint.source!r}")
        return images

    def _out_of_memory(self, samples: Tensor, failure: str) -> str:
        gib, (height, width) = 2**30, samples.shape[-2:]
        whole, part = (
            self.memory_used_decode((1, self.latent_channels, *grid), self.vae_dtype) / gib
            for grid in ((height, width), (_TILES[1] // self.config.stride,) * 2)
        )
        size = f"{width * self.config.stride}x{height * self.config.stride}"
        return (
            f"Out of memory: decoding one image of {size} needs about {whole:.1f} GiB, in tiles {part:.1f} "
            f"GiB; {free_memory(self.device) / gib:.1f} GiB are free on {self.device}. Decode a "
            f"smaller image, or start ComfyUI with --cpu-vae. ({failure[:200]})"
        )

    def shown(self, samples: Tensor, name: str = "samples") -> Tensor:
        """The tokenizer's channels of a latent (B, C, h, w), without what a run left behind them.

        ``ValueError`` naming the input ``name`` for a latent of another kind.
        """
        shown = visible(samples, self.latent_channels)
        if shown.dim() == 4 and shown.shape[1] == self.latent_channels and 0 not in shown.shape:
            return shown
        raise ValueError(
            f"{name}: the latent has shape {tuple(samples.shape)}; the tokenizer {self.checkpoint.source!r} "
            f"decodes (batch, {self.latent_channels}, height, width). Use the VAE of the model that made it"
        )


@dataclass(frozen=True)
class _Tiles:
    """Sides of the tiles of core's passes, which halve and double them, and what tiles share; in pixels."""

    across: int
    down: int
    overlap: int

    def check(self, size: Sequence[int]) -> None:
        """``ValueError`` for an overlap that leaves nothing of a tile where (height, width) need several."""
        for tile, length in zip((self.down, self.across), size, strict=True):
            if length > tile // 2 <= self.overlap:
                raise ValueError(
                    f"overlap is {self.overlap} with tiles of {tile}; expected less than {tile // 2}, half "
                    "of a tile. Use a smaller overlap or a larger tile_size"
                )


def _tiles(sides: tuple[int, int], overlap: int | None, unit: int) -> _Tiles:
    """Tiles of whole ``unit`` pixels, also where they are halved; without an overlap a quarter of a tile."""
    across, down = (max(2 * unit, side - side % (2 * unit) if unit > 1 else side) for side in sides)
    overlap = min(across, down) // 4 if overlap is None else overlap
    return _Tiles(across, down, overlap - overlap % unit)


def _decode_dtype(device: torch.device, parameters: int) -> torch.dtype:
    """What ComfyUI decodes in, with the flags of its user; on a CPU, where it has float32, by the CPU."""
    chosen = args.fp32_vae or args.fp16_vae or args.bf16_vae
    if mm.is_device_cpu(device) and not chosen:
        return default_dtype(device, parameters)
    return mm.vae_dtype(device, [torch.bfloat16, torch.float32])


def _tokenizer(checkpoint: Checkpoint, decode_dtype: torch.dtype, **factory: Any) -> nn.Module:
    """The tokenizer without storage: float32, and ``decode_dtype`` in what decoding runs."""
    module = module_of(checkpoint)(checkpoint.config, dtype=torch.float32, device="meta", **factory)
    for part in cast(Tokenizer, module).decoding:
        part.to(decode_dtype)
    return module


def _default_attributes(vae: comfy.sd.VAE) -> None:
    """Every attribute of this ComfyUI's VAE; its constructor stops early, with a warning, without weights."""

    def quiet(record: logging.LogRecord) -> bool:
        return _NO_WEIGHTS not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(quiet)
    try:
        comfy.sd.VAE.__init__(vae, sd={})
    finally:
        root.removeFilter(quiet)
