"""The scorecard as a page, Markdown, CSV, a model card and a terminal summary: drawn, never computed."""

from expunge.reports.comparison import compare
from expunge.reports.records import find_record, print_record
from expunge.reports.terminal import print_summary
from expunge.reports.write import write_reports

__all__ = ["compare", "find_record", "print_record", "print_summary", "write_reports"]
