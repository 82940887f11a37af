"""LoRA through peft: attach, scale (the control of adapters), merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from expunge.subjects.architecture import linear_targets
from expunge.subjects.subject import Subject

__all__ = ["attach_lora", "lora_modules", "merge", "scale_lora"]


def attach_lora(subject: Subject, *, rank: int = 16, alpha: float | None = None, seed: int = 0) -> Subject:
    """A LoRA on every linear map of the blocks (fp32 factors, α = 2·rank); the base is frozen.

    Embeddings, norms and head stay frozen, so θ(α) is the adapter with its scale times α (Hu et al. 2021,
    arXiv 2106.09685).
    """
    import peft

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha if alpha is not None else 2 * rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=linear_targets(subject.model),
        fan_in_fan_out=False,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        import warnings

        with warnings.catch_warnings():  # peft corrects fan_in_fan_out for GPT-2's Conv1D by itself, loudly
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            model = peft.get_peft_model(subject.model, config)  # type: ignore[arg-type]
    model.enable_input_require_grads()  # gradient checkpointing trains nothing without it
    return Subject(model, subject.tokenizer, subject.encoder, subject.source, subject.can, dict(subject.info))


def lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def scale_lora(model: nn.Module, factor: float) -> None:
    """Multiply each adapter's own scale c by `factor` (not the two factors: that would be α²). 1 restores it."""
    for _, module in lora_modules(model):
        own = module.__dict__.setdefault("_expunge_scaling", dict(module.scaling))  # type: ignore[arg-type, call-overload]
        for name, scale in own.items():
            module.scaling[name] = scale * factor  # type: ignore[index, operator]


def merge(subject: Subject) -> Subject:
    """The same model with its adapters folded into the weights; a subject without adapters is returned as it is."""
    if not subject.adapter:
        return subject
    model = subject.model.merge_and_unload()  # type: ignore[operator]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return Subject(model, subject.tokenizer, subject.encoder, subject.source, subject.can, dict(subject.info))
