"""Asking a model: the forward pass that feeds every metric, and generation."""

from expunge.measure.take import EvidencePlan, take_evidence

__all__ = ["EvidencePlan", "take_evidence"]
