"""Checks of packed weights, inside ComfyUI's own process; `test_packed.py` starts it.

python inside_packed.py COMFYUI PACK          prints one line per check that passed
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from checking import run_checks
from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def loaded() -> tuple[Any, Any]:
    """The embedded model of the artwork, which takes classes, in bfloat16, and its tokenizer."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    model = load_transformer(files.load(files.TRANSFORMER, files.ARTWORK), "bfloat16")
    return model, TokenizerVAE(files.load(files.TOKENIZER, files.ARTWORK))


def drawn(model: Any, vae: Any) -> Any:
    """The latent of one run."""
    from pack.nodes.host.running import Job, run
    from pack.stagevar_core.acceleration.presets import PRESETS
    from pack.stagevar_core.conditioning.types import ClassConditioning
    from pack.stagevar_core.sampling.settings import SamplingSettings

    trained = model.model.checkpoint.trained
    schedule = trained.schedule(1.0, next(iter(trained.budgets)))
    job = Job(
        model, vae, ClassConditioning((1,)), schedule, SamplingSettings(cfg_scale=2.0), 3, PRESETS["off"]
    )
    return run(job, trained.image_size(schedule)).f_hat


def kinds(model: Any) -> list[bool]:
    """Of every linear layer of the blocks whether it is packed."""
    import torch
    from pack.nodes.host.packed import PackedWeight

    blocks = model.model.blocks.modules()
    return [isinstance(each.weight, PackedWeight) for each in blocks if isinstance(each, torch.nn.Linear)]


def check_a_run_packs_and_draws_what_the_command_line_draws(model: Any, vae: Any) -> None:
    import torch
    from pack.stagevar_core.network.packing import available
    from pack.stagevar_core.pipeline import Pipeline
    from pack.stagevar_core.sampling.settings import SamplingSettings

    before = model.model_size()
    latent = drawn(model, vae)
    assert all(kinds(model)) if available() else not any(kinds(model))
    assert model.model_size() == before
    core = Pipeline.embedded(dtype=torch.bfloat16, model="artwork")
    wanted = core(core.class_names[1], seed=3, settings=SamplingSettings(cfg_scale=2.0)).generation.f_hat
    assert torch.equal(latent, wanted), (latent - wanted).abs().amax((0, 1))


def check_patches_change_packed_weights_and_leave_them(model: Any, vae: Any) -> None:
    import torch

    first = drawn(model, vae)
    key = "blocks.0.ffn.fc1.weight"
    held = model.model.state_dict()[key].to(torch.float32, copy=True)
    patched = model.clone()
    assert patched.add_patches({key: (torch.ones_like(held),)}, 0.5) == [key]
    other = drawn(patched, vae)
    changed = model.model.state_dict()[key].to(torch.float32, copy=True)
    assert kinds(patched) == kinds(model) and not torch.equal(other, first)
    assert (changed - held - 0.5).abs().max() < 0.01
    assert torch.equal(drawn(model, vae), first)
    assert torch.equal(model.model.state_dict()[key].float(), held)


def check_a_packed_weight_reads_as_what_it_held(model: Any, vae: Any) -> None:
    import torch
    from pack.nodes.host.packed import PackedWeight, pack, unpack
    from pack.stagevar_core.network.packing import available

    if not available():
        return
    layer = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    network, x = torch.nn.Sequential(layer), torch.randn(3, 64, dtype=torch.bfloat16)
    held, wanted = layer.weight.detach().clone(), layer(x).detach()
    pack(network, torch.device("cuda"))
    assert not isinstance(layer.weight, PackedWeight)
    pack(network, torch.device("cpu"))
    weight = layer.weight
    assert isinstance(weight, PackedWeight) and isinstance(weight, torch.nn.Parameter)
    assert torch.equal(layer(x), wanted) and torch.equal(copy.deepcopy(network)(x), wanted)
    assert torch.equal(torch.cat([weight, weight]), torch.cat([held, held]))
    assert torch.equal(weight.to(torch.float32), held.float()) and torch.equal(weight * 2, held * 2)
    assert weight.to("cpu") is weight and (weight.shape, weight.dtype) == (held.shape, held.dtype)
    for change in (lambda: weight.data.copy_(held), lambda: weight.mul_(2)):
        try:
            change()
        except RuntimeError as error:
            assert "cannot be changed in place" in str(error), error
        else:
            raise AssertionError("a packed weight was changed")
    unpack(network)
    assert type(layer.weight) is torch.nn.Parameter and torch.equal(layer.weight, held)


def check_a_compiler_gets_plain_weights(model: Any, vae: Any) -> None:
    from pack.nodes.host.attached import attach_compiler, network_of
    from pack.stagevar_core.models.compiling import Compiler

    drawn(model, vae)
    network_of(attach_compiler(model, Compiler("eager")))
    assert not any(kinds(model))


def main() -> None:
    import torch

    load_pack(PACK)
    with torch.inference_mode():
        run_checks(globals(), *loaded())


if __name__ == "__main__":
    main()
