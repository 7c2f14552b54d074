"""What is asked of the sizes of a transformer, whatever its family."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..costs import UnitCosts


class Config(Protocol):
    """Sizes of a transformer, as a frozen dataclass; its fields are what a file's header says.

    ``hidden``: width of the feed-forward. ``patch``: latent pixels per token side. ``dim``: channels of the
    tokenizer's latent. ``text_width``: channels of the text features, 0 where there are none.
    """

    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def patch(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def text_width(self) -> int: ...
    @property
    def unit_costs(self) -> UnitCosts:
        """FLOPs per token, per pair of a query and a key, and per token of the head."""
        ...

    def condition_flops(self, rows: int, text_tokens: int) -> float:
        """FLOPs that are spent once per run, on the text or the class of ``rows`` rows."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        ...


@dataclass(frozen=True)
class Sizes:
    """What the configurations of all families begin with."""

    depth: int
    width: int
    heads: int
    hidden: int

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON."""
        return asdict(self)
