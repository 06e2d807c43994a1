"""The shipped bench: its files, networks, clips and instances; whoever reads its lists gets the same questions."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from math import prod

import pytest
import torch

from stbp_milp.cli.shipped import ShippedInstance, instances
from stbp_milp.data.stand_ins import STEERING_LIMIT
from stbp_milp.instance_list import read_instances
from stbp_milp.interop import read_questions
from stbp_milp.network.model import load_model
from stbp_milp.st_bench import SHIPPED
from stbp_milp.st_bench.export import read_clips
from stbp_milp.st_bench.families import FAMILIES
from stbp_milp.st_bench.layout import Question

KINDS = {
    "everywhere",
    "frames",
    "any-frames",
    "window",
    "patch",
    "moving-patch",
    "patch-at",
    "pixels",
    "pixels-per-frame",
}


@pytest.fixture(scope="module")
def shipped() -> tuple[ShippedInstance, ...]:
    return instances()


def test_it_is_small_and_whole() -> None:
    sizes = [path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(sizes) < 5_000_000
    lines = [line.split("  ") for line in (SHIPPED / "SHA256SUMS").read_text().splitlines()]
    assert len(lines) == len(sizes) - 2  # not of itself and of bench.json
    for digest, name in lines:
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_get_their_clips_right(family: str) -> None:
    network = load_model(SHIPPED / "onnx" / f"{family}-S-pgd.onnx").network
    clips, targets = read_clips(SHIPPED / "clips" / f"{family}-S.npz")
    assert clips.shape == (20, *FAMILIES[family].shape("S"))
    assert clips.dtype == torch.float32
    assert float(clips.min()) >= 0
    assert float(clips.max()) <= 1
    assert 1_000 <= sum(prod(network.nodes[i].shape) for i in network.relus) <= 3_000
    outputs = network(clips.double())
    if family == "driving":
        assert float((outputs - targets).abs().mean()) < 0.02 * 2 * STEERING_LIMIT
    else:
        assert torch.equal(outputs.argmax(1), targets)


def test_instances_cover_all_kinds_of_sets_and_verdicts(shipped: tuple[ShippedInstance, ...]) -> None:
    assert 50 <= len(shipped) <= 70
    assert {re.split(":", i.query.set.text)[0] for i in shipped} == KINDS
    assert {i.model.split("-")[0] for i in shipped} == set(FAMILIES)
    words = [i.expected for i in shipped]
    assert set(words) == {"verified", "falsified", "unknown"}
    assert words.count("unknown") <= 2
    assert min(words.count("verified"), words.count("falsified")) >= len(words) / 5
    assert sum(i.timeout for i in shipped if i.expected == "unknown") < 10
    assert {i.timeout for i in shipped if i.expected != "unknown"} == {30.0}


def test_every_clean_clip_keeps_its_property(shipped: tuple[ShippedInstance, ...]) -> None:
    for instance in shipped:
        query = instance.query
        outputs = query.model.network(query.clip.unsqueeze(0))
        assert float(query.property.margin(outputs)) > 0
        query.set.build(query.clip)


def test_the_chosen_twelve_are_among_them(shipped: tuple[ShippedInstance, ...]) -> None:
    chosen = json.loads((SHIPPED.parent / "chosen.json").read_text())
    asked = {(i.name, i.query.set.text, i.query.set.epsilon, i.timeout, i.expected) for i in shipped}
    assert len(chosen) == 12
    for one in chosen:
        assert (one["name"], one["set"], one["epsilon"], float(one["timeout"]), one["expected"]) in asked


def test_questions_of_the_description_are_those_of_the_list() -> None:
    described = json.loads((SHIPPED / "bench.json").read_text())["questions"]
    questions = [
        Question.of_entries({key: value for key, value in entries.items() if key not in ("boxes", "vnnlib")})
        for entries in described
    ]
    lines = list(csv.reader((SHIPPED / "instances.csv").read_text().splitlines()))
    assert lines == [[q.network.file, q.specification_file, f"{q.timeout:g}"] for q in questions]


def test_the_smallest_vnnlib_files_ask_the_same() -> None:
    """One of each family: clips of the set lie in a box, and both files give them the same margin."""
    listed = read_instances(SHIPPED / "instances_vnnlib.csv")
    assert len(listed) >= 15
    for family in FAMILIES:
        own = [i for i in listed if i.model.name.startswith(family)]
        one = min(own, key=lambda i: i.specification.stat().st_size)
        model = load_model(one.model)
        ours = SHIPPED / "specifications" / f"{one.specification.name.removesuffix('.vnnlib.gz')}.json"
        (asked,) = read_questions(ours, model)
        boxes = read_questions(one.specification, model)
        perturbation = asked.set.build(asked.clip)
        samples = perturbation.sample(4, torch.Generator().manual_seed(0))
        assert all(any(box.set.contains(clip) for box in boxes) for clip in samples)
        outputs = model.network(samples)
        assert torch.allclose(asked.property.margin(outputs), boxes[0].property.margin(outputs))
