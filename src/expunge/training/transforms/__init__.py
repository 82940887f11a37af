"""Gradient transforms, one file each: what is done to g_f before the optimizer sees it."""

from typing import Any

from expunge.training.transforms.base import (
    TRANSFORMS,
    Gradients,
    GradientScene,
    Transform,
    inner,
    norm,
)

__all__ = ["TRANSFORMS", "GradientScene", "Gradients", "Transform", "inner", "make_transform", "norm"]


def make_transform(name: str, **settings: Any) -> Transform:
    """The transform of this name with these settings; ConfigError on an unknown name or setting."""
    return TRANSFORMS.make(name, **settings)
