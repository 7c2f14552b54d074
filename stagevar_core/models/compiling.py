"""An opt-in for GPUs, where starting operations costs time: arithmetic through ``torch.compile``.

The decoder of a tokenizer is one graph. The blocks are for scales that are bound by overhead.

A block is host code between pieces of arithmetic: attention, the KV cache and token reduction decide in
Python what runs next. Only the pieces are compiled, three per block, each as one graph that all blocks share:
what comes before attention (norm, modulation, projection, rotary positions), what comes after it, and the
feed-forward. Cross-attention has too few operations around it to gain. Everything else is as without, so
every policy works.

No CUDA graphs: their kernels have fixed addresses, so each of these small graphs would be recorded once per
block and scale.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoders.bands import in_bands
from ..network.context import Branch, ScaleContext
from ..network.tokens import PART
from .companions import Tokenizer
from .contract import Transformer

_LOG = logging.getLogger(__name__)
VARIANTS = 64  # graphs per piece, over all models and dtypes of the process; torch stops at 8


def before_attention(branch: Branch, ctx: "CompiledContext", h: Tensor, positions: Tensor | None) -> tuple:
    """What a branch hands to attention. What it makes of the stand-in is not used, so nothing computes it."""
    branch(h, positions)
    return ctx.projected


def after_attention(branch: Branch, ctx: "CompiledContext", h: Tensor, mixed: Tensor) -> Tensor:
    """What a branch makes of attention's output ``mixed``; what led there is not used a second time."""
    ctx.mixed = mixed
    return branch(h, None)


def decoded(tokenizer: Tokenizer, f_hat: Tensor) -> Tensor:
    """A tokenizer's image of accumulated codes."""
    return tokenizer.decode(f_hat)


def whole(branch: Branch, h: Tensor, positions: Tensor | None) -> Tensor:
    """A branch without host code in it."""
    return branch(h, positions)


class Compiler:
    """Calls functions compiled; torch keeps one graph per function, kind of block, dtype and reduction.

    Lengths are dynamic: no scale compiles anything again. The first failure, such as a missing C++ compiler
    or triton, is a warning, and everything runs uncompiled from then on. It holds nothing of models and runs;
    copies of what it is attached to share it.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend, self.failed = backend, False
        self._compiled: dict[Callable, Callable] = {}

    def __copy__(self) -> "Compiler":
        return self

    def __deepcopy__(self, memo: dict) -> "Compiler":
        return self

    def __call__(self, function: Callable, *arguments: Any) -> Any:
        """``function(*arguments)``, which has no effects, compiled where that works."""
        if not self.failed:
            try:
                return self._ready(function)(*arguments)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler raises; errors of ours come again below
                self.failed = True
                cause = getattr(error, "inner_exception", error)
                reason = (str(cause).strip() or "no reason given").splitlines()[0]
                _LOG.warning(
                    "cannot compile, blocks run as they are: %s: %s (GPUs need triton, CPUs a C++ compiler)",
                    type(cause).__name__,
                    reason[:200],
                )
        return function(*arguments)

    def limits(self) -> ExitStack:
        """Where torch may keep enough graphs, and does not take two sizes for one that happen to be equal."""
        import torch._dynamo  # takes a second, which only those wait who compile
        import torch.fx.experimental._config as shapes

        stack, known = ExitStack(), torch._dynamo.config
        for config, name, value in (
            (known, "cache_size_limit", VARIANTS),
            (shapes, "use_duck_shape", False),
        ):
            if hasattr(config, name):
                stack.enter_context(config.patch({name: value}))
        return stack

    def _ready(self, function: Callable) -> Callable:
        if function not in self._compiled:
            options = {"backend": self.backend, "dynamic": True, "fullgraph": True}
            self._compiled[function] = torch.compile(function, **options)
        return self._compiled[function]


@dataclass
class CompiledContext(ScaleContext):
    """The context of a scale whose branches run compiled where that can pay.

    ``split``: a branch runs in pieces. ``projected``, ``mixed``: what they hand to attention and get from it.
    """

    compiler: Compiler = field(default_factory=lambda: Compiler())
    split: bool = False
    projected: tuple[Tensor, ...] = ()
    mixed: Tensor | None = None

    def residual(
        self, x: Tensor, branch: Branch, layer: int, part: str, gate: Tensor | None = None
    ) -> Tensor:
        """As without a compiler, the branch in pieces.

        On a CPU only what is computed at once: a loop over parts would be compiled for every length. One
        token alone would be a graph of its own.
        """
        small = x.device.type != "cpu" or x.numel() <= PART

        def compute(h: Tensor, positions: Tensor | None) -> Tensor:
            if self.compiler.failed or not small or h.shape[1] < 2:
                return branch(h, positions)
            if part == "self":
                return self._around_attention(branch, layer, h, positions)
            return self.compiler(whole, branch, h, positions) if part == "ffn" else branch(h, positions)

        return super().residual(x, compute, layer, part, gate)

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """Attention, or where a piece of a branch ends or begins."""
        if not self.split:
            return super().attend(layer, q, kv)
        if self.mixed is not None:
            return self.mixed
        self.projected = (q, kv)
        return q  # a stand-in of the right shape

    def _around_attention(self, branch: Branch, layer: int, h: Tensor, positions: Tensor | None) -> Tensor:
        self.split = True
        try:
            projected = self.compiler(before_attention, branch, self, h, positions)
            self.projected = ()
            mixed = super().attend(layer, *projected)
            return self.compiler(after_attention, branch, self, h, mixed)
        finally:
            self.split, self.projected, self.mixed = False, (), None


class _InPlaceOf(nn.Module):
    """Stands for ``network``: shares its weights, does not change it; what it lacks is the network's."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


class CompiledTransformer(_InPlaceOf):
    """A transformer of any family that runs its blocks through ``compiler``."""

    def __init__(self, network: Transformer, compiler: Compiler) -> None:
        super().__init__()
        self.network, self.compiler = network, compiler

    def forward(self, x: Tensor, ctx: ScaleContext) -> Tensor:
        """All blocks over the tokens of one scale, (rows, L, C)."""
        if self.compiler.failed:
            return self.network(x, ctx)
        given = {item.name: getattr(ctx, item.name) for item in fields(ScaleContext) if item.init}
        with self.compiler.limits():
            return self.network(x, CompiledContext(**given, compiler=self.compiler))


class CompiledTokenizer(_InPlaceOf):
    """A tokenizer of any family that decodes through ``compiler``.

    A CPU decodes large maps in bands, each of which would be compiled for its size, so it decodes as it is.
    """

    def __init__(self, network: Tokenizer, compiler: Compiler) -> None:
        super().__init__()
        self.network, self.compiler = network, compiler

    def decode(self, f_hat: Tensor) -> Tensor:
        """Accumulated codes (B, dim, h, w) to an image (B, 3, H, W) in [-1, 1]."""
        config = self.network.config
        finest = f_hat[:, 0].numel() * config.stride**2 * config.width * f_hat.element_size()
        if self.compiler.failed or in_bands(finest, f_hat.device):
            return self.network.decode(f_hat)
        with self.compiler.limits():
            return self.compiler(decoded, self.network, f_hat)
