"""Families, networks, and training that can be interrupted.

The networks here are those of ST-Bench; a training has a handful of steps.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stbp_milp.errors import InputError
from stbp_milp.network.torch_reader import read_module
from stbp_milp.sets import parse_set
from stbp_milp.st_bench import SHIPPED
from stbp_milp.st_bench.export import read_clips
from stbp_milp.st_bench.families import FAMILIES, family_named
from stbp_milp.st_bench.training import RECIPES, WAYS, recipe, trained

RELUS = {
    ("activity", "S"): 1_312,
    ("activity", "M"): 12_832,
    ("activity", "L"): 5_055_168,
    ("activity", "L-r3d"): 1_467_648,
    ("driving", "S"): 1_840,
    ("driving", "M"): 15_392,
    ("driving", "L"): 2_476_672,
    ("medical", "S"): 2_304,
    ("medical", "M"): 26_808,
    ("medical", "L"): 6_604_288,
}
STEPS = 6


class Interrupted(Exception):
    """Stands for a power cut."""


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _assert_same(first: nn.Module, second: nn.Module) -> None:
    expected = _weights(second)
    assert _weights(first).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in _weights(first).items())


def test_every_size_is_counted() -> None:
    assert set(RELUS) == {(family.name, size) for family in FAMILIES.values() for size in family.sizes}


@pytest.mark.parametrize(("family", "size"), RELUS)
def test_networks_have_their_relus(family: str, size: str) -> None:
    chosen = FAMILIES[family].size(size)
    network = read_module(chosen.network(), chosen.shape)
    assert sum(prod(network.nodes[i].shape) for i in network.relus) == RELUS[family, size]
    assert network.output_shape == ({"activity": 4, "driving": 1, "medical": 3}[family],)


@pytest.mark.parametrize("size", ["S", "M", "L"])
@pytest.mark.parametrize("name", FAMILIES)
def test_clips_of_every_size(name: str, size: str) -> None:
    family = FAMILIES[name]
    made, targets = family.draw(2, 3, size)
    again, _ = family.draw(2, 3, size)
    assert made.shape == (2, *family.shape(size))
    assert made.dtype == torch.float32
    assert torch.equal(made, again)
    assert 0 <= float(made.min()) < float(made.max()) <= 1
    assert targets.shape == ((2, 1) if family.property_kind == "tolerance" else (2,))
    for text, _ in family.sets:
        assert parse_set(text, (made.shape[2], made.shape[3], made.shape[4])).parts == 1


@pytest.mark.parametrize("name", ["driving", "medical"])
def test_larger_clips_show_the_same(name: str) -> None:
    """Shrunk back by averaging, a clip of twice the size shows what the small one does, up to noise and edges."""
    family = FAMILIES[name]
    _, t, h, w = family.shape("S")
    small, targets = family.draw(40, 5)
    large, same = family.maker(40, 5, (family.shape("S")[0], t, 2 * h, 2 * w))
    shrunk = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert torch.equal(targets, same)
    assert float((shrunk - small).abs().mean()) < 0.04


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_clips_come_from_the_makers(name: str) -> None:
    shipped, _ = read_clips(SHIPPED / "clips" / f"{name}-S.npz")
    made, _ = FAMILIES[name].draw(1000, 777)
    distance = torch.cdist(
        shipped.flatten(1), made.flatten(1), p=float("inf"), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert float(distance.amin(1).max()) < 1e-5


def test_shipped_recipes_are_what_they_were() -> None:
    """Of the shipped networks: seeds, steps and the video network's terms for sparsity and stability."""
    told = [(r.name, r.seed, r.steps, r.batch, r.sparsity, r.stability, r.way) for r in RECIPES]
    assert told == [
        ("video", 1, 1000, 128, 1e-3, 0.1, "pgd"),
        ("volume", 2, 700, 128, 0.0, 0.0, "pgd"),
        ("steering", 3, 600, 128, 0.0, 0.0, "pgd"),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_interrupted_training_ends_as_an_uninterrupted_one(family: str, way: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    seen: list[int] = []
    expected = trained(recipe(family, "S", way, 5, STEPS), whole)

    def stop(step: int, steps: int, loss: float) -> None:
        seen.append(step)
        assert steps == STEPS
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(recipe(family, "S", way, 5, STEPS), parts, stop, save_every=0)
    torch.rand(7)  # another process draws other numbers
    resumed = trained(recipe(family, "S", way, 5, STEPS), parts, lambda step, steps, loss: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not resumed.training
    _assert_same(resumed, expected)
    assert [file.name for file in parts.iterdir()] == [f"{family}-S-{way}-5.pt"]


def test_finished_training_is_loaded(tmp_path: Path) -> None:
    first = trained(recipe("activity", "S", "standard", 5, 2), tmp_path)

    def refuse(step: int, steps: int, loss: float) -> None:
        pytest.fail("it trained again")

    _assert_same(trained(recipe("activity", "S", "standard", 5, 2), tmp_path, refuse), first)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    trained(recipe("medical", "S", "pgd", 0, 1), tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("steps", range(1, 13))
def test_any_number_of_steps(steps: int, tmp_path: Path) -> None:
    counted: list[int] = []
    trained(recipe("activity", "S", "standard", 1, steps), tmp_path, lambda step, total, loss: counted.append(step))
    assert counted == list(range(1, steps + 1))


def test_another_trainings_file_is_refused(tmp_path: Path) -> None:
    trained(recipe("activity", "S", "standard", 5, 1), tmp_path)
    with pytest.raises(InputError, match=r"is of another training .*1 steps.*asked for.*2 steps"):
        trained(recipe("activity", "S", "standard", 5, 2), tmp_path)
    (tmp_path / "activity-S-pgd-5.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"activity-S-pgd-5.pt' is not a checkpoint"):
        trained(recipe("activity", "S", "pgd", 5, 2), tmp_path)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="no family 'cooking'; expected one of: activity, driving, medical"):
        family_named("cooking")
    with pytest.raises(InputError, match="'activity' has no size 'XL'; expected one of: S, M, L, L-r3d"):
        recipe("activity", "XL", "pgd", 1)
    with pytest.raises(InputError, match="no way of training 'magic'; expected one of: standard, pgd, st-ibp"):
        recipe("activity", "S", "magic", 1)
