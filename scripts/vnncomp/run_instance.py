#!/usr/bin/env python
"""One instance of VNN-COMP; called by run_instance.sh."""

import sys

from stbp_milp.interop.competition import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
