"""The state of runs inside core latents, as bytes in channels behind those of the tokenizer.

Core nodes that pick, repeat, join, save and load latents move all channels of a picture together, and drop
or leave alone whatever else a latent holds. Bytes are whole numbers up to 255, which every dtype of latents
holds exactly. In front of them is a channel of one number. It stays so where a node scales or cuts the
latent, whose bytes are then lost and whose picture is still one. The bytes repeat to the end, so that there
are some under every pixel: where a node puts a part of another latent into one, they no longer agree.
"""

import math

import torch
from torch import Tensor

from ...stagevar_core.sampling.state import DAMAGED, RunState, length_of

_MARK = 85.0
_HEADER = 2048  # bytes of a state beside its codes


def carry(latent: Tensor, state: RunState) -> Tensor:
    """A latent (B, C, h, w) with as many channels behind it as the state of its images needs.

    The number follows from model and scales, not from how well the bytes pack: Latent Batch joins what has
    as many.
    """
    batch, _, height, width = latent.shape
    images = [state.to_bytes(index) for index in range(batch)]
    channels = -(-max(_room(state), *map(len, images)) // (height * width))
    padded = b"".join(_repeated(image, channels * height * width) for image in images)
    behind = torch.frombuffer(bytearray(padded), dtype=torch.uint8).reshape(batch, channels, height, width)
    mark = torch.full_like(latent[:, :1], _MARK)
    return torch.cat((latent, mark, behind.to(latent)), dim=1)


def _room(state: RunState) -> int:
    """Bytes that an image takes at most, as long as its header is an ordinary one."""
    parts = (part for image in state.images for scale in image for part in scale if part is not None)
    each = [part.numel() / 8 if part.dtype == torch.uint8 else 4 * part.numel() for part in parts]
    return _HEADER + math.ceil(sum(each) / len(state.images))


def visible(samples: Tensor, channels: int) -> Tensor:
    """The tokenizer's ``channels`` of samples (B, C, h, w), where the others are what a run left."""
    if samples.dim() != 4 or samples.shape[1] <= channels or 0 in samples.shape:
        return samples
    low, high = (float(end) for end in samples[:, channels].float().aminmax())
    even = low * high > 0 and high - low <= 1e-3 * max(abs(low), abs(high))  # other nodes may multiply it
    return samples[:, :channels] if even else samples


def carried(samples: Tensor, channels: int) -> RunState | None:
    """The state behind the tokenizer's ``channels``; None where there is none, or other nodes changed it.

    ``ValueError`` for the state of a newer version, for pictures that do not belong together, and where a
    part of another latent was put into this one.
    """
    if visible(samples, channels) is samples:
        return None
    behind = samples[:, channels + 1 :]
    numbers = behind.float()
    if not bool(((numbers >= 0) & (numbers <= 255) & (numbers == numbers.round())).all()):
        return None
    data = numbers.to(torch.uint8).cpu().contiguous()
    images = [image.numpy().tobytes() for image in data]
    state = RunState.from_bytes(images)
    if state is not None and not all(map(_whole, images)):
        raise ValueError(DAMAGED)
    return state


def _whole(image: bytes) -> bool:
    """Whether an image's bytes go on as they were written; in older latents zeros follow them."""
    length = length_of(image)
    return _repeated(image[:length], len(image)) == image or not image[length:].strip(b"\0")


def _repeated(image: bytes, size: int) -> bytes:
    """``size`` bytes that begin with an image's, over and over."""
    return (image * -(-size // len(image)))[:size]
