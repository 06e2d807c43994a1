"""What the stages of a run share: an immutable context, and a state that they add to."""

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

TARGET = 0.0  # bounds hold despite rounding, so the property is proved if the bound of its margin is positive


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """The inputs and limits of one run.

    Attributes:
        query: the query on the device of the computation; its clip and found clips stay on the CPU.
        set: the perturbation set that the query asks about.
        deadline: when the run ends.
        memory: bytes that the run plans with.
        clean_outputs: the original model's scores on the clean clip `(K,)`.
        report: called with the progress.
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
        """Makes the context of a run that begins now, or that began when `deadline` says.

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
        """The bytes that this process may hold; None on a GPU, whose memory is only planned."""
        return None if self.set.clip.device.type == "cuda" else self.configuration.memory_bytes

    @property
    def many_places(self) -> bool:
        """Are there so many members, for example positions of a patch, that one bound of their union is hopeless?"""
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
        judge: tries candidates; keeps the smallest observed margin and the first counterexample.
        ledger: what has been proved, and at what cost.
        end: how the run ended; None while it continues.
        plan, bounder: made with the first bounds.
        pieces, search, expander: the start of the branch and bound.
        short_of_memory: was anything given up for lack of memory?
        refusal: why the requested solver refused a program.
        open_for: number of programs that did not settle their piece, per reason.
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
        """Reports how far the run has got."""
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
