"""Checks that run inside ComfyUI's own process, without a server; `test_inside.py` starts it.

python inside.py COMFYUI PACK          prints one line per check that passed
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def loaded() -> tuple[Any, Any]:
    """The embedded model and its tokenizer."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    model = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "default")
    return model, TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))


def job(model: Any, vae: Any, images: int) -> Any:
    """A run of the sampler on fixed text features."""
    import torch
    from pack.nodes.host.attached import policy_of
    from pack.nodes.host.running import Job
    from pack.stagevar_core.conditioning.types import TextConditioning
    from pack.stagevar_core.sampling.settings import SamplingSettings

    features = torch.randn(5, model.model.config.text_width, generator=torch.Generator().manual_seed(0))
    schedule = model.model.checkpoint.trained.snap(128, 128)
    text = TextConditioning((features,) * images)
    return Job(model, vae, text, schedule, SamplingSettings(), 3, policy_of(model.model_options))


def check_clones(model: Any) -> None:
    """A policy stays on the clones of its model, and nowhere else."""
    from pack.nodes.host.attached import attach, policy_of
    from pack.stagevar_core.acceleration.presets import OFF, PRESETS

    model.model_options["transformer_options"] = {"kept": [1]}
    fast, paper = attach(model, PRESETS["fast"]), attach(model, PRESETS["paper"])
    assert policy_of(model.model_options) is OFF and model.model_options["transformer_options"] == {
        "kept": [1]
    }
    further = fast.clone().clone()
    assert policy_of(further.model_options) is policy_of(fast.model_options) is PRESETS["fast"]
    assert policy_of(copy.deepcopy(further.model_options)) is PRESETS["fast"]
    further.model_options["transformer_options"]["kept"].append(2)
    assert fast.model_options["transformer_options"]["kept"] == [1]
    assert policy_of(attach(fast, PRESETS["paper"]).model_options) is PRESETS["paper"]
    assert policy_of(paper.model_options) is PRESETS["paper"] and fast.model is model.model
    assert attach(fast, OFF).model_options["transformer_options"] == {"kept": [1]}


def check_changes(model: Any) -> None:
    """The node's inputs change a preset as ``preset`` does, and are refused for the same reason."""
    from pack.nodes.acceleration import AS_PRESET, Accelerate
    from pack.nodes.host.attached import policy_of
    from pack.stagevar_core.acceleration.presets import PRESETS, preset
    from pack.stagevar_core.acceleration.schedule_file import StageSchedule

    def by_node(name: str, **inputs: Any) -> Any:
        return policy_of(Accelerate.execute(model, name, **inputs).args[0].model_options)

    for own in (-1.0, "auto"):
        assert by_node("fast", tokens=AS_PRESET, keep=own, skip_scales=own) is PRESETS["fast"]
    for changes in ({"keep": 0.5}, {"structure_end": 0.01}, {"structure_end": 0.5, "guidance": "both"}):
        assert by_node("balanced", **changes) == preset("balanced", **changes)
    assert by_node("paper", skip_scales=0) == preset("paper", skip=0)
    assert by_node("balanced", tokens="gather", restoration="state", code_weight=1.0) == preset(
        "balanced", tokens="gather", restoration="state", code_weight=1.0
    )
    schedule = StageSchedule(settings={"guidance": "both"})
    assert (
        by_node("fast", schedule=schedule, keep=0.5).settings
        == preset("fast", guidance="both", keep=0.5).settings
    )
    for name, changes in (
        ("balanced", {"structure_end": True}),
        ("balanced", {"keep": 1.5}),
        ("balanced", {"guidance": "some"}),
        *((name, {"keep": 0.5}) for name in ("auto", "fastvar", "skipvar", "sparsevar")),
    ):
        said = []
        for face in (by_node, preset):
            try:
                face(name, **changes)
            except ValueError as error:
                said.append(str(error))
        assert len(said) == 2, said
        if name == "balanced":  # a value that cannot be: the node knows one more, the preset's own
            assert said[0].split("; ")[0] == said[1].split("; ")[0], said
            assert "'auto', or a number from 0 to 1" in said[0] or "'as in the preset', " in said[0], said
        else:
            assert said[0] == said[1], said


