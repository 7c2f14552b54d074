"""Which rows of guidance run."""

from dataclasses import dataclass


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
        return self.batch * (self.conditional + self.unconditional)

    def narrow(self, kept: str) -> tuple["GuidanceRows", slice | None]:
        """The rows after ``kept`` ('both', 'conditional', 'unconditional'), and the slice that leaves them.

        The slice is None when nothing changes. Raises ``ValueError`` when rows that were dropped are wanted.
        """
        wanted = {
            "both": (True, True),
            "conditional": (True, False),
            "unconditional": (False, True),
        }
        if kept not in wanted:
            raise ValueError(f"guidance rows are one of {sorted(wanted)}, got {kept!r}")
        conditional, unconditional = wanted[kept]
        if (conditional and not self.conditional) or (unconditional and not self.unconditional):
            raise ValueError(f"the plan wants {kept} rows, which are not part of this run any more")
        narrowed = GuidanceRows(self.batch, conditional, unconditional)
        if narrowed == self:
            return self, None
        return narrowed, slice(0, self.batch) if conditional else slice(self.batch, 2 * self.batch)
