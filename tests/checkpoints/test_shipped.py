"""The models that come along are those of this version, and a damaged one is an error that says so."""

import shutil
from pathlib import Path

import pytest

from stagevar_core.checkpoints import CheckpointError, read, shipped


def test_every_asset_has_its_checksum() -> None:
    """``python scripts/checksums.py`` after a change of one."""
    files = {path.name: shipped.sha256(path) for path in shipped.ASSETS.glob("*.safetensors")}
    assert files == shipped.checksums()


def test_a_damaged_asset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit in the middle, which no header tells."""
    copy = tmp_path / "tokenizer.safetensors"
    shutil.copy(shipped.ASSETS / copy.name, copy)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    read(copy)  # a file of a user's own may have any content
    monkeypatch.setattr(shipped, "ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="SHA-256") as caught:
        read(copy)
    assert "tokenizer.safetensors" in str(caught.value) and "get the package again" in str(caught.value)


def test_every_asset_is_listed_with_its_licence() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    licences = text[text.rindex("MIT licence") :]
    unlisted = [name for name in shipped.checksums() if f"`{Path(name).stem}`" not in licences]
    assert not unlisted
