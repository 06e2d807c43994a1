"""The MILP alone, on subproblems that bounds leave open.

    python -m scripts.studies.milp                     # about ten minutes on one core
    python -m scripts.studies.milp --each 10 --ablation 5 --seconds 5

Collected on the shipped activity network: members of window:2, any-frames:2, patch:3x3@2 and patch:6x6@2 whose
backward bounds, slopes optimised, do not exceed 0 at radii a little below the one where attacks on the whole set begin
to succeed; where a member has more than 140 undecided ReLUs, the verifier's own search splits ReLUs, always following
the worse open child, until no more are left. Each is one class against one other on one member. Then every one is
given to the MILP as the verifier would give it (tighten, encode, cuts, start, solve), with SCIP only. A third group has
members that can be broken: what the MILP says there must be reproduced by the original network.

*Decided* means proved above the solver's tolerance, or broken by a clip that the original network misjudges.
The collection does not depend on the clock, so the same seed gives the same subproblems.

The rounds of cuts and SCIP's settings were chosen (out of 14) on the 11 slowest of an earlier collection from clips 0
to 6. Subproblems of those clips are therefore not a fair test of them; `--first 7 --name milp_held_out` takes others.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from scripts.studies.frame import command, markdown, median, progress, provenance, publish, screen, show
from scripts.studies.frame import main as run
from solvers import Termination
from stbp_milp.attack import AttackConfiguration, attack, representable
from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Forms
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching import Bounder, BranchingOptions, Expander, Family, OnMatrices, Piece, Roots
from stbp_milp.branching.exact import ProgramOptions, solve_piece
from stbp_milp.branching.piece import stack
from stbp_milp.branching.views import WholeView
from stbp_milp.cli.shared import COUNT, POSITIVE, seed
from stbp_milp.milp import MilpResult
from stbp_milp.network.model import Model, load_model
from stbp_milp.network.normal_form import AffineMap, normal_form
from stbp_milp.properties import Property, same_class
from stbp_milp.search import Deadline
from stbp_milp.sets import PerturbationSet, SetSpecification
from stbp_milp.st_bench import SHIPPED
from stbp_milp.st_bench.budgets import attacks_begin
from stbp_milp.st_bench.export import read_clips

SETS = ("window:2", "any-frames:2", "patch:3x3@2", "patch:6x6@2")
SMALL, LARGE = 60, 140
BREAKABLE = 1.15  # times the radius where attacks begin
GROUPS = (f"1-{SMALL}", f"{SMALL + 1}-{LARGE}", "breakable")
HEADER = (
    "number", "group", "set", "clip", "eps", "clause", "ReLUs split", "undecided ReLUs", "bound before", "answer",
    "bound after", "binaries", "nodes", "seconds", "solver said broken", "network agrees",
)  # fmt: skip
SUMMARY = ("group", "tried", "decided", "proved", "broken", "undecided", "median s", "longest s", "by LP alone")
_SPLITS_AT_MOST = 100


@dataclass(frozen=True, eq=False)
class Source:
    """Where a subproblem comes from."""

    text: str
    clip: int
    epsilon: float
    property: Property
    set: PerturbationSet
    maps: tuple[AffineMap, ...]


@dataclass(frozen=True, eq=False)
class Subproblem:
    source: Source
    piece: Piece
    group: str


@dataclass(frozen=True, eq=False)
class Answer:
    """What the MILP made of a subproblem."""

    word: str  # "proved", "broken", "undecided"
    bound: float
    seconds: float
    said_broken: bool  # the solver stored a point with a margin below 0
    agrees: bool | None  # does the original network? None without such a point
    result: MilpResult | None  # None: settled by linear programs before the solver ran


@dataclass
class _Seen:
    """A witness that only remembers."""

    model: Model
    property: Property
    found: bool = False

    def __call__(self, clips: Tensor, stage: str) -> None:
        with torch.no_grad():
            self.found = self.found or bool((self.property.margin(self.model.network(clips.double())) <= 0).any())


@dataclass(frozen=True)
class Variant:
    """One way to run the MILP."""

    name: str
    options: ProgramOptions = field(default_factory=lambda: ProgramOptions(solver="scip"))


def variants(seed: int) -> tuple[Variant, ...]:
    usual = ProgramOptions(solver="scip", seed=seed)
    return (
        Variant("as in the verifier", usual),
        Variant("without tightening (OBBT)", replace(usual, tighten_share=0.0)),
        Variant("without ideal cuts", replace(usual, cut_rounds=0)),
        Variant("without a start (SCIP then keeps its heuristics)", replace(usual, start=False)),
        Variant("HiGHS instead of SCIP", replace(usual, solver="highs")),
    )


@dataclass(frozen=True)
class Asked:
    """What is collected and solved; see the options of the command."""

    each: int
    breakable: int
    ablation: int
    seconds: float
    clips: int
    first: int
    name: str
    factors: tuple[float, ...]
    per_source: int
    seed: int


@command(__doc__)
@click.option("--each", type=COUNT, default=40, show_default=True, help="Subproblems to collect of either size.")
@click.option("--breakable", type=COUNT, default=15, show_default=True, help="Subproblems that an attack breaks.")
@click.option("--ablation", type=int, default=15, show_default=True, help="How many are solved in other ways too.")
@click.option("--seconds", type=POSITIVE, default=10.0, show_default=True, help="The limit for each.")
@click.option("--clips", type=COUNT, default=20, show_default=True, help="Collect from clips before this one.")
@click.option("--first", type=int, default=0, show_default=True, help="Collect from this clip on.")
@click.option("--name", default="milp", show_default=True, help="The name of the files in results/studies.")
@click.option("--factors", default="0.85,0.95", show_default=True, help="Radii, times where attacks begin.")
@click.option("--per-source", type=COUNT, default=3, help="The most of one size from one set, clip and radius.")
@seed
def main(factors: str, **options: Any) -> None:
    asked = Asked(factors=tuple(float(factor) for factor in factors.split(",")), **options)
    torch.set_num_threads(1)
    console = screen()
    model = load_model(SHIPPED / "onnx" / "activity-S-pgd.onnx")
    with progress(console) as bars:
        pool = collect(model, asked, bars)
        task = bars.add_task("solving", total=len(pool), note="")
        answers = []
        for subproblem in pool:
            answers.append(solve(model, subproblem, variants(asked.seed)[0], asked.seconds))
            bars.update(task, advance=1, note=f"{subproblem.group}: {answers[-1].word}")
        lines = ablation(model, pool, asked, bars)
    report(pool, answers, lines, asked, console)


# --- collecting ---------------------------------------------------------------------------------------------


def collect(model: Model, asked: Asked, bars: Progress) -> list[Subproblem]:
    """Up to `each` subproblems of either size and `breakable` that can be broken, spread over sets, clips and radii."""
    voxels, labels = read_clips(SHIPPED / "clips" / "activity-S.npz")
    chance = random.Random(asked.seed)
    wanted = dict(zip(GROUPS, (asked.each, asked.each, asked.breakable), strict=True))
    pool: list[Subproblem] = []
    known: set[tuple[int, float, int, bytes]] = set()  # members of any-frames:2 may be members of window:2
    task = bars.add_task("collecting", total=sum(wanted.values()), note="")
    maps = normal_form(model.network)
    places = [(text, clip) for clip in range(asked.first, min(asked.clips, len(voxels))) for text in SETS]
    for text, clip in places:
        count = Counter(s.group for s in pool)
        if all(count[group] >= wanted[group] for group in GROUPS):
            break
        property = same_class(int(labels[clip]), model.network.output_shape[0])
        begin = attacks_begin(model.network, voxels[clip].double(), text, property, asked.seed)
        for factor in (*asked.factors, BREAKABLE):
            breakable = factor == BREAKABLE
            groups = [g for g in GROUPS if count[g] < wanted[g] and (g == GROUPS[2]) == breakable]
            epsilon = min(1.0, factor * (begin or 1.0))
            if not groups or (breakable and begin is None):
                continue
            bars.update(task, note=f"{text}, clip {clip}, eps {epsilon:.3g}")
            source = source_of(model, voxels[clip].double(), clip, text, epsilon, property, maps)
            expander = expander_of(model, source)
            roots = open_members(expander, source)
            for group in groups:
                most = min(asked.per_source, wanted[group] - count[group])
                new = [root for root in roots if (clip, factor, root.clause, place(root)) not in known]
                found = list(islice(chosen(model, expander, source, new, group, chance), most))
                known |= {(clip, factor, piece.clause, place(piece)) for piece in found}
                pool += [Subproblem(source, piece, group) for piece in found]
            count = Counter(s.group for s in pool)
            bars.update(task, completed=len(pool))
    return pool


def place(piece: Piece) -> bytes:
    """Which voxels the piece's member moves."""
    family = piece.family
    member = piece.inputs if family.members is None else family.members.select(torch.tensor([piece.item]))
    lower, upper = member.hull()
    return (upper > lower).numpy().tobytes()


