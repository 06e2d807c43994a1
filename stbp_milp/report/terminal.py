"""What a run shows in the terminal: a progress line while it works, and a summary and tables when it is done.

All bounds are bounds of the *margin*; a positive margin means that the property holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stbp_milp.network.views import Axes
from stbp_milp.query import Query
from stbp_milp.report.comparison import answer, as_fraction
from stbp_milp.sets import BoxSpecification, SetSpecification
from stbp_milp.verdict import Falsified, Outcome, Progress, Unknown, Verified

_COLOURS = {"verified": "bold green", "falsified": "bold red", "unknown": "bold yellow"}


class LiveLine:
    """Draws the latest progress inside its block; draws nothing if the console is not a terminal.

    Attributes:
        latest: the progress that arrived last, if any.
    """

    def __init__(self, console: Console, limit: float, *, shown: bool = True) -> None:
        self.latest: Progress | None = None
        self._arrived = monotonic()
        self._limit = limit
        self._heading: RenderableType | None = None
        self._spinner = Spinner("line")
        self._live = Live(console=console, transient=True, refresh_per_second=8, get_renderable=self._render)
        self._shown = shown and console.is_terminal

    def start(self, limit: float, heading: RenderableType | None = None) -> None:
        """Begins another run, limited to `limit` seconds, with `heading` above its line."""
        self.latest, self._arrived, self._limit, self._heading = None, monotonic(), limit, heading

    def update(self, progress: Progress) -> None:
        self.latest, self._arrived = progress, monotonic()

    def text(self) -> str:
        """Returns the current line."""
        # Solvers report rarely, so the clock advances between their reports.
        return progress_text(self.latest, self._limit, monotonic() - self._arrived)

    def __enter__(self) -> Self:
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            self._live.stop()

    def _render(self) -> RenderableType:
        # One Text: a spinner with its own text wraps on narrow terminals, and this must stay a single line.
        wheel = str(self._spinner.render(monotonic()))
        line = Text(f"{wheel} {self.text()}", no_wrap=True, overflow="ellipsis")
        return Group(self._heading, line) if self._heading is not None else line


def progress_text(progress: Progress | None, limit: float, since: float = 0.0) -> str:
    """Formats one line: stage, margin bounds, work left and time, `since` seconds after the progress arrived."""
    if progress is None:
        return f"starting  {since:.1f}/{limit:g} s"
    found = [f"{progress.stage:<11}", f"margin proved {_number(progress.lower)}, seen {_number(progress.upper)}"]
    if progress.parts or progress.subproblems:
        found.append(f"{progress.parts:,} parts left, {progress.subproblems:,} bounded")
    return "  ".join([*found, f"{progress.seconds + since:.1f}/{limit:g} s"])


def question(query: Query, clean_outputs: Sequence[float], units: str = "") -> RenderableType:
    """Describes the question in a few lines.

    Args:
        units: what was done to the given values, for example `DIVIDED`.
    """
    return _pairs(
        ("model", f"{query.model.name}, input {_axes(query.model.axes)}"),
        ("clean clip", answer(query, clean_outputs)),
        ("values", f"{float(query.clip.min()):g} to {float(query.clip.max()):g}{units}, eps in the same unit"),
        ("set", _set(query.set)),
        ("property", query.property.text),
    )


def _axes(axes: Axes) -> str:
    """Describes the axes of the model's own input, and how they correspond to those of a clip."""
    lengths = "x".join(map(str, axes.shape))
    return f"{lengths} as {axes.layout}: {axes.words()}" if axes.layout else f"{lengths}: {axes.words()}"


def _set(asked: SetSpecification | BoxSpecification) -> str:
    low, high = asked.domain
    if isinstance(asked, BoxSpecification):
        return f"box, sides up to {2 * asked.epsilon:.4g} long, values in [{low:.6g}, {high:.6g}]"
    return f"{asked.text}, eps {as_fraction(asked.epsilon)}, domain [{low:g}, {high:g}]"


def summary(query: Query, outcome: Outcome, files: Mapping[str, Path]) -> RenderableType:
    """Describes the verdict, the margin's bounds, where the time went and where the files are."""
    times = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in outcome.stage_seconds.items())
    work = ", ".join(f"{count:,} {name}" for name, count in outcome.counts.items())
    return _pairs(
        ("verdict", Text(outcome.word, style=_COLOURS[outcome.word])),
        ("", explanation(query, outcome)),
        *([("", f"what may help: {outcome.verdict.advice}")] if isinstance(outcome.verdict, Unknown) else []),
        ("margin", f"smallest over the set: {_known(outcome.lower, outcome.upper)}"),
        ("seconds", f"{outcome.seconds:.2f}" + (f": {times}" if times else "")),
        *([("work", work)] if work else []),
        *((kind, Text(str(path), overflow="fold")) for kind, path in files.items()),
    )


