"""One annotator, one file: columns that evidence carries beyond the teacher-forced pass and generation."""

from expunge.measure.annotators.base import (
    ANNOTATORS,
    Annotator,
    Asked,
    annotate,
    annotators_of,
    described,
    peers_of,
)

__all__ = ["ANNOTATORS", "Annotator", "Asked", "annotate", "annotators_of", "described", "peers_of"]
