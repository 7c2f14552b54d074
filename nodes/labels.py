"""The node that names a class for the class-conditional models: of ImageNet, or of the built-in one."""

from contextlib import suppress
from functools import cache
from typing import NamedTuple

import torch
from comfy_api.latest import io

from ..stagevar_core.checkpoints.errors import CheckpointError
from ..stagevar_core.checkpoints.files import read
from ..stagevar_core.checkpoints.header import parse
from ..stagevar_core.checks import inside, refuse, some
from ..stagevar_core.conditioning.labels import class_index, imagenet_names
from ..stagevar_core.embedded import ARTWORK as FILES
from .host.conditioning import CLASS_LABEL, CLASSES
from .host.schema import CATEGORY, Node, Schema, describe

NO_CLASS = "no class"
ARTWORK = "artwork: "  # before the classes of the built-in model
MODEL = FILES["transformer"]
DEFAULT = "207: golden retriever"
_DIGITS = 9  # of a number that is taken as it is


@cache
def artwork_names() -> tuple[str, ...]:
    """The classes of the built-in model that draws some, by number; none where its file cannot be read."""
    try:
        said = read(MODEL).metadata
        found = parse(said, str(MODEL))
    except (CheckpointError, OSError):
        return ()
    return found.classes if found else ()


def choices() -> list[str]:
    """The classes of ImageNet with their numbers, those of the built-in model, and what stands for none."""
    own = (f"{ARTWORK}{name}" for name in artwork_names())
    return [*(f"{index}: {name}" for index, name in enumerate(imagenet_names())), *own, NO_CLASS]


class Chosen(NamedTuple):
    """The number of a class, -1 for none, and how many its model has; None: that is not said."""

    label: int
    classes: int | None = None


def label_of(chosen: object, typed: object) -> Chosen:
    """The class that is meant; raises ``ValueError`` naming the input that is none."""
    listed, label = _listed(chosen), _typed(typed)
    return listed if label is None else label


def _listed(chosen: object) -> Chosen:
    """An entry of the list, or a number or name alone, as links may bring them."""
    if chosen == NO_CLASS:
        return Chosen(-1)
    if (own := _own(chosen)) is not None:
        return own
    names = [f"{index}: {name}" for index, name in enumerate(imagenet_names())]
    if chosen in names:
        return Chosen(names.index(str(chosen)), len(names))
    if _is_number(chosen) or (isinstance(chosen, str) and chosen.strip()):
        with suppress(ValueError):
            return Chosen(class_index(str(chosen)))
    refuse("class_name", chosen, f"one of {some(choices())}")


def _own(text: object) -> Chosen | None:
    """A class of the built-in model, which says so; None for all else."""
    names = artwork_names()
    if not isinstance(text, str) or not text.startswith(ARTWORK) or not names:
        return None
    return Chosen(class_index(text.removeprefix(ARTWORK), len(names), names), len(names))


def _typed(label: object) -> Chosen | None:
    """A typed class, None where nothing is typed."""
    if not isinstance(label, str) and not _is_number(label):
        refuse("label", label, "a text: the number of a class, -1 for no class, a name or a part of one")
    text = str(label).strip()
    if not text:
        return None
    if text.removeprefix("-").isdecimal() and len(text) <= _DIGITS:
        return Chosen(int(text))  # whether it is too large depends on the model, which the sampler knows
    with inside("label: "):
        return _own(text) or Chosen(class_index(text), len(imagenet_names()))


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
            description="Says which class a VAR model should draw, in place of a prompt: one of ImageNet's "
            "1000, or one of the built-in artwork model. Type into the list to search it.",
            search_aliases=["ImageNet", "class", "label", "VAR class", "emoji", "artwork"],
            inputs=[
                describe(
                    io.Combo.Input,
                    "class_name",
                    options=choices(),
                    default=DEFAULT,
                    optional=True,
                    tooltip="Name and number of the class; the list can be searched for both. Those of the "
                    "built-in model begin with artwork. no class draws without one.",
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
        found = label_of(class_name, label)
        return io.NodeOutput([[torch.zeros(1, 1, 1), {CLASS_LABEL: found.label, CLASSES: found.classes}]])
