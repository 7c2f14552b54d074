"""Running the shipped workflow: the image, progress, previews, seeds, interrupts and memory."""

from __future__ import annotations

import numpy as np
from testbed.comfy_server import ComfyServer, Json, sampler_node

from tests.support.events import Watcher, saved_images, value_of, with_value

MEMORY_SLACK_MIB = 200  # allocator noise; one leaked key/value cache of the large batch would be more


def run_watched(watcher: Watcher, prompt: Json) -> Json:
    """Runs a prompt to its successful end; returns the history entry."""
    prompt_id = watcher.queue(prompt)
    name, data = watcher.until_end(prompt_id)
    assert name == "execution_success", data
    return watcher.server.wait(prompt_id)


def test_image_has_the_asked_size(watcher: Watcher, prompt: Json) -> None:
    with_value(prompt, "seed", 11)
    images = saved_images(watcher.server, run_watched(watcher, prompt))
    assert [image.shape for image in images] == [(value_of(prompt, "height"), value_of(prompt, "width"), 3)]
    assert images[0].std() > 0.02, "the image is a flat colour"


def test_progress_is_weighted_by_cost(watcher: Watcher, prompt: Json) -> None:
    with_value(prompt, "seed", 12)
    run_watched(watcher, prompt)
    sampler = sampler_node(prompt)
    events = [data for data in watcher.data_of("progress") if data["node"] == sampler]
    done = [0.0] + [data["value"] / data["max"] for data in events]
    steps = np.diff(done)
    assert len(steps) > 3 and (steps > 0).all() and done[-1] == 1.0
    assert steps[-1] > 3 * steps[0], "the largest scale must move the bar further than the first one"


def test_previews_show_the_image_growing(watcher: Watcher, prompt: Json) -> None:
    with_value(prompt, "seed", 13)
    final = saved_images(watcher.server, run_watched(watcher, prompt))[0]
    assert len(watcher.previews) >= 3
    size = final.shape[1::-1]
    pictures = [np.asarray(preview.resize(size), np.float32) / 255 for preview in watcher.previews]
    distance = [float(np.abs(picture - final).mean()) for picture in pictures]
    assert distance[-1] < distance[0], "the last preview must be nearer to the image than the first"


def test_same_seed_gives_the_same_image_in_any_batch(comfy_server: ComfyServer, prompt: Json) -> None:
    with_value(prompt, "seed", 14)
    single = saved_images(comfy_server, comfy_server.run(prompt))
    assert with_value(prompt, "batch_size", 3)
    batch = saved_images(comfy_server, comfy_server.run(prompt))
    assert len(single) == 1 and len(batch) == 3
    # A pixel may round differently where the batch changes the order of additions.
    assert np.abs(batch[0] - single[0]).mean() < 0.002 < np.abs(batch[1] - single[0]).mean()


def interrupt_once(watcher: Watcher, prompt: Json, seed: int) -> None:
    """Starts a long run and stops it at the sampler's first sign of progress."""
    with_value(prompt, "seed", seed)
    with_value(prompt, "batch_size", 16)
    prompt_id = watcher.queue(prompt)
    watcher.until(lambda name, data: name == "progress" and data.get("prompt_id") == prompt_id)
    watcher.server.interrupt()
    name, _ = watcher.until_end(prompt_id)
    assert name == "execution_interrupted"


def test_interrupt_leaves_a_working_server_and_no_memory(watcher: Watcher, prompt: Json) -> None:
    memory = []
    for seed in range(100, 104):
        interrupt_once(watcher, prompt, seed)
        with_value(prompt, "batch_size", 1)
        assert saved_images(watcher.server, run_watched(watcher, prompt))
        memory.append(watcher.server.memory_mib())
    assert memory[-1] < memory[0] + MEMORY_SLACK_MIB, f"resident memory after each round: {memory}"
