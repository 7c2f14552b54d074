"""Prompts or classes to pictures in one object: the models that belong together, without ComfyUI."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .acceleration.policy import AccelerationPolicy
from .acceleration.stages import StageBoundaries
from .checkpoints.files import read
from .checkpoints.load import build, check_pairing, prepare
from .checkpoints.lora_files import read_lora
from .checkpoints.lora_layers import merge
from .checkpoints.restoring import check_restores
from .checkpoints.tasks import AUTO, with_task
from .checkpoints.text_encoders import load_text_encoders
from .checks import one_of, requested
from .conditioning.changing import RunConditioning, from_stages
from .conditioning.labels import class_index, spread_classes
from .conditioning.picture import encoder_input, from_square, stretched, to_square
from .conditioning.t5 import MAX_TOKENS
from .conditioning.types import ClassConditioning, Conditioning, TextConditioning
from .devices import default_device, default_dtype, synchronise
from .embedded import ASSETS, EDITOR, EMBEDDED, MODELS  # noqa: F401 - where callers look for them
from .models.companions import PaddingEncoder, TextEncoder, Tokenizer, check_text
from .models.contract import Quantizer, Transformer, signed
from .network.attention import AttentionFn, attend
from .network.packing import pack
from .sampling.clock import Clock
from .sampling.drafts import drafted
from .sampling.generate import generate
from .sampling.noise import SeededNoise
from .sampling.numbers import check_decoded, extremes, to_uint8
from .sampling.result import Monitor, Pictures
from .sampling.settings import SamplingSettings
from .sampling.state import RunState
from .sampling.word_edit import WordEdit, reworded
from .schedule import AspectTable, ScaleSchedule

DECODE_PIXELS = 2**21  # per decoder pass; a large batch of large images would not fit
_LOG = logging.getLogger(__name__)


class Pipeline:
    """Three models that belong together; ``ValueError`` names both sides where they do not.

    ``text_encoder``: None for transformers that take class labels; a prompt is then a class's name or number.
    ``trained``: sizes and schedules of the transformer. ``defaults``: its settings, any of cfg, temperature,
    top_k, top_p, width, height. ``class_names``: of its classes by number, where it has its own.
    """

    def __init__(  # noqa: PLR0913 - what belongs together; all but the models has defaults
        self,
        transformer: Transformer,
        tokenizer: Tokenizer,
        text_encoder: TextEncoder | None,
        trained: AspectTable,
        *,
        defaults: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        attention: AttentionFn = attend,
        class_names: Sequence[str] = (),
    ) -> None:
        check_text(transformer, text_encoder)
        self.transformer, self.tokenizer, self.text_encoder = transformer, tokenizer, text_encoder
        self.trained, self.defaults, self.attention = trained, dict(defaults or {}), attention
        self.class_names = tuple(class_names)
        held = next(transformer.parameters()).device if text_encoder is None else text_encoder.device
        self.device = torch.device(device or held)

    @classmethod
    def load(  # noqa: PLR0913 - three files and how they are to run; all but the files have defaults
        cls,
        transformer: Path | str,
        tokenizer: Path | str,
        text_encoder: Path | str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        task: str = AUTO,
        loras: Sequence[tuple[Path | str, float]] = (),
        text_encoder_2: Path | str | None = None,
        weights: str | None = None,
    ) -> "Pipeline":
        """Load three checkpoints. ``dtype`` is that of the transformer's blocks and the tokenizer.

        Without one it goes by the device and the size of the networks. The text encoder runs in bfloat16 or
        float32, never in float16; it is not read for a transformer that takes class labels.
        ``task``: what the transformer is for where its metadata does not say. ``loras``: files that change
        it, each with its strength. ``text_encoder_2``: the other one of transformers that read two.
        ``weights``: 'int8' for the blocks of the transformer.
        """
        device = torch.device(device) if device is not None else default_device()
        model = with_task(prepare(*read(transformer), kind="transformer"), task)
        if model.trained is None:
            raise ValueError(
                f"{model.source} does not say which sizes it was trained on, and its number of scales is not "
                "that of a published model. Convert it with its settings"
            )
        codes = prepare(*read(tokenizer), kind="tokenizer")
        check_pairing(model, codes)
        check_restores(model, False)
        encoder = None
        if model.config.text_width:
            if text_encoder is None:
                raise ValueError(f"{transformer} takes text; give the text encoder that belongs to it")
            encoder = load_text_encoders(text_encoder, text_encoder_2, device=device)
        blocks, decoder = (dtype or default_dtype(device, part.parameters) for part in (model, codes))
        merge(model, [(read_lora(path, model), strength) for path, strength in loras], blocks)
        return cls(
            signed(pack(build(model, dtype=blocks, device=device, weights=weights))),
            cast(Tokenizer, build(codes, dtype=decoder, device=device)),
            encoder,
            model.trained,
            defaults=model.defaults,
            device=device,
            class_names=model.classes,
        )

    @classmethod
    def embedded(
        cls,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        model: str = "scenes",
        edits: bool = False,
        weights: str | None = None,
    ) -> "Pipeline":
        """A small model that comes with this package; ``edits``: the one of the scenes that changes them."""
        files = MODELS[one_of("model", model, MODELS)] | ({"transformer": EDITOR} if edits else {})
        return cls.load(*files.values(), dtype=dtype, device=device, weights=weights)

    def settings(
        self,
        cfg: float | Sequence[float] | str | None = None,
        temperature: float | Sequence[float] | str | None = None,
        top_k: int | str | None = None,
        top_p: float | str | None = None,
    ) -> SamplingSettings:
        """Sampling settings, the model's own where None or 'auto'."""
        given = {"cfg": cfg, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        chosen = {
            **self.defaults,
            **{name: value for name, value in given.items() if value not in (None, AUTO)},
        }
        names = {"cfg": "cfg_scale"}
        return SamplingSettings(**{names.get(name, name): chosen[name] for name in given if name in chosen})

    def schedule(self, width: int | None = None, height: int | None = None) -> ScaleSchedule:
        """The trained schedule nearest to a size; one side alone is taken for a square."""
        own = self._default_size() if width is None and height is None else (width or 0, height or 0)
        return self.trained.snap(own[0] if height is None else height, own[1] if width is None else width)

    def _default_size(self) -> tuple[int, int]:
        """(height, width): the model's own, else the square of its largest budget."""
        budget = max(self.trained.budgets, key=lambda name: self.trained.budgets[name])
        square = self.trained.schedule(self.trained.nearest_ratio(1, 1), budget)
        height, width = self.trained.image_size(square)
        return self.defaults.get("height", height), self.defaults.get("width", width)

    @property
    def quantizer(self) -> Quantizer:
        """What turns the tokens of this transformer into latents; of the tokenizer, which has the codes."""
        return self.tokenizer.quantizer(self.transformer.config.patch)

    def measurable(self, prompts: Sequence[str], *, made_up: bool) -> list[str]:
        """Prompts to measure with: those of the user, or classes in place of captions that were made up.

        Raises ``ValueError`` for one that is no class of this model, before anything is drawn.
        """
        classes = self.transformer.classes
        if classes is None:
            return list(prompts)
        if made_up:
            return spread_classes(len(prompts), classes)
        for prompt in prompts:
            class_index(prompt, classes, self.class_names)
        return list(prompts)

    def encode(self, prompts: Sequence[str], negative: str | None = None) -> Conditioning:
        """Text features or class labels.

        ``negative`` None is the model's null text or class; the empty prompt where it learned none.
        """
        classes = self.transformer.classes
        if self.text_encoder is None or classes is not None:
            classes = classes or 0
            names = self.class_names
            labels = tuple(class_index(prompt, classes, names) for prompt in prompts)
            against = None if negative is None else (class_index(negative, classes, names),) * len(labels)
            return ClassConditioning(labels, against, self.device)
        limit = min(MAX_TOKENS, self.transformer.longest_text or MAX_TOKENS)
        learned, count = self.transformer.learned_null, len(prompts)
        texts = [*prompts, *([] if negative is None else [negative]), *([] if learned else [""])]
        features, padding = self.text_encoder.encode(texts, max_tokens=limit), ()
        if isinstance(self.text_encoder, PaddingEncoder):
            padding = self.text_encoder.padding(texts, max_tokens=limit)
        return TextConditioning(
            features[:count],
            None if negative is None else features[count : count + 1] * count,
            None if learned else features[-1],
            padding=padding[:count],
            negative_padding=() if negative is None else padding[count : count + 1] * count,
        )

    @torch.inference_mode()
    def pictured(
        self, conditioning: Conditioning, picture: np.ndarray, schedule: ScaleSchedule
    ) -> Conditioning:
        """The conditioning with a picture (H, W, 3) in bytes to edit, the same for every prompt.

        It lies at the top left of a white square. Raises ``ValueError`` for weights that edit none.
        """
        if not isinstance(conditioning, TextConditioning):
            raise ValueError("a picture to edit was given, but this model takes class labels; leave it out")
        dtype = next(self.tokenizer.parameters()).dtype
        square = to_square(picture, self.trained.image_size(schedule)[0])
        features = self.tokenizer.encode(encoder_input(square).to(device=self.device, dtype=dtype))
        return replace(conditioning, source=features.float().expand(conditioning.batch, -1, -1, -1))

    @torch.inference_mode()
    def reworded(
        self, conditioning: Conditioning, picture: np.ndarray, caption: str, schedule: ScaleSchedule
    ) -> tuple[Conditioning, WordEdit]:
        """What changes a picture (H, W, 3) in bytes from ``caption``, which describes it, to the prompts.

        Raises ``ValueError`` for models that take class labels.
        """
        dtype = next(self.tokenizer.parameters()).dtype
        pixels = encoder_input(stretched(picture, self.trained.image_size(schedule)))
        features = self.tokenizer.encode(pixels.to(device=self.device, dtype=dtype)).float()
        source = self.encode([caption] * conditioning.batch)
        return reworded(conditioning, source), WordEdit(features.expand(conditioning.batch, -1, -1, -1))

    def _asked(
        self,
        texts: Sequence[str],
        negative: str | None,
        schedule: ScaleSchedule,
        picture: np.ndarray | None,
        caption: str | None,
    ) -> tuple[Conditioning, WordEdit | None]:
        """What a run is conditioned on, and what changes a picture where its caption is known."""
        conditioning = self.encode(texts, negative)
        if picture is None:
            return conditioning, None
        if caption is not None:
            return self.reworded(conditioning, picture, caption, schedule)
        return self.pictured(conditioning, picture, schedule), None

    def _staged(
        self, first: Conditioning, negative: str | None, schedule: ScaleSchedule, later: Mapping[str, str]
    ) -> RunConditioning:
        """The same with other prompts from some stages on, by their names."""
        parts = {stage: self.encode([text] * first.batch, negative) for stage, text in later.items()}
        return from_stages(first, parts, StageBoundaries().stages(schedule))

    @torch.inference_mode()
    def decode(self, f_hat: Tensor) -> Tensor:
        """Accumulated latents (B, C, h, w) to images (B, H, W, 3) uint8 on the CPU.

        Raises ``ValueError`` where the decoder gives NaN or infinity.
        """
        dtype = next(self.tokenizer.parameters()).dtype
        pixels = f_hat.shape[2] * f_hat.shape[3] * self.tokenizer.config.stride**2
        parts = f_hat.to(dtype).split(max(1, DECODE_PIXELS // pixels))
        return torch.cat([self._decoded(part) for part in parts])

    def edited(self, f_hat: Tensor, picture: np.ndarray | None) -> Tensor:
        """The same in the size of the picture that was edited, where one was."""
        images = self.decode(f_hat)
        if picture is None:
            return images
        size = (picture.shape[0], picture.shape[1])
        return torch.from_numpy(np.stack([from_square(image, size) for image in images.numpy()]))

    def _decoded(self, f_hat: Tensor) -> Tensor:
        """Those of one pass of the decoder."""
        image = self.tokenizer.decode(f_hat)
        range_ = extremes(image)  # read after the images, for which the CPU waits anyway
        pictures = to_uint8(image).cpu()
        check_decoded(range_, f_hat)
        return pictures

    def __call__(  # noqa: PLR0913 - what a user may ask for, all but the prompt optional
        self,
        prompt: str | Sequence[str],
        negative: str | None = None,
        *,
        seed: int | Sequence[int] = 0,
        width: int | None = None,
        height: int | None = None,
        settings: SamplingSettings | None = None,
        batch: int = 1,
        steps: bool = False,
        monitor: Monitor | None = None,
        policy: AccelerationPolicy | None = None,
        picture: np.ndarray | None = None,
        caption: str | None = None,
        later: Mapping[str, str] | None = None,
        until: int | None = None,
        resumed: RunState | None = None,
    ) -> Pictures:
        """``batch`` images of every prompt; image ``i`` has the seed ``seed + i``, or that in its place.

        ``steps`` also decodes every scale. ``picture``: (H, W, 3) in bytes, what editing weights change, or
        others with its ``caption``. ``later``: prompts from a stage on. ``until``, ``resumed``: of drafts.
        """
        texts, seeds = requested(prompt, batch, seed)
        if resumed is not None:
            (height, width), seeds = self.trained.image_size(resumed.schedule), resumed.seeds
            settings = settings or resumed.settings
        elif picture is not None and caption is not None:
            height, width = picture.shape[:2]
        schedule, settings = self.schedule(width, height), settings or self.settings()
        settings.validate(len(schedule), self.transformer.config.depth)
        started = time.perf_counter()
        first, words = self._asked(texts, negative, schedule, picture, caption)
        squared = None if words else picture
        conditioning = self._staged(first, negative, schedule, later or {})
        synchronise(self.device)
        seconds: dict[str, Any] = {"text": time.perf_counter() - started}
        clock = Clock(self.device, steps, monitor)
        generation = generate(
            self.transformer,
            conditioning,
            schedule,
            settings,
            noise=SeededNoise.of(seeds),
            quantizer=self.quantizer,
            policy=policy,
            attention=self.attention,
            monitor=clock,
            words=words,
            device=self.device,
            until=until,
            resumed=resumed,
        )
        seconds["scales"] = [clock.seconds.get(scale.index, 0.0) for scale in schedule]
        decoding = time.perf_counter()
        images = self.edited(drafted(generation, self.quantizer), squared)
        seconds |= {"decode": time.perf_counter() - decoding, "total": time.perf_counter() - started}
        seen = {index: self.edited(latent, squared) for index, latent in clock.latents.items()}
        return Pictures(images, seeds, schedule, settings, seconds, generation, seen)
