"""The ledger of a run: which pieces are closed, what follows for the whole set, and what that cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stbp_milp.branching import Piece
from stbp_milp.verdict import Certificate, Leaf

STAGES = ("union bound", "split", "relu search", "milp")
_LEAVES_KEPT = 1_000


@dataclass(eq=False)
class Ledger:
    """What has been proved so far, and at what cost.

    Attributes:
        lower: proved lower bound of the margin over the whole set that is asked about.
        seconds: wall time per stage.
        counts: numbers of subproblems, splits and the like, by name.
        closed: number of pieces closed by each stage.
    """

    lower: float = -math.inf
    seconds: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    closed: dict[str, int] = field(default_factory=dict)
    _closed_lower: float = math.inf
    _leaves: list[Leaf] = field(default_factory=list)

    def close(self, piece: Piece) -> None:
        """Records that a piece is proved."""
        self.closed[piece.method] = self.closed.get(piece.method, 0) + 1
        self._closed_lower = min(self._closed_lower, piece.lower)
        if len(self._leaves) < _LEAVES_KEPT:
            part = piece.family.describe(piece.item, piece.inputs)
            self._leaves.append(Leaf(piece.clause, part, piece.splits, piece.lower, piece.method))

    def raise_lower(self, open_lower: float) -> None:
        """Updates the bound of the whole set, given the least bound of the pieces that are still open."""
        self.lower = max(self.lower, min(open_lower, self._closed_lower))

    def certificate(self) -> Certificate:
        """Returns the certificate of a run that closed every piece."""
        return Certificate(self.lower, dict(self.closed), tuple(self._leaves))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
