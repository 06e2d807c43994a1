#!/usr/bin/env python
"""A list of instances, each within its limits, on this machine or a cluster; `--help` explains."""

import sys

from stbp_milp.cli.batch import main

if __name__ == "__main__":
    sys.exit(main())
