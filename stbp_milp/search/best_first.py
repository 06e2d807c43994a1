"""Best-first search: the open nodes with the least lower bounds are expanded next, one batch at a time.

A node is closed when its lower bound exceeds the target. Whenever the search ends, every node that is not closed has
at least the least bound of the open and given-up nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar


class Node(Protocol):
    """A subproblem."""

    @property
    def lower(self) -> float:
        """A proved lower bound on the subproblem; a child's bound is never below its parent's."""

    @property
    def group(self) -> Hashable:
        """The group of the node: only nodes of one group are expanded together."""


N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class Expansion(Generic[N]):
    """The result of expanding a batch: children that together cover its nodes, and nodes that cannot be split.

    Attributes:
        stop: ends the search, because a counterexample was found.
    """

    children: Sequence[N]
    given_up: Sequence[N] = ()
    stop: bool = False


class SearchEnd(Enum):
    CLOSED = "every node is closed"
    STOPPED = "the expansion asked to stop"
    EXPIRED = "out of time"
    GIVEN_UP = "some nodes cannot be split further"


@dataclass
class Search(Generic[N]):
    """The state of a search.

    Attributes:
        target: nodes with a lower bound above it are closed.
        closed: called for every node that closes.
    """

    target: float
    closed: Callable[[N], None]
    given_up: list[N] = field(default_factory=list)
    _heap: list[tuple[float, int, N]] = field(default_factory=list)
    _pushed: int = 0

    def add(self, nodes: Iterable[N]) -> None:
        for node in nodes:
            if node.lower > self.target:
                self.closed(node)
            else:
                self._pushed += 1
                heapq.heappush(self._heap, (node.lower, self._pushed, node))

    @property
    def open(self) -> int:
        return len(self._heap)

    def lower(self) -> float:
        """Returns the least bound of the nodes that are not closed; infinity if all are closed."""
        least = min((node.lower for node in self.given_up), default=float("inf"))
        return min(least, self._heap[0][0]) if self._heap else least

    def take(self, most: int) -> list[N]:
        """Takes at most `most` open nodes with the least bounds from the group of the first one."""
        taken: list[N] = []
        passed: list[tuple[float, int, N]] = []
        # Nodes of other groups are skipped, but not indefinitely: half-filled batches beat sorting the whole heap.
        while self._heap and len(taken) < most and len(passed) < 4 * most:
            entry = heapq.heappop(self._heap)
            if not taken or entry[2].group == taken[0].group:
                taken.append(entry[2])
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return taken


def best_first(
    search: Search[N], expand: Callable[[list[N]], Expansion[N]], batch: Callable[[], int], expired: Callable[[], bool]
) -> SearchEnd:
    """Expands nodes until all are closed, none can be split, time runs out, or an expansion stops the search.

    An expansion that runs out of time may return its nodes as children, with the bounds that they had.

    Args:
        batch: returns how many nodes to expand next.
    """
    while search.open:
        if expired():
            return SearchEnd.EXPIRED
        expansion = expand(search.take(batch()))
        search.add(expansion.children)
        search.given_up.extend(expansion.given_up)
        if expansion.stop:
            return SearchEnd.STOPPED
    return SearchEnd.GIVEN_UP if search.given_up else SearchEnd.CLOSED