def source_of(
    model: Model, clip: Tensor, index: int, text: str, epsilon: float, property: Property, maps: tuple[AffineMap, ...]
) -> Source:
    perturbation = SetSpecification(text, epsilon).build(clip)
    return Source(text, index, epsilon, property, perturbation, maps)


def expander_of(model: Model, source: Source) -> Expander:
    """The verifier's own bounding and splitting, without the MILP and without a clock."""
    bounder = Bounder(
        whole=Family(problem=Problem.of(model.network, source.set), whole=source.set),
        forms=Forms(*source.property.forms()),
        clauses=range(len(source.property.clauses)),
        target=0.0,
        options=BranchingOptions(),
        deadline=Deadline.after(1e6),
        witness=_Seen(model, source.property),
    )
    roots = Roots(bounder, OnMatrices(bounder, source.maps))
    return Expander(bounder=bounder, roots=roots, program=None, timed=lambda stage: nullcontext())


def open_members(expander: Expander, source: Source) -> list[Piece]:
    """Members and clauses that plain backward bounds leave open."""
    bounder = expander.bounder
    plain = replace(bounder.options, root=OptimiserOptions(steps=0), tighten_steps=0)
    roots = expander.roots.by(bounder.on(bounder.clauses, plain))
    pieces = roots.member_pieces(source.set.singletons(), "split") or []
    return [piece for piece in pieces if piece.lower <= 0.0]


