"""The attention functions that a run can be given.

``attend`` is the default and picks one of the others. A host passes its own.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import fast_bfloat16

SCORES = 2**21  # scores per thread and block: 4 MB in bfloat16, which a core's caches hold in part
PROBES = 64  # keys that a row's largest score is estimated from


class AttentionFn(Protocol):
    """Attention over (rows, heads, length, head_dim).

    ``scale`` multiplies the scores (None: ``head_dim ** -0.5``), ``mask`` is boolean, True = visible,
    broadcastable to (rows, heads, queries, keys).
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
    ) -> Tensor: ...


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> Tensor:
    """PyTorch's scaled dot product, on CPUs in bfloat16 :func:`blocked`."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] > 1 and fast_bfloat16():
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
    """Attention as matrix products over blocks of queries, in two buffers that are used again and again.

    PyTorch's own kernel reaches a quarter of the rate of a matrix product on CPUs with AVX-512 and without
    AMX (docs/performance.md). Scores are rounded to the dtype of ``q`` once, after an estimate of the row's
    largest was subtracted: a rounding error is then relative to the distance from the largest score, not to
    the score, and what matters most is rounded least. The softmax does not change by that.
    """
    rows, heads, queries, width = q.shape
    keys, scale = k.shape[2], width**-0.5 if scale is None else scale
    mixed = q.new_empty(rows, queries, heads, v.shape[3]).transpose(1, 2)  # its heads merge without a copy
    together, step = _block(heads, queries, keys)
    buffers = q.new_empty(2, together * step * keys)
    for row in range(rows):
        for head in range(0, heads, together):
            part = slice(head, head + together)
            k_part, v_part = k[row, part], v[row, part]
            probes = k_part[:, :: max(1, keys // PROBES)].mT
            for start in range(0, queries, step):
                block = slice(start, start + step)
                q_part = q[row, part, block]
                shape = (*q_part.shape[:2], keys)
                scores, shares = (buffer[: shape[0] * shape[1] * keys].view(shape) for buffer in buffers)
                largest = (q_part @ probes).amax(-1, keepdim=True)
                torch.baddbmm(largest, q_part, k_part.mT, beta=-scale, alpha=scale, out=scores)
                if mask is not None:
                    visible = mask.expand(rows, heads, queries, keys)[row, part, block]
                    scores.masked_fill_(~visible, -torch.inf)
                torch.softmax(scores, -1, out=shares)
                mixed[row, part, block] = shares @ v_part
    return mixed


def _block(heads: int, queries: int, keys: int) -> tuple[int, int]:
    """Heads and queries of a block."""
    threads = torch.get_num_threads()
    room = max(1, SCORES * threads // keys)  # rows of scores
    together = min(heads, max(threads, room // queries))
    step = max(1, room // together)
    return together, min(queries, step if step < 32 else step - step % 32)
