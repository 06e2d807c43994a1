"""Two runs side by side: which verdicts changed, and what became slower or faster.

Instances are *paired* by the surest thing that they share: the digests of their files, the digest of the question, or
their name alone. Pairs by name may be of different clips or networks, so a verdict and its opposite are a
*contradiction* only between pairs of the same question.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stbp_milp.report.html.instance import ShownInstance
from stbp_milp.report.html.run import Run

SLOWER = 1.5  # times as long, and
NOTICEABLE = 0.5  # seconds more: less is noise of the machine

_KINDS = ("files", "question", "name")


@dataclass(frozen=True)
class Pair:
    """An instance of this run and the same of the other.

    Attributes:
        kind: "files", "question" or "name": what they were recognised by.
    """

    here: ShownInstance
    there: ShownInstance
    kind: str

    @property
    def changed(self) -> bool:
        return self.here.word != self.there.word

    @property
    def contradiction(self) -> bool:
        """One run proves what the other refutes."""
        return self.changed and self.here.decided and self.there.decided and self.kind != "name"

    @property
    def ratio(self) -> float:
        """How many times as long it took as in the other run."""
        return max(self.here.seconds, 1e-3) / max(self.there.seconds, 1e-3)

    @property
    def pace(self) -> str:
        """ "slower", "faster" or "", between two runs that both decided it."""
        if not (self.here.decided and self.there.decided):
            return ""
        if abs(self.here.seconds - self.there.seconds) < NOTICEABLE:
            return ""
        return "slower" if self.ratio >= SLOWER else "faster" if self.ratio <= 1 / SLOWER else ""


@dataclass(frozen=True)
class Changes:
    """This run against another.

    Attributes:
        pairs: by the position of this run's instance.
        only_there: the other run's instances that this one lacks.
    """

    there: Run
    pairs: Mapping[int, Pair]
    only_there: tuple[ShownInstance, ...]

    @property
    def kinds(self) -> Mapping[str, int]:
        """How many pairs were recognised by what."""
        return Counter(pair.kind for pair in self.pairs.values())

    @property
    def transitions(self) -> Mapping[tuple[str, str], int]:
        """How many pairs went from which word to which."""
        return Counter((pair.there.word, pair.here.word) for pair in self.pairs.values())

    @property
    def contradictions(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs.values() if pair.contradiction)

    @property
    def mean_ratio(self) -> float | None:
        """Geometric mean of the times' ratios over what both decided; None without such pairs."""
        ratios = [math.log(pair.ratio) for pair in self.pairs.values() if pair.here.decided and pair.there.decided]
        return math.exp(sum(ratios) / len(ratios)) if ratios else None


def compare_runs(here: Run, there: Run) -> Changes:
    """Pair the instances of two runs; several of one question are paired in their order."""
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
    """The pairs of that pace, the largest change first."""
    chosen = [pair for pair in pairs if pair.pace == pace]
    return sorted(chosen, key=lambda pair: abs(math.log(pair.ratio)), reverse=True)
