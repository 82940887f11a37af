"""What a training takes, from the sizes of the model alone: bytes per device, operations per step.

Saved activations of one block and token, by what the backward pass of a Llama-like block needs: the input of
each norm, its normalized and its scaled form (6·h); queries, keys, values and their mix, keys and values as
wide as the queries where heads are repeated (5·q); gate, its activation, up and their product (4·m).
docs/large-models.md holds these numbers against measured runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FP32", "Size", "hollow", "inference_flops", "size_of", "step_flops", "step_memory"]

ADAM = 8  # bytes of the two moments of one fp32 parameter
FP32 = 4


@dataclass(frozen=True)
class Size:
    """Widths h, m (of the MLP) and q (of the queries); `lora`: adapter parameters for each rank of it."""

    parameters: int
    layers: int
    hidden: int
    inner: int
    queries: int
    vocabulary: int
    lora: int


def hollow(source: str, trust_remote_code: bool = False) -> Any:
    """A model without weights, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def size_of(model: Any) -> Size:
    """The sizes of a model, which may be hollow."""
    from expunge.subjects.architecture import linear_targets

    text = model.config.get_text_config()
    targets = tuple(linear_targets(model))
    shapes = [p.shape for name, p in model.named_parameters() if name.endswith("weight") and p.dim() == 2
              and any(f".{t}." in name or name.endswith(f"{t}.weight") for t in targets)]  # fmt: skip
    heads = int(text.num_attention_heads)
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        queries=heads * int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocabulary=int(text.vocab_size),
        lora=sum(int(a) + int(b) for a, b in shapes),
    )


def step_memory(
    size: Size,
    *,
    tokens: float,
    answers: float,
    trained: int | None = None,
    adapter: bool = False,
    master: int = FP32,
    bf16: bool = False,
    checkpointing: bool = False,
    shards: int = 1,
) -> dict[str, int]:
    """Bytes on one device between forward and backward pass of a micro-batch, where a step is largest.

    `tokens` and `answers`: of the micro-batch on this device, padding counted, and those at which logits are
    needed; `trained`: parameters an optimizer sees (None: all), beside the model's own where they are an
    `adapter`; `master`: bytes of a weight; `shards`: devices that weights, gradients and moments are divided
    over (FSDP2).
    """
    trained = size.parameters if trained is None else trained
    weights = size.parameters * master + (trained * FP32 if adapter else 0)
    compute = 2 if bf16 or master == 2 else FP32
    norms, rest = 6 * size.hidden, 5 * size.queries + 4 * size.inner
    block = norms * FP32 + rest * compute
    kept = size.layers * (size.hidden * compute) + block if checkpointing else size.layers * block
    gathered = (size.parameters // size.layers) * compute * 2 if shards > 1 else 0  # two blocks, unsharded
    casts = (
        size.parameters * 2 if bf16 and master == FP32 and shards == 1 else 0
    )  # autocast keeps bf16 copies
    found = {
        "weights": weights // shards,
        "gradients and optimizer": trained * (FP32 + ADAM) // shards,
        "activations": int(tokens * kept),
        "logits and their gradient": int(answers * size.vocabulary * 2 * FP32),
        "bf16 copies": casts,
        "gathered blocks": gathered,
    }
    return {name: value for name, value in found.items() if value}


def step_flops(
    size: Size, tokens: float, *, trained: int | None = None, checkpointing: bool = False
) -> float:
    """Operations of a training step on so many tokens: 2·N forward, as many backward for the activations, and
    two for each weight that is trained; one more forward where activations are computed again."""
    trained = size.parameters if trained is None else trained
    return 2.0 * tokens * (size.parameters * (3 if checkpointing else 2) + trained)


def inference_flops(size: Size, tokens: float) -> float:
    """Operations of a forward pass."""
    return 2.0 * size.parameters * tokens
