"""Checks of StageVAR Edit by Text inside ComfyUI's own process; `test_editing.py` starts it.

python inside_editing.py COMFYUI PACK MODELS      prints one line per check that passed
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from checking import refused, run_checks
from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)
REUSED = "the picture's keys and values are those of an earlier run"


class Set(NamedTuple):
    """A tiny editing model."""

    model: Any
    vae: Any
    clip: Any

    def text(self, words: str = "make the red circle blue") -> Any:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(words))


def edit(have: Set, image: Any, *, words: str = "red circle", **inputs: Any) -> Any:
    """What one execution of the node gives."""
    from pack.nodes.edit_by_text import EditByText

    model, vae = inputs.pop("model", have.model), inputs.pop("vae", have.vae)
    positive = inputs.pop("positive", None)
    return EditByText.execute(model, vae, image, have.text(words) if positive is None else positive, **inputs)


def image_of(*arguments: Any, **inputs: Any) -> Any:
    return edit(*arguments, **inputs).args[0]


def said(*arguments: Any, **inputs: Any) -> list[str]:
    return edit(*arguments, **inputs).ui["text"]


def pictures(*shape: int, seed: int = 0) -> Any:
    import torch

    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def loaded(name: str, task: str = "auto") -> Any:
    from pack.nodes.loaders import LoadModel

    return LoadModel.execute(name, "default", task)


def check_sizes(have: Set) -> None:
    """Every picture comes back in its own size: wide, tall, one pixel wide, 8k wide; alpha is dropped."""
    import torch

    for shape in ((1, 90, 120, 3), (1, 120, 40, 4), (1, 60, 1, 3), (1, 1, 1, 3), (1, 2, 8192, 3)):
        found = edit(have, pictures(*shape))
        assert found.args[0].shape == (*shape[:3], 3), found.args[0].shape
        assert found.args[0].dtype == torch.float32 and 0 <= found.args[0].min() <= found.args[0].max() <= 1
        assert found.args[1]["samples"][:, : have.vae.latent_channels].shape == (1, 4, 16, 16)
        lines = found.ui["text"]
        assert f"{shape[2]} x {shape[1]} at 128 px" in lines[0] and lines[0].startswith("off: "), lines
        assert ("transparency" in str(lines[1:])) == (shape[3] == 4), lines


def check_square(have: Set) -> None:
    """A picture of the model's size is the decoded latent, cut to bytes; others lie at the top left."""
    import torch
    from pack.stagevar_core.conditioning.picture import from_square, to_square

    found = edit(have, pictures(1, 128, 128, 3), seed=4)
    bytes_ = (have.vae.decode(found.args[1]["samples"]) * 255).to(torch.uint8)
    assert torch.equal(found.args[0], bytes_ / 255.0)
    wide = torch.rand(1, 64, 128, 3).mul(255).round() / 255
    found = edit(have, wide, seed=4)
    padded = torch.tensor(to_square((wide[0] * 255).round().byte().numpy(), 128))[None] / 255.0
    same = edit(have, padded, seed=4)
    assert torch.equal(found.args[1]["samples"], same.args[1]["samples"])
    cut = from_square((same.args[0][0] * 255).round().byte().numpy(), (64, 128))
    assert torch.equal(found.args[0][0], torch.tensor(cut) / 255.0)


