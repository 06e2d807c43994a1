"""Hypothesis profiles and the folder of real data, for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("dev", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("comparisons on numbered instances")
    group.addoption("--instances", type=int, default=500, help="how many instances slow comparisons take")
    group.addoption("--first", type=int, default=0, help="the number of the first one")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The numbers of the instances that the command line asks for."""
    if "instance_number" in metafunc.fixturenames:
        first, count = (metafunc.config.getoption(name) for name in ("--first", "--instances"))
        metafunc.parametrize("instance_number", range(first, first + count))


@pytest.fixture(scope="session")
def data() -> Path:
    """Real data and third-party models: `$STBP_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("STBP_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set STBP_DATA")
    return folder
