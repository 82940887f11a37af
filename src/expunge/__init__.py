"""Make a language model forget what it must forget, keep what it must keep, and prove both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "ExpungeError",
    "Recipe",
    "Record",
    "Request",
    "Scorecard",
    "Subject",
    "__version__",
    "audit_model",
    "load_recipe",
    "load_request",
    "load_subject",
    "plan",
    "run",
    "unlearn",
    "write_reports",
]

_HOMES = {
    "ExpungeError": "expunge.errors",
    "Recipe": "expunge.runs.recipe",
    "Record": "expunge.data.records",
    "Request": "expunge.data.request",
    "Scorecard": "expunge.audit.scorecard",
    "Subject": "expunge.subjects.subject",
    "audit_model": "expunge.runs.api",
    "load_recipe": "expunge.runs.reading",
    "load_request": "expunge.data",
    "load_subject": "expunge.subjects.subject",
    "plan": "expunge.runs.plan",
    "run": "expunge.runs.api",
    "unlearn": "expunge.runs.api",
    "write_reports": "expunge.reports",
}

if TYPE_CHECKING:
    from expunge.audit.scorecard import Scorecard
    from expunge.data import load_request
    from expunge.data.records import Record
    from expunge.data.request import Request
    from expunge.errors import ExpungeError
    from expunge.reports import write_reports
    from expunge.runs.api import audit_model, run, unlearn
    from expunge.runs.plan import plan
    from expunge.runs.reading import load_recipe
    from expunge.runs.recipe import Recipe
    from expunge.subjects.subject import Subject, load_subject


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for: `import expunge` costs nothing."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
