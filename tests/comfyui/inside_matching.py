"""Checks of StageVAR Load and of wrong pairs inside ComfyUI's own process; `test_loaders.py` starts it.

python inside_matching.py COMFYUI PACK MODELS      prints one line per check that passed

MODELS has the published models as tables of tensors without contents, and tiny ones with contents.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pack_loader import load_pack

COMFYUI, PACK, MODELS = sys.argv[1:4]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFYUI)


def refused(action: Any, *words: str) -> str:
    """The message with which the action fails, which has these words."""
    try:
        action()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
        assert len(str(error).splitlines()) <= 10, error
        return str(error)
    raise AssertionError(f"nothing was refused, expected {words}")


def check_companions() -> None:
    """They are found by what the files hold, of which nothing but the table is read."""
    from pack.nodes.host.files import ARTWORK, EMBEDDED
    from pack.nodes.host.matching import matching

    def resident() -> int:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    assert matching("two.safetensors")[:3] == ("two.safetensors", "bits d32.safetensors", "t5.safetensors")
    assert matching("star.safetensors")[:3] == ("star.safetensors", "vq.safetensors", "clip.safetensors")
    assert matching("var.safetensors") == ("var.safetensors", "vq.safetensors", None, None)
    assert matching(EMBEDDED) == (EMBEDDED, EMBEDDED, EMBEDDED, None)
    assert matching(ARTWORK) == (ARTWORK, ARTWORK, None, None)
    assert matching("tiny_var.safetensors").vae == "tiny_vq.safetensors"
    assert matching("tiny_star.safetensors").text_encoder == "tiny_clip.safetensors"
    assert resident() - before < 500 << 20, "they have 11 GB of tensors"


def check_memory_of_looks() -> None:
    """A file is looked at once; written anew, it is looked at again."""
    from pack.nodes.host import matching

    looked, looks = [], matching._looked
    matching._looked = lambda path, *rest: looked.append(path.name) or looks(path, *rest)
    try:
        matching.matching("star.safetensors")
        assert not looked, looked
        os.utime(Path(MODELS) / "vae/vq.safetensors", (5, 5))
        matching.matching("star.safetensors")
        assert looked == ["vq.safetensors"], looked
    finally:
        matching._looked = looks


def check_order() -> None:
    """Of several that fit, the published name comes first, wherever it is; then the alphabet."""
    from pack.nodes.host.matching import matching

    vae, text = Path(MODELS) / "vae", Path(MODELS) / "text_encoders"
    shutil.copy(vae / "tiny_vq.safetensors", vae / "a_tiny_vq.safetensors")
    assert matching("tiny_var.safetensors").vae == "a_tiny_vq.safetensors"
    (vae / "a bits.safetensors").symlink_to(vae / "bits d32.safetensors")
    # Of the same shapes, and another training.
    (vae / "a infinity_vae_d32.safetensors").symlink_to(vae / "bits d32.safetensors")
    (text / "a t5-v1_1-xl.safetensors").symlink_to(text / "t5.safetensors")
    assert matching("two.safetensors")[1:3] == ("a bits.safetensors", "t5.safetensors")
    (text / "flan-t5-xl").mkdir()
    (text / "flan-t5-xl" / "model.safetensors").symlink_to(text / "t5.safetensors")
    (text / "a t5.safetensors").symlink_to(text / "t5.safetensors")
    (vae / "deep").mkdir()
    (vae / "deep" / "infinity_vae_d32reg.safetensors").symlink_to(vae / "bits d32.safetensors")
    names = matching("two.safetensors")
    assert names.vae == os.path.join("deep", "infinity_vae_d32reg.safetensors"), names
    assert names.text_encoder == os.path.join("flan-t5-xl", "model.safetensors"), names


def check_old_files() -> None:
    """A PyTorch file that would have to be read as a whole is no companion, and no model to look at."""
    import torch
    from pack.nodes.host.matching import matching

    tensors = {"weight": torch.zeros(1 << 20)}
    torch.save(tensors, Path(MODELS) / "vae/old.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, Path(MODELS) / "diffusion_models/old.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors, Path(MODELS) / "vae/new.pth")
    loads, load = [], torch.load
    torch.load = lambda path, *args, **options: loads.append(path) or load(path, *args, **options)
    try:
        refused(lambda: matching("old.pth"), "model_name", "old.pth", "three loaders")
        assert matching("star.safetensors").vae == "vq.safetensors"
    finally:
        torch.load = load
    assert [Path(path).name for path in loads] == ["new.pth"] or not loads, loads


def check_foreign_files() -> None:
    """Files that belong to others may fail in any way, and stand in nobody's way."""
    from pack.nodes.host import matching

    folder = Path(MODELS) / "vae"
    for name, contents in (("a damaged", b"\x10" + bytes(7) + b"{" * 9), ("an empty", b"")):
        (folder / f"{name}.safetensors").write_bytes(contents)
    (folder / "a dangling.safetensors").symlink_to("nowhere")
    read = matching.read

    def failing(path: Path) -> Any:
        if "bits" in path.name:
            raise KeyError(path.name)
        return read(path)

    matching.read = failing
    matching._LOOKS.clear()
    try:
        assert matching.matching("star.safetensors").vae == "vq.safetensors"
    finally:
        matching.read = read
        matching._LOOKS.clear()


