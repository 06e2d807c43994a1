"""Batches of planted instances on two local workers: every instance one result, whatever it does.

By hand: an instance that kills its worker with SIGKILL is tried three times, and is an error then; the others of the
list do not notice.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from stbp_milp.batch import nodes
from stbp_milp.batch.engine import EngineOptions, Progress, run_batch
from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import FILE, Mirror, in_file
from stbp_milp.batch.task import Settings, Task, read_tasks
from stbp_milp.results import InstanceResult
from tests.batch.lists import TOKEN, gone, has_orphans, start_driver, write_list
from tests.batch.planted import WORDS

OPTIONS = EngineOptions(job="tests.batch.planted:by_specification", plan_job="tests.batch.planted:cut")
SETTINGS = Settings(grace=0.2, memory_bytes=300 << 20)
SLACK = 4.0  # seconds that a busy machine may take longer

Open = Callable[[], AbstractContextManager[Client]]


@pytest.fixture(scope="module")
def token() -> Iterator[str]:
    token = secrets.token_hex(8)
    os.environ[TOKEN] = token
    yield token
    del os.environ[TOKEN]
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "keeper_process" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def client(token: str) -> Iterator[Client]:
    with nodes.local(2) as client:
        yield client


@pytest.fixture
def here(client: Client) -> Open:
    @contextmanager
    def already_open() -> Iterator[Client]:
        yield client

    return already_open


class Batch:
    """A list in a temporary folder, and what became of it."""

    def __init__(self, folder: Path, plants: Sequence[Any], settings: Settings = SETTINGS) -> None:
        self.log = folder / "log"
        folder.mkdir(exist_ok=True)
        self.log.touch()
        self.folder = Folder(folder / "out").prepared()
        self.tasks: list[Task] = read_tasks(write_list(folder, plants, log=self.log), self.folder.path, settings)

    def run(self, open_client: Open, options: EngineOptions = OPTIONS) -> Progress:
        with Mirror(self.folder) as mirror:
            mirror.begin(self.tasks)
            return run_batch(self.tasks, self.folder, mirror, open_client, options)

    def results(self) -> list[InstanceResult | None]:
        return [self.folder.result(task.key) for task in self.tasks]

    def executed(self) -> Counter[int]:
        """How often a child began, by position in the list (parts are not among them)."""
        keys = [task.key for task in self.tasks]
        return Counter(keys.index(line) for line in self.log.read_text().splitlines() if line in keys)


@contextmanager
def no_worker() -> Iterator[Client]:
    raise AssertionError("a worker was asked for")
    yield


def test_every_instance_has_its_result(tmp_path: Path, here: Open) -> None:
    plants = [*WORDS, "verified", "abort"]
    batch = Batch(tmp_path, plants)
    progress = batch.run(here)
    results = batch.results()
    assert [one and one.word for one in results] == [WORDS[plant] for plant in plants]
    assert progress.words == Counter(WORDS[plant] for plant in plants)
    assert batch.executed() == Counter(range(len(plants)))
    assert list((batch.folder.path / "attempts").iterdir()) == []
    rows = in_file(batch.folder.path / FILE, "SELECT word FROM instances JOIN results USING (key) ORDER BY position")
    assert [word for (word,) in rows] == [WORDS[plant] for plant in plants]
    for one in results:
        assert one is not None
        if one.word == "timeout":
            assert one.seconds < SETTINGS.grace + 1.0 + SLACK
            assert one.bounds() == (-1.5, 2.0)  # as it told before it hung
            assert one.stage_seconds == {"attack": 0.1}
        if one.word in ("timeout", "memout", "error"):
            assert one.reason
    crashed = results[plants.index("abort")]
    assert crashed is not None
    assert crashed.ended_by == "signal SIGABRT"
    assert crashed.versions["python"]


def test_resuming_runs_nothing_that_is_finished(tmp_path: Path, here: Open) -> None:
    batch = Batch(tmp_path, ["verified", "falsified", "unknown"])
    batch.run(here)
    assert batch.run(no_worker).words == Counter(verified=1, falsified=1, unknown=1)
    assert batch.executed().total() == 3
    batch.folder.put_aside(batch.tasks[1].key, ["falsified"])
    batch.run(here)
    assert batch.executed() == Counter({0: 1, 1: 2, 2: 1})


def test_equal_lines_run_once(tmp_path: Path, here: Open) -> None:
    batch = Batch(tmp_path, ["verified", "falsified"])
    batch.tasks.append(batch.tasks[0])
    progress = batch.run(here)
    assert (progress.total, progress.done) == (2, 2)
    assert batch.executed() == Counter({0: 1, 1: 1})


def test_who_kills_workers_is_an_error_after_three_times(tmp_path: Path, here: Open) -> None:
    batch = Batch(tmp_path, ["kills worker", *["verified"] * 6])
    batch.run(here)
    killer, *others = batch.results()
    assert killer is not None
    assert (killer.word, killer.ended_by) == ("error", "worker")
    assert "3 times" in str(killer.reason)
    assert batch.executed() == Counter({0: 3} | dict.fromkeys(range(1, 7), 1))
    assert {one and one.word for one in others} == {"verified"}
    assert list((batch.folder.path / "attempts").iterdir()) == []


def test_who_kills_keepers_is_an_error_and_leaves_nothing(tmp_path: Path, here: Open, token: str) -> None:
    batch = Batch(tmp_path, ["kills keeper"])
    batch.run(here)
    (killer,) = batch.results()
    assert killer is not None
    assert (killer.word, killer.ended_by) == ("error", "worker")
    assert batch.executed() == Counter({0: 3})
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "600"]]


@pytest.mark.parametrize(
    "plants",
    [("forks", "slowly falsified", "hang"), ["forks", "slowly falsified", "hang", "hang"]],
    ids=["parts", "subtrees"],
)
def test_the_first_counterexample_ends_the_others(tmp_path: Path, here: Open, plants: Sequence[str]) -> None:
    settings = Settings(timeout=60.0, memory_bytes=300 << 20)
    batch = Batch(tmp_path, [plants], settings)
    began = time.monotonic()
    batch.run(here, EngineOptions(OPTIONS.job, OPTIONS.plan_job, split=4))
    seconds = time.monotonic() - began
    (whole,) = batch.results()
    assert whole is not None
    assert (whole.word, whole.ended_by) == ("falsified", "parts")
    assert whole.parts is not None
    assert len(whole.parts) == 1
    assert seconds < 0.5 + 1.0 + SLACK
    assert len(list((batch.folder.path / "parts").iterdir())) == 1  # cancelled parts have no result
    assert list((batch.folder.path / "attempts").iterdir()) == []


def test_what_is_not_cut_within_its_limits_runs_whole(tmp_path: Path, here: Open) -> None:
    batch = Batch(tmp_path, [("verified", "hang")])
    batch.run(here, EngineOptions(OPTIONS.job, "tests.batch.planted:never_cut", split=2))
    (whole,) = batch.results()
    assert whole is not None
    assert (whole.word, whole.parts) == ("verified", None)


def test_parts_that_are_known_are_not_run_again(tmp_path: Path, here: Open) -> None:
    batch = Batch(tmp_path, [("unknown", "hang", "unknown"), "verified"])
    options = EngineOptions(OPTIONS.job, OPTIONS.plan_job, split=3)
    batch.run(here, options)
    whole, single = batch.results()
    assert whole is not None
    assert single is not None
    assert (whole.word, single.word) == ("timeout", "verified")
    assert single.parts is None  # its set has one part
    ran = len(batch.log.read_text().splitlines())
    batch.folder.put_aside(whole.key, ["timeout"])
    batch.run(here, options)
    assert len(batch.log.read_text().splitlines()) == ran + 1
    assert len(list((batch.folder.path / "retried").iterdir())) == 2  # the whole and the part that hung


def test_nothing_listens_but_on_loopback(tmp_path: Path, here: Open) -> None:
    Batch(tmp_path, ["verified"]).run(here)
    me = psutil.Process()
    open_ports = [
        connection.laddr.ip
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("all")
        if connection.laddr and hasattr(connection.laddr, "ip")
    ]
    assert len(open_ports) > 4  # the scheduler, the driver, two workers and their nannies
    assert set(open_ports) == {"127.0.0.1"}


def test_a_result_of_another_writer_is_taken(tmp_path: Path, here: Open) -> None:
    """As when a worker that its driver had given up finishes after all."""
    batch = Batch(tmp_path, ["hang"])
    other = Batch(tmp_path / "other", ["verified"])
    other.run(here)
    (theirs,) = other.results()
    assert theirs is not None
    own = batch.tasks[0]
    limits = theirs.limits | {"timeout": own.limits.timeout, "memory_bytes": own.limits.memory_bytes}
    batch.folder.keep(replace(theirs, key=own.key, instance=dict(own.listed), limits=limits))
    with Mirror(batch.folder) as mirror:  # which has not seen it yet
        progress = run_batch(batch.tasks, batch.folder, mirror, here, OPTIONS)
    assert progress.words == Counter(verified=1)
    assert batch.executed() == Counter()


def test_each_device_has_one_worker(tmp_path: Path, token: str) -> None:
    batch = Batch(tmp_path, ["device"] * 4)
    batch.tasks = [replace(task, gpu=True) for task in batch.tasks]
    options = EngineOptions(OPTIONS.job, OPTIONS.plan_job, devices_by_number=True)
    batch.run(lambda: nodes.local(2, {"GPU": 1.0}), options)
    assert {one and one.reason for one in batch.results()} <= {"0", "1"}


def test_a_killed_driver_leaves_nothing_running_and_loses_nothing(tmp_path: Path) -> None:
    plants = ["verified"] * 2 + ["forks"] + ["falsified"] * 3
    path, out, token = write_list(tmp_path, plants), tmp_path / "out", secrets.token_hex(8)
    driver = start_driver(path, out, 2, token)
    end = time.monotonic() + 60
    while not (has_orphans(token) or time.monotonic() > end):
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert gone(token, 5.0)
    again = start_driver(path, out, 2, token)
    assert again.wait(60) == 0
    # A writer that is killed may leave its temporary file, which is no result.
    assert len(list((out / "records").glob("*.json"))) == len(plants)
    words = in_file(out / FILE, "SELECT word FROM instances JOIN results USING (key) ORDER BY position")
    assert [word for (word,) in words] == [WORDS[plant] for plant in plants]
    assert gone(token)


def test_nothing_is_left(tmp_path: Path, token: str) -> None:
    """The last of this file: what a batch of its own leaves, when its workers are gone."""
    token = secrets.token_hex(8)
    before, os.environ[TOKEN] = os.environ[TOKEN], token
    try:
        Batch(tmp_path, ["forks", "orphans", "hogs"]).run(lambda: nodes.local(1))
    finally:
        os.environ[TOKEN] = before
    assert gone(token)
