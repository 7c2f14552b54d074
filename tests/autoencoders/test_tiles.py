"""Pictures in tiles: what covers them, what blends, and what is held."""

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_core.autoencoders.tiles import (
    MAX_PIXELS,
    enlarged,
    in_tiles,
    restored_size,
    tile_count,
    tile_starts,
)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("length", [32, 33, 47, 48, 49, 100, 1000])
@pytest.mark.parametrize("overlap", [0, 1, 8, 16])
def test_tiles_cover_everything_with_at_least_their_overlap(length, overlap):
    starts = tile_starts(length, 32, overlap)
    assert starts[0] == 0 and starts[-1] == length - 32
    steps = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    assert all(0 < step <= 32 - overlap + 1 for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (5, 31), (32, 32), (33, 90), (100, 70)])
def test_what_does_not_change_comes_back(size):
    image, out, calls = picture(*size), torch.empty(*size, 3), []

    def same(tile):
        assert tile.shape == (1, 32, 32, 3) and 0 <= tile.min() <= tile.max() <= 1
        calls.append(tile)
        return tile

    in_tiles(image, 32, 8, same, out)
    assert torch.allclose(out, torch.from_numpy(image) / 255.0, atol=1e-5)
    assert len(calls) == tile_count(size, 32, 8)


def test_tiles_of_different_brightness_blend_without_a_step():
    out, values = torch.empty(32, 300, 3), iter(np.linspace(0, 1, 100))

    def flat(tile):
        return torch.full_like(tile, float(next(values)))

    in_tiles(picture(32, 300), 32, 16, flat, out)
    line = out[16, :, 0]
    assert (line.diff() >= -1e-6).all() and line.diff().max() < 0.004
    assert torch.allclose(out, out[:1].expand_as(out), atol=1e-5)


def test_small_pictures_continue_as_their_mirror_image():
    image, seen = picture(20, 30), []
    in_tiles(image, 32, 8, lambda tile: seen.append(tile) or tile, torch.empty(20, 30, 3))
    whole = (seen[0][0] * 255).round().byte().numpy()
    assert np.array_equal(whole[20:32, :30], image[:7:-1, :30]) and np.array_equal(
        whole[:20, 30], image[:, 29]
    )


def test_only_one_row_of_tiles_is_held(monkeypatch):
    held, zeros = [], torch.zeros

    def counted(*shape, **options):
        held.append(np.prod(shape))
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", counted)
    in_tiles(picture(3000, 64), 32, 8, lambda tile: tile, torch.empty(3000, 64, 3))
    assert sum(held) == 32 * 64 * 4


def test_sizes():
    assert restored_size((10, 3), 4.0) == (40, 12) and restored_size((1, 1), 1.4) == (1, 1)
    assert restored_size((2048, 8192), 4) == (8192, 32768)
    for scale in (0.0, 0.99, 8.1, float("nan"), float("inf"), True, "4", None):
        with pytest.raises(ValueError, match="scale is .*expected a number from 1 to 8"):
            restored_size((10, 10), scale)
    side = int(MAX_PIXELS**0.5)
    restored_size((side, side), 1.0)
    with pytest.raises(ValueError, match="scale is 2; a picture of 32768x32768 .*1073 megapixels"):
        restored_size((side, side), 2.0)


def test_lanczos_is_that_of_the_official_script():
    image = picture(9, 14)
    expected = np.asarray(Image.fromarray(image).resize((56, 36), Image.Resampling.LANCZOS))
    assert np.array_equal(enlarged(image, (36, 56)), expected)
    assert enlarged(image, (9, 14)) is image
    assert enlarged(image[..., 0], (36, 56)).shape == (36, 56)
