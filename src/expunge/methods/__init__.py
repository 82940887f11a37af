"""One method, one file: docstring with formula and source, hyper-parameters, loss, card."""

from expunge.methods.base import METHODS, LoopMethod, Method, Objective, OneShot, Wrapper

__all__ = ["METHODS", "LoopMethod", "Method", "Objective", "OneShot", "Wrapper"]
