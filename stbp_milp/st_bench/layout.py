"""A bench as files: the names in its folder, and its questions as data.

A *question* is a network, a clip, a set and a property, with a time limit, and the verdict if it is known. It is
written as one of our specifications, and also as a VNN-LIB file if its set is a union of few boxes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stbp_milp.instances import Specification
from stbp_milp.sets import SetSpecification

NETWORKS, CLIPS, SPECIFICATIONS, PROPERTIES = "onnx", "clips", "specifications", "vnnlib"
INSTANCES, INSTANCES_VNNLIB = "instances.csv", "instances_vnnlib.csv"
DESCRIPTION, CHECKSUMS = "bench.json", "SHA256SUMS"


@dataclass(frozen=True)
class NetworkName:
    """A network of the bench by family, size and way of training."""

    family: str
    size: str
    way: str

    @property
    def stem(self) -> str:
        return f"{self.clips_stem}-{self.way}"

    @property
    def clips_stem(self) -> str:
        return f"{self.family}-{self.size}"

    @property
    def file(self) -> str:
        return f"{NETWORKS}/{self.stem}.onnx"


@dataclass(frozen=True)
class Question:
    """One instance.

    Attributes:
        stem: the stem of its files, unique in the bench.
        name: a name for people to read.
        clip: the index of the clip among the family's clips.
        begins: the smallest radius at which our attack succeeded; None: not searched, or none up to 1.
        factor: epsilon as a multiple of `begins` (of 1 if that is None); None: chosen by hand.
        label, top_k, tolerance, expected: as in a specification.
        timeout: seconds.
    """

    stem: str
    name: str
    network: NetworkName
    clip: int
    set: str
    epsilon: float
    timeout: float
    begins: float | None = None
    factor: float | None = None
    label: int | None = None
    top_k: int = 1
    tolerance: float | None = None
    expected: str | None = None

    @property
    def specification_file(self) -> str:
        return f"{SPECIFICATIONS}/{self.stem}.json"

    @property
    def vnnlib_file(self) -> str:
        return f"{PROPERTIES}/{self.stem}.vnnlib.gz"

    def specification(self, bench: Path) -> Specification:
        """As a specification in the bench's folder."""
        return Specification(
            f"../{CLIPS}/{self.network.clips_stem}.npz:clips[{self.clip}]",
            SetSpecification(self.set, self.epsilon),
            bench / SPECIFICATIONS,
            self.label,
            self.top_k,
            self.tolerance,
            self.expected,
            self.name,
            domain_given=True,
        )

    def entries(self) -> dict[str, Any]:
        """As JSON; `of_entries` is the inverse."""
        return asdict(self)

    @classmethod
    def of_entries(cls, entries: dict[str, Any]) -> Question:
        return cls(**(entries | {"network": NetworkName(**entries["network"])}))
