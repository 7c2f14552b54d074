"""What the nodes share of ComfyUI: models, memory, files, and how both sides meet."""
