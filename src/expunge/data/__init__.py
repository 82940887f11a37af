"""The request and its records: reading, checking, completing, encoding, pairing."""

from __future__ import annotations

from expunge.data.build import complete_request, load_request
from expunge.data.checks import check_encoded, check_request
from expunge.data.records import Record, Turn
from expunge.data.request import SPLITS, Request, Target

__all__ = [
    "SPLITS",
    "Record",
    "Request",
    "Target",
    "Turn",
    "check_encoded",
    "check_request",
    "complete_request",
    "load_request",
]
