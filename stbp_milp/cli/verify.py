"""`stbp-milp verify`, or `scripts/verify_complete.py`: a complete verdict on one clip, or on the shipped bench.

Only words are checked here, so that a mistyped option is reported at once; torch is not imported for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from stbp_milp.cli import shared
from stbp_milp.cli.screen import Screen, configure_logging
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, Exit
from stbp_milp.errors import InputError

_HELP = """Prove that a 3D CNN keeps its answer on a clip, or find a counterexample.

A clip is a short video or a volume of shape (C, T, H, W): channels, frames, rows, columns. An attacker may change a
part of it (some frames, a patch, a few pixels), and each value by at most eps. The verdict is about ALL clips that
the attacker can make: "verified", with a proof; "falsified", with a counterexample that the original model confirms;
or "unknown", when the time limit ends the search. Without --model, the command verifies the shipped bench: 57
instances on nine small networks, which take about two minutes.

\b
Examples:
  {verify}
  {verify} --model net.onnx --input clip.npy --set window:2 --eps 4/255
  {verify} --model net.onnx --input 'clips.npz:test[7]' --label 3 \\
      --set patch:3x3@2 --eps 1 --timeout 120
  {verify} --model steer.onnx --input road.npz --tolerance 5 \\
      --set any-frames:2 --eps 0.02
  {verify} --model stbp_milp/st_bench/shipped/onnx/activity-S-pgd.onnx \\
      --input v_Basketball_g01_c01.avi --set window:2 --eps 2/255

\b
Sets, which say where the attacker may change the clip (indices start at 0):
  everywhere              every pixel of every frame
  frames:3,4              frames 3 and 4
  any-frames:2            any 2 frames; the attacker chooses which
  window:2                any 2 consecutive frames
  patch:3x3@2             a patch of 3x3 pixels at one place through 2 consecutive frames
  moving-patch:3x3@2      a patch of 3x3 pixels at any place in each of 2 consecutive frames
  patch-at:t,i,j:3x3@2    a patch of 3x3 pixels at row i, column j, through 2 frames from frame t
  pixels:5                any 5 pixels of the clip
  pixels-per-frame:1      any 1 pixel of every frame
A pixel is changed in all its channels.
"""

_EXIT_CODES = {
    Exit.DONE: "The verdict is verified. For the shipped bench: every verdict is the expected one.",
    Exit.FALSIFIED: "The verdict is falsified.",
    Exit.OPEN: "The verdict is unknown. For the shipped bench: at least one instance is undecided.",
    Exit.CONTRADICTION: "Two methods, or a verdict and the expected one, contradict each other. This is a bug; please "
    "report it.",
}


@dataclass(frozen=True)
class VerifyOptions:
    """The command line as it was given; None where an option was not.

    Attributes:
        command: all of it, as the record keeps it.
    """

    command: str
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


@click.command("verify", cls=shared.Subcommand, help=_HELP, exit_codes=_EXIT_CODES)
@click.option("--model", type=FILE, metavar="FILE", help="The network, as an .onnx or .onnx.gz file.")
@click.option(
    "--input",
    metavar="FILE",
    help="The clip, for example clip.npy, clips.npy[7], clips.npz, clips.npz:key or clips.npz:key[7] (item 7 of the "
    "array 'key'). Its shape is (C,T,H,W); (T,H,W) is read as one channel. The values are floats in the data domain, "
    "or bytes (uint8), which are divided by 255 unless --domain is given. The file may also be a video, .avi or .mp4; "
    "its frames are sampled evenly and resized to the model's input, and its values are bytes.",
)
@click.option("--set", metavar="SET", help="Where the attacker may change the clip; the sets are listed above.")
@click.option(
    "--eps",
    "epsilon",
    metavar="NUMBER",
    help="The largest change of a value, for example 4/255 or 0.03. With 1, a value may become any value in [0,1].",
)
@click.option(
    "--label", type=int, metavar="CLASS", help="The class that must stay first.  [default: the predicted class]"
)
@click.option(
    "--top-k",
    type=COUNT,
    metavar="K",
    help="The class must stay among the K classes with the highest scores.  [default: 1]",
)
@click.option(
    "--tolerance",
    type=POSITIVE,
    metavar="NUMBER",
    help="The property for regression: every output stays closer than this to its value on the clean clip.",
)
@click.option(
    "--domain",
    metavar="LOW,HIGH",
    help="The smallest and the largest value of the data, for example 0,255 for bytes, which are then not divided by "
    "255.  [default: 0,1]",
)
@click.option(
    "--layout",
    metavar="AXES",
    help="The axes of the model's input without the batch axis: CTHW, TCHW, THWC, THW, CHW, HWC, HW, CT or TC; D may "
    "stand for T. The clip has the same axes, or (C,T,H,W) if its shape fits only these. The option is required if "
    "several layouts fit and the set would mean something different in each.",
)
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="The time limit.  [default: 60; in the shipped bench, the limit of each instance]",
)
@shared.solver
@shared.seed
@shared.threads
@click.option(
    "--memory",
    metavar="SIZE",
    help="The memory limit of the process, for example 4G. The program itself takes about 0.3G.  [default: 70% of the "
    "free memory]",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="The device that computes bounds, for example cpu, cuda or cuda:1.",
)
@click.option(
    "--out",
    type=FILE,
    default="results",
    show_default=True,
    metavar="DIR",
    help="The folder for records, counterexamples and pictures.",
)
@click.option(
    "--quiet",
    "-q",
    is_flag=True,
    help="Print only one line per verdict. With --json, print only the JSON.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the record as JSON to stdout (without --model, an array of records) and everything else to stderr. "
    "With --quiet, print only the JSON.",
)
@shared.usual
def command(**given: Any) -> int:
    options = VerifyOptions(shared.command_line(), **given)
    _check_together(options)
    screen = Screen.of(quiet=options.quiet, as_json=options.as_json)
    configure_logging(options.verbose, screen.errors)
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.cli import one_clip, shipped

    return (shipped.run if options.model is None else one_clip.run)(options, screen)


main = partial(shared.run, command)


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
            raise InputError(f"{name} is missing; --model needs --input, --set and --eps, for example {name} {example}")
    if options.tolerance is not None and (options.label is not None or options.top_k is not None):
        other = "--label" if options.label is not None else "--top-k"
        raise InputError(f"--tolerance is for regression and {other} for classification; give one of them")
