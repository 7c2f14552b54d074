"""Checks of what is refused or said instead of a wrong picture; `test_guards.py` starts it.

python inside_guards.py COMFYUI PACK          prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK = sys.argv[1:3]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    """The message of the ``ValueError`` with which a call is refused: one line."""
    try:
        call(*arguments, **options)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500, error
        return str(error)
    raise AssertionError(f"{call} took {arguments} {options}")


def check_sockets() -> None:
    """A value in place of a link is refused by the input's name, and what belongs there passes."""
    import torch
    from pack.nodes.editing import EditNode
    from pack.nodes.host import sockets
    from pack.stagevar_core.acceleration.schedule_file import StageSchedule

    kinds = ("image", "mask", "conditioning", "latent", "vae", "model", "schedule", "report", "edit", "clip")
    literals = (None, 5, 1.5, True, "a red ball", "x" * 10_000, [], [1, 2, 3], {}, {"samples": 5}, object())
    for kind in kinds:
        for value in literals:
            said = refused(getattr(sockets, kind), "there", value)
            assert said.startswith("there: found ") and "; expected " in said and "; connect " in said, said
    tensor, whole = torch.zeros(1, 4, 4, 3), torch.zeros(4, 4)
    for kind, value in (
        ("image", tensor),
        ("mask", whole),
        ("mask", whole[None]),
        ("conditioning", [[tensor, {}]]),
        ("latent", {"samples": tensor}),
        ("schedule", StageSchedule()),
    ):
        assert getattr(sockets, kind)("there", value) is value
    for value in (tensor[0], tensor[..., :1], tensor[:0], tensor.byte(), torch.zeros(1, 0, 4, 3)):
        assert "shape" in refused(sockets.image, "image", value)
    model, vae = loaded()
    right = {"model": model, "vae": vae, "image": tensor, "mask": whole}
    for name in right:
        for value in literals:
            assert refused(EditNode.execute, **{**right, name: value}).startswith(f"{name}: found")


def loaded() -> tuple[Any, Any]:
    """The embedded model and its tokenizer."""
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE

    model = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "default")
    return model, TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))


def main() -> None:
    load_pack(PACK)
    import torch

    with torch.inference_mode():
        for name, check in list(globals().items()):
            if name.startswith("check_"):
                check()
                print(f"ok: {name.removeprefix('check_')}")


main()
