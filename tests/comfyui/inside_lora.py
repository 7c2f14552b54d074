"""Checks of LoRAs on models inside ComfyUI's own process; `test_lora.py` starts it.

python inside_lora.py COMFYUI PACK FILES          prints one line per check that passed; FILES: a folder
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK, FILES = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
PROMPT = "a blue ring above a green square on a white background"


def loaded(weight_dtype: str = "default", name: str | None = None) -> Any:
    """A built-in model, each time another one."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer

    return load_transformer(files.load(files.TRANSFORMER, name or files.EMBEDDED), weight_dtype)


def added(model: Any, strength: float = 1.0, name: str | None = None) -> Any:
    """The model behind the node."""
    from pack.nodes.host.lora import RED
    from pack.nodes.lora import LoadLora

    return LoadLora.execute(model, name or RED, strength).args[0]


def weights(model: Any) -> dict[str, Any]:
    """The weights of a model as a run has them, copied."""
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    return {name: weight.detach().clone() for name, weight in model.model.named_parameters()}


def sampled(model: Any, vae: Any) -> Any:
    """The latent of a run of the sampler on fixed text features."""
    import torch
    from pack.nodes.host import running
    from pack.nodes.host.attached import policy_of
    from pack.stagevar_core.conditioning.types import TextConditioning
    from pack.stagevar_core.sampling.settings import SamplingSettings

    features = torch.randn(5, model.model.config.text_width, generator=torch.Generator().manual_seed(0))
    schedule, policy = model.model.checkpoint.trained.snap(128, 128), policy_of(model.model_options)
    job = running.Job(model, vae, TextConditioning((features,)), schedule, SamplingSettings(), 3, policy)
    return running.run(job, (128, 128))[0]


def merged(*strengths: float, lora: str = "") -> dict[str, Any]:
    """The weights that the core makes as it loads a model with LoRAs."""
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.lora import LORA, RED
    from pack.stagevar_core.checkpoints import build, merge, read_lora

    checkpoint = files.load(files.TRANSFORMER, files.EMBEDDED)
    file = read_lora(Path(FILES, lora) if lora else files.resolve(LORA, RED), checkpoint)
    merge(checkpoint, [(file, strength) for strength in strengths], torch.float32)
    return dict(build(checkpoint).named_parameters())


def close(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether weights agree to 1e-6."""
    import torch

    return all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())


def equal(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether weights agree bit by bit."""
    import torch

    return all(torch.equal(found[name], weight) for name, weight in expected.items())


def check_patches(vae: Any) -> None:
    """A LoRA is on its clone alone; the host takes it off again; at 0 the model itself is passed on."""
    import torch

    model = loaded()
    base, plain = weights(model), sampled(model, vae)
    half, full = added(model, 0.5), added(model)
    assert half.model is model.model and not model.patches and len(half.patches) == 30
    assert added(model, 0.0) is model
    for strength, clone in ((0.5, half), (1.0, full), (0.5, half)):  # one after the other on one network
        assert close(weights(clone), merged(strength)) and not equal(weights(clone), base)
    painted = sampled(full, vae)
    assert equal(weights(model), base) and torch.equal(sampled(model, vae), plain)
    assert not torch.equal(painted, plain)


def check_chain(vae: Any) -> None:
    """Several add up, also behind and before a preset."""
    import torch
    from pack.nodes.host import attached
    from pack.stagevar_core.acceleration.presets import PRESETS

    model = loaded()
    chain = added(added(model, 0.75), -0.25)
    assert close(weights(chain), merged(0.75, -0.25)) and close(weights(chain), merged(0.5))
    before = added(attached.attach(model, PRESETS["fast"]))
    after = attached.attach(added(model), PRESETS["fast"])
    assert attached.policy_of(before.model_options) is PRESETS["fast"]
    assert torch.equal(sampled(before, vae), sampled(after, vae))


def check_node() -> None:
    """The node says what it changed, and its fingerprint is that of the contents."""
    import shutil

    import folder_paths
    from pack.nodes.host.lora import RED
    from pack.nodes.lora import LoadLora

    model = loaded()
    said = LoadLora.execute(model, RED, 0.8).ui["text"]
    assert said == ["changed 30 layers of rank 4; strength 0.8"], said
    assert LoadLora.execute(model, RED, 0).ui["text"] == ["strength 0: the model as it came"]
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    assert folder.parent == Path.cwd(), folder
    for name in ("peft", "again"):
        shutil.copytree(Path(FILES, "peft"), folder / name)
    first, second = (
        LoadLora.fingerprint_inputs(f"{name}/adapter_model.safetensors") for name in ("peft", "again")
    )
    assert first == second != LoadLora.fingerprint_inputs(RED)
    config = folder / "again" / "adapter_config.json"
    config.write_text(config.read_text().replace("4.0", "2.0"))
    assert LoadLora.fingerprint_inputs("again/adapter_model.safetensors") != first
    listed = LoadLora.define_schema().inputs[1].options
    assert listed[0] == RED and "peft/adapter_model.safetensors" in listed
    peft = added(model, 1.0, "peft/adapter_model.safetensors")
    assert close(weights(peft), merged(1.0))
    shutil.copy(Path(FILES, "dora.safetensors"), folder)
    dora = LoadLora.execute(model, "dora.safetensors", 0.5)
    assert close(weights(dora.args[0]), merged(0.5, lora="dora.safetensors"))
    shutil.copy(Path(FILES, "sdxl.safetensors"), folder)
    for values, expected in (
        ({"lora_name": "sdxl.safetensors"}, "lora_name: sdxl.safetensors: none of its 1 LoRA layers"),
        ({"lora_name": "gone.safetensors"}, "lora_name: 'gone.safetensors' is not in the 'loras' folder"),
        ({"lora_name": 3}, "lora_name is 3; expected one of"),
        ({"strength": float("nan")}, "strength is nan; expected a number from -100 to 100"),
        ({"strength": "1"}, "strength is '1'; expected a number"),
        ({"model": 3}, "model: found 3; expected"),
    ):
        try:
            LoadLora.execute(**{"model": model, "lora_name": RED, **values})
        except ValueError as error:
            assert str(error).startswith(expected) and "\n" not in str(error), error
        else:
            raise AssertionError(values)
    assert "not in the 'loras' folder" in LoadLora.validate_inputs("gone.safetensors")
    assert LoadLora.validate_inputs(RED) is LoadLora.validate_inputs() is True


def check_storage(vae: Any) -> None:
    """Weights in fp8 and bfloat16 are patched as ComfyUI does it, in float32, and taken off again."""
    import comfy.float
    import comfy.utils
    import torch
    from comfy.model_patcher import string_to_seed

    for dtype, kind in (("fp8_e4m3fn", torch.float8_e4m3fn), ("bfloat16", torch.bfloat16)):
        model = loaded(dtype)
        base = weights(model)
        found = weights(added(model))
        key = "blocks.0.self_attn.qkv.weight"
        assert found[key].dtype == base[key].dtype == kind
        lora = next(patch for patch in added(model).patches[key])[1]
        up, down = (half.float() for half in lora.weights[:2])
        rounded = comfy.float.stochastic_rounding(
            base[key].float() + up @ down, kind, seed=string_to_seed(key)
        )
        assert torch.equal(found[key].float(), rounded.float())
        assert equal(
            {k: v.float() for k, v in weights(model).items()}, {k: v.float() for k, v in base.items()}
        )
        assert not torch.equal(sampled(added(model), vae), sampled(model, vae))


def check_int8(vae: Any) -> None:
    """Layers in 8 bits are patched in float32 and rounded again; they get their own rows back."""
    import torch
    from comfy.model_patcher import LowVramPatch
    from pack.stagevar_core.network.eight_bit import codes_of, plain_weight

    wide, model, key = loaded(), loaded("int8"), "blocks.0.self_attn.qkv"
    assert model.model_size() < 0.4 * wide.model_size()
    exact, base = sampled(wide, vae), sampled(model, vae)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), base.flatten(), 0) > 0.9
    layer = model.model.get_submodule(key)
    rows, clone = layer.weight.clone(), added(model)
    changed = sampled(clone, vae)
    assert not torch.equal(changed, base)
    off = (plain_weight(layer.weight) - merged(1.0)[f"{key}.weight"]).abs()
    assert (off < 1.1 * codes_of(layer.weight)[1][:, None]).all()
    x = torch.randn(3, 20, layer.in_features, generator=torch.Generator().manual_seed(0))
    found = layer(x)
    assert torch.equal(sampled(model, vae), base) and torch.equal(layer.weight, rows)
    patch = LowVramPatch(f"{key}.weight", clone.patches, layer.convert_weight, layer.set_weight)
    layer.weight_function = [patch]
    assert torch.allclose(layer(x), found, atol=1e-4) and torch.equal(layer.weight, rows)
    layer.weight_function = []
    assert torch.equal(sampled(clone, vae), changed)


