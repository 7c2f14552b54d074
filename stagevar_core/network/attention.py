"""The attention functions that a run can be given.

``attend`` is the default and picks one of the others. A host passes its own.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import fast_bfloat16

SCORES = 2**21  # scores per thread and block: 4 MB in bfloat16, which a core's caches hold in part
PROBES = 64  # keys that a row's largest score is estimated from
FEW = 2**12  # scores per head up to which the steps of a block cost more than they save


class Attend(Protocol):
    """Self-attention of the new tokens of one block to all tokens so far, (rows, heads, L, head_dim).

    ``kv``: keys and values of the new tokens in one tensor (2, rows, heads, L, head_dim), stored as one.
    """

    def __call__(self, q: Tensor, kv: Tensor) -> Tensor: ...


class AttentionFn(Protocol):
    """Attention over (rows, heads, length, head_dim).

    ``scale`` multiplies the scores (None: ``head_dim ** -0.5``). ``mask`` is broadcastable to (rows, heads,
    queries, keys): boolean, True = visible, or numbers in the dtype of ``q`` that are added to the scores.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
    ) -> Tensor: ...


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """PyTorch's scaled dot product; for many scores on a CPU in bfloat16 :func:`blocked`."""
    many = q.shape[2] * k.shape[2] > FEW
    if many and q.device.type == "cpu" and q.dtype == torch.bfloat16 and fast_bfloat16():
        return blocked(q, k, v, scale=scale, mask=mask)
    return sdpa(q, k, v, scale=scale, mask=mask)


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """PyTorch's scaled dot product."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def blocked(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention as matrix products over blocks of queries, in one buffer that is used again and again.

    PyTorch's own kernel reaches a quarter of the rate of a matrix product on CPUs with AVX-512 and without
    AMX (docs/performance.md). Scores are rounded to the dtype of ``q`` once, after an estimate of the row's
    largest was subtracted: a rounding error is then relative to the distance from the largest score, not to
    the score, and what matters most is rounded least. The softmax does not change by that.

    The product itself subtracts: every key has one more channel, which is 1, and every query has minus its
    estimate there. Adding it to the scores instead takes as long as a third of all that happens here.
    """
    rows, heads, queries, width = q.shape
    keys = k.shape[2]
    factor = width**-0.5 if scale is None else scale
    mixed = q.new_empty(rows, queries, heads, v.shape[3]).transpose(1, 2)  # its heads merge without a copy
    together, step = _block(rows, heads, queries, keys)
    count = together[0] * together[1]
    buffer = q.new_empty(count * step * keys)
    wide_q, wide_k = q.new_empty(count, step, width + 1), k.new_ones(count, keys, width + 1)
    for part in _parts((rows, heads), together):
        k_part, v_part = k[part], v[part].flatten(0, 1)
        shape = k_part.shape[:2]
        seen = wide_k[: len(v_part)]
        seen.unflatten(0, shape)[..., :width] = k_part
        probes = seen[:, :: max(1, keys // PROBES), :width].mT
        for start in range(0, queries, step):
            block = (*part, slice(start, start + step))
            q_part = q[block]
            asked = wide_q[: len(v_part), : q_part.shape[2]]
            asked.unflatten(0, shape)[..., :width] = q_part
            asked[..., width] = -(asked[..., :width] @ probes).amax(-1)
            scores = buffer[: asked.shape[0] * asked.shape[1] * keys].view(*asked.shape[:2], keys)
            torch.baddbmm(scores, asked, seen.mT, beta=0, alpha=factor, out=scores)
            if mask is not None:
                seen_by = mask.expand(rows, heads, queries, keys)[block]
                if mask.dtype == torch.bool:
                    scores.unflatten(0, shape).masked_fill_(~seen_by, -torch.inf)
                else:
                    scores.unflatten(0, shape).add_(seen_by)
            torch.softmax(scores, -1, out=scores)
            mixed[block] = (scores @ v_part).unflatten(0, shape)
    return mixed


def _block(rows: int, heads: int, queries: int, keys: int) -> tuple[tuple[int, int], int]:
    """Rows, heads and queries of a block: several rows only with all of their heads and queries."""
    threads = torch.get_num_threads()
    room = max(1, SCORES * threads // keys)  # rows of scores
    together = min(rows * heads, max(threads, room // queries))
    step = min(queries, max(1, room // together))
    if 32 < step < queries:
        step -= step % 32
    return (max(1, together // heads), min(heads, together)), step


def _parts(sizes: tuple[int, int], together: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of heads that cover all of both, ``together`` of them at once."""
    starts = (range(0, size, part) for size, part in zip(sizes, together, strict=True))
    for row, head in itertools.product(*starts):
        yield slice(row, row + together[0]), slice(head, head + together[1])
