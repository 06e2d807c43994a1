"""The options of the command line, and what `--help` says about them.

Only words are checked here, so that a mistyped option is reported at once; torch is not imported for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stbp_milp.cli import shared
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError

_HELP = """Prove that a 3D CNN keeps its answer on a clip, or show a clip that breaks it.

A clip is a short video or a volume, (C, T, H, W). An attacker may change a part of it (some frames, a patch, a few
pixels) by at most eps. The verifier answers for ALL such clips at once: "verified" with a proof, "falsified" with a
counterexample that the model itself confirms, or "unknown" when the time is over. Without --model it runs the shipped
bench: some 60 instances on small networks, about two minutes.

\b
Examples:
  python scripts/verify_complete.py
  python scripts/verify_complete.py --model net.onnx --input clip.npy --set window:2 --eps 4/255
  python scripts/verify_complete.py --model net.onnx --input 'clips.npz:test[7]' --label 3 \\
      --set patch:3x3@2 --eps 1 --timeout 120
  python scripts/verify_complete.py --model steer.onnx --input road.npz --tolerance 5 \\
      --set any-frames:2 --eps 0.02
  python scripts/verify_complete.py --model stbp_milp/st_bench/shipped/onnx/activity-S-pgd.onnx \\
      --input v_Basketball_g01_c01.avi --set window:2 --eps 2/255

\b
Sets, where the attacker may act (indices start at 0):
  everywhere              every voxel of the clip
  frames:3,4              these frames
  any-frames:2            any 2 frames, which ones is the attacker's choice
  window:2                any 2 consecutive frames
  patch:3x3@2             3x3 pixels in place through 2 consecutive frames, anywhere
  moving-patch:3x3@2      3x3 pixels through 2 consecutive frames, free to jump in between
  patch-at:t,i,j:3x3@2    3x3 pixels through 2 frames from frame t, row i, column j
  pixels:5                any 5 pixels of the clip, with all their channels
  pixels-per-frame:1      any 1 pixel of every frame

\b
Exit codes:
  0  verified           (shipped bench: every instance came out as expected)
  1  falsified
  2  bad input          (one sentence says what to do)
  3  unknown            (shipped bench: an instance stayed open)
  4  contradiction      (two methods disagree: a bug, please report it)
  70 any other error in the program, 130 interrupted by Ctrl-C
"""


@dataclass(frozen=True)
class VerifyOptions:
    """The command line as it was given; None where an option was not."""

    model: Path | None
    input: str | None
    label: int | None
    top_k: int | None
    tolerance: float | None
    set: str | None
    epsilon: str | None
    domain: str | None
    layout: str | None
    timeout: float | None
    solver: str
    seed: int
    threads: int
    memory: str | None
    device: str
    out: Path
    quiet: bool
    as_json: bool
    verbose: int


@click.command("verify_complete", help=_HELP, context_settings={"max_content_width": 100})
@click.option("--model", type=FILE, metavar="FILE", help="The network, .onnx or .onnx.gz.")
@click.option(
    "--input",
    metavar="FILE",
    help="The clip: clip.npy, clips.npy[7], clips.npz, clips.npz:key or clips.npz:key[7] for item 7 of array key. "
    "Shape (C,T,H,W); (T,H,W) is taken as one channel. Floats in the data domain, or uint8, which is "
    "divided by 255 unless --domain is given. "
    "Or a video, .avi or .mp4, of which frames are sampled evenly and resized to what the model takes; its "
    "values are bytes too.",
)
@click.option("--set", metavar="SET", help="Where the attacker may act, see above.")
@click.option(
    "--eps", "epsilon", metavar="NUMBER", help="How far a value may move: 4/255 or 0.03; 1 allows any value of [0,1]."
)
@click.option("--label", type=int, metavar="CLASS", help="The class that must stay first. Default: the model's answer.")
@click.option("--top-k", type=COUNT, metavar="K", help="The class need only stay among the first K. Default: 1.")
@click.option(
    "--tolerance",
    type=POSITIVE,
    metavar="NUMBER",
    help="For regression: every output stays within this distance of the output on the clip.",
)
@click.option(
    "--domain",
    metavar="LOW,HIGH",
    help="Smallest and largest value of the data, which is then taken as it is: 0,255 for bytes. Default: 0,1, "
    "and bytes are divided by 255.",
)
@click.option(
    "--layout",
    metavar="AXES",
    help="The axes of the model's input without the batch axis: CTHW, TCHW, THWC, THW, CHW, HWC, HW, CT or TC, where D "
    "may stand for T. A clip has these axes too, or (C,T,H,W) where its shape fits those alone. Needed where several "
    "layouts fit and the set means something else in each.",
)
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="Time limit. Default: 60; in the shipped bench every instance has its own.",
)
@shared.solver
@shared.seed
@click.option(
    "--threads",
    type=COUNT,
    default=1,
    show_default=True,
    help="For torch and the solvers; more pay on large networks.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="What the process may hold, as 4G; the program itself takes about 0.3G. Default: 70% of what is free.",
)
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Where bounds are computed: cpu, cuda or cuda:1."
)
@click.option("--out", type=FILE, default="results", show_default=True, help="Folder of records, clips and pictures.")
@click.option("--quiet", "-q", is_flag=True, help="Print one line with the verdict.")
@click.option("--json", "as_json", is_flag=True, help="Print the record to stdout and all else to stderr.")
@shared.verbose
@shared.version
@shared.help_
def _command(**given: Any) -> VerifyOptions:
    return VerifyOptions(**given)


def parse(arguments: Sequence[str] | None = None) -> VerifyOptions | None:
    """The options in `arguments` (by default the process's); None where `--help` or `--version` was answered.

    Raises:
        InputError: an unknown option, a value of the wrong type, options that do not go together.
    """
    try:
        # Without standalone mode click returns what the command returned, or 0 after --help and --version.
        parsed = _command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        raise InputError(f"{error.format_message().rstrip('.')}; see --help") from error
    if not isinstance(parsed, VerifyOptions):
        return None
    _check_together(parsed)
    return parsed


def _check_together(options: VerifyOptions) -> None:
    about_one_clip = {
        "--input": options.input,
        "--label": options.label,
        "--top-k": options.top_k,
        "--tolerance": options.tolerance,
        "--set": options.set,
        "--eps": options.epsilon,
        "--domain": options.domain,
        "--layout": options.layout,
    }
    if options.model is None:
        given = [name for name, value in about_one_clip.items() if value is not None]
        if given:
            raise InputError(f"{given[0]} is given without --model; give the ONNX file of the network too")
        return
    for name, example in (("--input", "clip.npy"), ("--set", "window:2"), ("--eps", "4/255")):
        if about_one_clip[name] is None:
            raise InputError(f"{name} is missing; --model needs --input, --set and --eps, such as {name} {example}")
    if options.tolerance is not None and (options.label is not None or options.top_k is not None):
        other = "--label" if options.label is not None else "--top-k"
        raise InputError(f"--tolerance is for regression and {other} for classification; give one of them")
