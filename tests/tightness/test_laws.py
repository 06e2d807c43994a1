"""What must hold among rows, and what tables make of them."""

from __future__ import annotations

import pytest

from stbp_milp.errors import SoundnessError
from stbp_milp.tightness.curves import points
from stbp_milp.tightness.laws import bracket, check
from stbp_milp.tightness.report import page, ratio
from tests.tightness.rows import row


def test_rows_that_fit_together_pass() -> None:
    rows = [row("attack", upper=0.5), row("box-interval", -3.0), row("stbp-interval", -2.0), row("milp", 0.5, 0.5)]
    check(rows)
    assert bracket(rows).exact == 0.5


@pytest.mark.parametrize("method", ["box-interval", "stbp-alpha", "lp", "complete", "milp"])
def test_a_bound_above_a_margin_that_was_seen_is_a_contradiction(method: str) -> None:
    with pytest.raises(SoundnessError, match=method):
        check([row("attack", upper=0.5), row(method, 0.501)])


@pytest.mark.parametrize(("smaller", "larger"), [("box-interval", "stbp-interval"), ("stbp-backward", "stbp-alpha")])
def test_a_broken_theorem_is_a_contradiction(smaller: str, larger: str) -> None:
    with pytest.raises(SoundnessError, match="theory"):
        check([row(smaller, 0.2), row(larger, 0.1)])


def test_the_two_linear_programs_must_agree_where_both_came_to_their_end() -> None:
    with pytest.raises(SoundnessError, match="cvxpy"):
        check([row("lp", 0.2), row("lp-cvxpy", 0.21)])
    check([row("lp", 0.1, late=True), row("lp-cvxpy", 0.21)])


def test_a_wide_bracket_is_no_optimum() -> None:
    assert bracket([row("milp", 0.1, 0.2)]).exact is None
    assert bracket([row("attack", upper=0.1), row("lp", 0.1)]).exact is None  # only complete methods prove


def test_shares_and_the_ratio_to_the_best_box_method() -> None:
    rows = []
    for i in range(4):
        own = {"digest": str(i)}
        rows += [
            row("attack", upper=1.0 if i < 3 else -1.0, **own),
            row("box-interval", 0.1 if i == 0 else -1.0, **own),
        ]
        rows += [row("box-backward", -1.0, **own), row("stbp-backward", 0.1 if i < 2 else -1.0, **own)]
    (point,) = points(rows)
    assert (point.questions, point.unbroken, point.best_box) == (4, 0.75, 0.25)
    assert point.certified["stbp-backward"] == 0.5
    assert ratio(point) == "**2.00**"
    assert "| net | window:2 | 0.03 | 4 | 25 |" in page(rows, "command")


def test_a_timeout_certifies_nothing() -> None:
    (point,) = points([row("lp", None, ended="timeout"), row("box-interval", 0.1)])
    assert point.certified == {"box-interval": 1.0, "lp": 0.0}
    assert point.unbroken is None
