"""Parity of STAR: generation with and without the inner sampler, smooth mode, teacher forcing.

In a batch the official code gives every row the cross-attention of prompt 0, here every image has that of its
own prompt. So runs with several prompts are generated whole and compared on image 0, where the two agree.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stagevar_core.autoencoders.vq import VQTokenizer
from stagevar_core.checkpoints import build
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models import star_sampler
from stagevar_core.models.contract import Drawing, Head
from stagevar_core.models.star import STAR
from stagevar_core.models.teacher import teacher_forced
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import ScaleSchedule

from .heads import WatchedHead
from .infinity import OneStreamNoise
from .report import Report, UnreadableFolder, UnreleasedOption, compare_all
from .var import IMAGE, LATENT, LOGITS, SMOOTH, Probe, decodes, detected, load_tokenizer, schedule_of

TOLERANCES = {
    **dict.fromkeys(("idx", "schedule", "pick"), 0.0),
    **dict.fromkeys(("f_hat", "var_input", "h", "rand"), LATENT),
    "image": IMAGE,
}
RELEASED = {
    "attn_l2_norm": True,
    "shared_aln": False,
    "enable_cross": True,
    "rotary_pos_emb": True,
    "absolute_lvl_emb": True,
    "enable_logit_norm": True,
    "sample_from_idx": star_sampler.FIRST_SCALE,
    "norm_eps": 1e-6,
    "mlp_ratio": 4.0,
}


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is STAR's."""
    return config.get("model") == "star"


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    found = [f"{key} {config[key]}" for key, usual in RELEASED.items() if config.get(key, usual) != usual]
    if found:
        raise UnreleasedOption(", ".join(found))
    tokenizer, model = load_tokenizer(folder, config["vae"]), load_transformer(folder, config)
    schedule = schedule_of(config)
    for name, options in config["runs"].items():
        stored = read(folder, f"run_{name}")
        texts = Texts(model, stored)
        measured = _generate(model, tokenizer, schedule, options, texts)
        if "image" in stored and not decodes(tokenizer):
            report.missing(name, "image", "an image is stored, but the tokenizer has no decoder")
        bound = SMOOTH if options.get("smooth") else 0.0
        _compare(report, name, measured, stored, texts.images, bound)
    if (folder / "teacher_forced.safetensors").is_file():
        _compare_teacher_forced(folder, model, tokenizer, schedule, report)


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a file under the report's names: ``X.3`` is ``scale03.X``, ``X.9.4`` of its pass 4."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise UnreadableFolder(f"{path.name} is missing")
    return {_renamed(key): value for key, value in load_file(path).items()}


def _renamed(key: str) -> str:
    if found := re.fullmatch(r"(.+?)\.(\d+)\.(\d+)(b?)", key):
        return f"{_pass(int(found[2]), int(found[3]), found[4])}.{found[1]}"
    if found := re.fullmatch(r"(.+)\.(\d+)", key):
        return f"scale{int(found[2]):02d}.{found[1]}"
    return key


def _pass(scale: int, place: int, second: str = "") -> str:
    return f"scale{scale:02d}pass{place:02d}{second}"


def load_transformer(folder: Path, config: dict) -> STAR:
    """The transformer of a folder in float32, recognised from its tensors and compared with its config."""
    checkpoint = detected(folder, config, in_dim_cross="text_width")
    found = checkpoint.config
    if len(config["patch_nums"]) != found.levels:
        raise UnreadableFolder(f"detected {found.levels} scales, but config.json says otherwise")
    rotary = {"rope_norm": config.get("rope_norm", 64.0), "rope_base": config.get("rope_theta", 10000.0)}
    checkpoint.config = replace(found, sides=tuple(config["patch_nums"]), **rotary)
    return build(checkpoint)