def optimised(expander: Expander, piece: Piece) -> Piece:
    """The piece with the bound that optimised slopes and multipliers give."""
    batch = stack([piece])
    bounder = expander.bounder

    def settled(lower: Tensor, items: Tensor) -> Tensor:
        return (lower > bounder.target).all(1)

    found = optimise(batch.bounded, bounder.form_of(batch.clause), settled, bounder.options.root, batch.duals)
    return replace(piece, lower=max(piece.lower, float(found.lower[0, 0])), duals=found.duals)


def chosen(
    model: Model, expander: Expander, source: Source, roots: list[Piece], group: str, chance: random.Random
) -> Iterator[Piece]:
    """Subproblems of the group, one from an open member each, in random order."""
    least, most = (SMALL + 1, LARGE) if group == GROUPS[1] else (1, SMALL if group == GROUPS[0] else LARGE)
    for root in chance.sample(roots, len(roots)):
        if root.unstable < least:
            continue
        point = broken(model, source, root) if group == GROUPS[2] else None
        whole = optimised(expander, root)
        if whole.lower > 0.0 or (point is None and group == GROUPS[2]):
            continue
        piece: Piece | None = whole
        while piece is not None and piece.unstable > most and piece.splits < _SPLITS_AT_MOST:
            piece = open_child(expander, source, piece, point)
        if piece is not None and least <= piece.unstable <= most:
            yield piece


def broken(model: Model, source: Source, piece: Piece) -> Tensor | None:
    """A clip of the piece's member that breaks its clause, if our attack finds one."""
    family = piece.family
    member = piece.inputs if family.members is None else family.members.select(torch.tensor([piece.item]))
    assert isinstance(member, PerturbationSet)
    generator, effort = torch.Generator().manual_seed(0), AttackConfiguration(restarts=3)
    result = attack(model.network, member, clause_of(source, piece), generator, configuration=effort)
    return result.clip.double() if result.margin <= 0 else None


def clause_of(source: Source, piece: Piece) -> Property:
    rows = list(source.property.clauses[piece.clause])
    return Property(
        source.property.rows[rows], source.property.offset[rows], (tuple(range(len(rows))),), source.property.text
    )


def open_child(expander: Expander, source: Source, piece: Piece, point: Tensor | None) -> Piece | None:
    """The worse child of those that stay open when one ReLU is split; with a point, the child it lies in."""
    if point is not None and not isinstance(piece.family.view, WholeView):
        return None
    children = [child for child in expander([piece]).children if child.lower <= 0.0]
    if point is not None:
        values = piece.family.problem.network.values(point.unsqueeze(0))
        nodes = piece.family.problem.network.nodes
        children = [
            child
            for child in children
            if all(bool((phase * values[nodes[relu].inputs[0]] >= 0).all()) for relu, phase in child.phases.items())
        ]
    return min(children, key=lambda child: child.lower, default=None)


# --- solving ------------------------------------------------------------------------------------------------


