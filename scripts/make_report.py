#!/usr/bin/env python
"""A run's results as one HTML file; `--help` explains."""

import sys

from stbp_milp.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
