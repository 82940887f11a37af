"""The subject: a model, its tokenizer, and how to ask it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.errors import ModelError, Problem, Unsupported

__all__ = ["Subject", "load_subject", "pick_device", "quiet"]

WEIGHTS = frozenset({"generate", "logprobs", "hidden", "weights"})


@dataclass
class Subject:
    """What can be asked. `can` ⊆ {generate, logprobs, hidden, weights}.

    `source` is where it was loaded from; `info` what its maker wrote down about it (method, status, …).
    """

    model: nn.Module
    tokenizer: Any
    encoder: Encoder
    source: str = ""
    can: frozenset[str] = WEIGHTS
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def adapter(self) -> bool:
        """Whether the model carries peft adapters."""
        return hasattr(self.model, "peft_config")

    def need(self, *abilities: str, what: str = "this") -> None:
        """Raise Unsupported when the subject cannot do what is asked."""
        lacking = [a for a in abilities if a not in self.can]
        if lacking:
            raise Unsupported(
                Problem(self.source or "this subject", f"{what} needs {', '.join(lacking)}", f"It can: {sorted(self.can)}")
            )

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def clone(self) -> Subject:
        """An independent copy of the weights, ready to be changed."""
        model = copy.deepcopy(self.model)
        return Subject(model, self.tokenizer, self.encoder, self.source, self.can, dict(self.info))

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Eval mode without gradients; the mode it had is restored."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.model.train(training)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and advice: ours are the ones that are read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def pick_device(device: str = "auto") -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_subject(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    max_length: int | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a causal LM and its tokenizer from a folder or the hub; a folder with peft adapters is merged.

    `dtype` is that of the master weights: float32 for full fine-tuning (bf16 compute comes from autocast).
    `max_length` defaults to the model's context. Raises ModelError with what is missing and what to do.
    """
    import transformers

    path = Path(source)
    looks_local = path.exists() or str(source).startswith((".", "/", "~"))
    if looks_local and not path.expanduser().is_dir():
        raise ModelError(Problem(str(source), "no such model folder", "Give a folder with config.json, or a hub id"))
    if path.is_dir() and not any((path / n).is_file() for n in ("config.json", "adapter_config.json")):
        raise ModelError(Problem(str(source), "holds no config.json", "Give the folder that save_pretrained wrote"))
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(source), **options)
        if (path / "adapter_config.json").is_file():
            import peft

            auto: Any = peft.AutoPeftModelForCausalLM
        else:
            auto = transformers.AutoModelForCausalLM
        if attention:
            options["attn_implementation"] = attention
        with quiet():
            model = auto.from_pretrained(str(source), dtype=getattr(torch, dtype), use_safetensors=True, **options)
    except Exception as error:  # hub, file, config and architecture errors all mean the same to the user
        raise ModelError(_explain(str(source), error)) from error
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    _check(model, str(source))
    model.to(pick_device(device))
    model.eval()
    context = max_length or context_length(model.config, tokenizer)
    return Subject(model, tokenizer, Encoder(tokenizer, max_length=context), str(source))


def context_length(config: Any, tokenizer: Any) -> int:
    """The context of the model, or of the tokenizer where the config does not say; 2,048 at a loss."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        if isinstance(getattr(text, name, None), int):
            return int(getattr(text, name))
    limit = getattr(tokenizer, "model_max_length", 0)
    return int(limit) if 0 < limit < 10**7 else 2048


def _check(model: nn.Module, source: str) -> None:
    if getattr(model, "is_quantized", False):
        raise ModelError(
            Problem(source, "holds quantized weights", "Unlearn and control full-precision weights, quantize afterwards")
        )
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ModelError(Problem(source, f"non-finite weights in {', '.join(broken[:3])}", "Bring an undamaged model"))


def _explain(source: str, error: Exception) -> Problem:
    text = " ".join(str(error).split())
    fix = "Check the folder or the hub id"
    if "trust_remote_code" in text:
        fix = "The model brings code of its own: read it, then set trust_remote_code: true"
    elif "safetensors" in text.lower() and "header" not in text.lower():
        fix = "expunge reads safetensors only: save the model again with safe_serialization=True"
    elif "tokenizer" in text.lower():
        fix = "Save the tokenizer into the same folder"
    return Problem(source, f"cannot be loaded ({type(error).__name__}: {text[:300]})", fix)
