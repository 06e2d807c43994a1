#!/usr/bin/env python
"""Makes a benchmark of networks, clips and questions that other tools can run too; `--help` explains."""

import sys

from stbp_milp.cli.bench import main

if __name__ == "__main__":
    sys.exit(main())
