"""Reading VNN-LIB: the region is what the formula says; what is not understood is named with its line.

By hand: x in [0, 1] or x in [2, 3], unsafe where y >= 1 in the first box, where y <= 0 and y >= -1 in the second.
"""

from __future__ import annotations

import gzip
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from stbp_milp.errors import InputError
from stbp_milp.interop import UnsafeRegion, read_vnnlib
from tests.interop.reference import declarations, holds, random_text

BY_HAND = """
(declare-const X_0 Real) ; one input
(declare-const Y_0 Real)
(assert (or
    (and (>= X_0 0) (<= X_0 1.0) (>= Y_0 1e0))
    (and (>= X_0 2.0)
         (<= X_0 3.) (<= Y_0 0.0) (>= Y_0 (- 1.0)))))
"""


def written(folder: Path, text: str, name: str = "property.vnnlib") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def unsafe(region: UnsafeRegion, inputs: list[float], outputs: list[float]) -> bool:
    x, y = np.array(inputs), torch.tensor([outputs], dtype=torch.float64)
    return any(
        bool(((box.lower <= x) & (x <= box.upper)).all()) and float(box.property.margin(y)[0]) <= 0
        for box in region.boxes
    )


def region_or_none(path: Path) -> UnsafeRegion | None:
    """None where contradicting bounds leave no input: refused, being a mistake more likely than a proof."""
    try:
        return read_vnnlib(path)
    except InputError as error:
        if "boxes are empty" in str(error):
            return None
        raise


def test_by_hand(tmp_path: Path) -> None:
    region = read_vnnlib(written(tmp_path, BY_HAND))
    assert (region.inputs, region.outputs, len(region.boxes)) == (1, 1, 2)
    first, second = region.boxes
    assert (first.lower[0], first.upper[0]) == (0.0, 1.0)
    assert first.property.clauses == ((0,),)
    assert (second.lower[0], second.upper[0]) == (2.0, 3.0)
    assert second.property.clauses == ((0, 1),)
    # Equality is unsafe, so our property asks for more than that.
    assert float(first.property.margin(torch.tensor([[1.0]]))[0]) == 0.0
    assert float(first.property.margin(torch.tensor([[0.75]]))[0]) == 0.25
    assert float(second.property.margin(torch.tensor([[0.5]]))[0]) == 0.5


@pytest.mark.parametrize("seed", range(80))
def test_the_region_is_what_the_formula_says(tmp_path: Path, seed: int) -> None:
    text = random_text(seed)
    grid = [Fraction(n, 4) for n in range(-5, 6)]
    random = np.random.default_rng(seed)
    points = [[grid[k] for k in random.integers(len(grid), size=4)] for _ in range(300)]
    points += [[x, y, z, z] for x, y in itertools.product(grid, grid) for z in (Fraction(0), Fraction(1, 4))]
    names = ("X_0", "X_1", "Y_0", "Y_1")
    expected = [holds(text, dict(zip(names, point, strict=True))) for point in points]
    region = region_or_none(written(tmp_path, text))
    if region is None:
        assert not any(expected)
        return
    for point, wanted in zip(points, expected, strict=True):
        x0, x1, y0, y1 = map(float, point)
        assert unsafe(region, [x0, x1], [y0, y1]) == wanted, (point, text)


def test_cases_of_one_box_are_clauses_of_one_property(tmp_path: Path) -> None:
    text = declarations(2, 3) + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= X_1 1))(assert (>= X_1 0))"
    text += "(assert (or (and (>= Y_0 Y_2)) (and (>= Y_1 Y_2) (<= Y_0 0.5)) (>= Y_0 Y_2)))"
    (box,) = read_vnnlib(written(tmp_path, text)).boxes
    assert box.property.clauses == ((0,), (1, 2))
    assert box.property.rows.tolist() == [[-1, 0, 1], [0, -1, 1], [1, 0, 0]]
    assert box.property.offset.tolist() == [0, 0, -0.5]


def test_compressed_files_say_the_same(tmp_path: Path) -> None:
    plain = read_vnnlib(written(tmp_path, BY_HAND))
    packed = read_vnnlib(written(tmp_path, BY_HAND, "property.vnnlib.gz"))
    for one, other in zip(plain.boxes, packed.boxes, strict=True):
        assert np.array_equal(one.lower, other.lower)
        assert np.array_equal(one.upper, other.upper)
        assert torch.equal(one.property.rows, other.property.rows)


