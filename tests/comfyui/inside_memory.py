"""Checks of what happens when memory is short, inside ComfyUI's own process; `test_memory.py` starts it.

python inside_memory.py COMFYUI PACK          prints one line per check that passed
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
SIZE = (128, 128)
GIB = 2**30


def loaded(weight_dtype: str = "default") -> tuple[Any, Any]:
    """The embedded model and its tokenizer."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    model = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), weight_dtype)
    return model, TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))


def text_encoder(weight_dtype: str = "default") -> Any:
    """The embedded text encoder."""
    from pack.nodes.host import files
    from pack.nodes.host.clip import load_text_encoder

    return load_text_encoder(files.load(files.TEXT_ENCODER, files.EMBEDDED), weight_dtype, None)


def job(model: Any, vae: Any, images: int, preset: str = "off", **settings: Any) -> Any:
    """A run of the sampler on fixed text features."""
    import torch
    from pack.nodes.host.running import Job
    from pack.stagevar_core.acceleration.presets import PRESETS
    from pack.stagevar_core.conditioning.types import TextConditioning
    from pack.stagevar_core.sampling.settings import SamplingSettings

    features = torch.randn(5, model.model.config.text_width, generator=torch.Generator().manual_seed(0))
    schedule = model.model.checkpoint.trained.snap(*SIZE)
    text = TextConditioning((features,) * images)
    return Job(model, vae, text, schedule, SamplingSettings(**settings), 3, PRESETS[preset])


