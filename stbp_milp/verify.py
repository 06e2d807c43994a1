"""The use case: a query in, a verdict with its evidence out.

The order is from cheap to exact: clean prediction, attack, one bound of the whole set, members one by one where the
set has them, branch and bound on the set and the ReLUs, the MILP on what is small. A counterexample found anywhere
ends the run; clauses of the property that are proved are not looked at again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from solvers import RefusedError
from stbp_milp import given
from stbp_milp.attack import QUICK, THOROUGH, AttackConfiguration, Judge, attack
from stbp_milp.bounds.ascent import OptimiserOptions
from stbp_milp.bounds.interrupt import interruptible
from stbp_milp.bounds.precise import precise_values
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import PRECISE_WORK
from stbp_milp.branching import Expander, Family, Piece, Roots, hardest_neurons, within
from stbp_milp.branching.exact import ProgramOptions, solve_piece
from stbp_milp.devices import exact_products, named_device
from stbp_milp.errors import InputError, InternalError, OutOfTimeError, SoundnessError, StbpError, contradict
from stbp_milp.ledger import STAGES, Ledger
from stbp_milp.memory import affordable, is_exhaustion, resident
from stbp_milp.milp import PROOF_MARGIN
from stbp_milp.network.model import load_model_for
from stbp_milp.network.normal_form import Stage, normal_form
from stbp_milp.network.reading import is_large
from stbp_milp.network.views import as_clip
from stbp_milp.plan import Plan
from stbp_milp.properties import property_of
from stbp_milp.query import Configuration, Neuron, Query
from stbp_milp.search import Deadline, Expansion, Pace, Search, SearchEnd, best_first
from stbp_milp.sets import Patch, PerturbationSet, SetSpecification
from stbp_milp.verdict import (
    Counterexample,
    Falsified,
    Outcome,
    Progress,
    Reason,
    Unknown,
    Verdict,
    Verified,
)

OnProgress = Callable[[Progress], None]

_PRECISE_RATE = 3e8  # multiplications a second of the time left, that clean values may take: about a tenth of it
_TARGET = 0.0  # bounds hold in spite of rounding, so a margin is proved when its bound is positive
_TRIAL_SHARE = 0.15  # of the time, until when a trial of an attack that began ends at the latest
_MATRICES_SHARE = 0.25  # of the time left, for matrices and for groups of members that share them
_PLACES_LISTED = 1 << 20  # patches with more positions are split by halves; with fewer, where that is measured to pay


def verify(
    query: Query,
    configuration: Configuration,
    on_progress: OnProgress | None = None,
    deadline: Deadline | None = None,
) -> Outcome:
    """Is the property the same for every clip of the set?

    Args:
        deadline: of a run that began before, to read the model; None: the configuration's limit from now on. Without
            any time left there is the clean prediction, and what follows from it.
        on_progress: called a few times a second at most, from this thread.

    Raises:
        InputError: the clip does not fit the model or the set, or there is no such device.
        SoundnessError: two methods contradict each other.
        InternalError: a fault of this package; its `outcome` holds what was known by then.
        MemoryError: there was no room even to begin.
    """
    with _running(query, configuration, on_progress, deadline) as run:
        return run.outcome()


def neurons_to_split(query: Query, configuration: Configuration, count: int) -> tuple[Neuron, ...]:
    """The neurons whose phases cut the question best, at most `count`; none where first bounds or their minimisers
    settle it.

    Raises:
        InputError, SoundnessError, InternalError, MemoryError: as `verify`.
    """
    with _running(query, configuration) as run:
        start = run.start()
        if isinstance(start, SearchEnd) or run.judge.found:
            return ()
        return hardest_neurons(start.expand, start.roots, count)


@contextmanager
def _running(
    query: Query,
    configuration: Configuration,
    on_progress: OnProgress | None = None,
    deadline: Deadline | None = None,
) -> Iterator[_Run]:
    """A run whose faults leave as errors of this package.

    Whatever is no `StbpError` was not foreseen, so no kind of it can be named; it is not swallowed but raised again,
    with what was known and with its own traceback as the cause, so that tests fail on it as on any exception. Errors
    of the caller's `on_progress` are the caller's, and go through.
    """
    caller, run = _Caller(on_progress), None
    try:
        query.check()
        with _computing(configuration):
            run = _Run.of(query, configuration, caller, deadline)
            yield run
    except StbpError:
        raise
    except Exception as error:
        if error is caller.error:
            raise
        if is_exhaustion(error):
            raise MemoryError(f"out of memory: {error}") from error
        raise _internal_error(error, run) from error


@dataclass(eq=False)
class _Caller:
    """The caller's `on_progress`, and the error that it raised."""

    report: OnProgress | None
    error: Exception | None = None

    def __call__(self, progress: Progress) -> None:
        if self.report is not None:
            try:
                self.report(progress)
            except Exception as error:
                self.error = error
                raise


