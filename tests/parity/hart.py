"""Parity of HART: text, scales, drawn tokens, the residual diffusion with replayed noise, pictures."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stagevar_core.autoencoders.hybrid import HybridTokenizer
from stagevar_core.checkpoints import build, prepare
from stagevar_core.conditioning.types import TextConditioning
from stagevar_core.models.hart import HART
from stagevar_core.models.residual_diffusion import spaced
from stagevar_core.sampling.generate import generate
from stagevar_core.sampling.settings import SamplingSettings
from stagevar_core.schedule import Scale, ScaleSchedule

from .infinity import OneStreamNoise
from .report import Report, UnreadableFolder, UnreleasedOption, compare_all
from .var import IMAGE, LATENT, LOGITS, NAMES, SMOOTH, Probe, decodes, load_part_as, schedule_of, weights
from .var import read as read_places

TOLERANCES = {
    **dict.fromkeys(("idx", "places"), 0.0),
    **dict.fromkeys(("f_hat", "h", "diff_out", "diff_cfg"), LATENT),
    "image": IMAGE,
}
RELEASED = {
    "attn_type": "llama",
    "mlp_type": "llama",
    "norm_eps": 1e-6,
    "use_cross_attn": False,
    "diffusion_head_repeats": 1,
    "sampler": "iddpm",
}
# Our names of the entries of config.json that HART alone has.
OWN = {"context_token": "context", "context_dim": "text_width", "patch_nums": "sides"}
OWN |= {"attn_l2_norm": "cosine", "use_context_norm": "context_norm", "sep_aln_pooling_mode": "pooling"}
OWN |= {"diff_width": "diff_width", "diff_depth": "diff_depth"}


def claims(folder: Path, config: dict) -> bool:
    """Whether a folder is HART's."""
    return config.get("model") == "hart"


def compare(folder: Path, config: dict, report: Report) -> None:
    """Compare everything that the folder stores."""
    refuse(config, RELEASED)
    tokenizer, model = load_tokenizer(folder, config), load_transformer(folder, config)
    schedule = schedule_of(config)
    for name, options in config["runs"].items():
        refuse(options, {"num_maskgit_iters": 1})
        stored = read(folder, f"run_{name}")
        measured = _generate(model, tokenizer, schedule, options, stored)
        if "image" in stored and not decodes(tokenizer):
            report.missing(name, "image", "an image is stored, but the tokenizer has no decoder")
        smooth = options.get("smooth", False)
        compare_all(report, name, measured, stored, lambda quantity, s=smooth: tolerance(quantity, smooth=s))


def tolerance(quantity: str, *, smooth: bool) -> float:
    """How close a quantity must be; a small temperature amplifies rounding."""
    least = TOLERANCES.get(quantity, LOGITS)
    return max(least, SMOOTH) if smooth and least else least


def refuse(options: dict, released: dict) -> None:
    """``UnreleasedOption`` naming what differs from the released models."""
    found = [f"{key} {options[key]}" for key, usual in released.items() if options.get(key, usual) != usual]
    if found:
        raise UnreleasedOption(", ".join(found))


