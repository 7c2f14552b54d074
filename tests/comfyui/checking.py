"""What the checks inside ComfyUI's own process share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pack_loader import load_pack

_CHOSEN = {name: "auto" for name in ("cfg", "temperature", "top_k", "top_p")}
_CHOSEN |= {"width": 256, "height": 256, "seed": 5, "batch_size": 1}


def sample(model: Any, vae: Any, positive: list, **inputs: Any) -> tuple[Any, Any]:
    """The sampler's latent and report; 256 px unless ``inputs`` say something else."""
    from pack.nodes.sampling import Sampler

    chosen = {**_CHOSEN, **inputs}
    latent, report = Sampler.execute(model=model, vae=vae, positive=positive, **chosen).args
    return latent["samples"][:, : vae.latent_channels], report


def refused(action: Callable[[], Any], *words: str) -> str:
    """The one sentence that the action fails with; it has these words."""
    try:
        action()
    except ValueError as error:
        assert all(word in str(error) for word in words) and "\n" not in str(error), error
        return str(error)
    raise AssertionError(f"nothing was refused, expected {words}")


def run_checks(members: Mapping[str, Any], *arguments: Any) -> None:
    """Call every function of a script whose name begins with ``check_``, and print one line for each.

    The variable STAGEVAR_CHECK of the environment chooses those with that part in their name.
    """
    chosen = os.environ.get("STAGEVAR_CHECK", "")
    for name, check in list(members.items()):
        if name.startswith("check_") and chosen in name:
            check(*arguments)
            print(f"ok: {name.removeprefix('check_')}", flush=True)


def run_with(bench: Callable[[], Any], members: Mapping[str, Any], pack: str, models: str) -> None:
    """The same of a script whose checks all take a bench, with the pack in ComfyUI."""
    load_pack(pack, models)
    import torch

    with torch.inference_mode():
        run_checks(members, bench())
