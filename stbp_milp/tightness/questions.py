"""The questions of a study: the instances of a bench, each at its own radius or at several.

A *budget* is the quantity on a curve's x-axis: the radius, or a multiple of the radius in the specification.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from stbp_milp.errors import InputError
from stbp_milp.instance_list import read_instances
from stbp_milp.instances import read_specification
from stbp_milp.network.model import Model, load_model
from stbp_milp.query import Query


@dataclass(frozen=True)
class Sweep:
    """Other radii than the specification's: multiples of it, or absolute ones in the unit of the data."""

    values: tuple[float, ...]
    absolute: bool = False


@dataclass(frozen=True)
class Question:
    """One instance at one radius.

    Attributes:
        instance: the specification's path in the bench.
        epsilon: radius in the unit of the data.
        factor: multiple of the specification's radius; None where radii are absolute.
        timeout: seconds, as the bench says.
        digest: the digest of the model, the clip, the property and the set's text, which identifies the question.
    """

    instance: str
    model: Path
    specification: Path
    set: str
    epsilon: float
    factor: float | None
    timeout: float
    digest: str

    def query(self, model: Model) -> Query:
        """Loads the model and returns the question about it."""
        specification = read_specification(self.specification)
        return replace(specification, set=replace(specification.set, epsilon=self.epsilon)).query(model)


def read_questions(
    bench: Path, sweep: Sweep | None = None, only: str | None = None, count: int | None = None
) -> list[Question]:
    """Reads the questions about the instances in `bench / instances.csv`; each is built once, as a check.

    Args:
        only: a pattern, for example `*window*`, that the specification's or the model's path must match.
        count: the largest number of instances.

    Raises:
        InputError: the bench, a model, a specification or a clip cannot be used.
    """
    models: dict[Path, Model] = {}
    questions = []
    instances = [
        i
        for i in read_instances(bench / "instances.csv")
        if only is None or any(fnmatch(str(path.relative_to(bench)), only) for path in (i.specification, i.model))
    ]
    if not instances:
        raise InputError(
            f"no instance of {str(bench)!r} matches {only!r}; see its instances.csv and give another --only"
        )
    for instance in instances[:count]:
        specification = read_specification(instance.specification)
        model = models.get(instance.model) or load_model(instance.model)
        models[instance.model] = model
        _check(model, instance.model)
        query = specification.query(model)
        words = (model.digest, query.clip.numpy().tobytes(), query.property.text, specification.set.domain)
        digest = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
        own = specification.set.epsilon
        values: tuple[float, ...] = (1.0,) if sweep is None else sweep.values
        for value in values:
            epsilon = value if sweep is not None and sweep.absolute else value * own
            replace(specification.set, epsilon=epsilon).build(query.clip)
            questions.append(
                Question(
                    str(instance.specification.relative_to(bench)),
                    instance.model,
                    instance.specification,
                    specification.set.text,
                    epsilon,
                    None if sweep is None or sweep.absolute else value,
                    instance.timeout,
                    digest,
                )
            )
    return questions


def _check(model: Model, path: Path) -> None:
    """Refuses a network whose exact optima no MILP finds."""
    if not model.network.is_piecewise_linear:
        raise InputError(
            f"the model {path.name!r} has smooth functions or products; expected piecewise linear "
            "networks, whose exact optima a MILP finds"
        )
