"""How near pictures are to each other."""

import torch
import torch.nn.functional as F
from torch import Tensor

PSNR_LIMIT = 100.0  # of equal pictures, so that means stay finite


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 pictures (B, H, W, C); equal ones get ``PSNR_LIMIT``.

    (B,) in float64 on the CPU: the sum of squares is whole and exact, and not all devices have float64.
    """
    check_pictures(a, b)
    total = (a.int() - b.int()).square().flatten(1).sum(dim=1)
    error = total.cpu().double() / a[0].numel()
    return (10.0 * torch.log10(255.0**2 / error)).clamp(max=PSNR_LIMIT)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (B,) of uint8 pictures (B, H, W, C), the mean over channels and places.

    Wang et al. 2004: Gaussian window 11 x 11 with sigma 1.5, K = (0.01, 0.03), range 255; only places where
    the whole window lies within the picture.
    """
    check_pictures(a, b, smallest=11)
    offsets = torch.arange(-5, 6, device=a.device, dtype=torch.float32)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def blurred(x: Tensor) -> Tensor:
        rows = F.conv2d(x.flatten(0, 1).unsqueeze(1), window.view(1, 1, -1, 1))
        return F.conv2d(rows, window.view(1, 1, 1, -1)).squeeze(1).unflatten(0, x.shape[:2])

    x, y = (picture.permute(0, 3, 1, 2).float() for picture in (a, b))
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x * mean_x, blurred(y * y) - mean_y * mean_y
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def check_pictures(a: Tensor, b: Tensor, smallest: int = 1) -> None:
    """``ValueError`` unless both are uint8 (B, H, W, C) of one shape, with ``smallest`` pixels a side."""
    if a.shape != b.shape or a.dim() != 4 or a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise ValueError(
            f"got {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}; expected two uint8 batches "
            "(B, H, W, C) of one shape"
        )
    if min(a.shape[1:3]) < smallest:
        raise ValueError(
            f"the pictures are {a.shape[2]} x {a.shape[1]}; expected at least {smallest} pixels a side"
        )
