"""The page as a file: whole in itself, deaf to hostile text, written without harm; and the command that writes it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stbp_milp.cli.report import main
from stbp_milp.errors import InputError
from stbp_milp.report.html import figures, page, write_report
from stbp_milp.report.html.run import read_run
from tests.report.made_runs import Made, write_batch

HOSTILE = "</script><img src=x onerror=alert(1)>"


class _Elements(HTMLParser):
    """Start tags with their attributes, and the text of every script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, dict[str, str | None], str]] = []
        self.raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        if self.raw:
            self.inside.append((*self.tags[-1], data))

    def data(self) -> dict[str, Any]:
        (text,) = (text for _, attributes, text in self.inside if attributes.get("id") == "data")
        found: dict[str, Any] = json.loads(text)
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [
        Made("good", "verified"),
        Made("bad", "falsified"),
        Made(HOSTILE.replace("/", "∕"), "falsified", set=HOSTILE),
    ]
    return write_batch(tmp_path_factory.mktemp("runs") / "night", made, pending=["later"])


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    run = read_run(folder)
    return write_report(run, folder / "report.html", against=run).path.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_anywhere(text: str) -> None:
    elements = _Elements(text)
    for tag, attributes in elements.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    for tag, _, content in elements.inside:
        if tag == "style":
            assert "@import" not in content
            assert all(address.startswith("data:") for address in re.findall(r"url\(\s*['\"]?([^'\")]+)", content))
    (policy,) = (each["content"] for tag, each in elements.tags if each.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")
    assert "http" not in (policy or "")


def test_hostile_text_stays_text(text: str) -> None:
    elements = _Elements(text)
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert elements.data()["rows"][2]["set"] == HOSTILE
    assert HOSTILE not in text


def test_the_data_of_the_page(text: str) -> None:
    rows = _Elements(text).data()["rows"]
    assert [row["word"] for row in rows] == ["verified", "falsified", "falsified"]
    assert [row["viewer"] for row in rows] == [0, 1, 1]
    assert rows[1]["lower"] is None  # minus infinity
    assert [row["change"] for row in rows] == ["", "", ""]
    assert "video / later" in text


def test_what_found_no_room_is_said(folder: Path, tmp_path: Path) -> None:
    written = write_report(read_run(folder), tmp_path / "small.html", room=1)
    assert (written.viewers, written.left_out) == (0, 2)
    text = written.path.read_text(encoding="utf-8")
    assert "2 counterexamples cannot be played here" in text
    assert [row["viewer"] for row in _Elements(text).data()["rows"]] == [0, 2, 2]


def test_a_run_without_results_says_so(tmp_path: Path) -> None:
    run = read_run(write_batch(tmp_path / "run", [], pending=["clip-a"]))
    text = write_report(run, tmp_path / "report.html", against=run).path.read_text(encoding="utf-8")
    assert "No instance has a result yet." in text
    assert "1 of the list has no result yet" in text
    assert _Elements(text).data()["rows"] == []


def test_an_older_page_is_replaced_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder)
    path = tmp_path / "report.html"
    write_report(run, path)
    write_report(run, path)
    path.write_text("a thesis")
    with pytest.raises(InputError, match="is not a report"):
        write_report(run, path)
    assert path.read_text() == "a thesis"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_links_lead_from_the_page_to_the_evidence(folder: Path, tmp_path: Path) -> None:
    (bad,) = (each for each in read_run(folder).instances if each.name.endswith("bad"))
    links = page._detail(bad, folder, tmp_path / "a b")["links"]
    for link in links.values():
        assert (tmp_path / "a b" / link).resolve().is_file()
        assert ":" not in link


@pytest.mark.parametrize("missing", ["plotly", "itables", "jinja2"])
def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(InputError, match=f"needs the package '{missing}'; install"):
        page._package(missing)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    assert main([str(folder), "--out", str(path), "--against", str(folder), "--clips", "1M"]) == 0
    assert "3 instances, 2 viewers" in capsys.readouterr().out
    assert path.is_file()
    assert main(["--help"]) == 0
    assert "--against" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        ([], "Missing argument 'RUN'"),
        (["nowhere", "--clips", "much"], "'much' is not a size"),
        (["nowhere", "--colour", "red"], "No such option"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_broken_file_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_batch(tmp_path / "run", [Made("good")])
    (folder / "records" / "broken.json").write_text("{")
    assert main([str(folder)]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert "broken.json' cannot be read" in said
    assert "1 file is left out" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0042, "4.2 ms"),
        (0.25, "250 ms"),
        (0.9999, "1 s"),
        (3.456, "3.46 s"),
        (60.0, "60 s"),
        (125.0, "2 min 5 s"),
        (3599.9, "60 min"),
        (7260.0, "2 h 1 min"),
        (86400.0, "24 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(("content", "text"), [(0, "0 B"), (1500, "1.5 kB"), (999_600, "1 MB"), (4.2e9, "4.2 GB")])
def test_sizes(content: float, text: str) -> None:
    assert figures.size(content) == text


def test_shares_add_up(folder: Path) -> None:
    instances = read_run(folder).instances
    found = figures.shares(instances)
    assert sum(share.count for share in found) == len(instances)
    assert sum(share.percent for share in found) == pytest.approx(100)
    groups = figures.groups(instances)
    assert sum(group.total for group in groups) == len(instances)
