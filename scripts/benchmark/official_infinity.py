"""Times the official Infinity code at a given size, with random weights; ``bench.py --official`` runs it.

    python -m benchmark.official_infinity CHECKOUT < job.json      (in scripts/)

CHECKOUT is a clone of FoundationVision/Infinity; nothing in it is changed. It runs as its own
``tools/run_infinity.py`` does by default: blocks in bfloat16, the rest under autocast, guidance on the
logits, the same schedule, one warm-up on the first scales. The text features are random, the text encoder
is not part of it. What had to be replaced to run on this machine is in the report under 'replaced'; what a
machine has (flash-attn, timm, a GPU, a compiler) is used. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .machine import Resident, give_back, memory_of, synchronise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WARM_UP_SCALES = 5  # up to 8x8 tokens, as the bench warms up


# ------------------------------------------------------------------------------- what a machine may lack


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    """``flash_attn_func``: (rows, length, heads, head_dim)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def plain_packed_attention(  # noqa: PLR0913 - the signature of the function it stands for
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
) -> Tensor:
    """``flash_attn_varlen_kvpacked_func``: texts of any length one after the other, (tokens, heads, D)."""
    parts = []
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for row in range(len(keys) - 1):
        own = q[queries[row] : queries[row + 1]].unsqueeze(0)
        k, v = kv[keys[row] : keys[row + 1]].unsqueeze(0).unbind(2)
        parts.append(plain_attention(own, k, v, softmax_scale=softmax_scale)[0])
    return torch.cat(parts)


class CpuAutocast(torch.amp.autocast_mode.autocast):
    """The official code names 'cuda' wherever it switches autocast; on a CPU that means the CPU's."""

    def __init__(self, device_type: str = "cuda", dtype: Any = None, enabled: bool = True, **options) -> None:
        super().__init__("cpu", dtype=dtype, enabled=enabled, **options)


class CpuAutocastOfCuda(CpuAutocast):
    """``torch.cuda.amp.autocast``, which takes no device."""

    def __init__(self, enabled: bool = True, dtype: Any = torch.bfloat16, cache_enabled: bool = True) -> None:
        super().__init__("cuda", dtype, enabled, cache_enabled=cache_enabled)


class Float32LayerNorm(nn.LayerNorm):
    """In float32 whatever the weights are, as under the autocast of a GPU; the CPU's leaves it alone."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (part if part is None else part.float() for part in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


class _Unused:
    """Stands in for a name that is imported and not called."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("the stand-in of a missing package was called; install that package")


# Packages that the official code imports and generation does not use: module -> names asked of it.
UNUSED = {
    "timm": (),
    "timm.models": (),
    "timm.models.layers": ("DropPath", "drop_path"),
    "timm.loss": ("SoftTargetCrossEntropy",),
    "pytz": (),
    "imageio": (),
    "torchvision": (),
    "torchvision.transforms": (),
    "wandb": (),
    "tqdm": (),
}


def missing(package: str) -> bool:
    """Whether a package is not installed."""
    return importlib.util.find_spec(package) is None


def stand_in(name: str, **members: Any) -> None:
    """A module of this name; as an attribute of its parent, too."""
    module = types.ModuleType(name)
    module.__path__ = []  # submodules may be imported from it
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(module).update(members)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)


def replace_missing(device: torch.device) -> list[str]:
    """Stand-ins for what this machine lacks; says what they are."""
    said = []
    absent = [name for name in UNUSED if missing(name.partition(".")[0])]
    for name in absent:
        stand_in(name, **{member: type(member, (_Unused, nn.Module), {}) for member in UNUSED[name]})
    if "timm.models" in absent:
        sys.modules["timm.models"].register_model = lambda function: function
    if absent:
        packages = sorted({name.partition(".")[0] for name in absent})
        said.append(f"packages that generation does not use, not installed: {', '.join(packages)}")
    if missing("flash_attn"):
        stand_in("flash_attn")
        sys.modules["flash_attn"].flash_attn_func = plain_attention
        sys.modules["flash_attn"].flash_attn_varlen_kvpacked_func = plain_packed_attention
        said.append("flash-attn, not installed: cross-attention by PyTorch's scaled dot product per text")
    if device.type == "cpu":
        torch.autocast = torch.amp.autocast = CpuAutocast
        torch.cuda.amp.autocast = CpuAutocastOfCuda
        nn.LayerNorm = Float32LayerNorm
        said.append("autocast of 'cuda': that of the CPU, with layer norms in float32 as on a GPU")
    return said


