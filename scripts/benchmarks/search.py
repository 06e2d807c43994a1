"""Complete verdicts on networks P and Q, and how much of their time is spent outside of tensor kernels."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.progress import track

from scripts.benchmarks.measuring import Asked, Table
from scripts.benchmarks.networks import trained
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.verify import verify

SEARCH_SETS = (("P", "frames:3,4", 0.15), ("P", "everywhere", 0.03), ("Q", "frames:3,4", 0.02))


def search(asked: Asked, console: Console) -> Table:
    header = [
        "network", "set", "eps", "clip", "verdict", "decided by", "lower", "upper", "seconds", "subproblems", "a second"
    ]  # fmt: skip
    rows: list[list[object]] = []
    for name, text, epsilon in SEARCH_SETS:
        model, clips, labels = trained(name, console)
        for i in track(range(asked.clips if name == "P" else 3), description=f"{name}, {text}", console=console):
            query = Query(model, clips[i], SetSpecification(text, epsilon), same_class(int(labels[i]), 4))
            outcome = verify(query, Configuration(timeout=asked.timeout, threads=asked.threads))
            bounded_each = outcome.counts.get("subproblems", 0)
            searching = outcome.stage_seconds.get("relu search", 0.0)
            row = [
                name,
                text,
                epsilon,
                i,
                outcome.word,
                outcome.decided_by,
                outcome.lower,
                outcome.upper,
                outcome.seconds,
            ]
            rows.append([*row, bounded_each, bounded_each / searching if searching > 1 else None])
    return f"complete verdicts, {asked.timeout:g} s, threads {asked.threads}", header, rows


def profile(asked: Asked, console: Console) -> Table:
    """One thread: with more, the time of kernels would be counted more than once."""
    header = ["network", "set", "clip", "seconds", "in kernels s", "outside"]
    rows: list[list[object]] = []
    for name, text, epsilon in SEARCH_SETS[1:]:
        model, clips, labels = trained(name, console)
        query = Query(model, clips[1], SetSpecification(text, epsilon), same_class(int(labels[1]), 4))
        with console.status(f"profile, {name}"), torch.profiler.profile() as found:
            outcome = verify(query, Configuration(timeout=min(10.0, asked.timeout), threads=1))
        kernels = sum(event.self_cpu_time_total for event in found.key_averages()) / 1e6
        rows.append([name, text, 1, outcome.seconds, kernels, 1 - kernels / outcome.seconds])
    return "share of the time of a search that is spent outside of tensor kernels, one thread", header, rows
