"""Two-dimensional rotary positions of the families."""

import torch
from torch import Tensor

from ..schedule import Prefix, Scale, ScaleSchedule, whole_schedule


def rotary_coordinates(scale: Scale, reference: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Row and column coordinates of a scale, stretched to the reference grid.

    ``round(r * H / h)`` in float32 with halves to the even integer, as torch rounds
    (infinity/models/basic.py, rope2d_normalized_by_hw = 2).
    """
    rows = torch.arange(scale.height, dtype=torch.float32) * (reference[0] / scale.height)
    columns = torch.arange(scale.width, dtype=torch.float32) * (reference[1] / scale.width)
    return rows.round().int().tolist(), columns.round().int().tolist()


def rotary_angles(
    schedule: ScaleSchedule, scale: Scale, head_dim: int, base: float = 10000.0, device=None
) -> Tensor:
    """Cosines and sines of the 2D rotary embedding of one scale, (2, L, head_dim / 2), float32.

    The first half of the pairs turns with the row, the second with the column.
    """
    if head_dim % 4:
        raise ValueError(f"2D rotary positions need a head size divisible by 4, got {head_dim}")
    half = head_dim // 2
    frequencies = 1.0 / (base ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
    rows, columns = (
        torch.tensor(axis, dtype=torch.float32) for axis in rotary_coordinates(scale, schedule.reference)
    )
    by_row = torch.outer(rows, frequencies)[:, None, :].expand(-1, scale.width, -1)
    by_column = torch.outer(columns, frequencies)[None, :, :].expand(scale.height, -1, -1)
    angles = torch.cat((by_row, by_column), dim=-1).reshape(scale.tokens, half)
    return _beside(angles).to(device)


def prefixed_coordinates(
    schedule: ScaleSchedule, scale: Scale, prefix: Prefix, *, moved: bool = False
) -> Tensor:
    """Row and column coordinates (L, 2) of ``scale``, or of ``prefix`` itself.

    ``moved``: the prefix has the coordinates of its grid, moved by the sides of the reference, and the scales
    have theirs. Else they come from VAREdit's table, which serves all sizes: first the reference grid, moved
    by its sides, which is for the prefix of the largest size; then the scales of the full schedule. Every
    size counts its own tokens in it, so those of smaller sizes all fall into the first part, and two rows of
    a 512 px picture into one of it. The released weights learned it that way. The largest size has the same
    coordinates in both ways.
    """
    height, width = schedule.reference
    if moved:
        offset = (height, width) if isinstance(scale, Prefix) else (0, 0)
        return _pairs(scale, schedule.reference) + torch.tensor(offset, dtype=torch.int32)
    places = torch.arange(height * width)
    first = torch.stack((height + places // width, width + places % width), dim=1).int()
    table = [first, *(_pairs(each, schedule.reference) for each in whole_schedule(schedule))]
    start = 0
    if not isinstance(scale, Prefix):
        start = prefix.tokens + sum(each.tokens for each in schedule.scales[: scale.index])
    return torch.cat(table)[start : start + scale.tokens]


def _pairs(scale: Scale, reference: tuple[int, int]) -> Tensor:
    """Row and column coordinate of every token of a scale, (L, 2) in int32."""
    rows, columns = (torch.tensor(axis) for axis in rotary_coordinates(scale, reference))
    return torch.cartesian_prod(rows, columns).int()


def prefixed_angles(
    schedule: ScaleSchedule,
    scale: Scale,
    prefix: Prefix,
    head_dim: int,
    base: float = 10000.0,
    *,
    moved: bool = False,
    device=None,
) -> Tensor:
    """:func:`rotary_angles` of the coordinates behind a prefix, or of the prefix itself."""
    half = head_dim // 2
    frequencies = 1.0 / (base ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
    coordinates = prefixed_coordinates(schedule, scale, prefix, moved=moved).float()
    angles = (coordinates[:, :, None] * frequencies).flatten(1)
    return _beside(angles).to(device)


def normalised_angles(scale: Scale, head_dim: int, norm: float, base: float, device=None) -> Tensor:
    """Cosines and sines of STAR's rotary embedding of one scale, (2, L, head_dim / 2), float32.

    Every scale spans 0 to ``norm`` in both axes. The first half of the pairs turns with the column, the
    second with the row.
    """
    if head_dim % 4:
        raise ValueError(f"2D rotary positions need a head size divisible by 4, got {head_dim}")
    frequencies = 1.0 / (base ** (torch.arange(0, head_dim, 4, dtype=torch.float32) / head_dim))

    def axis(count: int) -> Tensor:
        places = torch.arange(count, dtype=torch.float32)
        return torch.outer(places / (count - 1) * norm if count > 1 else places, frequencies)

    by_column = axis(scale.width)[None].expand(scale.height, -1, -1)
    by_row = axis(scale.height)[:, None].expand(-1, scale.width, -1)
    angles = torch.cat((by_column, by_row), dim=-1).reshape(scale.tokens, head_dim // 2)
    return _beside(angles).to(device)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn adjacent pairs of ``x`` (rows, L, heads, D) by ``angles``, (2, [rows,] L, D / 2)."""
    if x.device.type in ("cpu", "cuda", "meta") and not torch.compiler.is_compiling():
        # One pass over memory instead of five; other backends and the compiler handle complex numbers badly.
        turns = torch.view_as_complex(angles.movedim(0, -1).contiguous()).unsqueeze(-2)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
    cos, sin = angles.unsqueeze(-2)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def _beside(angles: Tensor) -> Tensor:
    """Cosines and sines (2, ...) that lie side by side in memory, as complex numbers do."""
    return torch.stack((angles.cos(), angles.sin()), dim=-1).movedim(-1, 0)


def line_turns(places: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Cosines and sines of tokens in a line for :func:`turn_halves`, (2, rows, L, head_dim)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=places.device) / head_dim
    frequencies = 1.0 / (base**exponents)
    angles = places.float()[:, :, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def grid_turns(
    scale: Scale, reference: tuple[int, int], behind: Tensor, head_dim: int, base: float = 10000.0
) -> Tensor:
    """The same of a scale stretched to ``reference``, of rows that are moved by ``behind`` (rows,).

    The first half of the channels turns with the row, the second with the column, each with a quarter of as
    many frequencies twice: as :func:`turn_halves` pairs the halves, that is no rotation (basic_hart.py of
    mit-han-lab/hart).
    """
    device = behind.device
    frequencies = 1.0 / (
        base ** (torch.arange(0, head_dim, 4, dtype=torch.float32, device=device) / head_dim)
    )

    def axis(count: int, whole: int) -> Tensor:
        places = torch.arange(count, device=device) / count * whole + behind.float()[:, None]
        return (places[:, :, None] * frequencies).repeat(1, 1, 2)  # (rows, count, head_dim / 2)

    down, across = (axis(*sides) for sides in zip(scale.grid, reference, strict=True))
    by_row = down[:, :, None].expand(-1, -1, scale.width, -1)
    by_column = across[:, None].expand(-1, scale.height, -1, -1)
    angles = torch.cat((by_row, by_column), dim=-1).flatten(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def turn_halves(x: Tensor, turns: Tensor) -> Tensor:
    """``x`` (rows, L, heads, D) with channel i and i + D / 2 turned by ``turns`` (2, rows, L, D)."""
    first, second = x.chunk(2, dim=-1)
    (cos, other_cos), (sin, other_sin) = (part.unsqueeze(-2).chunk(2, dim=-1) for part in turns)
    return torch.cat((first * cos - second * sin, second * other_cos + first * other_sin), dim=-1)
