"""Which weights are trained: by name, by layer, or by a mask computed from gradients."""

from typing import Any

from expunge.training.selections.base import SELECTIONS, Mask, Selection, intersect, keep_largest
from expunge.training.selections.files import load_mask, save_mask

__all__ = [
    "SELECTIONS",
    "Mask",
    "Selection",
    "intersect",
    "keep_largest",
    "load_mask",
    "make_selection",
    "save_mask",
]


def make_selection(name: str, **settings: Any) -> Selection:
    """The selection of this name with these settings; ConfigError on an unknown name or setting."""
    return SELECTIONS.make(name, **settings)
