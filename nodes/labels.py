"""The node that names a class for the class-conditional models."""

from contextlib import suppress

import torch
from comfy_api.latest import io

from ..stagevar_core.checks import inside, refuse, some
from ..stagevar_core.conditioning.labels import class_index, imagenet_names
from .host.conditioning import CLASS_LABEL
from .host.schema import CATEGORY, Node, Schema, describe

NO_CLASS = "no class"
DEFAULT = "207: golden retriever"
_DIGITS = 9  # of a number that is taken as it is


def choices() -> list[str]:
    """The classes of ImageNet with their numbers, and what stands for none of them."""
    return [*(f"{index}: {name}" for index, name in enumerate(imagenet_names())), NO_CLASS]


def label_of(chosen: object, typed: object) -> int:
    """The number of a class, -1 for none; raises ``ValueError`` naming the input that is none."""
    listed, label = _listed(chosen), _typed(typed)
    return listed if label is None else label


def _listed(chosen: object) -> int:
    """The number of an entry of the list, or of a number or name alone, as links may bring them."""
    if chosen == NO_CLASS:
        return -1
    names = choices()
    if chosen in names:
        return names.index(str(chosen))
    if _is_number(chosen) or (isinstance(chosen, str) and chosen.strip()):
        with suppress(ValueError):
            return class_index(str(chosen))
    refuse("class_name", chosen, f"one of {some(names)}")


def _typed(label: object) -> int | None:
    """The number of a typed class, None where nothing is typed."""
    if not isinstance(label, str) and not _is_number(label):
        refuse("label", label, "a text: the number of a class, -1 for no class, a name or a part of one")
    text = str(label).strip()
    if not text:
        return None
    if text.removeprefix("-").isdecimal() and len(text) <= _DIGITS:
        return int(text)  # whether it is too large depends on the model, which the sampler knows
    with inside("label: "):
        return class_index(text)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class ClassLabel(Node):
    """A class of ImageNet to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows of the node."""
        return Schema(
            node_id="StageVARClassLabel",
            display_name="StageVAR Class Label (VAR, ImageNet)",
            category=CATEGORY,
            description="Says which of the 1000 classes of ImageNet a VAR model should draw, in place of a "
            "prompt. Type into the list to search it.",
            search_aliases=["ImageNet", "class", "label", "VAR class"],
            inputs=[
                describe(
                    io.Combo.Input,
                    "class_name",
                    options=choices(),
                    default=DEFAULT,
                    optional=True,
                    tooltip="Name and number of the class; the list can be searched for both. no class draws "
                    "without one.",
                ),
                describe(
                    io.String.Input,
                    "label",
                    default="",
                    optional=True,
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
    def validate_inputs(cls, label: object = None) -> bool | str:
        """True, or why a typed label is none."""
        if label is None:  # linked: known when it runs
            return True
        try:
            label_of(NO_CLASS, label)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, class_name: object = DEFAULT, label: object = "") -> io.NodeOutput:
        """Conditioning with the class in it; raises ``ValueError`` for a label that is none."""
        return io.NodeOutput([[torch.zeros(1, 1, 1), {CLASS_LABEL: label_of(class_name, label)}]])