def solve(model: Model, subproblem: Subproblem, variant: Variant, seconds: float) -> Answer:
    """The verifier's own `solve_piece`, with with what the solver said."""
    source, piece = subproblem.source, subproblem.piece
    clause = clause_of(source, piece)
    began = time.monotonic()
    solved = solve_piece(piece, source.maps, clause.rows, clause.offset, variant.options, Deadline.after(seconds))
    bound, candidate, result = solved.lower, solved.candidate, solved.report
    took = time.monotonic() - began
    said = result is not None and (
        result.termination is Termination.STOPPED_BELOW
        or (result.termination is Termination.OPTIMAL and result.dual_bound <= -result.tolerance)
    )
    breaks = False
    if candidate is not None:
        found = piece.family.view.clips(candidate.unsqueeze(0))
        breaks = original_breaks(model, source, clause, found)
    word = "broken" if breaks else "proved" if bound > 0.0 else "undecided"
    return Answer(word, bound, took, said, breaks if said else None, result)


def original_breaks(model: Model, source: Source, clause: Property, clips: Tensor) -> bool:
    """Does the original network break the clause on the (float32) clip, and does the clip lie in the set?"""
    clips = representable(source.set, clips)
    outputs = torch.from_numpy(model.predict(clips.numpy())).double()
    return bool(source.set.contains(clips.double())[0]) and bool(clause.margin(outputs)[0] <= 0)


def ablation(model: Model, pool: list[Subproblem], asked: Asked, bars: Progress) -> list[list[object]]:
    """The hardest kinds of a sample of the pool, in every way."""
    unsettled = [s for s in pool if s.group != GROUPS[2]]
    sample = random.Random(asked.seed).sample(unsettled, min(asked.ablation, len(unsettled)))
    lines: list[list[object]] = []
    task = bars.add_task("ablation", total=len(sample) * len(variants(0)), note="")
    for variant in variants(asked.seed):
        answers = []
        for subproblem in sample:
            bars.update(task, note=variant.name)
            answers.append(solve(model, subproblem, variant, asked.seconds))
            bars.advance(task)
        seconds = [a.seconds for a in answers]
        nodes = sum(a.result.nodes for a in answers if a.result)
        decided = sum(a.word != "undecided" for a in answers)
        lines.append([variant.name, len(sample), decided, median(seconds), sum(seconds), nodes])
    return lines


# --- reporting ----------------------------------------------------------------------------------------------


def report(
    pool: list[Subproblem],
    answers: list[Answer],
    lines: list[list[object]],
    asked: Asked,
    console: Console,
) -> None:
    rows = [line(i, s, a) for i, (s, a) in enumerate(zip(pool, answers, strict=True))]
    summary: list[list[object]] = []
    for group in GROUPS:
        own = [a for s, a in zip(pool, answers, strict=True) if s.group == group]
        words, seconds = Counter(a.word for a in own), [a.seconds for a in own]
        linear = sum(a.result is None for a in own)
        summary.append(
            [group, len(own), len(own) - words["undecided"], words["proved"], words["broken"], words["undecided"],
             median(seconds), max(seconds, default=None), linear]
        )  # fmt: skip
    said = [a for a in answers if a.said_broken]
    agreed = sum(bool(a.agrees) for a in said)
    claims = f"The solver said 'broken' {len(said)} times; the original network reproduced {agreed} of them."
    changed = ("variant", "tried", "decided", "median s", "total s", "total nodes")
    show(console, "MILP alone, SCIP, by undecided ReLUs", SUMMARY, summary)
    console.print(claims)
    show(console, "Ablation", changed, lines)
    kinds = Counter((s.group, s.source.text) for s in pool)
    origin = ", ".join(f"{text} {n}" for (group, text), n in sorted(kinds.items()) if group != GROUPS[2])
    split = sum(s.piece.splits > 0 for s in pool)
    page = [
        "# The MILP alone on subproblems that bounds leave open\n",
        provenance(1),
        f"{(__doc__ or '').split(chr(10) * 2, 2)[2].strip()}\n",
        f"Limit {asked.seconds:g} s each. Where they come from: {origin}; {split} of all have ReLUs split.\n",
        markdown(SUMMARY, summary),
        claims + "\n",
        f"Ablation, on a random sample of the first two groups, {asked.seconds:g} s each:\n",
        markdown(changed, lines),
        f"Every subproblem is a line of {asked.name}.csv.\n",
    ]
    publish(asked.name, page, HEADER, rows)


def line(number: int, subproblem: Subproblem, answer: Answer) -> list[object]:
    source, piece, result = subproblem.source, subproblem.piece, answer.result
    return [
        number, subproblem.group, source.text, source.clip, source.epsilon, piece.clause, piece.splits, piece.unstable,
        piece.lower, answer.word, answer.bound, result.binaries if result else None, result.nodes if result else None,
        round(answer.seconds, 2), answer.said_broken, answer.agrees,
    ]  # fmt: skip


if __name__ == "__main__":
    run(main)