class Texts:
    """The texts of a run, taken out of what is stored: prompts, then as many null prompts or none.

    The pooled texts are stored on their own; ``pooled`` takes the model's place of looking them up.
    """

    def __init__(self, model: STAR, stored: dict[str, Tensor], *, guided: bool = True) -> None:
        features, mask = stored.pop("in.encoder_hidden_states"), stored.pop("in.attention_mask").bool()
        self._pooled, self._model = stored.pop("in.pooled"), model
        rows = [row[kept] for row, kept in zip(features, mask, strict=True)]
        self.images = len(rows) // 2 if guided else len(rows)
        self._rows = rows
        self.conditioning = TextConditioning(
            tuple(rows[: self.images]), tuple(rows[self.images :]) if guided else None
        )

    def __enter__(self) -> "Texts":
        self._model.pooled = self._look_up
        return self

    def __exit__(self, *error: object) -> None:
        del self._model.pooled

    def _look_up(self, texts: list[Tensor], regions: object = None) -> Tensor:
        """Pooled vectors of the prompts or, asked second, of the others; found by their features."""
        first = 0 if torch.equal(texts[0], self._rows[0]) else self.images
        return self._pooled[first : first + len(texts)]


class GlobalStream(OneStreamNoise):
    """The official draws: the model's generator, and torch's global one for the inner sampler.

    ``watch``: called with the draws that are used.
    """

    def __init__(self, seed: int, global_seed: int, watch: Callable[[Tensor], None]) -> None:
        super().__init__(seed)
        self._global, self._watch = torch.Generator().manual_seed(global_seed), watch

    def uniform(self, scale, shape, device) -> Tensor:
        draws = torch.rand(*shape, generator=self._global)
        if len(shape) == 2:  # the others are thrown away
            self._watch(draws)
        return draws


class StarProbe(Probe):
    """Also what the cross-attention gives and what the inner sampler draws and decides in every pass."""

    def __init__(self, model: STAR, tokenizer: VQTokenizer, old: bool) -> None:
        super().__init__(model, tokenizer)
        self._old, self._index, self._passes, self._decisions = old, 0, 0, 0

    def __enter__(self) -> "StarProbe":
        super().__enter__()
        for index, block in enumerate(self.model.blocks):
            self._handles.append(block.cross_attn.register_forward_hook(self._cross(index)))
        if self.model.sampler is not None:
            self._handles.append(self.model.sampler.head.register_forward_hook(self._sampler_head))
        self._functions = star_sampler._draw, star_sampler._decide, star_sampler.pass_counts
        star_sampler._draw, star_sampler._decide = self._draw, self._decide
        star_sampler.pass_counts = self._count
        return self

    def __exit__(self, *error: object) -> None:
        star_sampler._draw, star_sampler._decide, star_sampler.pass_counts = self._functions
        super().__exit__(*error)

    def _block_in(self, module: object, arguments: tuple) -> None:
        super()._block_in(module, arguments)
        self._index = arguments[1].scale.index

    def _cross(self, index: int):
        def record(module: object, arguments: tuple, output: Tensor) -> None:
            self.seen[f"{self._place}dbg.cross{index}"] = output

        return record

    def watched(self, head: Head) -> Head:
        """What draws at once is watched; the sampler's passes are by their functions."""
        if isinstance(head, star_sampler.SamplerHead):
            head.plain = WatchedHead(head.plain, self._drawn, self._changed)
            return head
        return WatchedHead(head, self._drawn, self._changed)

    def _changed(self, drawing: Drawing) -> Drawing:
        if not self._old:  # of the official version "old"
            return drawing
        late = 100 if self._index >= 12 else 300
        return replace(drawing, top_p=0.8, top_k=late if self._index >= 9 else drawing.top_k)

    def _count(self, tokens: int, count: int) -> list[int]:
        counts = self._functions[2](tokens, count)
        self._passes = -1
        self.seen[f"{self._place}schedule"] = torch.tensor(counts)
        return counts

    def _sampler_head(self, module: object, arguments: tuple, output: Tensor) -> None:
        self.seen[f"{_pass(self._index, self._passes + 1)}.sampler_logits_pre"] = output

    def _draw(self, ctx: Drawing, logits: Tensor) -> tuple[Tensor, Tensor]:
        ids, confidence = self._functions[0](ctx, logits)
        self._passes, self._decisions = self._passes + 1, 0
        place = _pass(self._index, self._passes)
        self.seen[f"{place}.logits_post"] = logits
        self.seen[f"{place}.idx"], self.seen[f"{place}.conf"] = ids, confidence
        return ids, confidence

    def uniform(self, draws: Tensor) -> None:
        """Called with the random order of a pass."""
        self.seen[f"{_pass(self._index, self._passes)}.rand"] = draws

    def _decide(self, *arguments) -> tuple[Tensor, Tensor]:
        chosen, decided = self._functions[1](*arguments)
        self.seen[f"{_pass(self._index, self._passes, 'b' * self._decisions)}.pick"] = decided
        self._decisions += 1
        return chosen, decided


