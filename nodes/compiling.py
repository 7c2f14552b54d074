"""The nodes that compile a model's blocks and a tokenizer's decoder."""

from comfy_api.latest import io

from ..stagevar_core.models.compiling import Compiler
from .host import sockets
from .host.attached import Patcher, attach_compiler
from .host.schema import CATEGORY, Node, VarModel, describe
from .host.vae import TokenizerVAE


class Compile(Node):
    """VAR_MODEL to the same model with compiled blocks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
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
    def execute(cls, model: Patcher) -> io.NodeOutput:
        """The model with a compiler on it; nothing is compiled yet."""
        return io.NodeOutput(attach_compiler(model, Compiler()))


class CompileVAE(Node):
    """VAE to the same VAE with a compiled decoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
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
    def execute(cls, vae: TokenizerVAE) -> io.NodeOutput:
        """The VAE with a compiled decoder; raises ``ValueError`` for one of another kind of model."""
        return io.NodeOutput(sockets.vae("vae", vae).compiled(Compiler()))
