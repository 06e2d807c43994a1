"""Values as JSON can say them, and their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` without tuples, numpy's numbers and infinities; infinite numbers become the strings "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def digest_of(value: Any) -> str:
    """sha256 of `value` as JSON with sorted keys, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()