def read(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a run; of the diffusion by names that no scale has."""
    stored = read_places(folder, name)
    noise = {key: stored.pop(key) for key in list(stored) if key.endswith("diff.noise_step")}
    steps = {f"diff_noise.{int(key[5:7])}": value for key, value in noise.items()}
    return {key.replace("diff.", "diff_"): value for key, value in stored.items()} | steps


def load_transformer(folder: Path, config: dict) -> HART:
    """The transformer of a folder in float32, recognised from its tensors and compared with its config."""
    checkpoint = prepare(weights(folder), None, folder.name, kind="transformer")
    steps = config.get("num_sampling_steps", "8")
    if not str(steps).isdecimal():
        raise UnreleasedOption(f"num_sampling_steps {steps}")
    unseen = {"heads": config["num_heads"], "pooling": config.get("sep_aln_pooling_mode", "max")}
    found = checkpoint.config = replace(checkpoint.config, **unseen, diff_steps=int(steps))
    if config.get("diffusion_timesteps", spaced(int(steps))) != spaced(int(steps)):
        raise UnreadableFolder(f"{steps} steps are {spaced(int(steps))}, but config.json says otherwise")
    said = {key: config[key] for key in {**NAMES, **OWN} if key in config}
    said |= {"modulation": "none", "level_table": not config.get("use_timestep_embed", False)}
    if not config.get("disable_aln", False):
        said["modulation"] = "own"
    elif config.get("shared_aln", False):
        said["modulation"] = "shared"
    for key, value in said.items():
        has = getattr(found, {**NAMES, **OWN}.get(key, key))
        if (list(has) if isinstance(has, tuple) else has) != value:
            raise UnreadableFolder(f"detected {key} {has}, but config.json says {value}")
    return build(checkpoint)


def load_tokenizer(folder: Path, config: dict) -> HybridTokenizer:
    """The tokenizer that a folder names, with its own codebook where it has one."""
    names, tensors = config["vae"].partition(" with ")[0], {}
    for part in names.split("+"):
        tensors |= weights(folder / part.strip())
    codebook = folder / "codebook.safetensors"
    if codebook.is_file():
        tensors |= {key: value.float() for key, value in load_file(codebook).items()}
    if {"encoder", "decoder"} <= {key.partition(".")[0] for key in tensors}:
        named = {f"vae.{key}": value for key, value in tensors.items()}
        return build(prepare(named, None, names, kind="tokenizer"))
    return load_part_as(HybridTokenizer, folder / names.split("+")[0].strip(), tensors)


class RecordedNoise(OneStreamNoise):
    """The official draws: the model's generator, and for the diffusion what is stored or the global one."""

    def __init__(self, options: dict, stored: dict[str, Tensor], *, halves: bool) -> None:
        super().__init__(options["g_seed"])
        self._halves = halves
        self._global = torch.Generator().manual_seed(options.get("global_seed", 0))
        first = stored.pop("diff_noise_init", None)
        steps = [stored.pop(name) for name in sorted(n for n in stored if n.startswith("diff_noise."))]
        self._recorded = [] if first is None else [first, *steps]

    def normal(self, scale, shape, device) -> Tensor:
        """Both halves of guidance have noise of their own at the steps; that of the first one counts."""
        count = shape[0] * shape[1]
        if self._recorded:
            drawn = self._recorded.pop(0)
        else:
            drawn = torch.randn((2 - self._halves) * count, *shape[2:], generator=self._global)
        self._halves = False  # the state at first, which they have in common under guidance
        return drawn[:count].view(*shape)


class HARTProbe(Probe):
    """Also the logits of the whole text, and what the residual diffusion sees and gives."""

    model: HART

    def __enter__(self) -> "HARTProbe":
        super().__enter__()
        network = self.model.diffusion
        self._handles.append(network.text.register_forward_pre_hook(self._seen))
        self._sample = network.sample
        network.sample = self._sampled
        return self

    def __exit__(self, *error: object) -> None:
        del self.model.diffusion.sample
        super().__exit__(*error)

    def logits(self, scale: Scale, raw: Tensor, guided: Tensor) -> None:
        super().logits(scale, raw, guided)
        if scale.index == 0:
            text = self.seen[f"{self._place}dbg.block{self.model.config.depth - 1}"]
            self.seen[f"{self._place}logits_pre"] = self.model.logits(text, self.state)

    def _block_in(self, module: object, arguments: tuple) -> None:
        super()._block_in(module, arguments)
        self.state = arguments[1].conditioned

    def _seen(self, module: object, arguments: tuple) -> None:
        self.seen["diff_z"] = arguments[0].flatten(0, 1)

    def _sampled(self, *arguments) -> Tensor:
        residual = self._sample(*arguments)
        self.seen["diff_out"] = residual.flatten(0, 1)
        return residual


@torch.inference_mode()
def _generate(
    model: HART, tokenizer: HybridTokenizer, schedule: ScaleSchedule, options: dict, stored: dict[str, Tensor]
) -> dict[str, Tensor]:
    """One run; everything measured, under the names of the fixtures."""
    context, mask = stored.pop("in.context"), stored.pop("in.mask")
    padding = tuple(int(row.numel() - row.sum()) for row in mask)
    stored["places"] = stored.pop("in.position_ids")
    strength = options["cfg"] * ((len(schedule) - 2) / (len(schedule) - 1))
    settings = SamplingSettings(
        cfg_scale=options["cfg"],
        temperature=1.0,
        top_k=options.get("force_top_k", 600),
        top_p=options.get("top_p", 0.0),
        smooth=options.get("smooth", False),
        refine="off" if options.get("final_stage") else "auto",
    )
    with HARTProbe(model, tokenizer) as probe:
        result = generate(
            model,
            TextConditioning(tuple(context), padding=padding),
            schedule,
            settings,
            noise=RecordedNoise(options, stored, halves=strength != 1.0),
            quantizer=tokenizer.quantizer(),
            monitor=probe,
        )
    seen = probe.seen | {"places": probe.state.places[: len(context)]}
    seen["diff_cfg"] = torch.tensor(strength)
    for name in ("diff_z", "diff_out"):  # both halves are stored, of which one may not run or not count
        if name in stored and name in seen:
            stored[name] = stored[name][: len(seen[name])]
    if decodes(tokenizer):
        seen["image"] = (tokenizer.decode(result.f_hat) + 1.0) / 2.0
    return seen
