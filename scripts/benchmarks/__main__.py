"""How fast the bounds are: members of patch sets, the search, large networks. One table each, in results/studies.

    python -m scripts.benchmarks                      # everything, about half an hour
    python -m scripts.benchmarks --only members --only scaling
    python -m scripts.benchmarks --only search --clips 3 --timeout 10

    members   every position of a 3x3 patch in 2 frames, eps 1, on networks P and Q, each with its own bounds of hidden
              layers (quick: as the verifier does, backward bounds only where intervals prove nothing); beside it, in
              the same run, the naive loop: position by position on the whole network
    scaling   time for a position when the clip's height and width double (convolutions of P, one pooled output)
    search    complete verdicts on P: frames 3 and 4 with eps 0.15, all frames with eps 0.03; and on Q
    profile   how much of the search's time is spent outside of tensor kernels
    rounding  what counting rounding errors costs: hidden layers and forms with and without, alternating
    batches   convolutions of many clips in float64: the whole batch at once, as torch does it, and in parts
    large     networks like C3D and R3D-18 on 3x16x112x112: bounds as multiples of a forward pass, and peak memory; a
              member on the whole network and, in the same run, on crops of every layer; 64 members together

Networks P and Q are trained when they are not in build/benchmark (a few minutes). Every measurement has a process of
its own; memory is the peak of that whole process, Python and torch included.
"""

from __future__ import annotations

import click

from scripts.benchmarks.kernels import batches, rounding
from scripts.benchmarks.large import large
from scripts.benchmarks.measuring import Asked
from scripts.benchmarks.members import members, scaling
from scripts.benchmarks.search import profile, search
from scripts.studies.frame import command, markdown, provenance, publish, screen, show
from scripts.studies.frame import main as run
from stbp_milp.cli.shared import COUNT, POSITIVE

PARTS = {
    "members": members,
    "scaling": scaling,
    "search": search,
    "profile": profile,
    "rounding": rounding,
    "batches": batches,
    "large": large,
}


@command(__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="One part; may be given several times.")
@click.option("--clips", type=COUNT, default=10, show_default=True, help="Clips of the search.")
@click.option("--timeout", type=POSITIVE, default=60.0, show_default=True, help="Seconds for one verdict.")
@click.option("--threads", type=COUNT, default=2, show_default=True, help="Torch's threads, for members and large.")
def main(only: tuple[str, ...], clips: int, timeout: float, threads: int) -> None:
    asked, console = Asked(clips, timeout, threads), screen()
    for part in only or PARTS:
        title, header, rows = PARTS[part](asked, console)
        show(console, title, header, rows)
        page = [f"# Benchmark: {part}\n", provenance(threads), title + "\n", markdown(header, rows)]
        publish(f"benchmark_{part}", page, header, rows)


if __name__ == "__main__":
    run(main)
