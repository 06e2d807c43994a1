"""Best first over nodes that are intervals of whole numbers.

The toy problem: is `value(i) > 0` for every i in [first, last]? A node's bound is the least value in it minus its
length, so it becomes exact as the node shrinks. By hand: values (5, 1, 4) and target 0 close as [0, 2] with bound
1 - 2 = -1, split into [0, 1] with 1 - 1 = 0 and [2, 2] with 4; [0, 1] splits into 5 and 1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stbp_milp.search import Deadline, Expansion, Search, SearchEnd, best_first


@dataclass(frozen=True)
class Span:
    values: tuple[int, ...]
    first: int
    last: int
    group: int = 0

    @property
    def least(self) -> int:
        return min(self.values[self.first : self.last + 1])

    @property
    def lower(self) -> float:
        return float(self.least - (self.last - self.first))


def halves(node: Span) -> list[Span]:
    middle = (node.first + node.last) // 2
    return [replace(node, last=middle), replace(node, first=middle + 1)]


def expand(nodes: list[Span]) -> Expansion[Span]:
    several = [n for n in nodes if n.last > n.first]
    return Expansion([child for n in several for child in halves(n)], [n for n in nodes if n.last == n.first])


def searched(values: tuple[int, ...], groups: int = 1) -> tuple[Search[Span], list[Span]]:
    closed: list[Span] = []
    search: Search[Span] = Search(0.0, closed.append)
    search.add([Span(values, 0, len(values) - 1, group) for group in range(groups)])
    return search, closed


def never() -> bool:
    return False


positive = st.lists(st.integers(1, 20), min_size=1, max_size=30).map(tuple)
any_values = st.lists(st.integers(-5, 20), min_size=1, max_size=30).map(tuple)


def test_by_hand() -> None:
    search, closed = searched((5, 1, 4))
    assert search.lower() == -1.0
    assert best_first(search, expand, lambda: 1, never) is SearchEnd.CLOSED
    assert sorted((n.first, n.last) for n in closed) == [(0, 0), (1, 1), (2, 2)]
    assert search.lower() == float("inf")


@given(values=positive, batch=st.integers(1, 5), groups=st.integers(1, 3))
def test_closes_everything_and_closed_nodes_cover(values: tuple[int, ...], batch: int, groups: int) -> None:
    search, closed = searched(values, groups)
    assert best_first(search, expand, lambda: batch, never) is SearchEnd.CLOSED
    covered = sorted((n.group, i) for n in closed for i in range(n.first, n.last + 1))
    assert covered == [(g, i) for g in range(groups) for i in range(len(values))]
    assert all(n.lower > 0 for n in closed)
    assert search.open == 0


@given(values=any_values, batch=st.integers(1, 5), groups=st.integers(1, 3))
def test_what_cannot_be_split_is_given_up_with_its_bound(values: tuple[int, ...], batch: int, groups: int) -> None:
    search, closed = searched(values, groups)
    end = best_first(search, expand, lambda: batch, never)
    assert end is (SearchEnd.GIVEN_UP if min(values) <= 0 else SearchEnd.CLOSED)
    if min(values) <= 0:
        assert search.lower() == min(values)
        assert {n.first for n in search.given_up} == {i for i, v in enumerate(values) if v <= 0}
    assert all(n.lower > 0 for n in closed)


@given(values=any_values, batch=st.integers(1, 5), steps=st.integers(0, 10))
def test_out_of_time_leaves_a_valid_bound(values: tuple[int, ...], batch: int, steps: int) -> None:
    """The least of the open, given-up and closed bounds is a bound of everything, whenever time is up."""
    search, closed = searched(values)
    calls = 0

    def counted(nodes: list[Span]) -> Expansion[Span]:
        nonlocal calls
        calls += 1
        return expand(nodes)

    end = best_first(search, counted, lambda: batch, lambda: calls >= steps)
    assert calls <= steps
    least = min([search.lower(), *(n.lower for n in closed)])
    assert least <= min(values)
    if end is SearchEnd.EXPIRED:
        assert search.open


@given(values=any_values, batch=st.integers(1, 5))
def test_during_an_expansion_the_nodes_taken_are_not_in_the_search(values: tuple[int, ...], batch: int) -> None:
    """`lower()` alone is then no bound of everything; with the nodes in flight it is, and it never falls."""
    search, closed = searched(values)
    bounds: list[float] = []

    def watched(nodes: list[Span]) -> Expansion[Span]:
        assert all(n.lower <= search.lower() or search.given_up for n in nodes[:1])
        everything = min([search.lower(), *(n.lower for n in nodes), *(n.lower for n in closed)])
        assert everything <= min(values)
        bounds.append(everything)
        return expand(nodes)

    best_first(search, watched, lambda: batch, never)
    assert bounds == sorted(bounds)


def test_stop_ends_the_search_at_once() -> None:
    search, _ = searched((5, 1, 4, 2))
    calls = []

    def stop(nodes: list[Span]) -> Expansion[Span]:
        calls.append(nodes)
        return replace(expand(nodes), stop=True)

    assert best_first(search, stop, lambda: 1, never) is SearchEnd.STOPPED
    assert len(calls) == 1
    assert search.open  # the children are in the search


@given(values=any_values, batch=st.integers(1, 6), groups=st.integers(1, 4))
def test_batches_hold_one_group_and_the_least_bounds_first(values: tuple[int, ...], batch: int, groups: int) -> None:
    search, _ = searched(values, groups)

    def checked(nodes: list[Span]) -> Expansion[Span]:
        assert 1 <= len(nodes) <= batch
        assert len({n.group for n in nodes}) == 1
        assert [n.lower for n in nodes] == sorted(n.lower for n in nodes)
        return expand(nodes)

    best_first(search, checked, lambda: batch, never)


def test_nodes_of_other_groups_are_not_lost() -> None:
    search, _ = searched((1,) * 40, 3)
    total = search.open
    taken = search.take(2)
    assert len(taken) + search.open == total


def test_nothing_to_do_is_closed() -> None:
    search: Search[Span] = Search(0.0, lambda node: None)
    assert best_first(search, expand, lambda: 1, never) is SearchEnd.CLOSED
    search.add([Span((7,), 0, 0)])
    assert best_first(search, expand, lambda: 1, lambda: True) is SearchEnd.CLOSED


def test_a_bound_equal_to_the_target_is_open() -> None:
    search, closed = searched((0,))
    assert search.open == 1
    assert not closed


def test_deadline() -> None:
    deadline = Deadline.after(0.05)
    assert not deadline.expired()
    assert 0 < deadline.remaining() <= 0.05
    assert deadline.within(100.0).end == deadline.end
    sooner = deadline.within(0.001)
    assert sooner.end < deadline.end
    time.sleep(0.06)
    assert deadline.expired()
    assert deadline.remaining() == 0.0
    assert deadline.elapsed() == pytest.approx(0.06, abs=0.05)
    assert deadline.within(1.0).expired()
