"""One block's arithmetic: tokens, positions, attention, cache, and what a block may use of a run."""
