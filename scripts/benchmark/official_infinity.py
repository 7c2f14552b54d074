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
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stagevar_core.devices import DTYPES, synchronise

from .machine import Resident, give_back, memory_of
from .standins import replace_compiler, replace_missing

WARM_UP_SCALES = 5  # up to 8x8 tokens, as the bench warms up


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
