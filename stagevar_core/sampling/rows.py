"""Which rows of guidance run, with all that they own: conditioning, KV cache, what a policy remembers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..acceleration.policy import PolicyRun
from ..conditioning.changing import RunConditioning
from ..models.contract import Conditioned, Transformer
from ..network.attention import AttentionFn
from ..network.cache import CachePair, KVCache
from ..network.context import Turn

KEPT = {"both": (True, True), "conditional": (True, False), "unconditional": (False, True)}


@dataclass(frozen=True)
class GuidanceRows:
    """Rows of a run: ``batch`` conditional ones, then as many unconditional ones where they are present.

    Rows only narrow: what stopped running has no keys and values for later scales.
    """

    batch: int
    conditional: bool = True
    unconditional: bool = True

    @property
    def count(self) -> int:
        """Rows that run."""
        return self.batch * (self.conditional + self.unconditional)

    @property
    def both(self) -> bool:
        """Whether every image has two."""
        return self.conditional and self.unconditional

    @property
    def kept(self) -> str:
        """Which of the rows of every image there are, a word of :data:`KEPT`."""
        return next(name for name, rows in KEPT.items() if rows == (self.conditional, self.unconditional))

    def with_batch(self, batch: int) -> "GuidanceRows":
        """The same rows of other images."""
        return replace(self, batch=batch)

    def rows_of(self, images: Sequence[int]) -> Tensor:
        """The places (n,) of the rows of these images, in their order."""
        halves = range(self.conditional + self.unconditional)
        return torch.tensor([half * self.batch + image for half in halves for image in images])

    def narrow(self, kept: str) -> tuple["GuidanceRows", slice | None]:
        """The rows after ``kept`` ('both', 'conditional', 'unconditional'), and the slice that leaves them.

        The slice is None when nothing changes. Raises ``ValueError`` when rows that were dropped are wanted.
        """
        if kept not in KEPT:
            raise ValueError(f"guidance rows are one of {sorted(KEPT)}, got {kept!r}")
        conditional, unconditional = KEPT[kept]
        if (conditional and not self.conditional) or (unconditional and not self.unconditional):
            raise ValueError(f"the plan wants {kept} rows, which are not part of this run any more")
        narrowed = GuidanceRows(self.batch, conditional, unconditional)
        if narrowed == self:
            return self, None
        return narrowed, slice(0, self.batch) if conditional else slice(self.batch, 2 * self.batch)


@runtime_checkable
class Placed(Protocol):
    """A state of the conditioning whose rows have positions of their own, behind what precedes the scales."""

    def placed(self, like: Any) -> Any:
        """The same at the positions of the rows of another state, whose keys and values it goes on from."""
        ...


class Rows:
    """The rows of one run and what belongs to them; nothing else is dropped when rows are.

    ``conditioned``: the state of the conditioning. ``cache``: keys and values of all rows. ``turns``:
    conditional and unconditional ones, where every block runs them one after the other, each with a cache of
    its own (``sequential``). ``offload``: where the keys and values of the unconditional ones wait.
    ``opening``: (rows, 1, C), the blocks' output that the first scale is drawn from where a prefix opens it.
    """

    def __init__(
        self,
        model: Transformer,
        conditioning: RunConditioning,
        device: torch.device,
        attention: AttentionFn,
        *,
        guided: bool,
        sequential: bool = False,
        offload: torch.device | str | None = None,
    ) -> None:
        self.guided, self.device = guided, device
        self.running = GuidanceRows(conditioning.batch, unconditional=guided)
        self._model, self._conditioning, self._attention = model, conditioning, attention
        self._scale, self._holding, self._nulled = 0, conditioning.at(0), False
        self.conditioned: Conditioned = self._state()
        self.turns: list[Turn] = []
        self.opening: Tensor | None = None
        self.cache: KVCache | CachePair
        if sequential and guided:
            self.cache = self._divided(offload)
        else:
            self.cache = model.new_cache(self.running.count, device)

    @property
    def batch(self) -> int:
        """Images."""
        return self.running.batch

    def turn_to(self, scale: int) -> None:
        """Take what the conditioning holds at a scale; keys and values of earlier scales stay."""
        holding, self._scale = self._conditioning.at(scale), scale
        if holding is self._holding:
            return
        self._holding = holding
        self.conditioned = self._null() if self._nulled else self._state()
        if self.turns:
            self.turns = self._turns([turn.cache for turn in self.turns])

    def narrow(self, kept: str, room: int, policy_run: PolicyRun) -> None:
        """Drop the rows that a plan no longer wants, with their share of the cache and of what is remembered.

        ``room``: tokens that the cache makes room for. Unguided, the conditional rows are all there is.
        """
        if not self.guided:
            kept = "conditional"
        remaining = self._drop(kept)
        if remaining is None:
            return
        self.turns = []
        self.cache = self.cache.narrow(remaining, room)
        self.opening = None if self.opening is None else self.opening[remaining]
        policy_run.narrow(remaining)

    def _drop(self, kept: str) -> slice | None:
        """Keep these rows and what they are conditioned on; the slice that leaves their keys and values."""
        self.running, remaining = self.running.narrow(kept)
        if remaining is not None and kept == "unconditional" and self._conditioning.negative is not None:
            # The other rows followed the negative prompt. The null text goes on from what was drawn for the
            # prompt, so that the image is never finished under the text that it should avoid.
            prompts, self._nulled = slice(0, self.batch), True
            before, self.conditioned = self.conditioned.narrow(prompts), self._null()
            if isinstance(self.conditioned, Placed):
                self.conditioned = self.conditioned.placed(before)
            return prompts
        if remaining is not None:
            self.conditioned = self.conditioned.narrow(remaining)
        return remaining

    def fan_out(self, conditioning: RunConditioning, images: Sequence[int], cache: KVCache) -> None:
        """From now on the rows are those of other images, each of which goes on from one of those that ran.

        ``conditioning``, ``cache``: theirs. ``images``: the one that each goes on from.
        """
        rows = self.running.rows_of(images).to(self.device)
        self._conditioning, self.running = conditioning, self.running.with_batch(len(images))
        self._holding = conditioning.at(self._scale)
        self.conditioned, self.cache = self.conditioned.pick(images, rows), cache

    def take_over(self, running: GuidanceRows, cache: KVCache) -> None:
        """Go on with the rows of these images that an earlier run left, and their keys and values."""
        self._drop(running.kept)
        self.cache = cache

    def _state(self) -> Conditioned:
        """That of what holds now, for the rows that run."""
        state = self._model.condition(self._holding, self.guided, self.device, self._attention)
        if self.running.both or not self.guided:
            return state
        return state.narrow(slice(0, self.batch) if self.running.conditional else slice(self.batch, None))

    def _null(self) -> Conditioned:
        """The state of the model's own null text or class."""
        nulled = self._holding.nulled(self._model.longest_text)
        state = self._model.condition(nulled, True, self.device, self._attention)
        return state.narrow(slice(self.batch, None))

    def _divided(self, offload: torch.device | str | None) -> CachePair:
        """Turns for the conditional and the unconditional rows, and the caches of both."""
        batch = self.batch
        caches = [self._model.new_cache(batch, self.device) for _ in range(2)]
        if offload is not None:
            caches[1].keep_on(offload)
        self.turns = self._turns(caches)
        return CachePair(*caches)

    def _turns(self, caches: Sequence[KVCache]) -> list[Turn]:
        """Conditional and unconditional rows, each with its cache."""
        rows = slice(0, self.batch), slice(self.batch, 2 * self.batch)
        return [Turn(self.conditioned.narrow(half), cache) for half, cache in zip(rows, caches, strict=True)]