@contextlib.contextmanager
def replaced(place: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module or object for a while."""
    before = {name: getattr(place, name) for name in values}
    try:
        for name, value in values.items():
            setattr(place, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


class Said(logging.Handler):
    """What is logged meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Said:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


def failing(real: Callable, calls: list, until: Callable[[int, bool], bool]) -> Callable:
    """``generate`` that runs out of memory on its way, unless ``until(images, sequential)`` holds."""
    import torch

    def generate(network: Any, conditioning: Any, schedule: Any, *args: Any, **options: Any) -> Any:
        calls.append((conditioning.batch, options["sequential"]))
        if not until(*calls[-1]):
            options["monitor"].block(schedule[3], 0)
            raise torch.cuda.OutOfMemoryError("Allocation on device")
        return real(network, conditioning, schedule, *args, **options)

    return generate


def check_ladder(model: Any, vae: Any) -> None:
    """Every step of the ladder is taken and said, and draws what the dense run draws."""
    import torch
    from pack.nodes.host import running

    cases = [
        # guidance, images, what runs at last, the calls, what the notes say
        (3.0, 1, lambda images, turns: turns, [(1, False), (1, True)], "run in turn"),
        (3.0, 2, lambda images, turns: turns, [(2, False), (2, True)], "run in turn"),
        (
            *(3.0, 2, lambda images, turns: turns and images == 1),
            [(2, False), (2, True), (1, True), (1, True)],
            "image by image, the rows of guidance run in turn",
        ),
        (1.0, 2, lambda images, turns: images == 1, [(2, False), (1, False), (1, False)], "image by image"),
    ]
    for cfg, images, until, expected, words in cases:
        work, calls = job(model, vae, images, cfg_scale=cfg), []
        whole, dense, _ = running.run(work, SIZE)
        with replaced(running, generate=failing(running.generate, calls, until)), Said() as said:
            latents, trace, _ = running.run(work, SIZE)
        assert calls == expected, calls
        assert torch.allclose(latents, whole, atol=1e-3) and trace.flops == dense.flops
        assert not dense.notes and any(
            note.startswith("out of memory") and words in note for note in trace.notes
        )
        assert any("out of memory" in line and words in line for line in said.lines)


def check_failure(model: Any, vae: Any) -> None:
    """When nothing helps, the error says what would have been needed, and the next run works."""
    from pack.nodes.host import running

    work, calls = job(model, vae, 2), []
    with replaced(running, generate=failing(running.generate, calls, lambda images, turns: False)):
        try:
            running.run(work, SIZE)
        except RuntimeError as error:
            message = str(error)
    assert calls == [(2, False), (2, True), (1, True)]
    assert "Out of memory: one image of 128x128" in message and "GiB" in message
    calls.clear()
    with replaced(running, generate=failing(running.generate, calls, lambda images, turns: True)):
        running.run(work, SIZE)
    assert calls == [(2, False)]


def check_choice(model: Any, vae: Any) -> None:
    """Where the estimate does not fit, the run begins with a cheaper way, without failing first."""
    import comfy.model_management as mm
    import torch
    from pack.nodes.host import running

    class Card:
        """The patcher on a GPU of which nothing is there but its name."""

        load_device = torch.device("cuda")

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    work = job(Card(), vae, 2, "off")
    ways = running.attempts(work)
    assert [(way.apart, way.sequential) for way in ways] == [(False, False), (False, True), (True, True)]
    needs = [way.memory(work).total for way in ways]
    assert needs == sorted(needs, reverse=True) and needs[1] < 0.7 * needs[0]
    weights = model.model_size()

    def begins(room: float) -> int:
        fake = {"get_free_memory": lambda *_: room, "extra_reserved_memory": lambda: 0}
        with replaced(mm, loaded_models=list, **fake):
            return running.first_attempt(work, ways)

    assert begins(needs[0] + weights) == 0
    assert begins(needs[1] + weights) == begins((needs[0] + needs[1]) / 2 + weights) == 1
    assert begins(needs[2] + weights) == 2
    assert begins(needs[2] / 2) == 2  # nothing fits: what needs least
    # What other models hold counts as free, since they make room.
    with replaced(mm, loaded_models=lambda: [SimpleLoaded(needs[0] + weights)]):
        fake = {"get_free_memory": lambda *_: 0, "extra_reserved_memory": lambda: 0}
        with replaced(mm, **fake):
            assert running.first_attempt(work, ways) == 0
    assert running.first_attempt(job(model, vae, 2), ways) == 0  # the CPU has but one memory


class SimpleLoaded:
    """Another model on the card."""

    def __init__(self, size: float) -> None:
        import torch

        self.load_device, self._size = torch.device("cuda"), size

    def loaded_size(self) -> float:
        return self._size


def check_decoding(vae: Any) -> None:
    """Decoding falls back to tiles, then to smaller ones, and then says what it needs."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pixels = torch.nn.functional.interpolate(
        torch.rand(1, 3, 12, 12, generator=generator), size=(1024, 1024), mode="bicubic"
    ).clamp(0, 1)
    latents = vae.encode(pixels.movedim(1, -1))
    tokenizer, sides = vae.first_stage_model, []
    real = tokenizer.decode

    def short(limit: int, error: type[Exception] = torch.cuda.OutOfMemoryError) -> Callable:
        def decode(f_hat: Any) -> Any:
            sides.append(tuple(f_hat.shape[-2:]))
            if f_hat.shape[-2] * f_hat.shape[-1] > limit**2:
                raise error("CUDA out of memory")
            return real(f_hat)

        return decode

    whole, side = vae.decode(latents), latents.shape[-1]
    assert side == 128, side
    for limit, error, least in (
        (64, torch.cuda.OutOfMemoryError, 30.0),
        (32, torch.cuda.OutOfMemoryError, 24.0),
        (32, RuntimeError, 24.0),
    ):
        sides.clear()
        with replaced(tokenizer, decode=short(limit, error)), Said() as said:
            tiled = vae.decode(latents)
        assert sides[0] == (side, side) and all(h * w <= limit**2 for h, w in sides[-9:])
        assert any("tile" in line for line in said.lines), said.lines
        assert tiled.shape == whole.shape
        check_seams(whole, tiled, vae.config.stride, least)
    with replaced(tokenizer, decode=short(1)):
        try:
            vae.decode(latents)
        except RuntimeError as error:
            assert "decoding one image of" in str(error) and "GiB" in str(error)
        else:
            raise AssertionError("nothing failed")
    assert torch.equal(vae.decode(latents), whole)


def check_seams(whole: Any, tiled: Any, stride: int, least: float) -> None:
    """Tiles look like the whole (PSNR in dB), and no border stands out as a step."""
    error = whole - tiled
    psnr = -10 * error.square().mean().log10().item()
    assert psnr > least, f"PSNR {psnr:.1f} dB"
    for axis in (1, 2):
        steps = (
            error.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(dim=1)
        )  # between neighbouring rows
        borders = steps[stride - 1 :: stride]  # tiles begin and end at latent pixels
        assert borders.max() < 0.02, (axis, borders.max().item(), steps.mean().item())


def features(clip: Any) -> Any:
    """The encoded prompt."""
    return clip.encode_from_tokens(clip.tokenize("a large red circle above a small blue square"))


def check_narrow_text() -> None:
    """A text encoder in fp8 gives nearly the same features; its norms and position tables stay wide."""
    import torch

    clip = text_encoder("fp8_e4m3fn")
    kinds = {name: parameter for name, parameter in clip.cond_stage_model.named_parameters()}
    narrow = [name for name, p in kinds.items() if p.dtype == torch.float8_e4m3fn]
    assert narrow and all(kinds[name].dim() > 1 for name in narrow)
    tables = [p for name, p in kinds.items() if "relative_attention_bias" in name or p.dim() < 2]
    assert tables and all(p.dtype.itemsize > 1 for p in tables)
    wide, found = features(text_encoder()), features(clip)
    assert found.shape == wide.shape
    alike = torch.nn.functional.cosine_similarity(found.float(), wide.float(), dim=-1)
    assert alike.min() > 0.97, alike.min()


def check_narrow_weights(vae: Any) -> None:
    """A transformer in fp8 computes in a wider dtype and draws nearly the bits of bfloat16."""
    from pack.nodes.host import running

    found = {}
    for dtype in ("bfloat16", "fp8_e4m3fn"):
        model, _ = loaded(dtype)
        kinds = dict(model.model.named_parameters())
        runs, generate = [], running.generate

        def spy(*args: Any, runs: list = runs, generate: Callable = generate, **options: Any) -> Any:
            runs.append(generate(*args, **options))
            return runs[-1]

        with replaced(running, generate=spy):
            running.run(job(model, vae, 2), SIZE)
        found[dtype] = model, kinds, runs[0].codes
    model, kinds, _ = found["fp8_e4m3fn"]
    narrow = [name for name, p in kinds.items() if p.dtype.itemsize == 1]
    assert narrow and all(".blocks." in f".{name}" and kinds[name].dim() > 1 for name in narrow)
    saved = sum(kinds[name].numel() for name in narrow)  # a byte of two
    assert abs(found["bfloat16"][0].model_size() - saved - model.model_size()) < 0.02 * model.model_size()
    assert model.model.compute_dtype.itemsize > 1
    same = [
        (a == b).float().mean().item()
        for a, b in zip(found["bfloat16"][2][:3], found["fp8_e4m3fn"][2][:3], strict=True)
    ]
    print("agreement of the first scales in fp8 with bfloat16:", [f"{share:.3f}" for share in same])
    assert min(same) > 0.85, same


@contextlib.contextmanager
def small_card(total: Callable[[], float]) -> Iterator[Any]:
    """ComfyUI's manager with a card of so many bytes: the CPU under a second name."""
    import comfy.model_management as mm
    import torch

    card, cpu = torch.device("cpu:0"), torch.device("cpu")

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        used = sum(each.loaded_size() for each in mm.loaded_models() if each.load_device == card)
        left = total() - used
        return (left, left) if torch_free_too else left

    fake = {
        "get_free_memory": free,
        "is_device_cpu": lambda device: device == cpu,
        "minimum_inference_memory": lambda: 0,
        "extra_reserved_memory": lambda: 0,
        "vram_state": mm.VRAMState.NORMAL_VRAM,
        "MIN_WEIGHT_MEMORY_RATIO": 0.0,
    }
    mm.unload_all_models()
    with replaced(mm, **fake):
        yield card
        mm.free_memory(float("inf"), card)


def check_offloading(vae: Any) -> None:
    """The text encoder makes room for the transformer, which is loaded in part where it does not fit."""
    import comfy.model_management as mm
    import torch
    from pack.nodes.host import running

    model, _ = loaded()
    clip, work = text_encoder(), job(model, vae, 1)
    expected, *_ = running.run(work, SIZE)
    needed, weights = work.memory(1).total, model.model_size()
    room = needed + 1.05 * weights
    with small_card(lambda: room) as card:
        clip.patcher.load_device = model.load_device = card
        mm.load_models_gpu([clip.patcher])
        assert clip.patcher.loaded_size() > room - needed - weights, "both fit; the check says nothing"
        latents, *_ = running.run(work, SIZE)
        assert model.loaded_size() == weights, "the transformer did not fit"
        assert clip.patcher.loaded_size() < clip.patcher.model_size(), "the text encoder stayed"
        assert torch.allclose(latents, expected, atol=1e-4)
    room = needed + 0.5 * weights
    with small_card(lambda: room) as card:
        latents, *_ = running.run(work, SIZE)
        assert 0 < model.loaded_size() <= 0.55 * weights, model.loaded_size() / weights
        assert torch.allclose(latents, expected, atol=1e-4)
    with small_card(lambda: room) as card, replaced(mm, vram_state=mm.VRAMState.NO_VRAM):
        latents, *_ = running.run(work, SIZE)
        assert model.loaded_size() < 0.1 * weights, model.loaded_size() / weights
        assert torch.allclose(latents, expected, atol=1e-4)
    clip.patcher.load_device = model.load_device = torch.device("cpu")


def check_lora(vae: Any) -> None:
    """Weights that are patched as they are used, as they do not fit, give the picture of patched ones."""
    import comfy.model_management as mm
    import torch
    from pack.nodes.host import running
    from pack.nodes.lora import LoadLora

    model, _ = loaded()
    clone = LoadLora.execute(model).args[0]
    expected, plain = (running.run(job(each, vae, 1), SIZE)[0] for each in (clone, model))
    assert not torch.allclose(plain, expected, atol=0.1)
    work, weights = job(clone, vae, 1), model.model_size()
    for state, share in ((mm.VRAMState.NORMAL_VRAM, 0.55), (mm.VRAMState.NO_VRAM, 0.1)):
        room = work.memory(1).total + 0.5 * weights
        with small_card(lambda room=room: room) as card, replaced(mm, vram_state=state):
            clone.load_device = card
            latents = running.run(work, SIZE)[0]
            assert clone.loaded_size() <= share * weights, clone.loaded_size() / weights
            lazy = sum(len(getattr(module, "weight_function", ())) for module in clone.model.modules())
            assert 0 < lazy <= 30 and torch.allclose(latents, expected, atol=1e-4), lazy
    clone.load_device = torch.device("cpu")
    assert torch.equal(running.run(job(model, vae, 1), SIZE)[0], plain), "the patches are off again"


def main() -> None:
    load_pack(PACK)
    import torch

    with torch.inference_mode():
        model, vae = loaded()
        checks = {
            "ladder": lambda: check_ladder(model, vae),
            "failure": lambda: check_failure(model, vae),
            "choice": lambda: check_choice(model, vae),
            "decoding": lambda: check_decoding(vae),
            "text in fp8": check_narrow_text,
            "weights in fp8": lambda: check_narrow_weights(vae),
            "offloading": lambda: check_offloading(vae),
            "lora": lambda: check_lora(vae),
        }
        for name, check in checks.items():
            check()
            print(f"ok: {name}", flush=True)


main()
