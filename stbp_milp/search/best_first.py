"""Best first: always expand the open nodes with the least lower bounds, a batch at a time.

A node is closed when its lower bound exceeds the target. The least bound of open and given-up nodes is a lower
bound of everything, whenever the search ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar


class Node(Protocol):
    """A piece of the problem."""

    @property
    def lower(self) -> float:
        """A proved lower bound on the piece; a child's is never below its parent's."""

    @property
    def group(self) -> Hashable:
        """Only nodes of one group are expanded together."""


N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class Expansion(Generic[N]):
    """What became of a batch: children that together cover the nodes they came from, and nodes that nothing splits.

    `stop` ends the search (a counterexample was found).
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
        """The least bound of the nodes that are not closed; infinity if all are."""
        least = min((node.lower for node in self.given_up), default=float("inf"))
        return min(least, self._heap[0][0]) if self._heap else least

    def take(self, most: int) -> list[N]:
        """The open nodes with the least bounds that share the first one's group, at most `most`."""
        taken: list[N] = []
        passed: list[tuple[float, int, N]] = []
        # Other groups' nodes are looked past, but not for ever: half-filled batches beat sorting the whole heap.
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
    """Expand until all nodes are closed, nothing can be split, time is up or the expansion stops it.

    Args:
        batch: how many nodes to expand next.

    An expansion that runs out of time may return its nodes as children, with the bounds they had.
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
