"""The verdict on one clip: read what was given, verify, show and keep what came out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from torch import Tensor

from stbp_milp.cli.screen import Screen
from stbp_milp.cli.shared import Exit
from stbp_milp.data.frames import is_video, read_video
from stbp_milp.devices import named_device
from stbp_milp.errors import InputError
from stbp_milp.files import prepare_folder
from stbp_milp.inputs import DIVIDED, parse_bytes, parse_domain, parse_epsilon, read_clip_and_units
from stbp_milp.network.model import Model, load_model, load_model_for
from stbp_milp.network.views import as_clip
from stbp_milp.properties import property_of
from stbp_milp.query import Configuration, Query, SolverName
from stbp_milp.records import Record, make_record, query_key, run_stem, write_record
from stbp_milp.report.pictures import save_counterexample
from stbp_milp.report.terminal import LiveLine, question, summary, verdict_line
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Falsified, Outcome
from stbp_milp.verify import verify

if TYPE_CHECKING:
    from stbp_milp.cli.verify import VerifyOptions

_EXIT_CODES = {"verified": Exit.DONE, "falsified": Exit.FALSIFIED, "unknown": Exit.OPEN}


def run(options: VerifyOptions, screen: Screen) -> int:
    """Verify the clip that `options` name; the exit code says the verdict.

    Raises:
        InputError: what was given cannot be used.
        SoundnessError: two methods contradict each other.
    """
    archive = Archive(prepare_folder(options.out), options.command)
    query, clean_outputs, units = read_query(options)
    configuration = read_configuration(options)
    screen.say(question(query, clean_outputs, units))
    began = datetime.now(UTC)
    live = LiveLine(screen.errors, configuration.timeout, shown=not screen.quiet)
    try:
        with live:
            outcome = verify(query, configuration, live.update)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {live.text()}", err=True)
        return Exit.INTERRUPTED
    try:
        kept = archive.keep(query, configuration, outcome, str(options.input), began)
    except InputError:
        screen.say(summary(query, outcome, {}))  # the verdict is not lost with the disk full
        raise
    show(query, outcome, kept, screen)
    return _EXIT_CODES[outcome.word]


@dataclass(frozen=True)
class Kept:
    """What a run left behind."""

    record: Record
    files: dict[str, Path]


@dataclass(frozen=True)
class Archive:
    """The folder of a command's records, which say with what `command` they were made."""

    folder: Path
    command: str

    def keep(
        self,
        query: Query,
        configuration: Configuration,
        outcome: Outcome,
        clip_source: str,
        began: datetime,
        label: str = "",
    ) -> Kept:
        """Write the counterexample's files and the record; their names begin with time, label and key."""
        stem = run_stem(query_key(query, configuration), began, label)
        files: dict[str, Path] = {}
        if isinstance(outcome.verdict, Falsified) and outcome.verdict.counterexample.stage != "clean":
            files = save_counterexample(query, outcome.verdict.counterexample, outcome.clean_outputs, self.folder, stem)
        record = make_record(
            query, configuration, outcome, clip_source=clip_source, command=self.command, files=files, date=began
        )
        path = self.folder / f"{stem}.json"
        write_record(record, path)
        return Kept(record, files | {"record": path})


def show(query: Query, outcome: Outcome, kept: Kept, screen: Screen) -> None:
    """Print the summary, the verdict alone or the record, as asked for."""
    screen.say("", summary(query, outcome, kept.files))
    if screen.as_json:
        click.echo(kept.record.to_json(), nl=False)
    elif screen.quiet:
        click.echo(verdict_line(outcome))


def read_configuration(options: VerifyOptions, timeout: float = 60.0) -> Configuration:
    """How to search; `timeout` (seconds) where the user gave none.

    Raises:
        InputError: the memory limit is no size, or there is no such device.
    """
    solver: SolverName = options.solver  # type: ignore[assignment]  # one of click's choices
    memory = None if options.memory is None else parse_bytes(options.memory)
    limit = timeout if options.timeout is None else options.timeout
    named_device(options.device)  # raises before anything runs
    return Configuration(limit, solver, options.seed, options.threads, memory, options.device)


def read_query(options: VerifyOptions) -> tuple[Query, list[float], str]:
    """What is asked, the model's scores on the clean clip, and what was done to the values, see `ReadClip`.

    Raises:
        InputError: model, clip, set and property do not exist or do not fit together.
    """
    assert options.model is not None
    assert options.input is not None
    assert options.set is not None
    assert options.epsilon is not None
    domain = (0.0, 1.0) if options.domain is None else parse_domain(options.domain)
    specification = SetSpecification(options.set, parse_epsilon(options.epsilon), domain)
    as_given = options.domain is not None
    if is_video(options.input):
        model = load_model(options.model, layout=options.layout)
        frames = read_video(Path(options.input), model.axes.clip).double()
        # Pictures are bytes too, which the reader has divided.
        clip, units = ((frames * 255).round(), "") if as_given else (frames, DIVIDED)
    else:
        read = read_clip_and_units(options.input, as_given, ", or a video (.avi or .mp4)")
        model = _load(options.model, read.values, options.layout)
        clip, units = as_clip(read.values, model.axes), read.units
    specification.build(clip)  # raises before anything runs
    outputs = _outputs(model, clip)
    wanted = property_of(model.predict, clip, options.label, options.top_k or 1, options.tolerance)
    query = Query(model, clip, specification, wanted)
    query.check()
    return query, outputs, units


def _load(path: Path, clip: Tensor, layout: str | None) -> Model:
    """The model, if it takes the clip."""
    model = load_model_for(clip, path, layout)
    expected, arrived = model.axes.clip, tuple(as_clip(clip, model.axes).shape)
    if arrived != expected:
        same_axes = sorted(arrived) == sorted(expected)
        hint = "reorder its axes" if same_axes else "give a clip made for this model"
        raise InputError(f"the clip has shape {arrived} as (C, T, H, W), {str(path)!r} expects {expected}; {hint}")
    return model


def _outputs(model: Model, clip: Tensor) -> list[float]:
    scores = model.predict(clip.unsqueeze(0).numpy().astype(np.float32))[0]
    if not np.isfinite(scores).all():
        raise InputError(f"model {model.name} answers the clip with {scores.tolist()}; expected finite scores")
    outputs: list[float] = scores.astype(np.float64).tolist()
    return outputs
