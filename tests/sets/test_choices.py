"""Every set against its definition: the covers written out with itertools.

By hand first: three frames of one pixel, all 0.5, radius 0.1 except that the last frame is saturated at 1; the form is
(2, -3, 4). The gains are 0.2, 0.3 and 0 (upwards there is no room), the clean value is 1 - 1.5 + 4 = 3.5.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.sets import Choice, PerturbationSet, SetSpecification, VoxelBox, concatenate, parse_set, support
from tests import enumeration
from tests.enumeration import SETS

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)
shapes = st.tuples(st.integers(3, 4), st.integers(2, 3), st.integers(2, 3))
epsilons = st.sampled_from([0.0, 1 / 255, 0.3, 0.8, 2.0])  # 2.0: any value of the domain


@pytest.mark.parametrize(
    ("text", "gain"),
    [
        ("everywhere", 0.5),
        ("frames:0,2", 0.2),
        ("any-frames:1", 0.3),
        ("any-frames:2", 0.5),
        ("window:2", 0.5),
        ("window:1", 0.3),
        ("patch:1x1@1", 0.3),
        ("patch-at:2,0,0:1x1@1", 0.0),
        ("moving-patch:1x1@2", 0.5),
        ("pixels:1", 0.3),
        ("pixels-per-frame:1", 0.5),
    ],
)
def test_support_by_hand(text: str, gain: float) -> None:
    clip = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64).view(1, 3, 1, 1)
    perturbation = SetSpecification(text, 0.1).build(clip)
    form = torch.tensor([2.0, -3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 3, 1, 1)
    assert float(support(perturbation, form)) == pytest.approx(3.5 + gain)


def draw(text: str, seed: int, voxels: tuple[int, int, int], epsilon: float, channels: int = 2) -> PerturbationSet:
    return SetSpecification(text, epsilon).build(enumeration.random_clip(seed, channels, voxels))


def random_form(seed: int, shape: tuple[int, ...], rows: int = 3) -> Tensor:
    """(1, rows, *shape), with ties and zeros."""
    generator = torch.Generator().manual_seed(seed + 1)
    form = torch.randn(1, rows, *shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(form.shape, generator=generator) < 0.2, form.round(), form)


def supports(perturbation: PerturbationSet, form: Tensor) -> Tensor:
    """Of every part, the form repeated."""
    return support(perturbation, form.expand(perturbation.parts, *form.shape[1:]))


@each_set
@given(seed=seeds, voxels=shapes, epsilon=epsilons)
def test_support_equals_enumeration(text: str, seed: int, voxels: tuple[int, int, int], epsilon: float) -> None:
    perturbation = draw(text, seed, voxels, epsilon)
    lower, upper = enumeration.boxes(text, perturbation.clip, epsilon)
    form = random_form(seed, tuple(perturbation.clip.shape))
    expected = [float(enumeration.largest(row, lower, upper)) for row in form[0]]
    assert support(perturbation, form)[0].tolist() == pytest.approx(expected, abs=1e-11)
    assert float(perturbation.choice.members()[0]) == enumeration.covers(text, voxels).shape[0]


@each_set
@given(seed=seeds, voxels=shapes, epsilon=epsilons)
def test_maximiser_attains_the_support_and_is_in_the_set(
    text: str, seed: int, voxels: tuple[int, int, int], epsilon: float
) -> None:
    perturbation = draw(text, seed, voxels, epsilon)
    lower, upper = enumeration.boxes(text, perturbation.clip, epsilon)
    form = random_form(seed, tuple(perturbation.clip.shape))
    best = perturbation.maximiser(form)
    assert (form * best).flatten(2).sum(-1)[0].tolist() == pytest.approx(
        support(perturbation, form)[0].tolist(), abs=1e-11
    )
    assert all(bool((((clip >= lower - 1e-15) & (clip <= upper + 1e-15)).flatten(1).all(1)).any()) for clip in best[0])
    low, high = perturbation.hull()
    assert torch.equal(low[0], lower.amin(0))
    assert torch.equal(high[0], upper.amax(0))


@each_set
@given(seed=seeds, voxels=shapes, epsilon=epsilons)
def test_samples_and_nearest_clips_are_in_the_set(
    text: str, seed: int, voxels: tuple[int, int, int], epsilon: float
) -> None:
    perturbation = draw(text, seed, voxels, epsilon)
    boxes = enumeration.boxes(text, perturbation.clip, epsilon)
    generator = torch.Generator().manual_seed(seed)
    samples = perturbation.sample(8, generator)
    assert bool(perturbation.contains(samples).all())
    assert all(enumeration.holds(clip, *boxes) for clip in samples)
    assert torch.equal(perturbation.nearest(samples), samples)
    noise = torch.randn(samples.shape, generator=generator, dtype=torch.float64)
    assert all(enumeration.holds(clip, *boxes) for clip in perturbation.nearest(samples + noise))


@each_set
@given(seed=seeds, voxels=shapes, epsilon=st.sampled_from([0.01, 0.3]))
def test_contains_equals_the_definition(text: str, seed: int, voxels: tuple[int, int, int], epsilon: float) -> None:
    """On clips of the set, and on clips with one voxel more, and with one voxel a little too far."""
    perturbation = draw(text, seed, voxels, epsilon)
    boxes = enumeration.boxes(text, perturbation.clip, epsilon)
    clips = perturbation.maximiser(random_form(seed, tuple(perturbation.clip.shape), 4))[0]
    generator = torch.Generator().manual_seed(seed)
    for clip in clips.clamp(perturbation.lower, perturbation.upper):
        at = int(torch.randint(clip.numel(), (1,), generator=generator))
        for side in (perturbation.lower, perturbation.upper):
            one_more = clip.clone()
            one_more.view(-1)[at] = side.reshape(-1)[at]
            assert bool(perturbation.contains(one_more.unsqueeze(0))[0]) == enumeration.holds(one_more, *boxes)
        for sign, side in ((-1, perturbation.lower), (1, perturbation.upper)):
            too_far = clip.clone()
            beyond = side.reshape(-1)[at]
            too_far.view(-1)[at] = torch.nextafter(beyond, beyond + sign)
            assert not bool(perturbation.contains(too_far.unsqueeze(0))[0])
        assert bool(perturbation.contains(clip.unsqueeze(0))[0])


@pytest.mark.parametrize("text", [s for s in SETS if s != "everywhere"])
@given(seed=seeds, voxels=shapes)
def test_one_cover_too_many_is_outside(text: str, seed: int, voxels: tuple[int, int, int]) -> None:
    """A maximal cover and one voxel that no member adds to it."""
    perturbation = draw(text, seed, voxels, 0.3)
    covers = torch.from_numpy(enumeration.covers(text, voxels))
    random = np.random.default_rng(seed)
    cover = covers[int(random.integers(len(covers)))]
    clip = torch.where(
        cover,
        torch.where(perturbation.upper > perturbation.clip, perturbation.upper, perturbation.lower),
        perturbation.clip,
    )
    assert bool(perturbation.contains(clip.unsqueeze(0))[0])
    outside = (~cover).nonzero()
    t, i, j = outside[int(random.integers(len(outside)))].tolist()
    larger = cover.clone()
    larger[t, i, j] = True
    if not bool((larger <= covers).flatten(1).all(1).any()):
        clip[0, t, i, j] = (
            perturbation.lower[0, t, i, j] if perturbation.clip[0, t, i, j] > 0.5 else perturbation.upper[0, t, i, j]
        )
        assert not bool(perturbation.contains(clip.unsqueeze(0))[0])


# --- splits -----------------------------------------------------------------------------------------------


def maximal_covers(choice: Choice, part: int) -> set[bytes]:
    """The covers of a part, from its program, by listing all integer points."""
    program = choice.program(part)
    count = program.cover.shape[1]
    found = set()
    for bits in np.ndindex(*(2,) * count):
        z = np.array(bits, dtype=float)
        activity = program.rows @ z
        if ((activity >= program.row_lower) & (activity <= program.row_upper)).all():
            found.add((program.cover @ z > 0.5).reshape(choice.voxels).tobytes())
    masks = [np.frombuffer(m, dtype=bool) for m in found]
    return {m.tobytes() for m in masks if not any((m <= other).all() and (m != other).any() for other in masks)}


SMALL = {  # few enough integer variables to list all points
    "everywhere": (2, 2, 2),
    "frames:0,2": (3, 1, 2),
    "any-frames:2": (4, 1, 1),
    "window:2": (4, 1, 2),
    "patch:2x1@2": (3, 3, 2),
    "moving-patch:2x1@2": (3, 2, 2),
    "patch-at:1,0,1:2x1@2": (3, 2, 2),
    "pixels:2": (2, 2, 2),
    "pixels-per-frame:1": (2, 2, 2),
}


@pytest.mark.parametrize("text", list(SMALL))
def test_program_lists_the_covers(text: str) -> None:
    choice = parse_set(text, SMALL[text])
    assert maximal_covers(choice, 0) == {m.tobytes() for m in enumeration.covers(text, SMALL[text])}


@pytest.mark.parametrize("text", list(SMALL))
@given(seed=seeds)
def test_children_hold_exactly_the_members_of_their_parent(text: str, seed: int) -> None:
    """Down to single members: the covers of all parts of a generation, and their number, stay the same."""
    perturbation = SetSpecification(text, 0.2).build(enumeration.random_clip(seed, 1, SMALL[text]))
    generator = torch.Generator().manual_seed(seed)
    pending, alone = perturbation, []
    expected = maximal_covers(perturbation.choice, 0)
    for _ in range(40):
        members = pending.choice.members()
        alone += [pending.choice.select(torch.tensor([i])) for i in (members <= 1).nonzero().flatten().tolist()]
        pending = pending.select((members > 1).nonzero().flatten())
        if not pending.parts:
            break
        forms = torch.randn(pending.parts, *perturbation.clip.shape, generator=generator, dtype=torch.float64)
        children, parents = pending.split(forms)
        assert sorted(set(parents.tolist())) == list(range(pending.parts))
        for parent in range(pending.parts):
            own = (parents == parent).nonzero().flatten().tolist()
            covers = [maximal_covers(children.choice, child) for child in own]
            assert set().union(*covers) == maximal_covers(pending.choice, parent)
            assert sum(map(len, covers)) == len(set().union(*covers))
            assert float(pending.choice.members()[parent]) == sum(len(c) for c in covers)
        pending = children
    assert not pending.parts
    assert {choice.union()[0].numpy().tobytes() for choice in alone} == expected
    assert len(alone) == len(expected)


@each_set
@given(seed=seeds, voxels=shapes, epsilon=epsilons)
def test_support_of_the_parent_is_the_largest_of_its_children(
    text: str, seed: int, voxels: tuple[int, int, int], epsilon: float
) -> None:
    perturbation = draw(text, seed, voxels, epsilon)
    form = random_form(seed, tuple(perturbation.clip.shape))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        forms = torch.randn(perturbation.parts, *perturbation.clip.shape, generator=generator, dtype=torch.float64)
        children, parents = perturbation.split(forms)
        if not children.parts:
            assert bool((perturbation.choice.members() == 1).all())
            break
        own, theirs = supports(perturbation, form), supports(children, form)
        for parent in set(parents.tolist()):
            assert theirs[parents == parent].amax(0).tolist() == pytest.approx(own[parent].tolist(), abs=1e-11)
        assert sorted(set(parents.tolist())) == (perturbation.choice.members() > 1).nonzero().flatten().tolist()
        clips = children.maximiser(form.expand(children.parts, *form.shape[1:]))
        for i in range(children.parts):
            inside = children.select(torch.tensor([i])).contains(clips[i].clamp(perturbation.lower, perturbation.upper))
            assert bool(inside.all())
        perturbation = children


@each_set
@given(seed=seeds, voxels=shapes)
def test_select_and_concatenate(text: str, seed: int, voxels: tuple[int, int, int]) -> None:
    perturbation = draw(text, seed, voxels, 0.2)
    generator = torch.Generator().manual_seed(seed)
    parts = [perturbation]
    for _ in range(2):
        last = parts[-1]
        forms = torch.randn(last.parts, *last.clip.shape, generator=generator, dtype=torch.float64)
        children, _ = last.split(forms)
        if children.parts:
            parts.append(children)
    together = concatenate(parts)
    assert together.parts == sum(p.parts for p in parts)
    form = random_form(seed, tuple(perturbation.clip.shape))
    one_by_one = torch.cat([supports(p, form) for p in parts])
    assert torch.equal(supports(together, form), one_by_one)
    order = torch.randperm(together.parts, generator=generator)
    assert torch.equal(supports(together.select(order), form), one_by_one[order])
    assert torch.equal(together.choice.select(order).members(), torch.cat([p.choice.members() for p in parts])[order])


def test_more_members_than_a_float_holds() -> None:
    """12^300 places: the count is infinite, not NaN (a part that counts neither as one nor as several is lost)."""
    choice = parse_set("moving-patch:1x1@300", (310, 1, 12))
    for _ in range(6):
        assert bool((choice.members() > 1).all())
        choice, _ = choice.split(torch.zeros(choice.parts, 310, 1, 12))
    pixels = parse_set("pixels:20000", (300, 16, 16))
    assert bool((pixels.members() > 1).all())


# --- programs ---------------------------------------------------------------------------------------------


@each_set
@given(seed=seeds, epsilon=st.sampled_from([0.1, 0.6, 2.0]), splits=st.integers(0, 2))
def test_program_and_its_relaxation_have_the_support(text: str, seed: int, epsilon: float, splits: int) -> None:
    """`max <form, x>` as an integer program and as a linear one, for the set and for parts of it."""
    perturbation = draw(text, seed, (3, 2, 2), epsilon)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(splits):
        forms = torch.randn(perturbation.parts, *perturbation.clip.shape, generator=generator, dtype=torch.float64)
        children, _ = perturbation.split(forms)
        perturbation = children if children.parts else perturbation
    part = perturbation.select(torch.tensor([int(torch.randint(perturbation.parts, (1,), generator=generator))]))
    form = random_form(seed, tuple(perturbation.clip.shape), 1)
    program = part.choice.program(0)
    size, count = part.clip.numel(), program.cover.shape[1]
    centre, low, high = (x.flatten().numpy() for x in (part.clip, part.lower, part.upper))
    cover = np.tile(program.cover.toarray(), (part.clip.shape[0], 1))
    rows = np.block(
        [
            [np.eye(size), -(high - centre)[:, None] * cover],  # x - (u - c) cover z <= c
            [-np.eye(size), -(centre - low)[:, None] * cover],
            [np.zeros((program.rows.shape[0], size)), program.rows.toarray()],
        ]
    )
    upper = np.concatenate([centre, -centre, program.row_upper])
    lower = np.concatenate([np.full(2 * size, -np.inf), program.row_lower])
    cost = np.concatenate([-form.flatten().numpy(), np.zeros(count)])
    bounds = Bounds(np.concatenate([low, np.zeros(count)]), np.concatenate([high, np.ones(count)]))
    constraint = LinearConstraint(rows, lower, upper)
    whole = milp(cost, integrality=np.repeat([0, 1], [size, count]), bounds=bounds, constraints=constraint)
    relaxed = milp(cost, bounds=bounds, constraints=constraint)
    expected = float(support(part, form))
    assert -whole.fun == pytest.approx(expected, abs=1e-7)
    assert -relaxed.fun == pytest.approx(expected, abs=1e-7)


def test_relaxation_by_linprog_on_one_set() -> None:
    """Any one of three frames with gains 1, 2, 3: also fractional covers gain 3 at most."""
    program = parse_set("any-frames:1", (3, 1, 1)).program(0)
    gains = program.cover.T @ np.array([1.0, 2.0, 3.0])
    assert linprog(-gains, program.rows.toarray(), program.row_upper, bounds=(0, 1)).fun == pytest.approx(-3.0)


# --- batches of boxes -------------------------------------------------------------------------------------


@given(seed=seeds, parts=st.integers(1, 3))
def test_boxes(seed: int, parts: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(2, parts, 5, generator=generator, dtype=torch.float64)
    lower, upper = ends.amin(0), ends.amax(0)
    centre = lower + torch.rand(parts, 5, generator=generator, dtype=torch.float64) * (upper - lower)
    box = VoxelBox(centre, lower, upper)
    form = torch.randn(parts, 2, 5, generator=generator, dtype=torch.float64)
    corners = torch.maximum(form * lower.unsqueeze(1), form * upper.unsqueeze(1)).sum(-1)
    assert support(box, form).flatten().tolist() == pytest.approx(corners.flatten().tolist())
    best = box.maximiser(form)
    assert (form * best).sum(-1).flatten().tolist() == pytest.approx(corners.flatten().tolist())
    assert torch.equal(support(concatenate([box, box]), torch.cat([form, form]))[parts:], support(box, form))


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "unknown set"),
        ("everything", "unknown set"),
        ("everywhere ", "unknown set"),
        ("frames:", "as in frames:3,4"),
        ("frames:1,", "as in frames:3,4"),
        ("frames:-1", "as in frames:3,4"),
        ("frames:0,4", "frame 4"),
        ("any-frames:0", "from 1 to 4"),
        ("any-frames:5", "from 1 to 4"),
        ("any-frames:2.5", "as in any-frames:2"),
        ("window:0", "1 or more"),
        ("window:5", "needs 5 frames"),
        ("patch:3x3", "as in patch:3x3@2"),
        ("patch:0x1@1", "1 or more"),
        ("patch:6x1@1", "6x1 pixels"),
        ("patch:1x7@1", "1x7 pixels"),
        ("patch:1x1@5", "needs 5 frames"),
        ("moving-patch:2x2@0", "1 or more"),
        ("moving-patch:2x9@1", "smaller numbers"),
        ("patch-at:0,0,0:6x1@1", "smaller numbers"),
        ("patch-at:3,0,0:1x1@2", "outside the clip"),
        ("patch-at:0,5,0:1x1@1", "outside the clip"),
        ("patch-at:0,0:1x1@1", "as in patch-at:t,i,j"),
        ("pixels:0", "from 1 to 120"),
        ("pixels:121", "from 1 to 120"),
        ("pixels-per-frame:31", "from 1 to 30"),
        ("PIXELS:1", "unknown set"),
    ],
)
def test_bad_words_are_explained_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_set(text, (4, 5, 6))
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")


@pytest.mark.parametrize(
    ("epsilon", "domain", "clip", "says"),
    [
        (-0.1, (0.0, 1.0), 0.5, "eps is -0.1"),
        (float("nan"), (0.0, 1.0), 0.5, "eps is nan"),
        (0.1, (1.0, 0.0), 0.5, "domain"),
        (0.1, (0.0, 1.0), 1.5, "outside the data domain"),
        (0.1, (0.0, 1.0), float("nan"), "outside the data domain"),
        (0.1, (-1.0, 1.0), -1.5, "--domain"),
    ],
)
def test_bad_numbers_are_explained(epsilon: float, domain: tuple[float, float], clip: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        SetSpecification("everywhere", epsilon, domain).build(torch.full((1, 2, 2, 2), clip, dtype=torch.float64))


def test_a_clip_without_channels_is_refused() -> None:
    with pytest.raises(InputError, match="expected"):
        SetSpecification("everywhere", 0.1).build(torch.zeros(2, 2, 2, dtype=torch.float64))


def test_a_set_that_does_not_fit_its_clip_is_refused() -> None:
    perturbation = draw("any-frames:1", 0, (3, 2, 2), 0.1)
    with pytest.raises(InputError, match="does not fit"):
        replace(perturbation, choice=parse_set("any-frames:1", (2, 2, 2)))
    with pytest.raises(InputError, match="outside its own"):
        replace(perturbation, upper=perturbation.clip - 0.01)


@pytest.mark.parametrize(("domain", "epsilon"), [((0.0, 1.0), 0.4), ((-1.0, 1.0), 0.25), ((0.0, 255.0), 300.0)])
def test_the_box_is_clipped_to_the_domain(domain: tuple[float, float], epsilon: float) -> None:
    low, high = domain
    values = torch.linspace(low, high, 8, dtype=torch.float64).view(1, 2, 2, 2)
    perturbation = SetSpecification("pixels:1", epsilon, domain).build(values)
    assert float(perturbation.lower.min()) == low
    assert float(perturbation.upper.max()) == high
    assert bool((perturbation.upper - values <= epsilon + 1e-12).all())
    assert bool((values - perturbation.lower <= epsilon + 1e-12).all())
