"""The parts of scripts.studies.real_data on UCF-101 videos and Udacity frames: real files through the whole pipeline.

The networks are the shipped ones, trained on procedural stand-ins: what they answer to real pictures means nothing,
that they keep their answer is verified all the same.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from rich.console import Console

from scripts.studies.real_data.tables import BEGIN, Asked, Item, publish, verify_items
from stbp_milp.data.clips import ClipSet, ClipShape
from stbp_milp.data.stand_ins import VIDEO_CLASSES
from stbp_milp.data.ucf101 import read_ucf101
from stbp_milp.data.udacity import read_udacity
from stbp_milp.network.model import Model, load_model
from stbp_milp.network.views import clip_shape
from stbp_milp.properties import same_class, within_tolerance
from stbp_milp.st_bench import SHIPPED

TOLERANCE = 5.0  # degrees
ROAD = (0.18, 0.85)  # rows kept: horizon where the stand-in's roads have it, no bonnet
NO_CLAIM = (
    "This shows the pipeline on real files (decode, clip, predict, verify) and claims no accuracy: the network was "
    "trained on the procedural stand-in and has never seen such pictures."
)


def ucf101(asked: Asked, console: Console) -> None:
    """The shipped video network keeps its answer on the first videos."""
    source = asked.data / "ucf101"
    if not _there(source, "the UCF-101 videos", console):
        return
    model, shape = _shipped("activity-S-pgd.onnx")
    clips = read_ucf101(source, shape)
    items: list[Item] = []
    answers: list[str] = []
    for number, name in enumerate(clips.names[: asked.items]):
        clip = clips[number]
        answer = int(model.predict(clip.unsqueeze(0).numpy())[0].argmax())
        answers.append(f"{name}: {VIDEO_CLASSES[answer]}")
        items.append(Item(name, clip, same_class(answer, len(VIDEO_CLASSES))))
    rows = verify_items(model, items, "ucf101", asked, console)
    text = (
        f"{NO_CLAIM}\n\nNetwork: the shipped activity-S-pgd.onnx, input {shape}, grey. {_given(clips, len(items))}, "
        f"frames sampled evenly and resized by area. It answers {'; '.join(answers)}; asked is that this answer stays, "
        f"{asked.configuration.timeout:g} s each. {BEGIN}\n"
    )
    publish("ucf101", "UCF-101 videos: any two frames, any patch", text, rows, asked, console)


def udacity(asked: Asked, console: Console) -> None:
    """The shipped steering network keeps its angle on clips spread over the recording."""
    source = asked.data / "udacity_sim"
    if not _there(source, "the Udacity frames", console):
        return
    model, shape = _shipped("driving-S-pgd.onnx")
    clips = read_udacity(source, shape, stride=shape[1], rows=ROAD)
    step = max(1, len(clips) // asked.items)
    chosen = list(range(0, len(clips), step))[: asked.items]
    items: list[Item] = []
    angles: list[str] = []
    for number in chosen:
        clip = clips[number]
        answer = torch.from_numpy(model.predict(clip.unsqueeze(0).numpy()))[0]
        angles.append(f"{float(answer):.1f} ({float(clips.targets[number]):.1f})")
        items.append(Item(clips.names[number], clip, within_tolerance(answer, TOLERANCE)))
    rows = verify_items(model, items, "udacity", asked, console)
    text = (
        f"{NO_CLAIM}\n\nNetwork: the shipped driving-S-pgd.onnx, input {shape}. {_given(clips, len(items))}, each "
        f"named after its last frame; rows {ROAD[0]:.0%} to {ROAD[1]:.0%} of the pictures, resized by area. Its angles "
        f"in degrees (recorded): {', '.join(angles)}. Asked is that the angle stays within +-{TOLERANCE:g} degrees of "
        f"the network's own, {asked.configuration.timeout:g} s each. {BEGIN}\n"
    )
    publish("udacity", "Udacity frames: any two frames, any patch", text, rows, asked, console)


def _there(source: Path, what: str, console: Console) -> bool:
    if not source.is_dir():
        console.print(f"skipped {what}: {source} is not there; say with --data where the data lie")
    return source.is_dir()


def _shipped(name: str) -> tuple[Model, ClipShape]:
    model = load_model(SHIPPED / "onnx" / name)
    return model, clip_shape(model.network.input_shape)


def _given(clips: ClipSet, count: int) -> str:
    """What was read, in words."""
    if not clips.classes:
        return f"{count} of {len(clips)} clips"
    classes = Counter(clips.classes[label] for label in clips.targets.tolist())
    return f"{count} of {len(clips)} videos ({', '.join(f'{n} {name}' for name, n in classes.items())})"
