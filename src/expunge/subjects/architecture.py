"""What differs between architectures, found by structure rather than by name: blocks, heads, matrices."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from expunge.errors import ModelError, Problem

__all__ = ["MLP_OUTPUT", "blocks", "linear_targets", "output_head", "without_dropout"]

MLP_OUTPUT = re.compile(r"(mlp|feed_forward|moe).*\.(down_proj|c_proj|fc2|dense_4h_to_h|w2)\b")
"""The matrix through which a block's MLP writes into the residual stream, in the naming of each family."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, first to last. Raises ModelError where no list of that many modules exists."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for _, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == text.num_hidden_layers:
            return module
    what, fix = "no list of decoder blocks was found", "Use a decoder-only causal LM"
    raise ModelError(Problem(type(model).__name__, what, fix))


def output_head(model: nn.Module) -> nn.Module:
    """The module that maps the last hidden state to the vocabulary."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError(Problem(type(model).__name__, "has no output head", "Use a causal LM"))
    return head


def linear_targets(model: nn.Module) -> list[str]:
    """Names of the linear maps inside the blocks, for LoRA (GPT-2's Conv1D included, routers excluded)."""
    from transformers.pytorch_utils import Conv1D

    names = set()
    for name, module in blocks(model).named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and not re.search(r"\b(gate|router)$", name):
            names.add(name.rpartition(".")[2])
    return sorted(names)


def without_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to zero: ratios to the reference must be exactly 1 at the first step."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout", "hidden_dropout", "jitter_noise"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
