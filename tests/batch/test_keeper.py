"""One instance in a process of its own: it ends as it should, within its limits, and nothing of it is left.

By hand: a job that holds the interpreter's lock in C for ten minutes, with a second to run, ends after that second.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stbp_milp.batch.keeper import Keeper, KeeperLostError
from stbp_milp.batch.supervised import Ended, Limits
from tests.batch.lists import TOKEN, gone, living, timeout_of

JOB = "tests.batch.planted:directly"
GRACE, MEMORY = 0.2, 300 << 20
SLACK = 3.0  # seconds that a busy machine may take longer


@pytest.fixture(scope="module")
def token() -> str:
    return secrets.token_hex(8)


@pytest.fixture(scope="module")
def keeper(token: str) -> Iterator[Keeper]:
    keeper = Keeper(["tests.batch.planted"], environment={TOKEN: token})
    yield keeper
    keeper.close()
    assert gone(token)


def run(keeper: Keeper, plant: str) -> Ended:
    return keeper.run(JOB, plant, Limits(timeout_of(plant), GRACE, MEMORY))


@pytest.mark.parametrize(
    ("plant", "ended_by"),
    [
        ("verified", "itself"),
        ("orphans", "itself"),
        ("hang", "timeout"),
        ("stubborn", "timeout"),
        ("forks", "timeout"),
        ("deaf", "timeout"),
        ("hog", "memory"),
        ("hogs", "memory"),
        ("abort", "signal SIGABRT"),
        ("raises", "exit 70"),
    ],
)
def test_every_job_ends_and_leaves_nothing(keeper: Keeper, token: str, plant: str, ended_by: str) -> None:
    ended = run(keeper, plant)
    assert ended.ended_by == ended_by
    assert ended.clean
    assert ended.seconds < timeout_of(plant) + GRACE + SLACK
    assert ended.heard["margin"] == {"lower": -1.5, "upper": 2.0}
    assert living(token) == [keeper.pid]
    if ended_by == "memory":
        assert ended.memory_bytes > MEMORY


def test_an_answer_comes_back_with_what_was_printed(keeper: Keeper) -> None:
    assert run(keeper, "verified").answer == {"word": "verified"}
    assert "ValueError: planted" in run(keeper, "raises").output


def test_what_is_settled_may_be_written_down_after_the_limit(keeper: Keeper) -> None:
    ended = keeper.run("tests.batch.planted:settles", None, Limits(0.8, 0.1, MEMORY))
    assert ended.answer == {"word": "falsified"}
    assert ended.seconds > 0.9


def test_cancelling_ends_a_job_at_once(keeper: Keeper) -> None:
    began = time.monotonic()
    ended = keeper.run(JOB, "forks", Limits(60, 1, 300 << 20), lambda: time.monotonic() - began > 0.3)
    assert ended.ended_by == "cancelled"
    assert ended.seconds < SLACK
    assert run(keeper, "verified").ended_by == "itself"  # a second cancel would not hit the next job


def test_a_killed_keeper_is_noticed() -> None:
    keeper = Keeper(["tests.batch.planted"])
    with pytest.raises(KeeperLostError):
        run(keeper, "kills keeper alone")
    keeper.close()


def test_all_ends_with_the_worker() -> None:
    """The worker is killed by SIGKILL while its job has grandchildren in sessions of their own."""
    token = secrets.token_hex(8)
    code = (
        "from stbp_milp.batch.keeper import Keeper; from stbp_milp.batch.supervised import Limits;"
        "Keeper(['tests.batch.planted']).run('tests.batch.planted:directly', 'forks', Limits(60, 1, 1 << 30))"
    )
    environment = {**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen([sys.executable, "-c", code], env=environment)
    end = time.monotonic() + 30
    # Worker, keeper, child, grandchildren. Looking takes time, in which processes between them end: no second look.
    while len(found := living(token)) < 6 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(found) >= 6
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert gone(token, 5.0)


def test_a_keeper_that_still_imports_ends_with_its_worker(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(600)\n")
    token = secrets.token_hex(8)
    code = "import time; from stbp_milp.batch.keeper import Keeper; Keeper(['endless']); time.sleep(0.5)"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, TOKEN: token, "PYTHONPATH": path}, check=True)
    assert gone(token, 5.0)


def test_the_real_keeper_forks_without_threads_of_python_or_blas() -> None:
    """Only onnxruntime has a thread of its own, which its sessions do not need."""
    code = (
        "import os, stbp_milp.batch.answer;"
        "print(len(os.listdir('/proc/self/task')), 'torch._dynamo' in __import__('sys').modules)"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "4"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    threads, warm = printed.stdout.split()
    assert int(threads) <= 2
    assert warm == "True"
