"""Nodes that load the three parts of a model: transformer, image tokenizer, text encoder."""

from collections.abc import Iterable
from dataclasses import replace

import folder_paths
from comfy_api.latest import io

from ..stagevar_core.checks import one_of
from .host import files
from .host.bridge import DEFAULT, MODEL_DTYPES, WEIGHT_DTYPES, load_transformer
from .host.clip import load_text_encoder
from .host.files import EMBEDDED, NONE, TEXT_ENCODER, TOKENIZER, TRANSFORMER
from .host.schema import CATEGORY, Node, Schema, VarModel, describe
from .host.tasks import AUTO, task_input, tasked
from .host.vae import TokenizerVAE

SECOND = "second_text_encoder_name"
SECOND_ENCODER = replace(TEXT_ENCODER, field=SECOND)


def _dtype_input(options: Iterable[str], tooltip: str) -> io.Combo.Input:
    return describe(
        io.Combo.Input,
        "weight_dtype",
        options=list(options),
        default=DEFAULT,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


class LoadModel(Node):
    """File of a transformer to VAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARLoadModel",
            has_intermediate_output=True,  # what it took the model for comes back with a cached rerun
            display_name="Load StageVAR Model (Infinity, VAR, STAR)",
            category=CATEGORY,
            description="Loads a transformer: the built-in one, or an official file of Infinity (125M, 2B, "
            "8B), VAREdit, VARestorer, VAR (d16 to d36), STAR or Switti. Which model a file holds is read "
            "from its contents.",
            search_aliases=[
                "infinity",
                "VAREdit",
                "VAR",
                "STAR",
                "Switti",
                "visual autoregressive",
                "load model",
            ],
            inputs=[
                files.file_input(TRANSFORMER, "Transformer"),
                _dtype_input(
                    MODEL_DTYPES,
                    "How the blocks' weights are stored. default: bfloat16 for large models where the device "
                    "has it, else float32. fp8_e4m3fn takes half the memory of bfloat16, less exact. int8 "
                    "takes as little and is more exact, faster on CPUs with VNNI and NVIDIA since Turing.",
                ),
                task_input(),
            ],
            outputs=[
                describe(
                    VarModel.Output,
                    display_name="var_model",
                    tooltip="For StageVAR Sampler and the acceleration nodes.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: object = None) -> bool | str:
        """True, or why there is no such file."""
        return files.missing(TRANSFORMER, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name: object = EMBEDDED, **_: object) -> str:
        """Changes with what the file holds."""
        return files.version(TRANSFORMER, model_name)

    @classmethod
    def execute(
        cls, model_name: object = EMBEDDED, weight_dtype: object = DEFAULT, task: object = AUTO
    ) -> io.NodeOutput:
        """The transformer, and on the node what it was taken for.

        Raises ``ValueError`` for a file of another kind, or for another task.
        """
        dtype = one_of("weight_dtype", weight_dtype, MODEL_DTYPES)
        checkpoint, lines = tasked(files.load(TRANSFORMER, model_name), task)
        return io.NodeOutput(load_transformer(checkpoint, dtype), ui={"text": lines})


class LoadTokenizer(Node):
    """File of an image tokenizer to VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARLoadTokenizer",
            display_name="Load StageVAR Tokenizer (VAE of Infinity, VAR, STAR)",
            category=CATEGORY,
            description="Loads the image tokenizer of a model as a VAE: VAE Decode and VAE Encode, tiled or "
            "not, work on it. VAR and STAR share one, Switti has its own of the same form. Each model needs "
            "the tokenizer it was trained with.",
            search_aliases=["infinity vae", "var vae", "bsq", "vqvae", "load vae"],
            inputs=[files.file_input(TOKENIZER, "Tokenizer")],
            outputs=[
                describe(
                    io.Vae.Output, display_name="vae", tooltip="For StageVAR Sampler, VAE Decode, VAE Encode."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name: object = None) -> bool | str:
        """True, or why there is no such file."""
        return files.missing(TOKENIZER, vae_name)

    @classmethod
    def fingerprint_inputs(cls, vae_name: object = EMBEDDED) -> str:
        """Changes with what the file holds."""
        return files.version(TOKENIZER, vae_name)

    @classmethod
    def execute(cls, vae_name: object = EMBEDDED) -> io.NodeOutput:
        """The tokenizer; raises ``ValueError`` for a file of another kind."""
        return io.NodeOutput(TokenizerVAE(files.load(TOKENIZER, vae_name)))


class LoadTextEncoder(Node):
    """File of a text encoder to CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARLoadTextEncoder",
            display_name="Load StageVAR Text Encoder (CLIP, Flan-T5 of Infinity, STAR)",
            category=CATEGORY,
            description="Loads the text encoder as a CLIP for CLIP Text Encode, prompt weights included: "
            "Flan-T5-XL for Infinity, that of Stable Diffusion 2.1 for STAR, CLIP-L and CLIP-bigG together "
            "for Switti, the built-in one for the built-in model; VAR needs none. ComfyUI's own CLIP loaders "
            "take Flan-T5-XL for another model, and do not tell STAR and Switti where a text ends.",
            search_aliases=["flan t5", "open clip", "infinity text encoder", "load clip", "dual clip"],
            inputs=[
                files.file_input(TEXT_ENCODER, "Text encoder"),
                _dtype_input(
                    WEIGHT_DTYPES,
                    "How the weights are stored; ComfyUI computes in float32. default: bfloat16 for T5 XL, "
                    "float32 for smaller ones; never float16, in which large T5 encoders overflow.",
                ),
                files.second_input(
                    TEXT_ENCODER,
                    SECOND,
                    "The other text encoder of a model that reads two: for Switti CLIP-L in one of the "
                    "inputs and CLIP-bigG in the other, in any order. Others need none.",
                ),
            ],
            outputs=[describe(io.Clip.Output, display_name="clip", tooltip="For CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(
        cls, text_encoder_name: object = None, second_text_encoder_name: object = None
    ) -> bool | str:
        """True, or why there is no such file."""
        found = files.missing(TEXT_ENCODER, text_encoder_name)
        if found is not True or second_text_encoder_name == NONE:
            return found
        return files.missing(SECOND_ENCODER, second_text_encoder_name)

    @classmethod
    def fingerprint_inputs(
        cls, text_encoder_name: object = EMBEDDED, second_text_encoder_name: object = NONE, **_: object
    ) -> str:
        """Changes with what the files hold."""
        first = files.version(TEXT_ENCODER, text_encoder_name)
        if second_text_encoder_name == NONE:
            return first
        return f"{first} {files.version(SECOND_ENCODER, second_text_encoder_name)}"

    @classmethod
    def execute(
        cls,
        text_encoder_name: object = EMBEDDED,
        weight_dtype: object = DEFAULT,
        second_text_encoder_name: object = NONE,
    ) -> io.NodeOutput:
        """The text encoder, or both as one; raises ``ValueError`` for files of another kind."""
        dtype = one_of("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        checkpoint, second = files.load(TEXT_ENCODER, text_encoder_name), None
        if second_text_encoder_name != NONE:
            second = files.load(SECOND_ENCODER, second_text_encoder_name)
        folders = folder_paths.get_folder_paths("embeddings")
        return io.NodeOutput(load_text_encoder(checkpoint, dtype, folders, second))
