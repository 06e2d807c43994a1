"""Comparison of two runs: which verdicts changed, and which instances became slower or faster.

Instances are *paired* by the most reliable identity that they share: the digests of their files, the digest of the
question, or only their name. Instances paired by name may have different clips or networks, so opposite verdicts are a
*contradiction* only in pairs that share a question.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stbp_milp.report.html.instance import ShownInstance
from stbp_milp.report.html.run import Run

SLOWER = 1.5  # a slower instance takes at least this many times as long,
NOTICEABLE = 0.5  # and at least this many seconds longer: smaller differences are noise

_KINDS = ("files", "question", "name")


@dataclass(frozen=True)
class Pair:
    """An instance of this run and the same instance of the other run.

    Attributes:
        kind: the identity that they share, "files", "question" or "name".
    """

    here: ShownInstance
    there: ShownInstance
    kind: str

    @property
    def changed(self) -> bool:
        return self.here.word != self.there.word

    @property
    def contradiction(self) -> bool:
        """Does one run prove what the other refutes?"""
        return self.changed and self.here.decided and self.there.decided and self.kind != "name"

    @property
    def ratio(self) -> float:
        """Returns this run's time divided by the other run's time."""
        return max(self.here.seconds, 1e-3) / max(self.there.seconds, 1e-3)

    @property
    def pace(self) -> str:
        """Returns "slower", "faster" or "", the last also if not both runs decided the instance."""
        if not (self.here.decided and self.there.decided):
            return ""
        if abs(self.here.seconds - self.there.seconds) < NOTICEABLE:
            return ""
        return "slower" if self.ratio >= SLOWER else "faster" if self.ratio <= 1 / SLOWER else ""


@dataclass(frozen=True)
class Changes:
    """The differences between this run and another.

    Attributes:
        there: the other run.
        pairs: the pairs, by the position of this run's instance.
        only_there: instances of the other run that this run lacks.
    """

    there: Run
    pairs: Mapping[int, Pair]
    only_there: tuple[ShownInstance, ...]

    @property
    def kinds(self) -> Mapping[str, int]:
        """Returns the number of pairs per kind of identity."""
        return Counter(pair.kind for pair in self.pairs.values())

    @property
    def transitions(self) -> Mapping[tuple[str, str], int]:
        """Returns the number of pairs per old and new status."""
        return Counter((pair.there.word, pair.here.word) for pair in self.pairs.values())

    @property
    def contradictions(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs.values() if pair.contradiction)

    @property
    def mean_ratio(self) -> float | None:
        """Returns the geometric mean of the time ratios of instances that both runs decided; None without any."""
        ratios = [math.log(pair.ratio) for pair in self.pairs.values() if pair.here.decided and pair.there.decided]
        return math.exp(sum(ratios) / len(ratios)) if ratios else None


def compare_runs(here: Run, there: Run) -> Changes:
    """Pairs the instances of two runs; several instances of one question are paired in order."""
    pairs: dict[int, Pair] = {}
    left = dict(enumerate(there.instances))
    for kind in _KINDS:
        waiting = _by_identity(left, kind)
        for i, instance in enumerate(here.instances):
            same = waiting.get(instance.identities.get(kind, ""), [])
            if i not in pairs and same:
                pairs[i] = Pair(instance, left.pop(same.pop(0)), kind)
    return Changes(there, dict(sorted(pairs.items())), tuple(left.values()))


def _by_identity(instances: Mapping[int, ShownInstance], kind: str) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for i, instance in instances.items():
        if kind in instance.identities:
            found[instance.identities[kind]].append(i)
    return found


def slowest_first(pairs: Sequence[Pair], pace: str) -> list[Pair]:
    """Returns the pairs of that pace, those with the largest change first."""
    chosen = [pair for pair in pairs if pair.pace == pace]
    return sorted(chosen, key=lambda pair: abs(math.log(pair.ratio)), reverse=True)
