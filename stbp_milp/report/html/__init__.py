"""A run as one HTML file: what people open in a browser, filter, look at and hand on.

`run` reads the folder of a run, `changes` compares two of them, `clips` packs counterexamples, `figures` sums up and
`page` writes it all into one file that asks nothing of a server or a network.
"""

from stbp_milp.report.html.page import Written, write_report

__all__ = ["Written", "write_report"]
