"""A few instances of every family of `python -m scripts.fuzz`: blind, so that only proofs decide, and with attack."""

from __future__ import annotations

import pytest

from tests.hostile.cases import FAMILIES, draw
from tests.hostile.judge import ask


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer_is_wrong(family: str, number: int) -> None:
    answer = ask(draw(family, number), "highs", blinded=number % 2 == 0, timeout=1.0)
    assert not answer.faults


@pytest.mark.parametrize(("family", "number"), [("constants", 319), ("constants", 355), ("norms", 1295)])
def test_a_margin_that_only_float32_sees_contradicts_nothing(family: str, number: int) -> None:
    """What cancels in the original: in float32 its margin lies below what is proved in real numbers."""
    answer = ask(draw(family, number), "none", blinded=False, timeout=2.0)
    assert not answer.faults
    assert answer.word == "falsified"


def test_a_solver_proves_nothing_about_boxes_below_its_tolerance() -> None:
    """Radius 1e-9 before weights of 5,000: HiGHS said 1e-4 more than the minimum."""
    answer = ask(draw("graphs", 2557), "highs", blinded=False, timeout=2.0)
    assert not answer.faults
