"""LoRA through peft: attach, scale (the control of adapters), merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import ModelError, Problem
from expunge.subjects.architecture import linear_targets
from expunge.subjects.subject import Subject, quiet

__all__ = [
    "attach_lora",
    "base_moved",
    "lora_modules",
    "merge",
    "merge_onto",
    "move_base",
    "scale_lora",
    "transposed",
]


def attach_lora(
    subject: Subject,
    *,
    rank: int = 16,
    alpha: float | None = None,
    seed: int = 0,
    targets: Sequence[str] | None = None,
) -> Subject:
    """A LoRA (fp32, α = 2·rank) on the blocks' linear maps or on `targets`; changes the model in place.

    Embeddings, norms and head stay frozen, so θ(α) is the adapter with its scale times α (Hu et al. 2021,
    arXiv 2106.09685).
    """
    import peft

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha if alpha is not None else 2 * rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(targets) if targets else linear_targets(subject.model),
        fan_in_fan_out=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with quiet():
            model = peft.get_peft_model(subject.model, config)
    model.enable_input_require_grads()  # gradient checkpointing trains nothing without it
    return Subject(model, subject.tokenizer, subject.encoder, subject.source, subject.can, dict(subject.info))


def lora_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that carry a LoRA, by name."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def move_base(layer: Any, down: Tensor, up: Tensor, name: str = "default") -> None:
    """Give the LoRA `layer` A = down [r, in], B = up [out, r] and take s·B·A off its base: the same map."""
    base = layer.get_base_layer()
    with torch.no_grad():
        layer.lora_A[name].weight.copy_(down)
        layer.lora_B[name].weight.copy_(up)
        product = layer.scaling[name] * (up @ down)
        base.weight.sub_((product.T if transposed(base) else product).to(base.weight.dtype))
    layer.__dict__["_expunge_base_moved"] = True


def transposed(base: nn.Module) -> bool:
    """Whether its weight is stored [in, out], as GPT-2's Conv1D does."""
    return hasattr(base, "nf")


def base_moved(model: nn.Module) -> bool:
    """Whether the model without its adapters is no longer the original."""
    return any("_expunge_base_moved" in layer.__dict__ for _, layer in lora_modules(model))


def scale_lora(model: nn.Module, factor: float) -> None:
    """Multiply each adapter's own scale by `factor` (not its matrices: that would be α²); 1 restores it.

    Raises ModelError on adapters whose base was moved: at 0 they do not give the original.
    """
    if base_moved(model):
        what = "its adapters did not start at zero, so without them it is not the original"
        raise ModelError(Problem("LoRA", what, "Merge them and mix the weights"))
    for _, module in lora_modules(model):
        own = module.__dict__.setdefault("_expunge_scaling", dict(module.scaling))
        for name, scale in own.items():
            module.scaling[name] = scale * factor


def merge(subject: Subject) -> Subject:
    """The same model with its adapters folded into the weights; without adapters, the subject as it is."""
    if not subject.adapter:
        return subject
    model = subject.model.merge_and_unload()  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return Subject(model, subject.tokenizer, subject.encoder, subject.source, subject.can, dict(subject.info))


def merge_onto(adapted: Subject, original: Subject) -> Subject:
    """`original` with the other's adapters added to its weights, in place: their own base was quantized."""
    with torch.no_grad():
        for name, layer in lora_modules(adapted.model):
            module: Any = original.model.get_submodule(name.removeprefix("base_model.model."))
            for key, scale in layer.scaling.items():
                product = scale * (layer.lora_B[key].weight @ layer.lora_A[key].weight)
                module.weight.add_((product.T if transposed(module) else product).to(module.weight.dtype))
    return original
