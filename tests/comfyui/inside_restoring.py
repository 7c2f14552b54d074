"""Checks of StageVAR Restore inside ComfyUI's own process; `test_restoring.py` starts it.

python inside_restoring.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from checking import refused, run_checks
from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def restore(*arguments: Any, **inputs: Any) -> Any:
    """The pictures of one execution of the node."""
    from pack.nodes.restoring import Restore

    return Restore.execute(*arguments, **inputs).args[0]


def pictures(*shape: int) -> Any:
    import torch

    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def check_sizes(model: Any, vae: Any) -> None:
    """Every size comes out scaled: within a tile, over several, one pixel wide; alpha goes along."""
    import torch

    cases = ((20, 30, 3, 4.0), (40, 9, 4, 2.0), (60, 1, 3, 4.0), (1, 1, 3, 1.5))
    for shape, scale in (((1, *sides), scale) for *sides, scale in cases):
        image = pictures(*shape)
        found = restore(model, vae, image, 5, scale)
        assert found.shape == (1, *(round(side * scale) for side in shape[1:3]), shape[3]), found.shape
        assert found.dtype == torch.float32 and 0 <= found.min() <= found.max() <= 1
    alpha = torch.ones(1, 40, 9, 4) * 0.5
    assert abs(restore(model, vae, alpha, 5, 2.0)[..., 3] - 0.5).max() < 0.01


def check_batches(model: Any, vae: Any) -> None:
    """Picture n of a batch is that of seed + n, and a seed is a picture."""
    import torch

    image = pictures(2, 20, 20, 3)
    both = restore(model, vae, image, 7)
    assert torch.equal(both[:1], restore(model, vae, image[:1], 7))
    assert torch.equal(both[1:], restore(model, vae, image[1:], 8))
    assert not torch.equal(both[:1], restore(model, vae, image[:1], 8))


def check_tiles(model: Any, vae: Any) -> None:
    """A long picture holds what comes out and one row of tiles, and shows every tile as progress."""
    import torch
    from pack.nodes.host import restoring

    shown: list[float] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            shown.append(value / self.total)

    real, restoring.comfy.utils.ProgressBar = restoring.comfy.utils.ProgressBar, Bar
    try:
        found = restore(model, vae, pictures(1, 8, 200, 3), 1, 4.0, 64)
    finally:
        restoring.comfy.utils.ProgressBar = real
    assert found.shape == (1, 32, 800, 3) and torch.isfinite(found).all()
    assert shown == sorted(shown) and shown[-1] == 1.0 and len(set(shown)) == 12 * 4, shown  # 12 tiles


def check_cancel(model: Any, vae: Any) -> None:
    """Cancelling ends it between two blocks."""
    import comfy.model_management as mm
    from pack.nodes.host import restoring

    real, blocks = restoring.RestoreRun._show, []

    def cancels(self: Any, step: int) -> None:
        blocks.append(step)
        if len(blocks) == 2:
            mm.interrupt_current_processing(True)
        real(self, step)

    restoring.RestoreRun._show = cancels
    try:
        restore(model, vae, pictures(1, 20, 20, 3))
    except mm.InterruptProcessingException:
        assert len(blocks) == 2
    else:
        raise AssertionError("it went on")
    finally:
        restoring.RestoreRun._show = real
        mm.interrupt_current_processing(False)


def check_memory(model: Any, vae: Any) -> None:
    """Out of memory once: again with more set free; twice: one sentence."""
    import torch
    from pack.nodes.host import restoring

    image, real, calls = pictures(1, 20, 20, 3), restoring.Restorer.__call__, []
    expected = restore(model, vae, image, 3)

    def fails(times: int) -> Any:
        def run(self: Any, *arguments: Any) -> Any:
            calls.append(0)
            if len(calls) <= times:
                raise RuntimeError("CUDA out of memory")
            return real(self, *arguments)

        return run

    try:
        restoring.Restorer.__call__ = fails(1)
        assert torch.equal(restore(model, vae, image, 3), expected) and len(calls) == 2
        calls.clear()
        restoring.Restorer.__call__ = fails(9)
        restore(model, vae, image, 3)
    except RuntimeError as error:
        assert "Out of memory: a tile of 128x128" in str(error) and "fp8_e4m3fn" in str(error)
    else:
        raise AssertionError("it went on")
    finally:
        restoring.Restorer.__call__ = real


def check_networks(model: Any, vae: Any) -> None:
    """An upscale model goes first: on the picture where it enlarges, else on the enlarged one."""
    import torch
    from comfy.model_patcher import ModelPatcher

    seen: list[tuple[int, ...]] = []

    class Network(torch.nn.Module):
        input_channels = output_channels = 3

        def __init__(self, scale: int) -> None:
            super().__init__()
            self.scale, self.model = scale, torch.nn.Identity()
            self.patcher = ModelPatcher(self.model, torch.device("cpu"), torch.device("cpu"))  # as loaded

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(x.shape[2:]))
            return torch.nn.functional.interpolate(1.0 - x, scale_factor=self.scale)

    image = pictures(1, 20, 30, 3)
    plain = restore(model, vae, image)
    for scale in (1, 2, 4):
        found = restore(model, vae, image, upscale_model=Network(scale))
        assert found.shape == plain.shape and not torch.equal(found, plain)
    assert seen == [(80, 120), (20, 30), (20, 30)], seen
    refused(lambda: restore(model, vae, image, upscale_model="4x.pth"), "upscale_model", "Load Upscale Model")
    grey = Network(1)
    grey.input_channels = 1
    refused(lambda: restore(model, vae, image, upscale_model=grey), "upscale_model", "colour")


def check_text(model: Any, vae: Any) -> None:
    """A text changes the picture; without one the null text stands there."""
    import torch

    image = pictures(1, 20, 20, 3)
    text = [
        [torch.randn(1, 5, model.model.config.text_width, generator=torch.Generator().manual_seed(1)), {}]
    ]
    said = restore(model, vae, image, positive=text)
    assert not torch.equal(said, restore(model, vae, image))
    refused(
        lambda: restore(model, vae, image, positive=[[torch.zeros(1, 5, 3), {}]]), "positive", "(1, 5, 3)"
    )
    refused(lambda: restore(model, vae, image, positive="snow"), "positive", "CLIP Text Encode")


def check_notes(model: Any, vae: Any) -> None:
    """The node says size and tiles, and what has no effect."""
    from pack.nodes.acceleration import Accelerate
    from pack.nodes.restoring import Restore

    image, faster = pictures(1, 20, 50, 3), Accelerate.execute(model, "balanced").args[0]
    said = [Restore.execute(each, vae, image).ui["text"] for each in (model, faster)]
    assert said[0] == ["200 x 80, 3 tiles"] and said[1][0] == said[0][0], said
    assert "acceleration" in said[1][1], said


def check_refusals(model: Any, vae: Any) -> None:
    """Whatever does not belong is one sentence with the input's name."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE
    from pack.nodes.sampling import Sampler

    image = pictures(1, 20, 20, 3)
    other = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "default")
    codes = TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))
    refused(lambda: restore(other, codes, image), "model: ", "not known to restore")
    chosen = {"seed": 0, "cfg": -1.0, "temperature": -1.0, "top_k": -1, "top_p": -1.0}
    chosen |= {"width": 128, "height": 128, "batch_size": 1}
    text = [[torch.randn(1, 5, model.model.config.text_width), {}]]
    refused(
        lambda: Sampler.execute(model, vae, text, **chosen),
        "model: ",
        "restores pictures",
        "StageVAR Restore",
    )
    refused(lambda: restore(7, vae, image), "model: ", "Load StageVAR Model")
    refused(lambda: restore(model, "vae", image), "vae: ", "Load StageVAR Tokenizer")
    refused(lambda: restore(model, vae, "picture.png"), "image: ", "Load Image")
    refused(lambda: restore(model, vae, torch.zeros(0, 4, 4, 3)), "image: ")
    refused(lambda: restore(model, vae, image, seed=-1), "seed")
    for scale in (0.5, float("nan"), 9.0, "4", True):
        refused(lambda scale=scale: restore(model, vae, image, scale=scale), "scale")
    for overlap in (-1, 300, 0.5):
        refused(lambda overlap=overlap: restore(model, vae, image, overlap=overlap), "overlap")
    huge = torch.zeros(1, 1, 1, 3).expand(1, 16384, 16384, 3)
    refused(lambda: restore(model, vae, huge), "scale", "megapixels")
    strange = torch.full((1, 20, 20, 3), float("nan"))
    refused(lambda: restore(model, vae, strange), "image: found NaN", "expected values from 0 to 1")


def main() -> None:
    load_pack(PACK, MODELS)
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    with torch.inference_mode():
        model = load_transformer(
            files.load(files.TRANSFORMER, "restoring_transformer.safetensors"), "default"
        )
        vae = TokenizerVAE(files.load(files.TOKENIZER, "restoring_tokenizer.safetensors"))
        run_checks(globals(), model, vae)


main()
