#!/usr/bin/env python
"""A complete verdict on one clip, or the shipped bench; `--help` explains."""

import sys

from stbp_milp.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
