"""Kronecker-factored curvature of linear maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import ConfigError, Problem
from expunge.training.curvature.problem import CurvatureProblem, Labels

__all__ = ["KFAC"]


class KFAC:
    """Per linear map F ≈ S ⊗ A: S = Σ g gᵀ [out, out], A = (1/M) Σ a aᵀ [in, in], blocks between maps zero.

    a goes into the map, g is the gradient of the row's loss at its output, M counts the positions that any
    gradient reaches: prompt positions too where attention carries it there, never padding. Damping is added
    to the eigenvalues s_i·a_j themselves, (S⊗A + δI)^{-1}, not to the factors. Weights of linear maps only.

    Exact where a and g are independent over positions; else an approximation. Martens and Grosse 2015
    (arXiv 1503.05671); shared weights as "expand" in Eschenhagen et al. 2023 (arXiv 2311.00636).
    """

    def __init__(self, problem: CurvatureProblem, damping: float, labels: Labels = "sampled"):
        self.problem, self.damping = problem, damping
        self.maps = {name: _linear_map(problem.model, name) for name in problem.parameters}
        outer, inner = self._factors(labels)
        self.outer_basis: dict[str, Tensor] = {}  # Q_S
        self.inner_basis: dict[str, Tensor] = {}  # Q_A
        self.eigenvalues: dict[str, Tensor] = {}  # [out, in], without ridge and damping
        for name in self.maps:
            dtype = torch.promote_types(problem.parameters[name].dtype, torch.float32)
            s, q_s = torch.linalg.eigh(outer.pop(name))
            a, q_a = torch.linalg.eigh(inner.pop(name))
            self.outer_basis[name], self.inner_basis[name] = q_s.to(dtype), q_a.to(dtype)
            self.eigenvalues[name] = problem.scale * torch.outer(s.clamp(min=0), a.clamp(min=0)).to(dtype)

    def solve(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name in self.maps:
            full = self.eigenvalues[name] + self.problem.ridge + self.damping
            turned = self.rotated(name, gradient[name].to(full.dtype)) / full
            back = self.outer_basis[name] @ turned @ self.inner_basis[name].T
            found[name] = self._upright(name, back)
        return found

    def rotated(self, name: str, gradient: Tensor) -> Tensor:
        """Q_Sᵀ G Q_A [out, in]"""
        return self.outer_basis[name].T @ self._upright(name, gradient) @ self.inner_basis[name]

    def _upright(self, name: str, matrix: Tensor) -> Tensor:
        """Between the weight's own layout and [out, in]: GPT-2's Conv1D stores [in, out]."""
        return matrix.T if isinstance(self.maps[name], Conv1D) else matrix

    def _factors(self, labels: Labels) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """S and A by name, float64, from one pass over the rows."""
        outer: dict[str, Any] = dict.fromkeys(self.maps, 0.0)
        inner: dict[str, Any] = dict.fromkeys(self.maps, 0.0)
        reached = dict.fromkeys(self.maps, 0)

        def add(name: str, given: Tensor, slope: Tensor) -> None:
            a, g = given.reshape(-1, given.shape[-1]).double(), slope.reshape(-1, slope.shape[-1]).double()
            alive = (g != 0).any(-1)
            outer[name] = outer[name] + g.T @ g
            inner[name] = inner[name] + a.T @ (a * alive[:, None])
            reached[name] += int(alive.sum())

        with _watching(self.maps, add):
            for index in range(len(self.problem.items)):
                loss = self.problem.row_loss(index, labels)
                torch.autograd.grad(loss, list(self.problem.parameters.values()), materialize_grads=True)
        for name, parameter in self.problem.parameters.items():
            if not reached[name]:  # an expert that saw no token: flat, the damping alone counts
                shape = self._upright(name, parameter).shape
                outer[name], inner[name] = (parameter.new_zeros(n, n, dtype=torch.float64) for n in shape)
        return outer, {name: inner[name] / max(1, reached[name]) for name in self.maps}


def _linear_map(model: nn.Module, name: str) -> nn.Module:
    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path) if path else model
    if kind != "weight" or not isinstance(module, (nn.Linear, Conv1D)):
        what, fix = "is not the weight of a linear map", "Use the solver diagonal, cg or lissa for it"
        raise ConfigError(Problem(f"K-FAC: {name}", what, fix))
    return module


@contextmanager
def _watching(maps: Mapping[str, nn.Module], add: Any) -> Iterator[None]:
    """Call add(name, input, gradient at the output) in every backward pass."""

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda slope: add(name, inputs[0].detach(), slope.detach()))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in maps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
