"""Builders of splits that nobody brought, one form a file: functions of the records and the seed."""

from __future__ import annotations

from expunge.data.builders.auto import Auto, build_auto, that_fit
from expunge.data.builders.hard import FORMS, build_hard
from expunge.data.builders.holdout import build_holdout
from expunge.data.builders.neighbors import build_neighbors
from expunge.data.builders.partial import whole_target
from expunge.data.builders.stress import STRESS_FORMS, Stress, stressed
from expunge.data.builders.translation import load_translator

__all__ = [
    "FORMS",
    "STRESS_FORMS",
    "Auto",
    "Stress",
    "build_auto",
    "build_hard",
    "build_holdout",
    "build_neighbors",
    "load_translator",
    "stressed",
    "that_fit",
    "whole_target",
]
