"""What a batch shows while it runs: how many are done, with what result, how fast, and how long it will take."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stbp_milp.batch.engine import Progress
from stbp_milp.results import WORDS

_COLOURS = {
    "verified": "green",
    "falsified": "red",
    "unknown": "yellow",
    "timeout": "yellow",
    "memout": "magenta",
    "error": "bold red",
}
_PLAIN_EVERY = 15.0  # seconds between two lines where there is no terminal


class BatchDisplay:
    """A bar and a line of counts on a terminal, else a plain line now and then; nothing where `shown` is False."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console, self._shown = console, shown
        self._live = Live(console=console, refresh_per_second=4, transient=True, auto_refresh=False)
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        if self._shown and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, progress: Progress) -> None:
        """Show how far it is; called a few times a second."""
        if not self._shown:
            return
        if self._live.is_started:
            self._live.update(_picture(progress), refresh=True)
        elif time.monotonic() - self._last >= _PLAIN_EVERY:
            self._last = time.monotonic()
            self._console.print(f"{counts(progress)}; {pace(progress)}")


def counts(progress: Progress) -> Text:
    """How many are done, and with what result."""
    text = Text(f"{progress.done:,} of {progress.total:,} done")
    for word in WORDS:
        text.append(", ")
        number = progress.words[word]
        text.append(f"{number:,} {word}", style=_COLOURS[word] if number else "dim")
    if progress.contradictions:
        text.append(f", {progress.contradictions:,} CONTRADICTIONS", style="bold red")
    return text


def pace(progress: Progress) -> str:
    """What runs, how fast, and the time that is left at this pace."""
    if not progress.workers:
        return "waiting for workers"
    running = f"{progress.running} running on {progress.workers} {'worker' if progress.workers == 1 else 'workers'}"
    if not progress.fresh:
        return running
    speed = progress.fresh / progress.seconds
    left = (progress.total - progress.done) / speed
    return f"{running}, {speed:.3g} per second, {_duration(left)} left"


def _picture(progress: Progress) -> Table:
    picture = Table.grid(expand=True)
    picture.add_row(ProgressBar(total=max(1, progress.total), completed=progress.done))
    picture.add_row(counts(progress))
    picture.add_row(Text(pace(progress), style="dim"))
    return picture


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
