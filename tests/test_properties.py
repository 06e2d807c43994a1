"""Properties mean what their words say: margins are positive exactly where the property holds.

By hand first: scores (3, 1, 2) of classes 0, 1, 2. Class 0 stays first by 1, class 2 stays among the first two by 1
(it loses to 0 by 1, beats 1 by 1), class 1 is not first by -2.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stbp_milp.errors import InputError
from stbp_milp.properties import Property, property_of, same_class, top_k, within_tolerance

seeds = st.integers(0, 10**6)


@pytest.mark.parametrize(
    ("label", "k", "margin"), [(0, 1, 1.0), (2, 2, 1.0), (1, 1, -2.0), (2, 1, -1.0), (1, 2, -1.0), (0, 2, 2.0)]
)
def test_by_hand(label: int, k: int, margin: float) -> None:
    assert top_k(label, k, 3).margin(torch.tensor([[3.0, 1.0, 2.0]])).item() == margin


def scores(seed: int, classes: int, count: int = 50) -> torch.Tensor:
    """Whole numbers, so that ties occur."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, (count, classes), generator=generator).double()


@given(seed=seeds, classes=st.integers(2, 6), k=st.integers(1, 5), label=st.integers(0, 5))
def test_top_k_by_its_definition(seed: int, classes: int, k: int, label: int) -> None:
    """Fewer than k other classes reach the label's score; a tie counts against it."""
    k, label = min(k, classes - 1), label % classes
    outputs = scores(seed, classes)
    others = torch.cat([outputs[:, :label], outputs[:, label + 1 :]], 1)
    holds = (others >= outputs[:, label : label + 1]).sum(1) < k
    margin = top_k(label, k, classes).margin(outputs)
    assert torch.equal(margin > 0, holds)
    # The margin is the distance to the k-th best of the others.
    assert torch.equal(margin, outputs[:, label] - others.sort(1, descending=True).values[:, k - 1])


@given(seed=seeds, classes=st.integers(2, 6), label=st.integers(0, 5))
def test_first_of_one(seed: int, classes: int, label: int) -> None:
    outputs, label = scores(seed, classes), label % classes
    assert torch.equal(same_class(label, classes).margin(outputs), top_k(label, 1, classes).margin(outputs))
    first = outputs.argmax(1) == label
    assert bool((first | (same_class(label, classes).margin(outputs) <= 0)).all())


@given(seed=seeds, outputs=st.integers(1, 3), tolerance=st.sampled_from([0.5, 1.0, 2.5]))
def test_tolerance_by_its_definition(seed: int, outputs: int, tolerance: float) -> None:
    seen = scores(seed, outputs)
    reference = seen[0]
    margin = within_tolerance(reference, tolerance).margin(seen)
    assert torch.equal(margin, tolerance - (seen - reference).abs().amax(1))


@given(seed=seeds, classes=st.integers(2, 6), k=st.integers(1, 5))
def test_forms_are_at_most_their_clauses(seed: int, classes: int, k: int) -> None:
    """A lower bound of the form is one of the clause; with one row a clause they are equal."""
    property = top_k(0, min(k, classes - 1), classes)
    outputs = scores(seed, classes)
    rows, offset = property.forms()
    forms = outputs @ rows.T + offset
    clauses = property.clause_bounds(outputs @ property.rows.T + property.offset)
    assert forms.shape == clauses.shape
    assert bool((forms <= clauses + 1e-12).all())
    if k == 1:
        assert torch.equal(forms, clauses)
    assert torch.equal(clauses.amin(1), property.margin(outputs))


@given(seed=seeds)
def test_mixed_clauses(seed: int) -> None:
    """(row 0 or row 2) and row 1."""
    generator = torch.Generator().manual_seed(seed)
    rows, offset = torch.randn(3, 2, generator=generator).double(), torch.randn(3, generator=generator).double()
    property = Property(rows, offset, ((0, 2), (1,)), "mixed")
    outputs = torch.randn(9, 2, generator=generator).double()
    values = outputs @ rows.T + offset
    expected = torch.minimum(torch.maximum(values[:, 0], values[:, 2]), values[:, 1])
    torch.testing.assert_close(property.margin(outputs), expected)
    forms = outputs @ property.forms()[0].T + property.forms()[1]
    torch.testing.assert_close(forms, torch.stack([(values[:, 0] + values[:, 2]) / 2, values[:, 1]], 1))


@pytest.mark.parametrize(
    ("label", "k", "classes", "says"),
    [(3, 1, 3, "label 3"), (-1, 1, 3, "label -1"), (0, 0, 3, "k = 0"), (0, 3, 3, "k = 3"), (0, 10, 60, "clauses")],
)
def test_bad_properties_are_explained(label: int, k: int, classes: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        top_k(label, k, classes)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_a_tolerance_is_positive(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        within_tolerance(torch.zeros(1), tolerance)


@pytest.mark.parametrize(("label", "top"), [(0, 1), (None, 2), (0, 2)])
def test_a_tolerance_excludes_label_and_top(label: int | None, top: int) -> None:
    with pytest.raises(InputError, match="together"):
        property_of(lambda clips: np.zeros((1, 2)), torch.zeros(1, 1, 1, 1), label, top, 0.1)