def _known(lower: float, upper: float) -> str:
    """Describes what is known about the smallest margin, without bounds that say nothing."""
    proved = [f"at least {_number(lower)} (proved)"] if lower > -math.inf else []
    observed = [f"at most {_number(upper)} (observed)"] if upper < math.inf else []
    return ", ".join(proved + observed) or "no bound is known"


def explanation(query: Query, outcome: Outcome) -> str:
    """Returns the verdict in a sentence."""
    match outcome.verdict:
        case Verified(certificate):
            return f"the property holds on every clip of the set ({_closed(certificate.closed)})"
        case Falsified(found) if found.stage == "clean":
            says = answer(query, outcome.clean_outputs)
            return f"the clean clip itself breaks the property: the model says {says} without any perturbation"
        case Falsified(found):
            says = answer(query, found.outputs)
            return f"a clip of the set breaks the property: the model says {says} (found by {found.stage})"
        case Unknown(reason=reason):
            return reason


def _closed(closed: Mapping[str, int]) -> str:
    """Describes how many pieces each stage closed."""
    by_stage = [(stage, count) for stage, count in closed.items() if count]
    pieces = sum(count for _, count in by_stage)
    counted = f"{pieces:,} {'piece' if pieces == 1 else 'pieces'} closed"
    if len(by_stage) == 1:
        return f"{counted} by {by_stage[0][0]}"
    return f"{counted}: " + ", ".join(f"{count:,} by {stage}" for stage, count in by_stage)


def verdict_line(outcome: Outcome) -> str:
    """Returns the shortest answer, for scripts: status, bounds of the margin, seconds."""
    return f"{outcome.word} {_interval(outcome.lower, outcome.upper)} {outcome.seconds:.2f} s"


@dataclass(frozen=True)
class BenchRow:
    """One instance of the shipped benchmark; `outcome` is None until it has run.

    Attributes:
        expected: the verdict, or "" if it is not known.
        group: the name under which the rows of a group are shown together.
    """

    name: str
    set_text: str
    epsilon: float
    expected: str
    group: str = ""
    outcome: Outcome | None = None

    @property
    def mark(self) -> str:
        """Returns how the verdict compares to the expected one: "", "ok", "decided" (better), "open" or "WRONG"."""
        if self.outcome is None:
            return ""
        word = self.outcome.word
        if word == self.expected:
            return "ok"
        if self.expected in ("unknown", ""):
            return "decided" if word != "unknown" else "open"
        return "open" if word == "unknown" else "WRONG"


def bench_table(rows: Sequence[BenchRow], most: int | None = None) -> RenderableType:
    """Makes a table with one line per instance that has run (the last `most`), by group, and a line of totals."""
    done = [row for row in rows if row.outcome is not None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("instance", "set"):
        table.add_column(name, overflow="fold")
    table.add_column("eps", justify="right")
    for name in ("verdict", "margin", "decided by"):
        table.add_column(name, no_wrap=True)
    table.add_column("seconds", justify="right")
    group = ""
    for row in done if most is None else done[-most:]:
        assert row.outcome is not None
        if row.group != group:
            group = row.group
            table.add_row(Text(group, style="bold"))
        table.add_row(
            Text(row.name),
            row.set_text,
            as_fraction(row.epsilon),
            _compared(row),
            Text(_interval(row.outcome.lower, row.outcome.upper)),
            row.outcome.decided_by or "-",
            f"{row.outcome.seconds:.2f}",
        )
    return Group(table, Text(_totals(rows)))


def _compared(row: BenchRow) -> Text:
    """Returns the verdict, followed by the expected one if it differs."""
    assert row.outcome is not None
    word = row.outcome.word
    text = Text(word, style=_COLOURS[word])
    if row.mark == "ok":
        return text
    expected = row.expected or "nothing"
    return text.append(f" ({row.mark}), expected {expected}", style="bold red" if row.mark == "WRONG" else "default")


def _totals(rows: Sequence[BenchRow]) -> str:
    done = [row for row in rows if row.outcome is not None]
    words = [row.outcome.word for row in done if row.outcome is not None]
    counts = ", ".join(f"{words.count(word)} {word}" for word in _COLOURS)
    as_expected = sum(row.mark in ("ok", "decided") for row in done)
    seconds = sum(row.outcome.seconds for row in done if row.outcome is not None)
    return f"{len(done)} of {len(rows)} instances in {seconds:.1f} s: {counts}; {as_expected} as expected"


def _pairs(*rows: tuple[str, str | Text]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(value))  # brackets are no markup
    return table


def _interval(lower: float, upper: float) -> str:
    return f"[{_number(lower)}, {_number(upper)}]"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ("-inf" if value < 0 else "inf")
