"""What the stages of a run share: a context that stays as it is, and a state that they add to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from stbp_milp.attack import Judge
from stbp_milp.branching import Bounder, Expander, Piece
from stbp_milp.devices import named_device
from stbp_milp.ledger import Ledger
from stbp_milp.memory import affordable, resident
from stbp_milp.plan import Plan
from stbp_milp.query import Configuration, Query
from stbp_milp.search import Deadline, Search, SearchEnd
from stbp_milp.sets import PerturbationSet
from stbp_milp.strategy import Strategy
from stbp_milp.verdict import Progress, Reason

OnProgress = Callable[[Progress], None]

TARGET = 0.0  # bounds hold in spite of rounding, so a margin is proved when its bound is positive


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """One run.

    Attributes:
        query: on the device that all is computed on; clips given and clips found stay on the CPU.
        set: the perturbation set that the query asks about.
        deadline: when the run ends.
        memory: bytes to plan with.
        clean_outputs: the original model's scores on the clean clip `(K,)`.
        report: is told about progress.
    """

    query: Query
    configuration: Configuration
    strategy: Strategy
    set: PerturbationSet
    deadline: Deadline
    memory: int
    clean_outputs: tuple[float, ...]
    report: OnProgress

    @classmethod
    def of(
        cls,
        query: Query,
        configuration: Configuration,
        strategy: Strategy,
        report: OnProgress,
        deadline: Deadline | None = None,
    ) -> Context:
        """A run that begins now, or that `deadline` says has begun.

        Raises:
            InputError: the clip does not fit the set, or there is no such device.
        """
        deadline = deadline or Deadline.after(configuration.timeout)
        device = named_device(configuration.device)
        perturbation = query.set.build(query.clip).to(device)
        query = query.to(device)
        clean = query.model.predict(query.clip.to(torch.float32).numpy()[None])[0]
        return cls(
            query=query,
            configuration=configuration,
            strategy=strategy,
            set=perturbation,
            deadline=deadline,
            memory=_room(configuration, device),
            clean_outputs=tuple(float(v) for v in clean),
            report=report,
        )

    @property
    def memory_limit(self) -> int | None:
        """Bytes that this process may hold; of a GPU's memory there is only a plan."""
        return None if self.set.clip.device.type == "cuda" else self.configuration.memory_bytes

    @property
    def many_places(self) -> bool:
        """Is one bound of the union of all members hopeless, as of patches, so that effort on it is wasted?"""
        return float(self.set.choice.members()[0]) > 100


def _room(configuration: Configuration, device: torch.device) -> int:
    limit = configuration.memory_bytes
    if limit is None:
        return affordable(device)
    return limit if device.type == "cuda" else max(0, limit - resident())


@dataclass(eq=False, kw_only=True)
class State:
    """What is known so far.

    Attributes:
        judge: tries candidates; keeps the smallest margin seen and the first counterexample.
        ledger: what is proved, and what it took.
        end: how the run ended; None while it goes on.
        plan, bounder: made with the first bounds.
        pieces, search, expander: where the branch and bound begins.
        short_of_memory: was something given up for want of memory?
        refusal: why the solver that was asked for takes no program.
        open_for: pieces that programs did not settle, by the reason.
    """

    judge: Judge
    ledger: Ledger = field(default_factory=Ledger)
    end: SearchEnd | None = None
    plan: Plan | None = None
    bounder: Bounder | None = None
    pieces: list[Piece] = field(default_factory=list)
    search: Search[Piece] | None = None
    expander: Expander | None = None
    short_of_memory: bool = False
    refusal: str | None = None
    open_for: Counter[Reason] = field(default_factory=Counter)

    def tell(self, context: Context, stage: str, parts: int) -> None:
        """Report how far the run has got."""
        context.report(
            Progress(
                stage,
                self.ledger.lower,
                self.judge.least,
                parts,
                self.ledger.counts.get("subproblems", 0),
                context.deadline.elapsed(),
            )
        )