def check_compiled(vae: Any) -> None:
    """Compiled blocks follow the weights: two strengths in turn, and none, on one compiler."""
    import torch
    from pack.nodes.host import attached
    from pack.stagevar_core.models.compiling import Compiler

    model, compiler = loaded(), Compiler("eager")
    for strength in (0.0, 1.0, 0.5, 0.0):
        clone = added(model, strength)
        found = sampled(attached.attach_compiler(clone, compiler), vae)
        assert not compiler.failed and torch.allclose(found, sampled(clone, vae), atol=1e-4), strength


def check_kept(vae: Any) -> None:
    """What a run leaves of a picture to edit is of its strength alone."""
    import torch
    from pack.nodes.edit_by_text import EditByText
    from pack.nodes.host import attached, files
    from pack.nodes.load import Load

    model, clip = loaded(name=files.EDITOR), Load.execute().args[2]
    text = clip.encode_from_tokens_scheduled(clip.tokenize("make it yellow"))
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))

    def changed(each: Any) -> Any:
        return EditByText.execute(each, vae, picture, text, seed=3).args[0]

    strengths = (0.5, 1.0, 0.0)
    alone = {strength: changed(added(loaded(name=files.EDITOR), strength)) for strength in strengths}
    assert not any(torch.equal(alone[0.0], alone[strength]) for strength in (0.5, 1.0))
    clones = {strength: added(model, strength) for strength in strengths}
    for strength in (*strengths, *strengths):
        found = changed(clones[strength])
        assert torch.equal(found, alone[strength]), strength
        kept = attached.kept_of(clones[strength])
        assert kept.bytes > 0 and torch.equal(changed(clones[strength]), found)
        assert attached.kept_of(clones[strength].clone()) is kept, "the same weights keep it"


def main() -> None:
    """Load the pack as ComfyUI does, and run the checks."""
    load_pack(PACK)
    import folder_paths

    loras = Path.cwd() / "loras"
    loras.mkdir()
    folder_paths.add_model_folder_path("loras", str(loras), is_default=True)
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.vae import TokenizerVAE

    with torch.inference_mode():
        vae = TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))
        for name, check, needed in (
            ("patches", check_patches, (vae,)),
            ("chain", check_chain, (vae,)),
            ("node", check_node, ()),
            ("storage", check_storage, (vae,)),
            ("int8", check_int8, (vae,)),
            ("compiled", check_compiled, (vae,)),
            ("kept", check_kept, (vae,)),
        ):
            check(*needed)
            print(f"ok: {name}", flush=True)


if __name__ == "__main__":
    main()
