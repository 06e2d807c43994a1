"""ST-Bench: families of clips, networks and questions about them, and the small version that is shipped.

A *bench* is a folder in VNN-COMP's layout (see `layout`). `scripts/make_st_bench.py` makes benches; `SHIPPED` is one.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

SHIPPED = Path(str(files(__name__))) / "shipped"