def check_missing() -> None:
    """The file that has to be got is named, with its link and its folder."""
    from pack.nodes.load import Load

    models = Path(MODELS)
    for name in ("vq", "tiny_vq", "a_tiny_vq"):
        (models / f"vae/{name}.safetensors").unlink()
    for name in ("bits d32", "a bits", "deep/infinity_vae_d32reg"):  # leaves the one of another training
        (models / f"vae/{name}.safetensors").unlink()
    hub, vae = "https://huggingface.co/", str(models / "vae")
    var = ("vae_ch160v4096z32.pth", f"{hub}FoundationVision/var/resolve/main/vae_ch160v4096z32.pth", vae)
    bits = ("infinity_vae_d32reg.pth", f"{hub}FoundationVision/Infinity/resolve/main/", vae)
    for name, words in (("star", var), ("var", var), ("two", bits), ("tiny_var", ("of its own sizes", vae))):
        message = Load.validate_inputs(f"{name}.safetensors")
        assert isinstance(message, str) and all(word in message for word in words), message
        assert Load.fingerprint_inputs(f"{name}.safetensors") == ""
        refused(
            lambda name=name: Load.execute(f"{name}.safetensors"), f"model_name: {name}.safetensors needs"
        )
    for value in (None, [], 3, "no such file"):
        refused(lambda value=value: Load.execute(value), "model_name")
    message = Load.validate_inputs("../vae/bits d16.safetensors")
    assert "model_name" in message
    shutil.copy(models / "vae/bits d16.safetensors", models / "diffusion_models/vae.safetensors")
    assert "expected a transformer" in Load.validate_inputs("vae.safetensors")


def check_published() -> None:
    """Every published model of the README has its tokenizer and text encoder in the table."""
    from pack.nodes.host import official
    from pack.stagevar_core.checkpoints.load import Checkpoint
    from pack.stagevar_core.models.infinity_config import INFINITY_2B, INFINITY_8B, INFINITY_125M
    from pack.stagevar_core.schedule import infinity_aspect_table

    wanted = {INFINITY_125M: "d16.pth", INFINITY_2B: "d32reg.pth", INFINITY_8B: "d56_f8_14_patchify.pth"}
    for config, name in wanted.items():
        model = Checkpoint("transformer", "infinity", config, {}, "x", trained=infinity_aspect_table())
        assert official.tokenizer_of(model).link.endswith(
            f"FoundationVision/Infinity/resolve/main/infinity_vae_{name}"
        )
        (text,) = official.texts(model)
        assert official.text_encoder_of(text).name == "flan-t5-xl"


def check_wrong_pairs(kept: Any) -> None:
    """A wrong VAE is named with the models it belongs to, and so is the right one."""
    from pack.nodes.host.files import EMBEDDED
    from pack.nodes.host.matching import look
    from pack.nodes.host.pairing import checked_pair
    from pack.nodes.load import Load

    embedded, vae, _ = Load.execute(EMBEDDED).args
    bits = look(Path(MODELS) / "vae/bits d16.safetensors", "bits d16.safetensors", "tokenizer")

    def with_checkpoint(vae: Any, checkpoint: Any) -> Any:
        made = object.__new__(type(vae))
        made.checkpoint = checkpoint
        return made

    words = (
        "bits d16.safetensors belongs to Infinity 125M, of the family infinity",
        f"{EMBEDDED} needs its own, of the family infinity",
        f"Choose {EMBEDDED!r}",
    )
    refused(lambda: checked_pair(embedded, with_checkpoint(vae, bits)), "vae: ", *words)
    model = SimpleNamespace(model=SimpleNamespace(checkpoint=kept))
    for checkpoint, owner in ((vae.checkpoint, "the built-in model"), (bits, "Infinity 125M")):
        words = (
            f"belongs to {owner}",
            "star.safetensors needs vae_ch160v4096z32.pth from https://",
            "models/vae",
        )
        refused(lambda checkpoint=checkpoint: checked_pair(model, with_checkpoint(vae, checkpoint)), *words)
    assert checked_pair(embedded, vae).vae is vae


def check_whole_set() -> None:
    """What the three outputs are, and that a class model says why it has no text encoder."""
    from comfy.sd import CLIP
    from pack.nodes.host.files import EMBEDDED
    from pack.nodes.host.vae import TokenizerVAE
    from pack.nodes.load import Load

    import nodes

    for name in (EMBEDDED, "tiny_star.safetensors"):
        model, vae, clip = Load.execute(name).args
        assert model.model.checkpoint.source == name
        assert isinstance(vae, TokenizerVAE) and isinstance(clip, CLIP)
        assert len(nodes.CLIPTextEncode().encode(clip, "a red circle")[0]) == 1
        assert len(Load.fingerprint_inputs(name).split()) == 3
    model, vae, clip = Load.execute("tiny_var.safetensors").args
    assert len(Load.fingerprint_inputs("tiny_var.safetensors").split()) == 2
    words = ("tiny_var.safetensors is conditioned on a class", "StageVAR Class Label")
    refused(lambda: nodes.CLIPTextEncode().encode(clip, "a red circle"), *words)
    refused(lambda: nodes.CLIPSetLastLayer().set_last_layer(clip, -2), *words)
    assert not hasattr(clip, "get_ram_usage")


def main() -> None:
    load_pack(PACK, MODELS)
    import torch
    from pack.nodes.host.matching import look

    star = look(Path(MODELS) / "diffusion_models/star.safetensors", "star.safetensors", "transformer")
    checks = (check_companions, check_memory_of_looks, check_whole_set, check_order, check_old_files)
    for check in (*checks, check_foreign_files, check_published, check_missing):
        with torch.inference_mode():
            check()
        print(f"ok: {check.__name__.removeprefix('check_')}")
    check_wrong_pairs(star)
    print("ok: wrong_pairs")


main()
