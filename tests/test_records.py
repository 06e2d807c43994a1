"""Records: what goes in comes out, keys tell questions apart, and no file is ever half written or replaced.

By hand: the example's falsified outcome proved nothing, so its margin is {"lower": "-inf", "upper": -10.8}.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from stbp_milp import records
from stbp_milp.batch.split import question_of
from stbp_milp.errors import InputError
from stbp_milp.files import prepare_folder, write_new_file
from stbp_milp.plain import digest_of
from stbp_milp.properties import top_k
from stbp_milp.query import Configuration, Query
from stbp_milp.records import Record, make_record, query_key, read_record, run_stem, write_record
from tests.example_runs import falsified, query, unknown, verified, write_model


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Query:
    return query(write_model(tmp_path_factory.mktemp("model") / "example.onnx"))


def _record(asked: Query, kind: str) -> Record:
    outcome = {"verified": verified(), "falsified": falsified(asked), "unknown": unknown()}[kind]
    files = {"clip": Path("results/a-attack.npz")} if kind == "falsified" else {}
    return make_record(asked, Configuration(), outcome, clip_source="clip.npy", command="verify_complete", files=files)


def test_by_hand(asked: Query, tmp_path: Path) -> None:
    write_record(_record(asked, "falsified"), tmp_path / "a.json")
    entries = json.loads((tmp_path / "a.json").read_text())
    assert entries["margin"] == {"lower": "-inf", "upper": -10.8}
    assert entries["counterexample"]["files"] == {"clip": "a-attack.npz"}
    assert entries["certificate"] is None
    assert read_record(tmp_path / "a.json").bounds() == (float("-inf"), -10.8)


@pytest.mark.parametrize("kind", ["verified", "falsified", "unknown"])
def test_round_trip(asked: Query, tmp_path: Path, kind: str) -> None:
    record = _record(asked, kind)
    write_record(record, tmp_path / "a.json")
    assert read_record(tmp_path / "a.json") == record
    assert record.verdict == kind
    assert "NaN" not in record.to_json()
    assert "Infinity" not in record.to_json()


def test_certificate_keeps_its_leaves(asked: Query) -> None:
    certificate = _record(asked, "verified").certificate
    assert certificate is not None
    assert certificate["closed"] == {"union bound": 1, "milp": 1}
    assert [leaf["lower"] for leaf in certificate["leaves"]] == [0.4, "inf"]


def test_key_tells_questions_apart(asked: Query) -> None:
    configuration = Configuration()
    moved = asked.clip.clone()
    moved[0, 0, 0, 0] += 2**-10
    others = [
        query_key(asked, replace(configuration, seed=1)),
        query_key(replace(asked, clip=moved), configuration),
        query_key(replace(asked, set=replace(asked.set, epsilon=0.125)), configuration),
        query_key(replace(asked, set=replace(asked.set, text="everywhere")), configuration),
        query_key(replace(asked, property=top_k(1, 1, 3)), configuration),
        query_key(replace(asked, property=top_k(0, 2, 3)), configuration),
        query_key(replace(asked, model=replace(asked.model, digest="0")), configuration),
        query_key(replace(asked, model=asked.model.seen_as("CTHW")), configuration),
        query_key(replace(asked, model=asked.model.seen_as("TCHW")), configuration),
    ]
    own = query_key(asked, configuration)
    assert len({own, *others}) == len(others) + 1
    copied = replace(asked, clip=asked.clip.clone(), model=replace(asked.model, source="elsewhere.onnx"))
    assert query_key(copied, Configuration()) == own


@pytest.mark.parametrize("layout", [None, "THWC"])
def test_the_question_of_a_record_has_the_key_of_its_query(asked: Query, layout: str | None) -> None:
    query = asked if layout is None else replace(asked, model=asked.model.seen_as(layout))
    record = json.loads(make_record(query, Configuration(), verified(), clip_source="clip.npy").to_json())
    assert record["model"].get("layout") == layout
    assert digest_of(question_of(record)) == record["key"] == query_key(query, Configuration())


def test_clip_digest_is_of_values_and_shape() -> None:
    values = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert records.clip_digest(values) == records.clip_digest(values.double().mT.contiguous().mT)
    assert records.clip_digest(values) != records.clip_digest(values.reshape(1, 2, 4, 3))


def test_nothing_is_replaced(tmp_path: Path) -> None:
    write_new_file(tmp_path / "a.json", b"first")
    with pytest.raises(InputError, match="already there"):
        write_new_file(tmp_path / "a.json", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_nothing_is_replaced_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("stbp_milp.files.os.link", refuse)
    test_nothing_is_replaced(tmp_path)


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stbp_milp.files.os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_new_file(tmp_path / "a.json", b"content")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        prepare_folder(tmp_path / "file" / "results")
    assert prepare_folder(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 99}', '{"schema": 1, "key": "a"}', "\x00"])
def test_what_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError):
        read_record(tmp_path / "a.json")


def test_stem_says_when_and_what() -> None:
    began = datetime(2025, 11, 22, 19, 40, 3, 123456, UTC)
    assert run_stem("0123456789", began) == "20251122T194003123Z-01234567"
    assert run_stem("0123456789", began, "Video / left") == "20251122T194003123Z-video---left-01234567"


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[1] / "results" / "README.md").read_text()
    assert [field.name for field in fields(Record) if f"`{field.name}`" not in text] == []