def replace_compiler(device: torch.device) -> list[str]:
    """The official norm is compiled; where nothing can be, the same function runs as it is written."""
    x = torch.zeros(2, 3, device=device)
    try:
        torch.compile(lambda x: x.mul(x.add(1)), fullgraph=True)(x)
    except Exception as error:  # a compiler fails in its own ways
        torch.compile = lambda function=None, **options: function or (lambda decorated: decorated)
        return [f"torch.compile of the modulated norm, which fails here ({type(error).__name__}): uncompiled"]
    return []


# ---------------------------------------------------------------------------------------------- the model


def build(job: dict[str, Any], device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Transformer and tokenizer as ``tools/run_infinity.py`` makes them, with the weights they start with."""
    from infinity.models.bsq_vae.vae import vae_model
    from infinity.models.infinity import Infinity

    shape = job["shape"]
    multipliers = list(shape["multipliers"])
    tokenizer = vae_model(
        {},
        "dynamic",
        shape["dim"],
        2 ** shape["dim"],
        patch_size=2 ** (len(multipliers) - 1),
        encoder_ch_mult=multipliers,
        decoder_ch_mult=multipliers,
    ).to(device)
    with torch.no_grad():
        transformer = Infinity(
            vae_local=tokenizer,
            text_channels=shape["text_width"],
            text_maxlen=shape["null_rows"],
            embed_dim=shape["width"],
            depth=shape["depth"],
            num_heads=shape["heads"],
            mlp_ratio=shape["hidden"] / shape["width"],
            block_chunks=next(count for count in (8, 4, 2, 1) if shape["depth"] % count == 0),
            drop_path_rate=0.0,  # of training; the released 0.1 does nothing in generation
            shared_aln=True,
            raw_scale_schedule=None,
            checkpointing="full-block",
            customized_flash_attn=False,
            fused_norm=True,
            pad_to_multiplier=128,
            use_flex_attn=False,
            add_lvl_embeding_only_first_block=1,
            use_bit_label=1,
            rope2d_each_sa_layer=1,
            rope2d_normalized_by_hw=2,
            pn="1M",
            apply_spatial_patchify=int(shape["patch"] == 2),
            inference_mode=True,
            train_h_div_w_list=[1.0],
        )
    if dtype == torch.bfloat16:
        for block in transformer.unregistered_blocks:
            block.bfloat16()
    transformer = transformer.to(device).eval().requires_grad_(False)
    transformer.rng = torch.Generator(device=device)
    return transformer, tokenizer


class Clock:
    """When every scale and the decoder start, from calls that the official code makes anyway."""

    def __init__(self, transformer: nn.Module, tokenizer: nn.Module, device: torch.device) -> None:
        self.device, self.memory = device, memory_of(device)
        self.marks: list[float] = []
        self.peaks: list[int | None] = []
        # Called once per scale before the first block, and once per image.
        transformer.add_lvl_embeding = self._marking(transformer.add_lvl_embeding)
        tokenizer.decode = self._marking(tokenizer.decode)

    def start(self) -> None:
        """Begin a run."""
        self.marks, self.peaks = [], []
        give_back()
        self.memory.reset()
        self.mark()

    def mark(self) -> None:
        """The time now, and the peak of the memory since the last mark."""
        synchronise(self.device)
        self.marks.append(time.perf_counter())
        self.peaks.append(self.memory.peak())
        self.memory.reset()

    def _marking(self, function: Callable) -> Callable:
        def marked(*arguments: Any, **options: Any) -> Any:
            self.mark()
            return function(*arguments, **options)

        return marked


def text(job: dict[str, Any], device: torch.device) -> tuple:
    """Random features of every prompt as ``encode_prompt`` returns them: packed, with lengths and offsets."""
    count, length = job["batch"], job["text_tokens"]
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(length, job["shape"]["text_width"], generator=generator).to(device)
    offsets = torch.arange(0, (count + 1) * length, length, dtype=torch.int32, device=device)
    return features.repeat(count, 1), [length] * count, offsets, length


def generate(job: dict[str, Any], transformer: nn.Module, tokenizer: nn.Module, seed: int, **options) -> Any:
    """One call of the official sampler with the settings of a job."""
    grids = [(1, *grid) for grid in job["grids"]]
    return transformer.autoregressive_infer_cfg(
        vae=tokenizer,
        scale_schedule=grids,
        label_B_or_BLT=text(job, next(transformer.parameters()).device),
        B=job["batch"],
        g_seed=seed,
        cfg_list=[job["cfg"]] * len(grids),
        tau_list=[job["temperature"]] * len(grids),
        cfg_sc=3,
        top_k=job["top_k"],
        top_p=job["top_p"],
        returns_vemb=1,
        cfg_insertion_layer=[0],
        vae_type=job["shape"]["dim"],
        gt_leak=0,
        inference_mode=True,
        **options,
    )


def run(job: dict[str, Any], transformer: nn.Module, tokenizer: nn.Module, clock: Clock, seed: int) -> dict:
    """One measured image or batch: seconds by phase and scale, peaks of the memory."""
    clock.start()
    images = generate(job, transformer, tokenizer, seed, ret_img=True)[2]
    clock.mark()
    start, *scales, decode, end = clock.marks
    scales[0] = start  # the text's projections count to the first scale, as in the bench
    ends = [*scales[1:], decode]
    return {
        "size": [images.shape[2], images.shape[1]],
        "seconds": {"total": end - start, "transformer": decode - start, "decode": end - decode},
        "scales": [after - before for before, after in zip(scales, ends, strict=True)],
        "peak_sampling": max((peak for peak in clock.peaks[:-1] if peak), default=None),
        "peak_decode": clock.peaks[-1],
    }


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Build, warm up, run ``repeat`` times; medians."""
    device, dtype = torch.device(job["device"]), DTYPES[job["dtype"]]
    replaced = replace_missing(device) + replace_compiler(device)
    transformer, tokenizer = build(job, device, dtype)
    clock = Clock(transformer, tokenizer, device)
    narrow = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    with narrow, torch.no_grad():
        generate(job, transformer, tokenizer, 0, trunk_scale=min(WARM_UP_SCALES, len(job["grids"])))
        tokenizer.decode(torch.zeros(1, job["shape"]["dim"], 8, 8, device=device))
        runs = [run(job, transformer, tokenizer, clock, seed) for seed in range(job["repeat"])]
    weights = sum(
        p.numel() * p.element_size() for part in (transformer, tokenizer) for p in part.parameters()
    )
    peaks = {
        name: max((r[name] for r in runs if r[name]), default=None)
        for name in ("peak_sampling", "peak_decode")
    }
    return {
        "size": runs[0]["size"],
        "repeat": job["repeat"],
        "seconds": {name: statistics.median(r["seconds"][name] for r in runs) for name in runs[0]["seconds"]},
        "scales": [statistics.median(times) for times in zip(*(r["scales"] for r in runs), strict=True)],
        "bytes": peaks
        | {
            "kind": memory_of(device).kind,
            "weights": weights,
            "peak": max((peak for peak in peaks.values() if peak), default=None),
            "resident": Resident().peak() if device.type == "cuda" else None,
        },
        "replaced": replaced,
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The official code says much; here that goes to the error stream."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def main() -> int:
    """Read a job, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="a clone of FoundationVision/Infinity")
    arguments = parser.parse_args()
    if not (arguments.checkout / "infinity" / "models" / "infinity.py").is_file():
        parser.error(
            f"{arguments.checkout} is no clone of FoundationVision/Infinity; infinity/models is missing"
        )
    job = json.load(sys.stdin)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    sys.path.insert(0, str(arguments.checkout))
    with quiet():
        found = measure(job)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
