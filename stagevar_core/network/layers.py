"""Leaves that the families share: norms, attention, feed-forward."""

import math
import typing
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attend
from .rotary import rotate
from .tokens import in_parts

MAX_LOG_SCALE = math.log(100.0)
LEAST = 1e-12  # of a norm that is divided by


def cast(parameter: Tensor, like: Tensor) -> Tensor:
    """A raw parameter with the device and dtype of ``like``; the host offloads parameters on its own."""
    return parameter.to(device=like.device, dtype=like.dtype)


Kind = typing.TypeVar("Kind", bound=nn.Module)


def stacked(modules: Iterable[Kind]) -> Sequence[Kind]:
    """A ``ModuleList``, which a type checker sees as a sequence of its kind of module."""
    return typing.cast(Sequence[Kind], nn.ModuleList(modules))


def row_by_row(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer`` of (rows, ...), one row at a time: a picture's numbers must not depend on its batch.

    A product of a few rows rounds otherwise than the same rows among others, in float32 on CPUs as well.
    """
    return torch.cat([layer(row) for row in x.split(1)])


def plain_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm without affine weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


def with_factors(ada: Tensor) -> Tensor:
    """Modulation (..., 6, C), gates, scales and shifts, or of a head (..., 2, C), scale and shift.

    Its scales become ``1 + scale``, in place: what all tokens of all scales are multiplied with.
    """
    ada[..., slice(2, 4) if ada.shape[-2] == 6 else slice(1), :] += 1.0
    return ada


def modulated(x: Tensor, factor: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """``x * factor + shift`` of ``x`` (rows, L, C), computed in float32 and stored in ``dtype`` at once."""
    if dtype == torch.float32 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.addcmul(shift, x, factor).to(dtype)
    return torch.addcmul(shift, x, factor, out=torch.empty_like(x, dtype=dtype))


def modulated_norm(x: Tensor, factor: Tensor, shift: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``LN(x) * factor + shift`` without affine weights, computed in float32; see :func:`with_factors`."""
    return modulated(plain_norm(x), factor, shift, dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` in float32, returned in the dtype of ``x``."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(device=x.device, dtype=torch.float32)).to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 in float32."""
    return F.normalize(x.float(), dim=-1, eps=LEAST)


def head_lengths(log_scale: Tensor, device: torch.device, *, keys: bool = True) -> Tensor:
    """What :func:`to_lengths` needs of every head's learned logarithm, (2, heads, 1) in float32.

    ``keys``: of as many heads more, whose vectors are of length 1, as those of keys are.
    """
    length = log_scale.to(device=device, dtype=torch.float32).clamp(max=MAX_LOG_SCALE).exp().view(-1, 1)
    if keys:
        length = torch.cat((length, torch.ones_like(length)))
    return torch.stack((length, torch.full_like(length, LEAST)))


def to_lengths(x: Tensor, lengths: Tensor) -> Tensor:
    """Vectors (rows, L, heads, head_dim) of the lengths of their heads, in float32; zero stays zero."""
    length, least = lengths
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x / torch.addcdiv(least, norm, length)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, L, C) to (rows, heads, L, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of :func:`split_heads`."""
    return x.transpose(1, 2).flatten(2)


def with_first(qkv: Tensor, both: Tensor) -> Tensor:
    """Heads (rows, L, 3 * heads, head_dim) whose first ones are ``both``, in place of what was there."""
    if torch.is_grad_enabled():
        return torch.cat((both.to(qkv.dtype), qkv[:, :, both.shape[2] :]), dim=2)
    qkv[:, :, : both.shape[2]] = both
    return qkv


def queries_of(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (rows, heads, L, head_dim), and keys and values together (2, rows, heads, L, head_dim).

    Of heads (rows, L, 3 * heads, head_dim): queries, keys, values.
    """
    every = qkv.transpose(1, 2).unflatten(1, (3, -1)).transpose(0, 1)  # (3, rows, heads, L, head_dim)
    return every[0], every[1:]


class CosineAttention(nn.Module):
    """Self-attention of unit queries and keys with a learned scale per head, the softmax scale is 1.

    ``log_scale``: one per head, at most ln 100. ``angles`` None: without rotary positions.
    """

    def __init__(self, width: int, heads: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.proj = operations.Linear(width, width, dtype=dtype, device=device)
        self.log_scale = nn.Parameter(torch.empty(heads, dtype=torch.float32, device=device))

    def lengths(self, device: torch.device) -> Tensor:
        """What is the same for all tokens, the lengths of queries and keys, (2, 2 * heads, 1) in float32."""
        return head_lengths(self.log_scale, device)

    def project(
        self, x: Tensor, angles: Tensor | None, norm: Callable[[Tensor], Tensor], lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What :class:`Attend` takes of ``norm(x)``, ``x`` (rows, L, C)."""

        def compute(part: Tensor, at: Tensor | None) -> Tensor:
            qkv = self.qkv(norm(part)).unflatten(-1, (3 * self.heads, -1))
            # Queries and keys at once: at coarse scales the number of operations is what takes time.
            both = to_lengths(qkv[:, :, : 2 * self.heads], lengths)
            return with_first(qkv, both if at is None else rotate(both, at))

        return queries_of(in_parts(compute, x, angles))

    def forward(
        self,
        x: Tensor,
        attend: Attend,
        angles: Tensor | None,
        norm: Callable[[Tensor], Tensor],
        lengths: Tensor,
    ) -> Tensor:
        """Attention of ``norm(x)``, ``x`` (rows, L, C), over all tokens so far, (rows, L, C).

        ``lengths``: what :meth:`lengths` gives, once per run.
        """
        return self.proj(merge_heads(attend(*self.project(x, angles, norm, lengths))))


class FeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(x)))``."""

    def __init__(self, width: int, hidden: int, out: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        self.fc1 = operations.Linear(width, hidden, dtype=dtype, device=device)
        self.fc2 = operations.Linear(hidden, out, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class GatedFeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))``, without biases."""

    def __init__(self, width: int, hidden: int, *, operations=nn, dtype=None, device=None) -> None:
        super().__init__()
        factory = {"bias": False, "dtype": dtype, "device": device}
        self.gate = operations.Linear(width, hidden, **factory)
        self.up = operations.Linear(width, hidden, **factory)
        self.down = operations.Linear(hidden, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        gates = F.silu(self.gate(x))
        if torch.is_grad_enabled():
            return self.down(gates * self.up(x))
        return self.down(gates.mul_(self.up(x)))  # the widest tensors of a block: not a third one