def _internal_error(error: Exception, run: _Run | None) -> InternalError:
    what = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    report = "this is a fault of stbp-milp; please report it with the model, the clip and the options"
    if run is None:
        return InternalError(f"{what}; {report}")
    outcome = run.interrupted(what)
    return InternalError(
        f"{what}; {report}. By then the margin was proved to be at least {outcome.lower:g}, and "
        f"{outcome.upper:g} was the smallest seen",
        outcome,
    )


@contextmanager
def _computing(configuration: Configuration) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(configuration.threads)
    try:
        with exact_products():
            yield
    finally:
        torch.set_num_threads(threads)


def verify_clip(
    model: nn.Module | str | Path,
    clip: Tensor | np.ndarray,
    set: str,
    epsilon: float | str,
    label: int | str | None = None,
    top: int = 1,
    tolerance: float | None = None,
    domain: tuple[float, float] | None = None,
    configuration: Configuration | None = None,
    on_progress: OnProgress | None = None,
    layout: str | None = None,
) -> Outcome:
    """`verify` for one clip and the usual properties; the time that the model takes to load counts.

    Args:
        model: a torch module, or the path of an ONNX file.
        clip: of the shape that the model takes, or (C, T, H, W) for a model in a file; values in the data domain that
            float32 can hold. uint8 is divided by 255 where no domain is given.
        set: in words, as in `SetSpecification`.
        epsilon: radius in the units of the data, a number or words such as "4/255".
        label: the class that must stay; the clean prediction without.
        top: the class stays among the first `top`.
        tolerance: for regression instead of a class: every output stays within +-tolerance of the clean output.
        domain: smallest and largest value of the data; [0, 1] without.
        layout: the axes of the model's input without the batch axis, such as "THWC"; needed where they are in doubt.

    Raises:
        InputError: an argument cannot be used as it is.
        UnsupportedLayerError, SoundnessError, InternalError: as `load_model` and `verify`.
    """
    configuration = configuration or Configuration()
    deadline = Deadline.after(configuration.timeout)
    values = given.clip_values(clip, domain is not None)
    bounds = (0.0, 1.0) if domain is None else given.interval(domain)
    asked = SetSpecification(given.words(set), given.radius(epsilon), bounds)
    first = given.whole("top", top, "a number of classes")
    label = None if label is None else given.whole("label", label, "the number of a class")
    tolerance = None if tolerance is None else given.number("tolerance", tolerance)
    loaded = load_model_for(values, given.source(model), layout)
    values = as_clip(values, loaded.axes)
    if tuple(values.shape) != loaded.axes.clip:
        raise InputError(
            f"the clip has shape {tuple(values.shape)}, the model {loaded.name} takes {loaded.axes.shape}; give a clip "
            "of that shape"
        )
    return verify(
        Query(loaded, values, asked, property_of(loaded.predict, values, label, first, tolerance)),
        configuration,
        on_progress,
        deadline,
    )


def _room(configuration: Configuration, device: torch.device) -> int:
    """Bytes to plan with."""
    limit = configuration.memory_bytes
    if limit is None:
        return affordable(device)
    return limit if device.type == "cuda" else max(0, limit - resident())


@dataclass(frozen=True, eq=False)
class _Start:
    """Where the branch and bound begins."""

    expand: Expander
    roots: list[Piece]
    open_clauses: list[int]
    plan: Plan


