"""From run records to tables, plots and one HTML page: everything is read from what runs left behind.

runs, remote -> settings, protocol, significance -> table -> figures, pictures -> page, summary
"""

from triptych.report.page import summary, write
from triptych.report.request import check
from triptych.report.runs import Run, find, names, read
from triptych.report.significance import TEST
from triptych.report.table import Table, build, to_csv, to_markdown

__all__ = [
    "TEST",
    "Run",
    "Table",
    "build",
    "check",
    "find",
    "names",
    "read",
    "summary",
    "to_csv",
    "to_markdown",
    "write",
]
