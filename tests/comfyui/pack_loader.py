"""How the checks inside ComfyUI's own process import the pack."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def load_pack(pack: str, models: str | None = None) -> None:
    """Import the pack as ComfyUI does, as ``pack`` from its folder; ``models``: further model folders."""
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths

    for name in ("diffusion_models", "vae", "text_encoders") if models else ():
        folder_paths.add_model_folder_path(name, str(Path(models) / name), is_default=True)
    place = Path(pack) / "__init__.py"
    spec = importlib.util.spec_from_file_location("pack", place, submodule_search_locations=[pack])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
