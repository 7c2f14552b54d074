"""The node that adds a LoRA to a model."""

from comfy_api.latest import io

from .host import files, lora, sockets
from .host.attached import Patcher
from .host.lora import LORA, RED
from .host.schema import CATEGORY, Node, Schema, VarModel, describe
from .host.values import checked

_MAX_STRENGTH = 100.0


class LoadLora(Node):
    """VAR_MODEL and a file to the same model with the LoRA in its weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARLoadLora",
            has_intermediate_output=True,  # how many layers it changed comes back with a cached rerun
            display_name="StageVAR Load LoRA (Infinity, VAR, STAR)",
            category=CATEGORY,
            description="Adds a LoRA to a model: a small file that was trained to give it a style or a "
            "subject. Several nodes in a row add up. Reads files of PEFT, cloneofsimo/lora and kohya-ss; the "
            "node says how many layers it changed.",
            search_aliases=["lora", "peft", "dora", "style", "LoraLoaderModelOnly", "load lora"],
            inputs=[
                describe(
                    VarModel.Input,
                    "model",
                    tooltip="From a loader of this pack, or from another StageVAR Load LoRA.",
                ),
                describe(
                    io.Combo.Input,
                    LORA.field,
                    options=files.choices(LORA),
                    default=RED,
                    optional=True,
                    tooltip="The LoRA, from models/loras. It belongs to the model that it was trained on. Of "
                    "PEFT keep adapter_model.safetensors and adapter_config.json in one folder. What begins "
                    "with embedded/ comes with this pack, for the built-in model.",
                ),
                *_number_inputs(),
            ],
            outputs=[
                describe(
                    VarModel.Output,
                    display_name="var_model",
                    tooltip="For StageVAR Sampler and the acceleration nodes. The model that came in is not "
                    "changed.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: object = None) -> bool | str:
        """True, or why there is no such file."""
        return files.missing(LORA, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name: object = RED, **_: object) -> str:
        """Changes with what the file holds."""
        return lora.version(lora_name)

    @classmethod
    def execute(cls, model: Patcher, lora_name: object = RED, strength: object = 1.0) -> io.NodeOutput:
        """A clone of the model with the LoRA, and on the node how many layers it changes.

        Raises ``ValueError`` for a file that is no LoRA of this model. Of strength 0 the model is passed on.
        """
        given = sockets.model("model", model)
        amount = checked(_number_inputs(), {"strength": strength})["strength"]
        found = lora.read(lora_name, given)
        if not amount:
            return io.NodeOutput(given, ui={"text": ["strength 0: the model as it came"]})
        said = f"changed {found.summary()}; strength {amount:g}"
        return io.NodeOutput(lora.patched(given, found, amount), ui={"text": [said]})


def _number_inputs() -> list[io.Input]:
    return [
        describe(
            io.Float.Input,
            "strength",
            optional=True,
            default=1.0,
            min=-_MAX_STRENGTH,
            max=_MAX_STRENGTH,
            step=0.01,
            round=0.01,
            tooltip="How much of it: 1 as it was trained, 0 nothing, between them less, beyond 1 more (often "
            "too much). Negative values turn it around.",
        )
    ]
