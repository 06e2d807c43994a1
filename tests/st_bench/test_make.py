"""A bench made from a seed: lists and both kinds of questions are read back, and the same seed makes the same files.

By hand: two ways of training, three questions each, are slots 0 to 2 and 3 to 5 of one list that has all nine kinds of
sets in every nine slots.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stbp_milp.batch.task import Settings, read_tasks
from stbp_milp.cli.bench import main
from stbp_milp.errors import InputError
from stbp_milp.instance_list import read_instances
from stbp_milp.instances import read_specification
from stbp_milp.interop import read_questions
from stbp_milp.network.model import load_model
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import BoxSpecification
from stbp_milp.st_bench.choose import FACTORS, Labelling, Material, label, question_for, slots
from stbp_milp.st_bench.export import read_clips
from stbp_milp.st_bench.families import FAMILIES
from stbp_milp.st_bench.layout import NetworkName
from stbp_milp.st_bench.make import Asked, make
from stbp_milp.verdict import Certificate, Outcome, Reason, Unknown, Verified

ASKED = Asked(("driving",), ("S",), ("standard", "pgd"), seed=7, instances=3, label=0.0, boxes=10, steps=2)


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Progress that nobody sees."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "made"
    assert make(ASKED, out, silent)
    return out


def content(bench: Path) -> dict[str, bytes]:
    """All files but the description, which says where and when."""
    files = {str(path.relative_to(bench)): path.read_bytes() for path in bench.rglob("*") if path.is_file()}
    files.pop("bench.json")
    return files


def test_its_layout(bench: Path) -> None:
    names = {path.name for path in bench.iterdir()}
    assert names == {
        "README.md", "SHA256SUMS", "bench.json", "clips", "instances.csv", "instances_vnnlib.csv", "onnx",
        "specifications", "vnnlib",
    }  # fmt: skip
    assert sorted(path.name for path in (bench / "onnx").iterdir()) == [
        "driving-S-pgd.onnx",
        "driving-S-standard.onnx",
    ]
    described = json.loads((bench / "bench.json").read_text())
    assert (described["asked"]["seed"], described["asked"]["ways"]) == (7, ["standard", "pgd"])
    explained = (bench / "README.md").read_text()
    assert "{" not in explained.replace("{ x'", "")
    for question in described["questions"]:
        assert question["stem"] in explained
        assert question["epsilon"] <= 1.05


def test_its_lists_are_read_by_the_batch(bench: Path, tmp_path: Path) -> None:
    tasks = read_tasks(bench / "instances.csv", tmp_path, Settings(None, 0.3, 2**32, 1, "auto", 0))
    assert len(tasks) == len({task.key for task in tasks}) == 6
    assert {task.expected for task in tasks} == {None}
    for listed in read_instances(bench / "instances.csv"):
        specification = read_specification(listed.specification)
        assert specification.name
        assert specification.tolerance == 5.0
        query = specification.query(load_model(listed.model))
        assert bool(query.set.build(query.clip).contains(query.clip.unsqueeze(0)).all())


def test_vnnlib_files_ask_the_same(bench: Path) -> None:
    """Clips of the set lie in a box, and both questions give them the same margin."""
    described = {q["stem"]: q for q in json.loads((bench / "bench.json").read_text())["questions"]}
    listed = read_instances(bench / "instances_vnnlib.csv")
    assert {i.specification.name.removesuffix(".vnnlib.gz") for i in listed} == {
        stem for stem, question in described.items() if question["boxes"] <= 10
    }
    assert listed
    for one in listed:
        stem, model = one.specification.name.removesuffix(".vnnlib.gz"), load_model(one.model)
        (ours,) = read_questions(bench / "specifications" / f"{stem}.json", model)
        boxes = read_questions(one.specification, model)
        assert len(boxes) == described[stem]["boxes"]
        samples = ours.set.build(ours.clip).sample(6, torch.Generator().manual_seed(0))
        for clip in samples:
            assert any(isinstance(box.set, BoxSpecification) and box.set.contains(clip) for box in boxes)
        margins = ours.property.margin(model.network(samples))
        assert torch.allclose(margins, boxes[0].property.margin(model.network(samples)), atol=1e-9)


def test_a_complete_bench_is_left_alone_and_another_refused(bench: Path) -> None:
    before = content(bench)
    assert not make(ASKED, bench, silent)
    with pytest.raises(InputError, match="other options"):
        make(replace(ASKED, seed=8), bench, silent)
    assert content(bench) == before


def test_an_interrupted_run_goes_on_and_the_same_seed_makes_the_same_files(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("questions", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(ASKED, out, stop)
    kept = list((out / "work" / "questions").iterdir())
    assert len(kept) == 2
    asked: list[str] = []
    make(ASKED, out, lambda stage, done, total, note: asked.append(note) if stage == "questions" else None)
    assert len(asked) == 5  # four questions, and the end
    assert not {path.stem for path in kept} & set(asked)
    assert content(out) == content(bench)


def test_networks_may_be_given(bench: Path, tmp_path: Path) -> None:
    given = replace(ASKED, ways=("pgd",), instances=1, networks=bench / "onnx", steps=None)
    make(given, tmp_path / "given", silent)
    name = "onnx/driving-S-pgd.onnx"
    assert (tmp_path / "given" / name).read_bytes() == (bench / name).read_bytes()
    assert len(read_instances(tmp_path / "given" / "instances.csv")) == 1


def test_slots_have_every_kind_once_a_round_and_every_budget() -> None:
    shape = FAMILIES["activity"].shape("S")
    made = slots(shape, 36, "7 activity-S", classes=True)
    for turn in range(4):
        assert len({slot.kind for slot in made[9 * turn : 9 * turn + 9]}) == 9
    assert {(slot.kind, slot.factor) for slot in made} == {(s.kind, f) for s in made for f in FACTORS}
    assert slots(shape, 5, "7 activity-S", classes=True) == made[:5]
    assert slots(shape, 36, "8 activity-S", classes=True) != made


@pytest.fixture(scope="module")
def material(bench: Path) -> Material:
    name = NetworkName("driving", "S", "pgd")
    return Material(
        name, FAMILIES["driving"], load_model(bench / name.file), *read_clips(bench / "clips/driving-S.npz")
    )


def test_what_is_not_settled_is_not_asked(material: Material) -> None:
    (slot,) = slots(material.family.shape("S"), 1, "7", classes=False)
    limits: list[float] = []

    def open_(query: Query, configuration: Configuration) -> Outcome:
        limits.append(configuration.timeout)
        return Outcome(Unknown(Reason.TIME, "out of time"), -1.0, 1.0, (0.0,), None, 1.0)

    def proved(query: Query, configuration: Configuration) -> Outcome:
        return Outcome(Verified(Certificate(1.0, {}, ())), 1.0, 2.0, (0.0,), "split", 0.5)

    assert question_for(slot, material, "7", 30.0, Labelling(60.0, settled_within=2.0), open_) is None
    assert limits == [8.0, 8.0, 8.0]
    kept = question_for(slot, material, "7", 30.0, Labelling(60.0), open_)
    assert kept is not None
    assert kept.expected is None
    settled = question_for(slot, material, "7", 30.0, Labelling(60.0, settled_within=2.0), proved)
    assert settled is not None
    assert settled.expected == "verified"
    assert label(kept, material, Labelling(1.0), proved)[0] == settled


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--family", "traffic"], "'traffic'"),
        (["--family", "activity", "--size", "XL"], "'XL'"),
        (["--family", "activity", "--way", "magic"], "'magic'"),
        (["--family", "activity", "--seed", "0"], "seed is 0"),
        (["--family", "activity", "--seed", "8", "--chosen"], "--chosen"),
        (["--family", "activity", "--networks", "nowhere"], "'nowhere'"),
        (["--family", ""], "family"),
        (["--instances", "0", "--family", "activity"], "--instances"),
        ([], "--family"),
    ],
)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "bench")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert says in printed
    assert not (tmp_path / "bench").exists()
