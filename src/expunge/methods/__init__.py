"""One method, one file: docstring with formula and source, hyper-parameters, loss, card."""

from typing import Any

from expunge.methods.base import METHODS, LoopMethod, Method, Objective, OneShot, Wrapper

__all__ = ["METHODS", "LoopMethod", "Method", "Objective", "OneShot", "Wrapper", "make_method"]


def make_method(name: str, **settings: Any) -> Method:
    """The method of this name with these hyper-parameters; ConfigError on an unknown name or setting."""
    method: Method = METHODS.make(name, **settings)
    if isinstance(method, Objective):
        from expunge.training.retain import RETAIN_LOSSES

        RETAIN_LOSSES.get(method.retain)
    return method
