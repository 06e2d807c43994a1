"""Making of a bench: networks, clips, questions with their verdicts, and their lists.

Results that take time (trained networks, questions with verdicts) are kept in the bench's folder `work` as soon as they
exist, and reused by the next run with the same options. The description, `bench.json`, is written last: a folder that
has it is complete and has no `work` any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.files import prepare_folder, write_new_file
from stbp_milp.instances import write_specification
from stbp_milp.interop.writer import can_be_written, count_boxes, write_vnnlib
from stbp_milp.network.model import Model, load_model
from stbp_milp.query import Query
from stbp_milp.sets import SetSpecification
from stbp_milp.st_bench.choose import FACTORS, Labelling, Material, label, question_for, slots
from stbp_milp.st_bench.explain import QuestionRow, explanation
from stbp_milp.st_bench.export import read_clips, write_clips, write_network
from stbp_milp.st_bench.families import Family, family_named
from stbp_milp.st_bench.layout import (
    CHECKSUMS,
    CLIPS,
    DESCRIPTION,
    INSTANCES,
    INSTANCES_VNNLIB,
    NETWORKS,
    PROPERTIES,
    SPECIFICATIONS,
    NetworkName,
    Question,
)
from stbp_milp.st_bench.training import WAYS, recipe, trained
from stbp_milp.versions import versions

WORK = "work"
SECONDS = {"S": 60.0, "M": 120.0}  # limits; larger networks have _LARGE_SECONDS
_LARGE_SECONDS = 300.0
_LABEL = 10.0  # so that a bench of three networks is made in a quarter of an hour
_ROUND = 9 * len(FACTORS)  # slots until every kind has met every budget
_DRAWN = {"S": (1000, 20), "M": (200, 20)}  # clips drawn, and how many of them are kept
_DRAWN_LARGE = (24, 6)
_TEST_SEEDS = 770  # plus the bench's seed; the batches of trainings have seeds from a million on
MOST_SEED = 900_000

Tell = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Asked:
    """The options of a bench.

    Attributes:
        instances: questions per network, some fewer with `settled_within`.
        timeout: seconds per question; None: by size.
        label: the verifier's seconds per verdict; None: 10 for size S, otherwise it does not run; 0: it never runs.
        settled_within: as in `Labelling`.
        boxes: questions whose sets have more boxes get no VNN-LIB file.
        chosen: are the twelve questions that were chosen by hand included?
        networks: a folder with files `FAMILY-SIZE-WAY.onnx`; networks that it has are not trained.
        steps: training steps, instead of the recipe's.
    """

    families: tuple[str, ...]
    sizes: tuple[str, ...]
    ways: tuple[str, ...]
    seed: int
    instances: int = _ROUND
    timeout: float | None = None
    label: float | None = None
    settled_within: float | None = None
    boxes: int = 100
    chosen: bool = False
    networks: Path | None = None
    steps: int | None = None
    threads: int = 1

    def check(self) -> None:
        """Raises InputError where the parts do not exist or do not go together."""
        for family in self.families:
            for size in self.sizes:
                family_named(family).size(size)
        wrong = [way for way in self.ways if way not in WAYS]
        if wrong:
            raise InputError(f"there is no way of training {wrong[0]!r}; expected one of: {', '.join(WAYS)}")
        if not 1 <= self.seed <= MOST_SEED:
            raise InputError(f"the seed is {self.seed}; give a whole number from 1 to {MOST_SEED}")
        if self.chosen and (self.seed != 7 or "pgd" not in self.ways or "S" not in self.sizes):
            raise InputError("--chosen asks about seed 7, size S, way pgd; ask for these, or leave it out")
        if self.networks is not None and not self.networks.is_dir():
            raise InputError(f"there is no folder {str(self.networks)!r} with networks; leave out --networks to train")

    def labelling(self, size: str) -> Labelling:
        seconds = self.label if self.label is not None else (_LABEL if size == "S" else 0.0)
        return Labelling(seconds or None, self.settled_within, self.threads)

    def limit(self, size: str) -> float:
        return self.timeout or SECONDS.get(size, _LARGE_SECONDS)

    def names(self) -> list[NetworkName]:
        return [NetworkName(f, s, w) for f in self.families for s in self.sizes for w in self.ways]

    def entries(self) -> dict[str, Any]:
        """Returns, as JSON, the options that a run must share to continue this bench."""
        return asdict(self) | {"networks": None if self.networks is None else str(self.networks)}


def make(asked: Asked, out: Path, tell: Tell) -> bool:
    """Makes the bench in the folder `out`, or continues it; returns False if it was already complete.

    Raises:
        InputError: the options do not go together, the folder has another bench or cannot be written to.
    """
    asked.check()
    torch.set_num_threads(asked.threads)
    prepare_folder(out)
    if _same(out / DESCRIPTION, asked):
        return False
    for part in (NETWORKS, CLIPS, SPECIFICATIONS, PROPERTIES, f"{WORK}/networks", f"{WORK}/questions"):
        prepare_folder(out / part)
    if not _same(out / WORK / "asked.json", asked):
        _keep_json(out / WORK / "asked.json", {"asked": asked.entries()})
    for name in asked.names():
        _network(asked, name, out, tell)
    material = {name: _material(asked, name, out) for name in asked.names()}
    questions = _questions(asked, material, out, tell)
    _write_out(asked, material, questions, out, tell)
    shutil.rmtree(out / WORK)
    return True


def _same(path: Path, asked: Asked) -> bool:
    """Is there a description of a bench, with the same options?"""
    if not path.exists():
        return False
    try:
        earlier = json.loads(path.read_text())["asked"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is not a description of a bench; give another folder with --out") from error
    if earlier != json.loads(json.dumps(asked.entries())):
        raise InputError(f"{str(path.parent)!r} has a bench made with other options; give another folder with --out")
    return True


def _keep_json(path: Path, content: object) -> None:
    write_new_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _network(asked: Asked, name: NetworkName, out: Path, tell: Tell) -> None:
    """Copies or trains a network and writes it, if it does not exist yet."""
    path = out / name.file
    if path.exists():
        return
    given = None if asked.networks is None else asked.networks / path.name
    if given is not None and given.is_file():
        write_new_file(path, given.read_bytes())
        return

    def advance(step: int, steps: int, loss: float) -> None:
        tell(f"training {name.stem}", step, steps, f"loss {loss:.3f}")

    chosen = recipe(name.family, name.size, name.way, asked.seed, asked.steps)
    network = trained(chosen, out / WORK / "networks", advance)
    temporary = out / WORK / path.name
    write_network(network, family_named(name.family).draw(2, asked.seed, name.size)[0], temporary)
    os.replace(temporary, path)


def _material(asked: Asked, name: NetworkName, out: Path) -> Material:
    """Returns the network with the clips of its family and size, which are made if they do not exist yet."""
    model, family = load_model(out / name.file), family_named(name.family)
    path = out / CLIPS / f"{name.clips_stem}.npz"
    if not path.exists():
        reference = NetworkName(name.family, name.size, "pgd" if "pgd" in asked.ways else asked.ways[0])
        temporary = out / WORK / path.name
        write_clips(*_kept_clips(family, name.size, asked.seed, load_model(out / reference.file)), temporary)
        os.replace(temporary, path)
    return Material(name, family, model, *read_clips(path))


def _kept_clips(family: Family, size: str, seed: int, model: Model) -> tuple[Tensor, Tensor]:
    """Chooses the first test clips that the network gets right, class by class in turn; for regression, the first."""
    drawn, kept = _DRAWN.get(size, _DRAWN_LARGE)
    clips, targets = family.draw(drawn, _TEST_SEEDS + seed, size)
    if family.property_kind == "tolerance":
        return clips[:kept], targets[:kept]
    right = torch.from_numpy(model.predict(clips.numpy())).argmax(1) == targets
    classes = [(right & (targets == value)).nonzero().flatten() for value in range(int(targets.max()) + 1)]
    rounds = min(len(index) for index in classes)
    if rounds == 0:  # barely trained: whatever it gets right is asked about later
        return clips[:kept], targets[:kept]
    index = torch.stack([index[:rounds] for index in classes], 1).flatten()[:kept]
    return clips[index], targets[index]


def _questions(asked: Asked, material: dict[NetworkName, Material], out: Path, tell: Tell) -> list[Question]:
    """Makes all questions, network by network, the chosen ones first; each is stored as soon as it exists."""
    tasks = [*(_chosen(asked, material) if asked.chosen else ()), *_slot_tasks(asked, material)]
    found: list[Question] = []
    for at, (stem, ask) in enumerate(tasks):
        path = out / WORK / "questions" / f"{stem}.json"
        if not path.exists():
            tell("questions", at, len(tasks), stem)
            made = ask()
            _keep_json(path, None if made is None else made.entries())
        entries = json.loads(path.read_text())
        if entries is not None:
            found.append(Question.of_entries(entries))
    tell("questions", len(tasks), len(tasks), "")
    if not found:
        raise InputError("there is no question to ask: the networks get no clip right; give more --steps")
    order = list(material)
    return sorted(found, key=lambda question: order.index(question.network))


Ask = Callable[[], Question | None]


def _slot_tasks(asked: Asked, material: dict[NetworkName, Material]) -> Iterator[tuple[str, Ask]]:
    """Returns the slots of every network; networks of one family and size take turns in one list of slots."""
    for name, own in material.items():
        seed = f"{asked.seed} {name.clips_stem}"
        start = asked.ways.index(name.way) * asked.instances % _ROUND
        classes = own.family.property_kind == "class"
        for slot in slots(own.family.shape(name.size), start + asked.instances, seed, classes=classes)[start:]:

            def ask(slot: Any = slot, own: Material = own, seed: str = seed, size: str = name.size) -> Question | None:
                return question_for(slot, own, seed, asked.limit(size), asked.labelling(size))

            yield f"{name.stem}-{slot.number:03d}-{slot.kind}", ask


def _chosen(asked: Asked, material: dict[NetworkName, Material]) -> Iterator[tuple[str, Ask]]:
    """The questions that were chosen by hand; where a verdict is none of ours, the limit is meant to be too short."""
    listed = json.loads((Path(str(files(__package__))) / "chosen.json").read_text())
    for number, entry in enumerate(listed):
        name = NetworkName(entry["family"], "S", "pgd")
        if name not in material:
            continue
        own, stem = material[name], f"{name.stem}-chosen-{number:02d}"
        tolerance = entry.get("tolerance")
        question = Question(
            stem, entry["name"], name, entry["clip"], entry["set"], entry["epsilon"], entry["timeout"],
            label=None if tolerance else int(own.targets[entry["clip"]]), top_k=entry.get("top_k", 1),
            tolerance=tolerance, expected=entry["expected"],
        )  # fmt: skip

        def ask(question: Question = question, own: Material = own) -> Question:
            labelling = asked.labelling("S")
            if labelling.seconds is None or question.expected == "unknown":
                return question
            labelled, _ = label(question, own, Labelling(labelling.seconds, threads=asked.threads))
            if labelled.expected not in (None, question.expected):
                raise InputError(
                    f"the chosen question {question.name!r} is {labelled.expected}, expected {question.expected}; "
                    "its network is another one"
                )
            return labelled

        yield stem, ask


def _write_out(
    asked: Asked, material: dict[NetworkName, Material], questions: list[Question], out: Path, tell: Tell
) -> None:
    """Writes specifications, VNN-LIB files, lists, README, checksums and, last, the description."""
    rows: list[QuestionRow] = []
    for at, question in enumerate(questions):
        tell("files", at, len(questions), question.stem)
        rows.append(_question_files(question, material[question.network], asked.boxes, out))
    tell("files", len(questions), len(questions), "")
    boxed = [row.question for row in rows if row.written]
    lists = {
        INSTANCES: [(q.network.file, q.specification_file, q.timeout) for q in questions],
        INSTANCES_VNNLIB: [(q.network.file, q.vnnlib_file, q.timeout) for q in boxed],
    }
    texts = {name: "".join(f"{m},{s},{t:g}\n" for m, s, t in lines) for name, lines in lists.items()}
    texts["README.md"] = explanation(rows, asked.seed, asked.boxes, asked.settled_within)
    for name, text in texts.items():
        _put(out / name, text.encode())
    sums = {path: _sha256(out / path) for path in _all_files(out)}
    _put(out / CHECKSUMS, "".join(f"{digest}  {path}\n" for path, digest in sums.items()).encode())
    description = {
        "schema": 1,
        "asked": asked.entries(),
        "questions": [
            row.question.entries() | {"boxes": row.boxes, "vnnlib": row.question.vnnlib_file if row.written else None}
            for row in rows
        ],
        "versions": versions(),
    }
    _keep_json(out / DESCRIPTION, description)


def _question_files(question: Question, own: Material, most_boxes: int, out: Path) -> QuestionRow:
    specification = question.specification(out)
    if not (out / question.specification_file).exists():
        write_specification(specification, out / question.specification_file)
    clip = own.clips[question.clip].double()
    wanted = own.property(question.clip, question.top_k, question.tolerance or 0.0)
    query = Query(own.model, clip, SetSpecification(question.set, question.epsilon), wanted)
    boxes = count_boxes(query)
    written = boxes <= most_boxes and can_be_written(query)
    if written and not (out / question.vnnlib_file).exists():
        write_vnnlib(query, out / question.vnnlib_file)
    return QuestionRow(question, own.model, boxes, written)


def _put(path: Path, content: bytes) -> None:
    """Writes a file that an interrupted run may have written already."""
    path.unlink(missing_ok=True)
    write_new_file(path, content)


def _all_files(out: Path) -> list[str]:
    names = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(str(n) for n in names if n.parts[0] != WORK and str(n) not in (CHECKSUMS, DESCRIPTION))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
