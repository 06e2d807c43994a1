"""Summary numbers of a run, for the top of the page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from stbp_milp.report.html.instance import ShownInstance
from stbp_milp.results import WORDS

MOST_GROUPS = 40


@dataclass(frozen=True)
class Share:
    """How many instances have a given status."""

    word: str
    count: int
    percent: float


@dataclass(frozen=True)
class Curve:
    """The instances of one network, set and radius."""

    model: str
    set: str
    epsilon: str
    shares: tuple[Share, ...]
    total: int
    median_seconds: float
    median_lower: float | None

    def count(self, word: str) -> int:
        return next((share.count for share in self.shares if share.word == word), 0)


def shares(instances: Sequence[ShownInstance]) -> tuple[Share, ...]:
    """Returns one share per status that occurs, in the order of WORDS."""
    counted = Counter(instance.word for instance in instances)
    return tuple(Share(word, counted[word], 100 * counted[word] / len(instances)) for word in WORDS if counted[word])


def groups(instances: Iterable[ShownInstance]) -> list[Curve]:
    """Groups the instances by network, set and radius, in order of first appearance."""
    found: defaultdict[tuple[str, str, str], list[ShownInstance]] = defaultdict(list)
    for instance in instances:
        asked: Mapping[str, str] = instance.question
        found[asked.get("model", ""), asked.get("set", ""), asked.get("epsilon", "")].append(instance)
    return [_group(key, members) for key, members in found.items()]


def _group(key: tuple[str, str, str], members: Sequence[ShownInstance]) -> Curve:
    proved = [member.lower for member in members if member.word == "verified"]
    return Curve(
        *key,
        shares=shares(members),
        total=len(members),
        median_seconds=median(member.seconds for member in members),
        median_lower=median(proved) if proved else None,
    )


def duration(seconds: float) -> str:
    """Formats a time for people to read: 12 ms, 3.4 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0095 else f"{1000 * seconds:.2g} ms"
    if seconds < 99.5:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds % 60 < 59.5 else f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def size(content: float) -> str:
    """Formats a number of bytes for people to read: 512 kB, 1.4 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if content < 999.5:
            return f"{content:.3g} {unit}"
        content /= 1000
    return f"{content:,.3g} TB"
