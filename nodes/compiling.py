"""The nodes that compile a model's blocks and a tokenizer's decoder, and what they leave on the model."""

from typing import Any

from comfy_api.latest import io

from ..stagevar_core.models.compiling import CompiledTransformer, Compiler
from .host.pairing import checked_vae
from .host.schema import CATEGORY, VarModel, describe

_KEY = "stagevar_compile"  # in the model's transformer_options


def attach(model: Any, compiler: Compiler) -> Any:
    """A clone of ``model`` whose blocks run through ``compiler``."""
    clone = model.clone()
    options = {**clone.model_options.get("transformer_options", {}), _KEY: compiler}
    clone.model_options = {**clone.model_options, "transformer_options": options}
    return clone


def network_of(model: Any) -> Any:
    """The network of a model as it is to run: with compiled blocks where that was asked for."""
    compiler = model.model_options.get("transformer_options", {}).get(_KEY)
    return CompiledTransformer(model.model, compiler) if isinstance(compiler, Compiler) else model.model


class Compile(io.ComfyNode):
    """VAR_MODEL to the same model with compiled blocks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return describe(
            io.Schema,
            node_id="StageVARCompile",
            display_name="StageVAR Compile",
            category=CATEGORY,
            description="Compiles the arithmetic of the model's blocks with torch.compile, which is meant to "
            "spare a GPU the overhead of many small operations at the coarse scales. The first picture takes "
            "longer, other sizes do not compile again. Needs triton (GPU) or a C++ compiler (CPU); without "
            "them, a warning is logged and the model runs as it is.",
            search_aliases=["torch.compile", "inductor", "triton", "speed up"],
            inputs=[
                describe(
                    VarModel.Input,
                    "model",
                    tooltip="From Load StageVAR Model or StageVAR Accelerate; the order does not matter.",
                )
            ],
            outputs=[
                describe(
                    VarModel.Output,
                    display_name="var_model",
                    tooltip="For StageVAR Sampler. The model that came in is not changed: samplers that use "
                    "it do not compile.",
                )
            ],
            is_experimental=True,
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(attach(model, Compiler()))


class CompileVAE(io.ComfyNode):
    """VAE to the same VAE with a compiled decoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return describe(
            io.Schema,
            node_id="StageVARCompileVAE",
            display_name="StageVAR Compile VAE",
            category=CATEGORY,
            description="Compiles the decoder of an image tokenizer with torch.compile, for GPUs. The first "
            "picture takes longer. Needs triton; without it the VAE decodes as it is, and so it does with "
            "large pictures on a CPU.",
            search_aliases=["torch.compile", "inductor", "triton", "vae decode", "speed up"],
            inputs=[describe(io.Vae.Input, "vae", tooltip="From Load StageVAR Tokenizer (VAE).")],
            outputs=[
                describe(
                    io.Vae.Output,
                    display_name="vae",
                    tooltip="For VAE Decode. The VAE that came in is not changed; previews are not compiled.",
                )
            ],
            is_experimental=True,
        )

    @classmethod
    def execute(cls, vae: Any) -> io.NodeOutput:
        return io.NodeOutput(checked_vae(vae).compiled(Compiler()))
