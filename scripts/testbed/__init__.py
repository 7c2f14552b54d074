"""What the quickstart and the tests stand on: environment, ComfyUI, browser. Standard library only."""