@torch.inference_mode()
def _generate(
    model: STAR, tokenizer: VQTokenizer, schedule: ScaleSchedule, options: dict, texts: Texts
) -> dict[str, Tensor]:
    """One run; everything measured, under the names of the fixtures."""
    mode = "mixed" if options.get("version") == "1024" else "full"
    settings = SamplingSettings(
        cfg_scale=options["cfg"],
        temperature=1.0,
        top_k=options["top_k"],
        top_p=options["top_p"],
        smooth=options.get("smooth", False),
        refine=mode if options.get("w_mask") and model.refinements else "off",
    )
    old = options.get("version") == "old"
    with StarProbe(model, tokenizer, old) as probe, texts:
        result = generate(
            model,
            texts.conditioning,
            schedule,
            settings,
            noise=GlobalStream(options["g_seed"], options.get("global_seed", 0), probe.uniform),
            quantizer=tokenizer.quantizer(),
            monitor=probe,
        )
    if not decodes(tokenizer):
        return probe.seen
    return probe.seen | {"image": (tokenizer.decode(result.f_hat) + 1.0) / 2.0}


def _compare(
    report: Report,
    run: str,
    measured: dict[str, Tensor],
    stored: dict[str, Tensor],
    images: int,
    least: float,
) -> None:
    """Image 0 of both; its rows are 0 and, where both have two halves, the first of the second half.

    Without guidance the official code runs the second half all the same, and adds none of it.
    """
    stored = _as_maps(stored)

    def first(name: str, value: Tensor) -> Tensor:
        if name.endswith("schedule"):
            return value
        if "dbg.cross" in name or len(measured.get(name, value)) == images:
            return value[:1]
        return value[:: len(value) // 2]

    compare_all(
        report,
        run,
        {name: first(name, value) for name, value in measured.items()},
        {name: first(name, value) for name, value in stored.items()},
        lambda quantity: _tolerance(quantity, least),
    )


def _tolerance(quantity: str, least: float) -> float:
    tolerance = TOLERANCES.get(quantity, LOGITS)
    return max(tolerance, least) if tolerance else 0.0


def _as_maps(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picked positions as what is decided after them; a pick of a decided position has no effect."""
    maps: dict[str, Tensor] = {}  # per scale
    result = dict(stored)
    for name in sorted(name for name in stored if name.endswith(".pick")):
        place = name.partition(".")[0]
        nothing = torch.zeros_like(stored[f"{place.rstrip('b')}.idx"], dtype=torch.bool)
        decided = maps.get(place.partition("pass")[0], nothing)
        result[name] = maps[place.partition("pass")[0]] = decided.scatter(1, stored[name].long(), True)
    return result


@torch.inference_mode()
def _compare_teacher_forced(
    folder: Path, model: STAR, tokenizer: VQTokenizer, schedule: ScaleSchedule, report: Report
) -> None:
    stored, hidden = read(folder, "teacher_forced"), {}
    ids = [stored.pop(f"scale{scale.index:02d}.idx").unflatten(1, scale.grid) for scale in schedule]
    inputs = tokenizer.quantizer().teacher_inputs(ids, schedule)
    with Texts(model, stored, guided=False) as texts:
        logits = teacher_forced(model, texts.conditioning, inputs, schedule, monitor=hidden.__setitem__)
    measured = {"var_input": inputs, "logits": logits, "last_hidden": hidden[model.config.depth - 1]}
    _compare(report, "teacher forced", measured, stored, texts.images, 0.0)
