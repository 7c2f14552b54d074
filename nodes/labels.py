"""The node that names a class for the class-conditional models."""

import torch
from comfy_api.latest import io

from ..stagevar_core.conditioning.labels import class_index, imagenet_names
from .host.conditioning import CLASS_LABEL
from .host.schema import CATEGORY, Node, Schema, describe

NO_CLASS = "no class"


def choices() -> list[str]:
    """The classes of ImageNet with their numbers, and what stands for none of them."""
    return [*(f"{index}: {name}" for index, name in enumerate(imagenet_names())), NO_CLASS]


def label_of(chosen: str, typed: str) -> int:
    """The number of a class, -1 for none; raises ``ValueError`` for what is none."""
    text = typed.strip()
    if text.removeprefix("-").isdecimal():
        return int(text)  # whether it is too large depends on the model, which the sampler knows
    if text:
        return class_index(text)
    if chosen == NO_CLASS:
        return -1
    return class_index(chosen.partition(":")[0])


class ClassLabel(Node):
    """A class of ImageNet to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARClassLabel",
            display_name="StageVAR Class Label",
            category=CATEGORY,
            description="Says which of the 1000 classes of ImageNet a VAR model should draw, in place of a "
            "prompt. Type into the list to search it.",
            search_aliases=["ImageNet", "class", "label", "VAR class"],
            inputs=[
                describe(
                    io.Combo.Input,
                    "class_name",
                    options=choices(),
                    default=choices()[207],
                    tooltip="Name and number of the class; the list can be searched for both. no class draws "
                    "without one.",
                ),
                describe(
                    io.String.Input,
                    "label",
                    default="",
                    tooltip="Overrides the list where it is not empty: a number, -1 for no class, a name, or "
                    "a part of a name that only one class has. For links, and for models with other classes "
                    "than ImageNet's.",
                ),
            ],
            outputs=[
                describe(
                    io.Conditioning.Output,
                    display_name="conditioning",
                    tooltip="For the positive or negative input of StageVAR Sampler.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, label: str | None = None) -> bool | str:
        """True, or why a typed label is none."""
        if label is None:  # linked: known when it runs
            return True
        try:
            label_of(NO_CLASS, label)
        except ValueError as error:
            return f"label: {error}"
        return True

    @classmethod
    def execute(cls, class_name: str, label: str = "") -> io.NodeOutput:
        """Conditioning with the class in it; raises ``ValueError`` for a label that is none."""
        try:
            number = label_of(class_name, label)
        except ValueError as error:
            raise ValueError(f"label: {error}") from error
        return io.NodeOutput([[torch.zeros(1, 1, 1), {CLASS_LABEL: number}]])
