"""ComfyUI entry point; importing it without ComfyUI (as test collection does) loads nothing."""

from importlib.util import find_spec

WEB_DIRECTORY = "./web"

# Only the absence of ComfyUI is tolerated: an error inside the nodes must reach ComfyUI's log.
if __package__ and find_spec("comfy") is not None:
    from .nodes import comfy_entrypoint  # noqa: F401
