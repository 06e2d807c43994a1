"""A run as a single HTML file that people can open in a browser, filter and pass on.

`run` reads the folder of a run, `changes` compares two runs, `clips` packs counterexamples, `figures` computes summary
numbers, and `page` writes everything into one file that needs no server and no network.
"""

from stbp_milp.report.html.page import Written, write_report

__all__ = ["Written", "write_report"]
