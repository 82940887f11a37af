"""The schema and the store of evidence. No torch here."""

from expunge.evidence.schema import FORGET_SIDE, Evidence, Row, is_forget_side, variant_kind
from expunge.evidence.store import read_evidence, write_evidence

__all__ = [
    "FORGET_SIDE",
    "Evidence",
    "Row",
    "is_forget_side",
    "read_evidence",
    "variant_kind",
    "write_evidence",
]
