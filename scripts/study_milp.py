#!/usr/bin/env python
"""The MILP alone, on subproblems that bounds leave open.

    python scripts/study_milp.py                     # about ten minutes on one core
    python scripts/study_milp.py --each 10 --ablation 5 --seconds 5

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

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from study_files import STUDIES, markdown, median, provenance, show, write_csv
from torch import Tensor

from solvers import Termination
from stbp_milp.attack import AttackConfiguration, attack, representable
from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching import Bounder, BranchingOptions, Expander, Family, OnMatrices, Piece, Roots, exact
from stbp_milp.branching.exact import ProgramOptions, solve_piece
from stbp_milp.branching.piece import stack
from stbp_milp.branching.views import WholeView
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
    start: bool = True


def variants(seed: int) -> tuple[Variant, ...]:
    usual = ProgramOptions(solver="scip", seed=seed)
    return (
        Variant("as in the verifier", usual),
        Variant("without tightening (OBBT)", replace(usual, tighten_share=0.0)),
        Variant("without ideal cuts", replace(usual, cut_rounds=0)),
        Variant("without a start (SCIP then keeps its heuristics)", usual, start=False),
        Variant("HiGHS instead of SCIP", replace(usual, solver="highs")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=40, help="subproblems to collect of either size (default 40)")
    parser.add_argument("--breakable", type=int, default=15, help="subproblems that an attack breaks (default 15)")
    parser.add_argument("--ablation", type=int, default=15, help="how many are solved in other ways too (default 15)")
    parser.add_argument("--seconds", type=float, default=10.0, help="limit for each (default 10)")
    parser.add_argument("--clips", type=int, default=20, help="collect from clips before this one (default 20)")
    parser.add_argument("--first", type=int, default=0, help="collect from this clip on (default 0)")
    parser.add_argument("--name", default="milp", help="of the files in results/studies (default milp)")
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.85, 0.95], help="radii, times where attacks begin"
    )
    parser.add_argument("--per-source", type=int, default=3, help="most of one size from one set, clip and radius")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    model = load_model(SHIPPED / "onnx" / "activity-S-pgd.onnx")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        pool = collect(model, arguments, progress)
        task = progress.add_task("solving", total=len(pool), note="")
        answers = []
        for subproblem in pool:
            answers.append(solve(model, subproblem, variants(arguments.seed)[0], arguments.seconds))
            progress.update(task, advance=1, note=f"{subproblem.group}: {answers[-1].word}")
        lines = ablation(model, pool, arguments, progress)
    publish(pool, answers, lines, arguments, console)


# --- collecting ---------------------------------------------------------------------------------------------


def collect(model: Model, arguments: argparse.Namespace, progress: Progress) -> list[Subproblem]:
    """Up to `each` subproblems of either size and `breakable` that can be broken, spread over sets, clips and radii."""
    voxels, labels = read_clips(SHIPPED / "clips" / "activity-S.npz")
    chance = random.Random(arguments.seed)
    wanted = dict(zip(GROUPS, (arguments.each, arguments.each, arguments.breakable), strict=True))
    pool: list[Subproblem] = []
    known: set[tuple[int, float, int, bytes]] = set()  # members of any-frames:2 may be members of window:2
    task = progress.add_task("collecting", total=sum(wanted.values()), note="")
    maps = normal_form(model.network)
    places = [(text, clip) for clip in range(arguments.first, min(arguments.clips, len(voxels))) for text in SETS]
    for text, clip in places:
        count = Counter(s.group for s in pool)
        if all(count[group] >= wanted[group] for group in GROUPS):
            break
        property = same_class(int(labels[clip]), model.network.output_shape[0])
        begin = attacks_begin(model.network, voxels[clip].double(), text, property, arguments.seed)
        for factor in (*arguments.factors, BREAKABLE):
            breakable = factor == BREAKABLE
            groups = [g for g in GROUPS if count[g] < wanted[g] and (g == GROUPS[2]) == breakable]
            epsilon = min(1.0, factor * (begin or 1.0))
            if not groups or (breakable and begin is None):
                continue
            progress.update(task, note=f"{text}, clip {clip}, eps {epsilon:.3g}")
            source = source_of(model, voxels[clip].double(), clip, text, epsilon, property, maps)
            expander = expander_of(model, source)
            roots = open_members(expander, source)
            for group in groups:
                most = min(arguments.per_source, wanted[group] - count[group])
                new = [root for root in roots if (clip, factor, root.clause, place(root)) not in known]
                found = list(islice(chosen(model, expander, source, new, group, chance), most))
                known |= {(clip, factor, piece.clause, place(piece)) for piece in found}
                pool += [Subproblem(source, piece, group) for piece in found]
            count = Counter(s.group for s in pool)
            progress.update(task, completed=len(pool))
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
    forms, offset = source.property.forms()
    bounder = Bounder(
        whole=Family(problem=Problem.of(model.network, source.set), whole=source.set),
        rows=forms,
        offset=offset,
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
        piece: Piece | None = optimised(expander, root)
        if piece.lower > 0.0 or (point is None and group == GROUPS[2]):
            continue
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
    """The verifier's own `solve_piece`, with the solver's report read on the way."""
    source, piece = subproblem.source, subproblem.piece
    clause = clause_of(source, piece)
    reports: list[MilpResult] = []
    minimum = exact.minimum

    def reporting(encoded, preference, limits, start=None):  # type: ignore[no-untyped-def]
        reports.append(minimum(encoded, preference, limits, start if variant.start else None))
        return reports[-1]

    began = time.monotonic()
    with patch.object(exact, "minimum", reporting):
        solved = solve_piece(piece, source.maps, clause.rows, clause.offset, variant.options, Deadline.after(seconds))
    bound, candidate = solved.lower, solved.candidate
    took = time.monotonic() - began
    result = reports[0] if reports else None
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


def ablation(
    model: Model, pool: list[Subproblem], arguments: argparse.Namespace, progress: Progress
) -> list[list[object]]:
    """The hardest kinds of a sample of the pool, in every way."""
    unsettled = [s for s in pool if s.group != GROUPS[2]]
    sample = random.Random(arguments.seed).sample(unsettled, min(arguments.ablation, len(unsettled)))
    lines: list[list[object]] = []
    task = progress.add_task("ablation", total=len(sample) * len(variants(0)), note="")
    for variant in variants(arguments.seed):
        answers = []
        for subproblem in sample:
            progress.update(task, note=variant.name)
            answers.append(solve(model, subproblem, variant, arguments.seconds))
            progress.advance(task)
        seconds = [a.seconds for a in answers]
        nodes = sum(a.result.nodes for a in answers if a.result)
        decided = sum(a.word != "undecided" for a in answers)
        lines.append([variant.name, len(sample), decided, median(seconds), sum(seconds), nodes])
    return lines


# --- reporting ----------------------------------------------------------------------------------------------


def publish(
    pool: list[Subproblem],
    answers: list[Answer],
    lines: list[list[object]],
    arguments: argparse.Namespace,
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
        f"Limit {arguments.seconds:g} s each. Where they come from: {origin}; {split} of all have ReLUs split.\n",
        markdown(SUMMARY, summary),
        claims + "\n",
        f"Ablation, on a random sample of the first two groups, {arguments.seconds:g} s each:\n",
        markdown(changed, lines),
        f"Every subproblem is a line of {arguments.name}.csv.\n",
    ]
    STUDIES.mkdir(parents=True, exist_ok=True)
    (STUDIES / f"{arguments.name}.md").write_text("\n".join(page))
    write_csv(STUDIES / f"{arguments.name}.csv", HEADER, rows)


def line(number: int, subproblem: Subproblem, answer: Answer) -> list[object]:
    source, piece, result = subproblem.source, subproblem.piece, answer.result
    return [
        number, subproblem.group, source.text, source.clip, source.epsilon, piece.clause, piece.splits, piece.unstable,
        piece.lower, answer.word, answer.bound, result.binaries if result else None, result.nodes if result else None,
        round(answer.seconds, 2), answer.said_broken, answer.agrees,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
