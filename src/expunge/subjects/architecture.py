"""What differs between architectures, found by structure rather than by name: blocks, heads, matrices."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from expunge.errors import ModelError, Problem

__all__ = [
    "MLP_OUTPUT", "blocks", "linear_targets", "linear_weights", "mlp", "output_head", "without_dropout",
]  # fmt: skip

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


def mlp(block: nn.Module) -> nn.Module:
    """The MLP of a decoder block (or its mixture of experts)."""
    for name, module in block.named_children():
        if re.fullmatch(r"mlp|feed_forward|moe|block_sparse_moe", name):
            return module
    raise ModelError(Problem(type(block).__name__, "has no MLP that is known by name", "Use another method"))


def linear_weights(model: nn.Module, layers: Collection[int], match: str = "") -> dict[str, nn.Module]:
    """The linear maps inside these blocks by the names of their weights; `match` is searched in the name."""
    from transformers.pytorch_utils import Conv1D

    names = {id(module): name for name, module in model.named_modules()}
    stack = blocks(model)
    return {
        f"{names[id(module)]}.weight": module
        for layer in layers
        for name, module in stack[layer].named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and re.search(match, name)
    }


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
