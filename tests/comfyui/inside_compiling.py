"""Checks of compiled models inside ComfyUI's own process; `test_compiling.py` starts it.

python inside_compiling.py COMFYUI PACK          prints one line per check that passed
"""

from __future__ import annotations

import shutil
import sys
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def sampled(model: Any, vae: Any) -> Any:
    """The latent of a run of the sampler on fixed text features."""
    import torch
    from pack.nodes.host import running
    from pack.nodes.host.attached import policy_of
    from pack.stagevar_core.conditioning.types import TextConditioning
    from pack.stagevar_core.sampling.settings import SamplingSettings

    features = torch.randn(5, model.model.config.text_width, generator=torch.Generator().manual_seed(0))
    schedule = model.model.checkpoint.trained.snap(128, 128)
    settings, policy = SamplingSettings(), policy_of(model.model_options)
    job = running.Job(model, vae, TextConditioning((features,)), schedule, settings, 3, policy)
    return running.run(job, (128, 128))[0]


def check_clones(model: Any) -> None:
    """A compiler stays on the clones of its model, next to a policy, and nowhere else."""
    from pack.nodes.host import attached
    from pack.stagevar_core.acceleration.presets import PRESETS
    from pack.stagevar_core.models.compiling import CompiledTransformer, Compiler

    compiler = Compiler("eager")
    compiled = attached.attach_compiler(model, compiler)
    assert attached.network_of(model) is model.model and compiled.model is model.model
    policy = PRESETS["fast"]
    for both in (
        attached.attach(compiled, policy).clone(),
        attached.attach_compiler(attached.attach(model, policy), compiler),
    ):
        network = attached.network_of(both)
        assert isinstance(network, CompiledTransformer) and network.compiler is compiler
        assert network.network is model.model and attached.policy_of(both.model_options) is policy
    assert attached.network_of(model) is model.model


def check_pictures(model: Any, vae: Any) -> None:
    """What is sampled does not change; layers of the host are traced in one graph per piece."""
    import torch
    from pack.nodes.host import attached
    from pack.stagevar_core.acceleration.presets import PRESETS
    from pack.stagevar_core.models.compiling import Compiler

    graphs: list[Any] = []

    def backend(graph: Any, inputs: list) -> Any:
        graphs.append(graph)
        return graph.forward

    for name in ("off", "balanced"):
        plain = attached.attach(model, PRESETS[name])
        compiler = Compiler(backend)
        found = sampled(attached.attach_compiler(plain, compiler), vae)
        assert not compiler.failed and len(graphs) >= 3
        assert torch.allclose(found, sampled(plain, vae), atol=1e-4), name


def check_node(model: Any, vae: Any) -> None:
    """The node itself, with a real compiler where there is one; without, it changes nothing."""
    import torch
    from pack.nodes import compiling
    from pack.nodes.host import attached

    compiled = compiling.Compile.execute(model).args[0]
    found = sampled(compiled, vae)
    assert torch.allclose(found, sampled(model, vae), atol=1e-4)
    if shutil.which("g++"):
        assert not attached.network_of(compiled).compiler.failed


def check_decoder(vae: Any) -> None:
    """The decoder is one graph, two on a CPU; encoding, previews and the plain VAE compile nothing."""
    import torch
    from pack.nodes import compiling
    from pack.nodes.host import sockets
    from pack.stagevar_core.models.compiling import Compiler

    graphs: list[Any] = []

    def backend(graph: Any, inputs: list) -> Any:
        graphs.append(graph)
        return graph.forward

    compiler = Compiler(backend)
    compiled = sockets.vae("vae", vae).compiled(compiler)
    for grid in ((16, 16), (12, 20), (18, 14)):
        latent = torch.randn(1, vae.latent_channels, *grid, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(compiled.decode(latent), vae.decode(latent), atol=1e-5)
    count = len(graphs)
    assert 1 <= count <= 2 and not compiler.failed
    compiled.first_stage_model.preview(latent.to(vae.device))
    assert torch.equal(compiled.encode(vae.decode(latent)), vae.encode(vae.decode(latent)))
    assert len(graphs) == count and compiled.patcher is vae.patcher
    node = compiling.CompileVAE.execute(vae).args[0]
    assert torch.allclose(node.decode(latent), vae.decode(latent), atol=1e-5)
    try:
        compiling.CompileVAE.execute(object())
    except ValueError as error:
        assert "connect Load StageVAR Tokenizer (VAE)" in str(error)
    else:
        raise AssertionError("another VAE was taken")


def main() -> None:
    load_pack(PACK)
    import torch
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    with torch.inference_mode():
        model = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "default")
        vae = TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))
        check_clones(model)
        print("ok: clones")
        check_pictures(model, vae)
        print("ok: pictures")
        check_node(model, vae)
        print("ok: node")
        check_decoder(vae)
        print("ok: decoder")
        half = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "fp8_e4m3fn")
        check_pictures(half, vae)
        print("ok: fp8")


main()