@dataclass(eq=False)
class _Run:
    query: Query
    configuration: Configuration
    report: OnProgress
    deadline: Deadline
    memory: int
    set: PerturbationSet
    judge: Judge
    clean_outputs: tuple[float, ...]
    ledger: Ledger = field(default_factory=Ledger)
    short_of_memory: bool = False
    refusal: str | None = None  # why the solver that was asked for takes no program
    open_for: Counter[Reason] = field(default_factory=Counter)  # pieces that programs did not settle

    @classmethod
    def of(
        cls, query: Query, configuration: Configuration, report: OnProgress, deadline: Deadline | None = None
    ) -> _Run:
        deadline = deadline or Deadline.after(configuration.timeout)
        # All that is computed with goes to the device here, once; clips given and clips found stay on the CPU.
        device = named_device(configuration.device)
        perturbation = query.set.build(query.clip).to(device)
        query = query.to(device)
        clean = query.model.predict(query.clip.to(torch.float32).numpy()[None])[0]
        return cls(
            query,
            configuration,
            report,
            deadline,
            _room(configuration, device),
            perturbation,
            Judge(query, perturbation),
            tuple(float(v) for v in clean),
        )

    def outcome(self) -> Outcome:
        end = self._stages()
        if (found := self.judge.counterexample) is not None:
            return self._falsified(found)
        if end is SearchEnd.CLOSED:
            decided = max(self.ledger.closed, key=STAGES.index)
            return self._outcome(Verified(self.ledger.certificate()), decided)
        return self._outcome(self._unknown(end), None)

    def _stages(self) -> SearchEnd:
        """From the clean clip to the search; what they held is free at the end."""
        try:
            with self.ledger.timed("clean"):
                self.judge(self.set.centre, "clean")
            # A look at the easy corners, so that bounds of a hopeless set are not waited for; the long attack comes
            # after the first bounds, which settle most of what holds.
            if not self.judge.found:
                self._attack(QUICK, 0.02)
            if self._over():
                return SearchEnd.EXPIRED
            start = self.start()
            return start if isinstance(start, SearchEnd) else self._search(start)
        except (MemoryError, RuntimeError) as error:  # before there were batches that could be halved
            if not is_exhaustion(error):
                raise
            self.short_of_memory = True
            return SearchEnd.GIVEN_UP

    def interrupted(self, reason: str) -> Outcome:
        """What is known when a fault ends the run: a counterexample stands, whatever came after it."""
        if (found := self.judge.counterexample) is not None:
            return self._falsified(found)
        return self._outcome(Unknown(Reason.INTERNAL, f"internal error: {reason}"), None)

    # --- stages ---------------------------------------------------------------------------------------------

    def _attack(self, configuration: AttackConfiguration, share: float) -> None:
        """Attack for at most `share` of the whole time; what a trial takes beyond it, too, for another such share."""
        if self.deadline.expired():
            return
        self._tell("attack", 1)
        with self.ledger.timed("attack"):
            generator = torch.Generator().manual_seed(self.configuration.seed)
            limit = self.deadline.within(share * self.configuration.timeout)
            network, property = self.query.model.network, self.query.property
            end = self.deadline.within(_TRIAL_SHARE * self.configuration.timeout).expired
            result = attack(network, self.set, property, generator, limit.expired, configuration, end)
            self.ledger.counts["attack trials"] += result.trials
            self.judge(result.clip.unsqueeze(0).to(torch.float64), "attack")

    def start(self) -> SearchEnd | _Start:
        """First bounds, and what they leave open."""
        try:
            return self._start()
        except OutOfTimeError:
            return SearchEnd.EXPIRED

    def _start(self) -> SearchEnd | _Start:
        network = self.query.model.network
        with interruptible(self.deadline.expired):
            work = min(PRECISE_WORK, _PRECISE_RATE * self.deadline.remaining())
            problem = Problem.of(network, self.set, work)
        family = Family(problem, self.set)
        clauses = list(range(len(self.query.property.clauses)))
        forms, offset = self.query.property.forms()
        plan = Plan.of(network, len(clauses), self.configuration.timeout, self.memory)

        def expander(open_clauses: list[int], stages: tuple[Stage, ...] | None) -> Expander:
            return Expander(
                family,
                forms[open_clauses],
                offset[open_clauses],
                _TARGET,
                plan.options,
                self.deadline,
                self.judge,
                stages,
                self._program(stages, open_clauses),
                self.ledger.timed,
                self.ledger.counts,
                interrupt=plan.interrupt,
            )

        self._tell("union bound", 1)
        with self.ledger.timed("union bound"):
            union = self._union(expander(clauses, None), family, plan)
        self.ledger.lower = min((piece.lower for piece in union), default=-math.inf)
        proved = {piece.clause: piece for piece in union if piece.lower > _TARGET}
        for clause, piece in proved.items():
            self.ledger.close(piece, clause)
        open_clauses = [clause for clause in clauses if clause not in proved]
        if not open_clauses:
            return SearchEnd.CLOSED
        if self._over():
            return SearchEnd.EXPIRED
        with self.ledger.timed("split"):
            self._tell("split", 1)
            expand, roots = self._first_pieces(lambda stages: expander(open_clauses, stages), family, plan)
            expand = replace(expand, promote=Roots(expand).promoted)
            roots = within(expand, roots, self.query.phases)
        return _Start(expand, roots, open_clauses, plan)

    def _union(self, expand: Expander, family: Family, plan: Plan) -> list[Piece]:
        """One bound of the whole set for every clause; none where its members, on crops, are bounded sooner."""
        many = self._has_many_places()
        if not plan.matrices and (float(self.set.choice.members()[0]) == 1.0 or (many and not plan.union)):
            return []
        if many and not plan.matrices:
            expand = replace(expand, options=plan.quick)
        optimiser = OptimiserOptions(steps=0) if many else plan.options.root
        return Roots(expand).pieces(family, self.set, "union bound", optimiser)

    def _search(self, start: _Start) -> SearchEnd:
        expand, roots, open_clauses, plan = start.expand, start.roots, start.open_clauses, start.plan
        search: Search[Piece] = Search(_TARGET, lambda piece: self.ledger.close(piece, open_clauses[piece.clause]))
        search.add(roots)
        self.ledger.raise_lower(search.lower())
        if search.open:
            self._attack(THOROUGH, 0.1)
            if self._over():
                return SearchEnd.EXPIRED
        pace = Pace(plan.most_at_once)

        def step(pieces: list[Piece]) -> Expansion[Piece]:
            # The batch taken is no longer in the search: its bounds count too.
            self.ledger.raise_lower(min(search.lower(), *(p.lower for p in pieces)))
            self._tell(pieces[0].method, search.open + len(pieces))
            try:
                with pace.measured(len(pieces), self.deadline.remaining()):
                    return expand(pieces)
            except (MemoryError, RuntimeError) as error:
                if not is_exhaustion(error):
                    raise
            # Smaller batches from now on; one piece that is too large is given up, with the bound it has.
            pace.halve()
            if len(pieces) > 1:
                return Expansion(pieces)
            self.short_of_memory = True
            return Expansion((), pieces)

        held = max((piece.memory for piece in roots), default=0)

        def over() -> bool:
            full = search.open * held > plan.options.open_memory
            self.short_of_memory |= full
            return full or self.deadline.expired()

        end = best_first(search, step, lambda: pace.batch, over)
        if end is not SearchEnd.STOPPED:  # a stopped expansion does not give back what it took
            self.ledger.raise_lower(search.lower())
        return end

    def _first_pieces(
        self, expander: Callable[[tuple[Stage, ...] | None], Expander], family: Family, plan: Plan
    ) -> tuple[Expander, list[Piece]]:
        """Where the search starts: on matrices where a share of the time suffices to write them down, else on crops."""
        if plan.matrices:
            limit = self.deadline.within(_MATRICES_SHARE * self.deadline.remaining())
            with suppress(OutOfTimeError):
                expand = expander(normal_form(family.problem.network, limit.expired))
                return expand, self._roots(Roots(expand), family, plan, limit)
        expand = expander(None)
        return expand, self._roots(Roots(expand), family, plan)

    def _roots(self, start: Roots, family: Family, plan: Plan, grouping: Deadline | None = None) -> list[Piece]:
        """All members where they are few or cheap, else the whole set."""
        most = _PLACES_LISTED if isinstance(self.set.choice, Patch) else plan.options.few_members
        pieces: list[Piece] | None = None
        if float(self.set.choice.members()[0]) <= most:
            pieces = start.member_pieces(self.set.singletons(), "split", grouping)
        if pieces is not None:
            return pieces
        return start.pieces(family, self.set, "split", start.expander.options.root, start.share())

    def _program(
        self, stages: tuple[Stage, ...] | None, open_clauses: list[int]
    ) -> Callable[[Piece, Deadline], float] | None:
        configuration, property = self.configuration, self.query.property
        if stages is None or configuration.solver == "none":
            return None
        options = ProgramOptions(configuration.solver, self.memory, configuration.threads, configuration.seed)

        def solve(piece: Piece, deadline: Deadline) -> float:
            rows = list(property.clauses[open_clauses[piece.clause]])
            try:
                solved = solve_piece(piece, stages, property.rows[rows], property.offset[rows], options, deadline)
            except RefusedError as error:
                self.refusal = str(error)
                return -math.inf
            if solved.candidate is not None:
                self.judge(piece.family.clips(solved.candidate.unsqueeze(0)), "milp")
            lower = solved.bound - PROOF_MARGIN  # a solver's bound counts less its tolerances
            if lower <= _TARGET:
                self.open_for[solved.open_for] += 1
            return lower

        return solve

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _over(self) -> bool:
        """Is there nothing left to do, or no time to do it?"""
        return self.judge.found or self.deadline.expired()

    def _has_many_places(self) -> bool:
        """Is one bound of the union hopeless (patches), so that effort on it is wasted?"""
        return bool((self.set.choice.union()[0].sum((-1, -2)) > 0).any()) and float(self.set.choice.members()[0]) > 100

    def _tell(self, stage: str, parts: int) -> None:
        self.report(
            Progress(
                stage,
                self.ledger.lower,
                self.judge.least,
                parts,
                self.ledger.counts.get("subproblems", 0),
                self.deadline.elapsed(),
            )
        )

    def _unknown(self, end: SearchEnd) -> Unknown:
        if self.short_of_memory and not self.deadline.expired():
            limit = self.configuration.memory_bytes
            room = f"{self.memory / 2**30:.3g} GiB for the search"
            of = "are all that was free" if limit is None else f"are left of the limit of {limit / 2**30:.3g} GiB"
            return Unknown(Reason.MEMORY, f"out of memory: {room} {of}, and open parts of the problem need more")
        if end is SearchEnd.EXPIRED or self.deadline.expired():
            return Unknown(Reason.TIME, f"out of time after {self.configuration.timeout:g} s")
        if self.refusal is not None:
            return Unknown(Reason.SOLVER_REFUSED, f"no solver took what splits left: {self.refusal}")
        for kind, sentence in (
            (Reason.ROUNDING, "numbers of the network cancel so much that rounding hides the sign of what splits left"),
            (Reason.SOLVER_TIME, "the solver's time for a part of the problem was over before it was settled"),
            (Reason.TOLERANCE, "the margin is too close to 0 for the tolerances of bounds and solvers"),
        ):
            if self.open_for[kind]:
                return Unknown(kind, sentence)
        return Unknown(
            Reason.NO_SOLVER, "every undecided ReLU was split and no solver could be asked about what is left"
        )

    def _falsified(self, counterexample: Counterexample) -> Outcome:
        return self._outcome(Falsified(counterexample), counterexample.stage)

    def _reading(self, proved: bool) -> float:
        """How far the network and the original are apart on this query's own clips.

        Raises:
            SoundnessError: so far that a proof about the one says nothing about the other.
        """
        if not self.judge.nearest or (not proved and (self.short_of_memory or self.deadline.expired())):
            return 0.0
        tried = [clip for _, clip in sorted(self.judge.nearest.values(), key=lambda found: found[0])]
        clips = torch.stack(tried[:1] if is_large(self.query.model.network) else tried).to(torch.float32).numpy()
        found = self.query.model.compared(clips)
        if proved and (wrong := found.disagreement):
            raise SoundnessError(
                f"the network read from {self.query.model.source} gives {wrong.read:.6g} as output {wrong.output} on a "
                f"clip of the set, the original {wrong.expected:.6g} (rounding explains {wrong.allowed:.3g}); it "
                "uses an operator in a way that is read wrongly, report it"
            )
        return found.largest

    def _compare(self) -> None:
        """Does what was proved fit what was seen, by our network and by the original? Asked at every ending.

        Raises:
            SoundnessError: no.
        """
        lower, seen, clip = self.ledger.lower, self.judge.least_asked, self.judge.least_clip
        if lower > seen and clip is not None:
            # The margin seen has rounding errors of its own: compute it once more, in several words.
            network, property = self.query.model.network, self.query.property
            precise = precise_values(network, clip.unsqueeze(0).to(self.set.clip))
            if precise is None:
                wrong = contradict(lower, seen)
            else:
                outputs, errors = precise[0][-1], precise[1][-1]
                wrong = lower > float(property.margin(outputs)) + float((errors @ property.rows.abs().T).max())
            if wrong:
                raise _contradiction(lower, seen)
        counterexample = self.judge.counterexample
        # Our own margin there fits the bound, or it would have been seen. Where the two agree but for rounding (in
        # float64, if the original can be computed so), that of the original's float32 is all that is left.
        if (
            counterexample is not None
            and lower > counterexample.margin
            and self.query.model.compared(counterexample.clip.numpy()[None]).disagreement
        ):
            raise _contradiction(lower, counterexample.margin)

    def _outcome(self, verdict: Verdict, decided_by: str | None) -> Outcome:
        self._compare()
        reading = self._reading(isinstance(verdict, Verified))
        return Outcome(
            verdict,
            min(self.ledger.lower, self.judge.least),
            self.judge.least,
            self.clean_outputs,
            decided_by,
            self.deadline.elapsed(),
            dict(self.ledger.seconds),
            dict(self.ledger.counts),
            reading,
        )


def _contradiction(lower: float, seen: float) -> SoundnessError:
    return SoundnessError(
        f"the proved lower bound {lower:g} of the margin exceeds the margin {seen:g} of a clip in the set; report this "
        "query"
    )
