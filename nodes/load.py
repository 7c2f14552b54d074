"""The node that loads a whole model from one choice."""

import folder_paths
from comfy_api.latest import io

from .host import files
from .host.bridge import DEFAULT, load_transformer
from .host.clip import load_text_encoder
from .host.clip_none import NoTextEncoder
from .host.files import TEXT_ENCODER, TOKENIZER, TRANSFORMER
from .host.matching import matching
from .host.schema import CATEGORY, Node, Schema, VarModel, describe
from .host.tasks import AUTO, task_input, tasked
from .host.vae import TokenizerVAE


class Load(Node):
    """File of a transformer to VAR_MODEL, VAE and CLIP that belong together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARLoad",
            has_intermediate_output=True,  # what it took the model for comes back with a cached rerun
            display_name="StageVAR Load (Infinity, VAR, STAR: model, VAE, CLIP)",
            category=CATEGORY,
            description="Loads a model with the VAE and the text encoder that belong to it: choose the "
            "model, and the other two are found among the installed files by what the files hold. VAR models "
            "take a class and have no text encoder.",
            search_aliases=[
                *("infinity", "VAR", "STAR", "Switti", "visual autoregressive", "load checkpoint", "loader")
            ],
            inputs=[files.file_input(TRANSFORMER, "Transformer"), task_input()],
            outputs=[
                describe(
                    VarModel.Output,
                    display_name="var_model",
                    tooltip="For StageVAR Sampler and the acceleration nodes.",
                ),
                describe(
                    io.Vae.Output,
                    display_name="vae",
                    tooltip="The model's image tokenizer, for StageVAR Sampler, VAE Decode, VAE Encode.",
                ),
                describe(
                    io.Clip.Output,
                    display_name="clip",
                    tooltip="The model's text encoder, for CLIP Text Encode. VAR models have none: use "
                    "StageVAR Class Label.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: object = None) -> bool | str:
        """True, or why the file or a companion is not there."""
        if model_name is None:  # linked: known when it runs
            return True
        try:
            matching(model_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name: object = files.EMBEDDED, **_: object) -> str:
        """Changes with what any of the files holds."""
        try:
            names = matching(model_name)
        except ValueError:  # running it says why
            return ""
        parts = zip((TRANSFORMER, TOKENIZER, TEXT_ENCODER, TEXT_ENCODER), names, strict=True)
        return " ".join(files.version(part, name) for part, name in parts if name is not None)

    @classmethod
    def execute(cls, model_name: object = files.EMBEDDED, task: object = AUTO) -> io.NodeOutput:
        """The three parts, and on the node what the model was taken for.

        Raises ``ValueError`` where one is missing, before any is loaded.
        """
        names = matching(model_name)
        checkpoint, lines = tasked(files.load(TRANSFORMER, names.model), task)
        model, said = load_transformer(checkpoint, DEFAULT), {"text": lines}
        vae = TokenizerVAE(files.load(TOKENIZER, names.vae))
        if names.text_encoder is None:
            return io.NodeOutput(model, vae, NoTextEncoder(names.model), ui=said)
        folders = folder_paths.get_folder_paths("embeddings")
        encoder, second = files.load(TEXT_ENCODER, names.text_encoder), None
        if names.second_text_encoder is not None:
            second = files.load(TEXT_ENCODER, names.second_text_encoder)
        return io.NodeOutput(model, vae, load_text_encoder(encoder, DEFAULT, folders, second), ui=said)