def check_out_of_memory(model: Any, vae: Any, preset: str) -> None:
    """Where a batch does not fit at all, its images are made one by one; the report covers all of them."""
    import torch
    from pack.nodes.host import running
    from pack.nodes.host.attached import attach
    from pack.stagevar_core.acceleration.presets import PRESETS

    work = job(attach(model, PRESETS[preset]), vae, 3)
    expected, whole, _ = running.run(work, (128, 128))
    generate, calls = running.generate, []

    def fails_on_batches(network: Any, conditioning: Any, *args: Any, **options: Any) -> Any:
        calls.append(conditioning.batch)
        if conditioning.batch > 1:
            options["monitor"].block(work.schedule[3], 0)  # it had come some way
            raise RuntimeError("CUDA out of memory")
        return generate(network, conditioning, *args, **options)

    running.generate = fails_on_batches
    try:
        latents, trace, _ = running.run(work, (128, 128))
    finally:
        running.generate = generate
    assert calls == [3, 3, 1, 1, 1]  # together, the rows of guidance in turn, then one by one
    assert torch.allclose(latents, expected, atol=1e-3)
    assert trace.images == 3 and trace.policy == preset and len(trace.scales) == len(work.schedule)
    assert abs(trace.flops / whole.flops - 1) < 1e-6 and trace.dense_flops == whole.dense_flops
    assert [scale.rows for scale in trace.scales] == [scale.rows for scale in whole.scales]


def check_progress(model: Any, vae: Any, preset: str) -> None:
    """The bar only goes forward, is full at the end, and images that are made one by one share it."""
    from pack.nodes.host import monitor, running
    from pack.nodes.host.attached import attach
    from pack.stagevar_core.acceleration.presets import PRESETS

    shown: list[float] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int, preview: Any = None) -> None:
            shown.append(value / total)

    real, monitor.comfy.utils.ProgressBar = monitor.comfy.utils.ProgressBar, Bar
    try:
        work = job(attach(model, PRESETS[preset]), vae, 2)
        _, trace, _ = running.run(work, (128, 128))
    finally:
        monitor.comfy.utils.ProgressBar = real
    assert trace.images == 2
    assert shown == sorted(shown) and len(set(shown)) == len(shown) and shown[-1] == 1.0, shown
    if not PRESETS[preset].per_image:  # else scales may turn out not to run, which the bar jumps over
        steps = [after - before for before, after in zip([0.0, *shown], shown, strict=False)]
        assert max(steps) < 0.25, f"the bar jumps, the forecast of the work is off: {shown}"


def check_memory(model: Any, vae: Any) -> None:
    """The estimate falls with what runs, and covers the keys and values of the run."""
    from pack.nodes.host import running
    from pack.nodes.host.attached import attach
    from pack.stagevar_core.acceleration.presets import PRESETS

    estimates = {}
    for preset in ("off", "quality", "balanced"):
        work = job(attach(model, PRESETS[preset]), vae, 2)
        estimates[preset] = work.memory(2)
        assert estimates[preset].cache >= running.run(work, (128, 128))[1].kv_peak_bytes
    assert estimates["off"].total > estimates["quality"].total > estimates["balanced"].total


def check_attention() -> None:
    """The backend that was chosen runs; where none was, on a CPU, ours instead of the slow fallback."""
    import comfy.ldm.modules.attention as host
    import torch
    from comfy.cli_args import args
    from pack.nodes.host import bridge

    calls: list[str] = []
    real, ours = host.attention_sub_quad, bridge.attend

    def fallback(*arguments: Any, **options: Any) -> Any:
        calls.append("host")
        return real(*arguments, **options)

    def own(*arguments: Any, **options: Any) -> Any:
        calls.append("own")
        return ours(*arguments, **options)

    q = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    before = host.optimized_attention
    try:
        host.attention_sub_quad = host.optimized_attention = fallback
        bridge.attend = own
        plain = bridge.attention_for({})(q, q, q, scale=0.7)
        args.use_quad_cross_attention = True
        chosen = bridge.attention_for({})(q, q, q, scale=0.7)
        args.use_quad_cross_attention = False
        bridge.attention_for({"optimized_attention_override": lambda *a, **k: a})(q, q, q, scale=0.7)
        host.optimized_attention = lambda *a, **k: fallback(*a, **k)
        bridge.attention_for({})(q, q, q, scale=0.7)
    finally:
        host.attention_sub_quad, host.optimized_attention, bridge.attend = real, before, ours
        args.use_quad_cross_attention = False
    assert calls == ["own", "host", "host", "host"], calls
    assert torch.allclose(plain, chosen, atol=1e-5)


def main() -> None:
    load_pack(PACK)
    import torch

    with torch.inference_mode():
        model, vae = loaded()
        check_clones(model)
        print("ok: clones")
        check_changes(model)
        print("ok: changes")
        for preset in ("off", "balanced", "sparsevar"):
            check_out_of_memory(model, vae, preset)
        print("ok: out of memory")
        for preset in ("off", "balanced", "paper-released", "skipvar"):
            check_progress(model, vae, preset)
        print("ok: progress")
        check_memory(model, vae)
        print("ok: memory")
        check_attention()
        print("ok: attention")


main()
