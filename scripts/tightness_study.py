#!/usr/bin/env python
"""How tight every bounding method is on the instances of a bench; `--help` explains."""

import sys

from stbp_milp.cli.tightness import main

if __name__ == "__main__":
    sys.exit(main())