def test_numbers_are_the_nearest_doubles(tmp_path: Path) -> None:
    text = declarations(2, 1) + "(assert (>= X_0 0.1))(assert (<= X_0 0.30000000000000001665))(assert (>= Y_0 0.1))"
    text += "(assert (>= (+ X_1 0.1) 0.3))(assert (<= (* 3 X_1) 1))"
    (box,) = read_vnnlib(written(tmp_path, text)).boxes
    assert box.lower.tolist() == [0.1, 0.2]  # exactly 0.3 - 0.1 is rounded once
    assert box.upper.tolist() == [0.3, 1 / 3]


HEAD = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(assert (<= X_0 1))(assert (>= X_0 0))\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (HEAD + "(assert (<= Y_0 1)", 4, "without its ')'"),
        (HEAD + "(assert (<= Y_0 1)))", 4, "without its '('"),
        ("X_0", 1, "is not a command"),
        ("\n()", 2, "is not a command"),
        (HEAD + "(assume (<= Y_0 1))", 4, "unknown command"),
        ("(vnnlib-version <2.0>)", 1, "VNN-LIB 1.0"),
        (HEAD + "(assert\n (<= Y_1 1))", 5, "Y_1 is not declared"),
        (HEAD + "(assert (<= X_9 1))", 4, "X_9 is not declared"),
        (HEAD + "(assert (<= Z_0 1))", 4, "'Z_0' is neither"),
        (HEAD + "(assert (<= Y_0 nan))", 4, "'nan' is neither"),
        (HEAD + "(assert (< Y_0 1))", 4, "expected and, or, <=, >="),
        (HEAD + "(assert (not (<= Y_0 1)))", 4, "expected and, or, <=, >="),
        (HEAD + "(assert (<= Y_0 1 2))", 4, "of two terms"),
        (HEAD + "(assert Y_0)", 4, "is not a condition"),
        (HEAD + "(assert (or))", 4, "is not a condition"),
        (HEAD + "(assert (<= 0 1))", 4, "compares numbers"),
        (HEAD + "(assert (<= (- Y_0 Y_0) 1))", 4, "compares numbers"),
        (HEAD + "(assert (<= X_0 Y_0))", 4, "single inputs"),
        (HEAD + "(assert (<= (* Y_0 Y_0) 1))", 4, "multiplies two variables"),
        (HEAD + "(assert (<= (/ Y_0 2) 1))", 4, "unknown function '/'"),
        (HEAD + "(assert (<= (+) 1))", 4, "is not an expression"),
        (HEAD + "(declare-const X_0 Real)", 4, "declared twice"),
        (HEAD + "(declare-const X Real)", 4, "is no input X_i"),
        (HEAD + "(declare-const Y_1 Int)", 4, "declare-const X_0 Real"),
        ("(" * 300, 1, "groups are nested more than"),
        (HEAD + "(assert (and " + "(or (<= Y_0 0) (>= Y_0 1))" * 23 + "))", 4, "more than 5000000 cases"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(InputError) as raised:
        read_vnnlib(written(tmp_path, text))
    message = str(raised.value)
    assert message.startswith(f"line {line} of '{tmp_path}/property.vnnlib': ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "declares no X_0"),
        ("(declare-const X_0 Real)", "declares no Y_0"),
        ("(declare-const X_0 Real)(declare-const X_2 Real)(declare-const Y_0 Real)", "declares no X_1"),
        (HEAD, "without a condition on outputs"),
        (HEAD + "(assert (or (<= Y_0 1) (<= X_0 0.5)))", "without a condition on outputs"),
        (HEAD + "(assert (>= X_0 2))(assert (>= Y_0 0))", "boxes are empty"),
        (declarations(2, 1) + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= Y_0 0))", "bounds X_1 by [-inf, inf]"),
        (declarations(1, 1) + "(assert (<= X_0 1e39))(assert (>= X_0 0))(assert (<= Y_0 0))", "bounds X_0 by [0, inf]"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        read_vnnlib(written(tmp_path, text))
    assert says in str(raised.value)
    assert "property.vnnlib" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.vnnlib.gz").write_bytes(gzip.compress(BY_HAND.encode())[:40])
    (tmp_path / "plain.vnnlib.gz").write_text(BY_HAND)
    (tmp_path / "binary.vnnlib").write_bytes(b"\xff\xfe(")
    for name in ("cut.vnnlib.gz", "plain.vnnlib.gz", "binary.vnnlib", "absent.vnnlib"):
        with pytest.raises(InputError, match=name):
            read_vnnlib(tmp_path / name)
