#!/usr/bin/env python
"""Writes one of our specifications as VNN-LIB:  write_property.py MODEL.onnx SPECIFICATION.json OUT.vnnlib[.gz]"""

import sys
from pathlib import Path

from stbp_milp.errors import InputError
from stbp_milp.instances import read_specification
from stbp_milp.interop import write_vnnlib
from stbp_milp.network.model import load_model


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    model, specification, out = arguments
    try:
        boxes = write_vnnlib(read_specification(specification).query(load_model(model)), Path(out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {boxes} {'box' if boxes == 1 else 'boxes'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
