"""`python -m stbp_milp` is the program `stbp-milp`."""

import sys

from stbp_milp.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m stbp_milp"))
