"""Combinations of choices that are few and still meet every two values together."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairs(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combinations, one value of each choice, in which every pair of values of two choices occurs.

    Always the same ones: the next is the first of those that meet the most new pairs.
    """
    wanted = {
        ((i, a), (j, b))
        for (i, first), (j, second) in combinations(enumerate(choices), 2)
        for a, b in product(range(len(first)), range(len(second)))
    }
    every = [tuple(enumerate(places)) for places in product(*(range(len(choice)) for choice in choices))]
    found = []
    while wanted:
        best = max(every, key=lambda case: len(wanted.intersection(combinations(case, 2))))
        wanted.difference_update(combinations(best, 2))
        found.append(tuple(choices[place][index] for place, index in best))
    return found