def check_batches(have: Set) -> None:
    """Edit n is the one of seed + n: pictures in turn, the tries of one next to each other."""
    import torch

    image = pictures(2, 40, 60, 3)
    found = edit(have, image, seed=7, tries=2)
    assert found.args[0].shape == (4, 40, 60, 3) and found.ui["text"][0].endswith(
        "4 edits of 60 x 40 at 128 px"
    )
    for index in range(4):
        alone = image_of(have, image[index // 2 : index // 2 + 1], seed=7 + index)
        assert (alone - found.args[0][index : index + 1]).abs().max() < 0.02, index
    texts = [[torch.cat([have.text("red")[0][0], have.text("blue")[0][0]]), {}]]
    both = image_of(have, image, positive=texts, seed=7)
    second = image_of(have, image[1:], words="blue", seed=8)
    assert (both[1:] - second).abs().max() < 0.02


def check_tries(have: Set) -> None:
    """A second try does without the pass over the picture and gives what a first one gives."""
    import torch
    from pack.nodes.acceleration import Accelerate

    image = pictures(1, 40, 60, 3, seed=3)
    first = edit(have, image, seed=1)
    again, other = edit(have, image, seed=1), edit(have, image, seed=2)
    assert REUSED not in first.ui["text"] and REUSED in again.ui["text"] and REUSED in other.ui["text"]
    assert torch.equal(first.args[0], again.args[0]) and not torch.equal(first.args[0], other.args[0])
    assert again.args[2]["totals"]["flops"] < first.args[2]["totals"]["flops"]
    fast = Accelerate.execute(have.model, "balanced").args[0]
    lines = said(have, image, seed=1, model=fast)
    assert REUSED in lines and lines[0].startswith("balanced: "), lines
    assert REUSED not in said(have, image, seed=1, words="blue")
    assert REUSED not in said(have, pictures(1, 40, 60, 3, seed=4), words="blue")
    patched = have.model.clone()
    image = pictures(1, 40, 60, 3, seed=5)
    before = image_of(have, image)
    key = next(name for name, _ in have.model.model.named_parameters() if name.endswith("qkv.weight"))
    weight = dict(have.model.model.named_parameters())[key]
    patched.add_patches({key: ("diff", (torch.randn_like(weight),))}, 1.0)
    changed = edit(have, image, model=patched)
    assert REUSED not in changed.ui["text"] and not torch.equal(changed.args[0], before)
    assert torch.equal(image_of(have, image), before)


def check_room(have: Set) -> None:
    """Where the host's memory is short nothing is kept."""
    from pack.nodes.host import bridge

    image, real = pictures(1, 40, 60, 3, seed=9), bridge.free_memory
    bridge.free_memory = lambda device: 1000
    try:
        assert REUSED not in said(have, image) + said(have, image)
    finally:
        bridge.free_memory = real


def check_notes(have: Set) -> None:
    """An empty instruction runs and is said; a text too many, too."""
    assert "instruction is empty" in str(said(have, pictures(1, 9, 9, 3), words=""))
    assert "instruction" not in str(said(have, pictures(1, 9, 9, 3)))


def check_cancel(have: Set) -> None:
    """Cancelling ends it between two blocks, within the pass over the picture, too."""
    import comfy.model_management as mm
    from pack.nodes.host.monitor import HostMonitor

    real, calls = HostMonitor.block, []

    def cancels(self: Any, scale: Any, layer: int) -> None:
        calls.append(layer)
        if len(calls) == 2:
            mm.interrupt_current_processing(True)
        real(self, scale, layer)

    HostMonitor.block = cancels
    try:
        edit(have, pictures(1, 40, 60, 3, seed=20))
    except mm.InterruptProcessingException:
        assert len(calls) == 2
    else:
        raise AssertionError("it went on")
    finally:
        HostMonitor.block = real
        mm.interrupt_current_processing(False)
    assert image_of(have, pictures(1, 40, 60, 3, seed=20)).shape == (1, 40, 60, 3)


def check_memory(have: Set) -> None:
    """Out of memory: the rows of guidance in turn, then one by one, then one sentence."""
    from pack.nodes.host import running

    image, real, calls = pictures(3, 40, 60, 3, seed=30), running.generate, []
    expected = image_of(have, image, seed=1)

    def fails(at: int) -> Any:
        def run(network: Any, conditioning: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(conditioning.batch)
            if conditioning.batch > at:
                raise RuntimeError("CUDA out of memory")
            return real(network, conditioning, *arguments, **options)

        return run

    try:
        running.generate = fails(1)
        found = edit(have, image, seed=1)
        assert calls == [3, 3, 1, 1, 1] and "image by image" in str(found.ui["text"]), calls
        assert (found.args[0] - expected).abs().max() < 0.02
        running.generate = fails(0)
        edit(have, image, seed=1)
    except RuntimeError as error:
        assert "Out of memory: one image of 128x128" in str(error)
    else:
        raise AssertionError("it went on")
    finally:
        running.generate = real


def check_refusals(have: Set) -> None:
    """Whatever does not belong is one sentence with the input's name."""
    import torch
    from pack.nodes.editing import EditNode
    from pack.nodes.host import files
    from pack.nodes.host.bridge import load_transformer
    from pack.nodes.host.vae import TokenizerVAE
    from pack.nodes.labels import ClassLabel
    from pack.nodes.restoring import Restore
    from pack.nodes.sampling import Sampler

    image = pictures(1, 20, 20, 3)
    other = load_transformer(files.load(files.TRANSFORMER, files.EMBEDDED), "default")
    codes = TokenizerVAE(files.load(files.TOKENIZER, files.EMBEDDED))
    refused(lambda: edit(have, image, model=other, vae=codes), "model: ", "not known to edit", "task")
    refused(lambda: edit(have, image, vae=codes), "vae: ")
    var = loaded("tiny_var.safetensors").args[0]
    refused(lambda: edit(have, image, model=var), "model: ", "a var model edits no pictures")
    star = loaded("tiny_star.safetensors").args[0]
    refused(lambda: edit(have, image, model=star), "model: ", "a star model edits no pictures")
    restores = loaded("restoring_transformer.safetensors").args[0]
    refused(lambda: edit(have, image, model=restores), "model: ", "restores pictures", "StageVAR Restore")
    text = have.text()
    refused(lambda: Sampler.execute(have.model, have.vae, text), "model: ", "edits pictures", "Edit by Text")
    refused(lambda: Restore.execute(have.model, have.vae, image), "model: ", "not known to restore")
    mask = torch.ones(1, 20, 20)
    refused(lambda: EditNode.execute(have.model, have.vae, image, mask), "model: ", "edits pictures")
    label = ClassLabel.execute("207").args[0]
    refused(lambda: edit(have, image, positive=label), "positive: ", "class label")
    refused(lambda: edit(have, image, positive="make it snow"), "positive: ", "CLIP Text Encode")
    refused(lambda: edit(have, image, negative=7), "negative: ", "CLIP Text Encode")
    refused(lambda: edit(have, "picture.png"), "image: ", "Load Image")
    refused(lambda: edit(have, torch.zeros(0, 4, 4, 3)), "image: ")
    refused(lambda: edit(have, torch.zeros(1, 4, 4, 1)), "image: ")
    refused(lambda: edit(have, torch.full((1, 9, 9, 3), float("nan"))), "image: ", "NaN")
    refused(lambda: edit(have, torch.zeros(1, 1, 1, 3).expand(1, 2, 20000, 3)), "image: ", "16384")
    refused(lambda: edit(have, image, model=7), "model: ", "Load StageVAR Model")
    refused(lambda: edit(have, image, vae="vae"), "vae: ", "Load StageVAR Tokenizer")
    for name, values in (
        ("seed", (-1, "a", True)),
        ("tries", (0, 65, 1.5, None)),
        ("cfg", ("much", float("nan"), 31)),
        ("temperature", ([], -3)),
    ):
        for value in values:
            refused(lambda name=name, value=value: edit(have, image, **{name: value}), name)


def check_tasks(have: Set) -> None:
    """The loaders ask what a file does not say, and say what they took it for."""
    from pack.nodes.load import Load

    raw, told = "tiny_varedit.safetensors", "transformer.safetensors"
    assumed = loaded(raw)
    assert "taken for weights that make pictures" in assumed.ui["text"][0] and not assumed.args[0].model.edits
    edits = loaded(raw, "edit pictures, 512 px")
    assert edits.args[0].model.edits and edits.ui["text"] == []
    checkpoint = edits.args[0].model.checkpoint
    assert (checkpoint.defaults["cfg"], checkpoint.defaults["temperature"]) == (3.0, 0.1)
    assert loaded(told).ui["text"] == ["edits pictures at 128 px: for StageVAR Edit by Text"]
    assert loaded("restoring_transformer.safetensors").ui["text"] == [
        "restores pictures: for StageVAR Restore"
    ]
    assert (
        loaded("tiny_var.safetensors").ui["text"]
        == loaded("embedded/StageVAR-scenes (built in)").ui["text"]
        == []
    )
    assert Load.execute(told).ui["text"] == loaded(told).ui["text"]
    refused(lambda: loaded(told, "restore pictures"), "task", told, "metadata says")
    refused(lambda: loaded("tiny_var.safetensors", "edit pictures, 512 px"), "task", "family var")
    for value in (None, 3, "edit", "edit 512", True):
        refused(lambda value=value: loaded(told, value), "task", repr(value), "edit pictures, 512 px")


def main() -> None:
    load_pack(PACK, MODELS)
    import torch
    from pack.nodes.load import Load

    with torch.inference_mode():
        have = Set(*Load.execute("transformer.safetensors").args)
        run_checks(globals(), have)


main()
