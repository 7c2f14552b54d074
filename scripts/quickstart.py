"""From a fresh clone to a picture: sets up ComfyUI, starts it headless and runs the shipped workflow.

    python3 scripts/quickstart.py --prompt "a red ring left of a blue cross" --seed 7

Needs Python 3.10 or newer and nothing else. The first run downloads PyTorch and ComfyUI's dependencies into
`.venv`, later runs start at once. `testbed/bootstrap.py` names the environment variables that choose others.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

from testbed import comfy_server
from testbed.bootstrap import Setup, bootstrap
from testbed.comfy_server import PACK_NAME, ComfyServer, Json, PromptFailed, PromptRejected, ServerError
from testbed.environment import ROOT, SetupError

WORKFLOW = "01_text_to_image_no_download"
MAX_SEED = 2**64 - 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Makes an image with the embedded model in a real ComfyUI.")
    parser.add_argument("--prompt", help="what to draw (default: the workflow's own prompt)")
    parser.add_argument(
        "--seed", type=int, help="the same seed gives the same image (default: the workflow's)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "output", help="folder of the PNG (default: output/)"
    )
    parser.add_argument(
        "--steps-out", type=Path, metavar="DIR", help="also write one image per scale into DIR"
    )
    parser.add_argument("--keep-open", action="store_true", help="leave ComfyUI running and open its page")
    arguments = parser.parse_args()
    if arguments.seed is not None and not 0 <= arguments.seed <= MAX_SEED:
        parser.error(f"--seed must be between 0 and {MAX_SEED}, got {arguments.seed}")
    return arguments


def prepare_prompt(text: str | None, seed: int | None) -> tuple[Json, str, int]:
    """The shipped workflow with the user's prompt and seed in it, and the two values that will be used."""
    prompt = comfy_server.read_json(comfy_server.shipped_workflow(WORKFLOW))
    words = prompt[comfy_server.positive_text_node(prompt)]["inputs"]
    settings = prompt[comfy_server.sampler_node(prompt)]["inputs"]
    if text is not None:
        words["text"] = text
    if seed is not None:
        settings["seed"] = seed
    return prompt, words["text"], settings["seed"]


def make_image(server: ComfyServer, prompt: Json, seed: int, out: Path) -> Path:
    """Runs the workflow and saves its image."""
    images = server.images(server.run(prompt))
    if not images:
        raise ServerError("The workflow finished without saving an image.")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"stagevar_seed{seed}_{time.strftime('%Y%m%d-%H%M%S')}.png"
    path.write_bytes(server.view(images[0]))
    return path


def write_steps(setup: Setup, text: str, seed: int, folder: Path) -> None:
    """One image per scale, from the core without ComfyUI."""
    options = ["--prompt", text, "--seed", str(seed), "--steps-out", str(folder)]
    result = subprocess.run([str(setup.python), "-m", "stagevar_core", "generate", *options], cwd=ROOT)
    if result.returncode:
        raise ServerError(f"stagevar_core generate failed (exit {result.returncode}).")
    print(f"steps:  {folder} ({len(list(folder.glob('*.png')))} images)")


def keep_open(server: ComfyServer) -> None:
    """Shows the workflow in a browser and waits for Ctrl+C."""
    url = f"{server.url}/?template={WORKFLOW}&source={PACK_NAME}"
    print(f"\nComfyUI is running: {url}\nPress Ctrl+C to stop it.", flush=True)
    webbrowser.open(url)
    try:
        server.process.wait()
    except KeyboardInterrupt:
        print("stopping ...")


def main() -> int:
    """Command line: one image, then the timings."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # else the server would stay behind
    folder = arguments.out.resolve()
    steps = arguments.steps_out.resolve() if arguments.steps_out else None
    setup = bootstrap()
    prompt, text, seed = prepare_prompt(arguments.prompt, arguments.seed)
    before_start = time.perf_counter()
    with ComfyServer(setup.python, setup.comfy_path) as server:
        if problems := server.import_problems():
            raise ServerError("ComfyUI could not load the pack:\n" + "\n".join(problems))
        before_image = time.perf_counter()
        path = make_image(server, prompt, seed, folder)
        done = time.perf_counter()
        print(f"prompt: {text}\nseed:   {seed}\nimage:  {path}")
        if steps is not None:
            write_steps(setup, text, seed, steps)
        print(
            f"time:   setup {setup.seconds:.1f} s, server start {before_image - before_start:.1f} s, "
            f"first image {done - before_image:.1f} s",
            flush=True,
        )
        if arguments.keep_open:
            keep_open(server)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SetupError, ServerError, PromptRejected, PromptFailed) as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit("stopped")
