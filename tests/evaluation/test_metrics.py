"""Nearness of pictures and intervals of means, against plain definitions and known values."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from stagevar_core.evaluation.intervals import difference, interval
from stagevar_core.evaluation.lpips import LPIPS
from stagevar_core.evaluation.metrics import PSNR_LIMIT, psnr, ssim


def pictures(count: int = 2, height: int = 40, width: int = 36, seed: int = 0) -> Tensor:
    """Random uint8 pictures."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def disturbed(a: Tensor, by: int, seed: int = 1) -> Tensor:
    noise = torch.randint(-by, by + 1, a.shape, generator=torch.Generator().manual_seed(seed))
    return (a.int() + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_of_a_known_error():
    a = torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] += 10
    b[2] += 1
    wanted = [PSNR_LIMIT, 10 * math.log10(255**2 / 100), 20 * math.log10(255)]
    assert psnr(a, b).tolist() == pytest.approx(wanted, rel=1e-12)


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel, window by window as Wang et al. define it."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (z[top : top + 11, left : left + 11].astype(float) for z in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            both = (window * (a - ma) * (b - mb)).sum()
            c1, c2 = 2.55**2, 7.65**2
            parts = (2 * ma * mb + c1) * (2 * both + c2)
            values.append(parts / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_follows_its_definition():
    a = pictures(2, 16, 14)
    b = disturbed(a, 60)
    wanted = [
        np.mean([plain_ssim(x[..., c].numpy(), y[..., c].numpy()) for c in range(3)])
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(ssim(a, a), torch.ones(2))
    assert (ssim(a, disturbed(a, 120)) < ssim(a, b)).all()


def test_pictures_that_cannot_be_compared_are_refused():
    a = pictures()
    with pytest.raises(ValueError, match="two uint8 batches"):
        psnr(a, a[:, :8])
    with pytest.raises(ValueError, match="two uint8 batches"):
        ssim(a.float(), a.float())
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(a[:, :8], a[:, :8])


CONVOLUTIONS = {
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": {
        **{0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3)},
        **{n: (256, 256, 3) for n in (12, 14)},
        **{17: (512, 256, 3), 19: (512, 512, 3), 21: (512, 512, 3)},
        **{n: (512, 512, 3) for n in (24, 26, 28)},
    },
}
SLICES = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}  # the convolutions that end a slice


def weights(net: str) -> dict[str, Tensor]:
    """A random state dict with the names of the published package."""
    generator = torch.Generator().manual_seed(0)
    found, number = {}, 0
    for index, (out, inputs, kernel) in CONVOLUTIONS[net].items():
        spread = (2 / (inputs * kernel**2)) ** 0.5
        name = f"net.slice{number + 1}.{index}"
        found[f"{name}.weight"] = torch.randn(out, inputs, kernel, kernel, generator=generator) * spread
        found[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1
        if index == SLICES[net][number]:
            found[f"lin{number}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
            number += 1
    return found | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}


def plain_lpips(tensors: dict[str, Tensor], a: Tensor, b: Tensor, net: str) -> Tensor:
    """The distance written out: features of five slices, unit vectors, weighted squares, mean over places."""
    shift, spread = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = torch.cat((a, b)).float() / 255 * 2 - 1
    x = ((x - shift) / spread).permute(0, 3, 1, 2)
    total = torch.zeros(len(a))
    number, starts = 0, {"alex": (3, 6), "vgg": (5, 10, 17, 24)}[net]
    for index, (_, _, kernel) in CONVOLUTIONS[net].items():
        if index in starts:
            x = F.max_pool2d(x, 3, 2) if net == "alex" else F.max_pool2d(x, 2, 2)
        name = f"net.slice{number + 1}.{index}"
        options = {"stride": 4, "padding": 2} if kernel == 11 else {"padding": kernel // 2}
        x = F.relu(F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **options))
        if index == SLICES[net][number]:
            first, second = F.normalize(x, dim=1).chunk(2)
            head = tensors[f"lin{number}.model.1.weight"].flatten()
            total += ((first - second) ** 2 * head[None, :, None, None]).sum(dim=1).mean(dim=(1, 2))
            number += 1
    return total


@pytest.mark.parametrize("net", CONVOLUTIONS)
def test_lpips_reads_the_published_layout(net, tmp_path):
    tensors = weights(net)
    save_file(tensors, tmp_path / "whole.safetensors")
    found = LPIPS.load(tmp_path / "whole.safetensors")
    a = pictures(2, 64, 48)
    b = disturbed(a, 80)
    assert found.net == net
    torch.testing.assert_close(found(a, b), plain_lpips(tensors, a, b, net), rtol=1e-4, atol=1e-6)
    assert torch.equal(found(a, a), torch.zeros(2))


def test_lpips_reads_network_and_weightings_from_two_files(tmp_path):
    tensors = weights("alex")
    network = {f"features.{k.split('.', 2)[2]}": v for k, v in tensors.items() if k.startswith("net.")}
    torch.save(network | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet.pth")
    torch.save({k: v for k, v in tensors.items() if k.startswith("lin")}, tmp_path / "lin.pth")
    a = pictures(1, 64, 64)
    b = disturbed(a, 80)
    save_file(tensors, tmp_path / "whole.safetensors")
    whole = LPIPS.load(tmp_path / "whole.safetensors")
    parts = LPIPS.load(tmp_path / "alexnet.pth", tmp_path / "lin.pth")
    torch.testing.assert_close(parts(a, b), whole(a, b), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"lin0.model.1.weight is missing"):
        LPIPS.load(tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match="first convolution is missing"):
        LPIPS.load(tmp_path / "lin.pth")


def test_intervals_of_means():
    assert interval(np.array([np.nan])) is None
    found = interval(np.array([1.0, 2.0, 3.0, np.nan]))
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(1.959964 / 3**0.5) == 2.0 - found.low
    wilson = interval(np.array([1.0] * 9 + [0.0]), share=True)  # the textbook's 9 of 10
    assert (wilson.low, wilson.high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))


def test_paired_differences():
    a, b = np.array([30.0, 31.0, 35.0]), np.array([29.0, 31.0, 33.0])
    assert difference(a, b) == interval(a - b)
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(a, b[:2])
    same = np.array([1.0, 0.0, 1.0, np.nan])
    found = difference(same, same, share=True)
    assert found.mean == 0.0 and found.n == 3
    assert found.low < 0.0 < found.high, "no difference among 3 pairs proves little"
    # The approval ratings in Agresti's textbook: 86 to 150 discordant pairs of 1600.
    first = np.array([1.0] * 86 + [0.0] * 1514)
    second = np.array([0.0] * 86 + [1.0] * 150 + [0.0] * 1364)
    found = difference(second, first, share=True)
    assert (found.low, found.high) == (pytest.approx(0.021, abs=1e-3), pytest.approx(0.059, abs=1e-3))


def test_the_interval_of_a_difference_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        a = (rng.random(150) < 0.95).astype(float)
        b = np.where(rng.random(150) < 0.04, 1 - a, a)  # true difference .04 * (1 - 2 * .95)
        found = difference(b, a, share=True)
        covered += found.low <= 0.04 * (1 - 2 * 0.95) <= found.high
    assert covered >= 0.92 * 300
