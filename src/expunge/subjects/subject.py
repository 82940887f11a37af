"""The subject: a model, its tokenizer, and how to ask it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.data.batching import Batch
from expunge.data.encoding import Encoder
from expunge.errors import ModelError, Problem, Unsupported
from expunge.subjects.decoding import greedy_ids
from expunge.subjects.forward import forward

__all__ = ["Subject", "load_encoder", "load_subject", "pick_device", "quiet"]

Decoder = Callable[[Sequence[Sequence[int]], int, Sequence[int]], list[list[int]]]
"""(texts of ids, length, stop ids) → at most `length` greedy ids after each text."""

WEIGHTS = frozenset({"generate", "logprobs", "hidden", "weights"})

WRAPPER_FILE = "wrapper.json"
MODEL_FILES = ("config.json", "adapter_config.json", WRAPPER_FILE)
"""One of these makes a folder a model's."""


@dataclass
class Subject:
    """What can be asked. `can` ⊆ {generate, logprobs, hidden, weights}.

    `logits` and `greedy` are the two questions every measurement asks; a wrapped subject answers them in its
    own way (expunge.subjects.wrapped), and `need` refuses whoever wants the weights behind it. `source` is
    where it was loaded from; `info` what its maker wrote down about it (method, status, …); `decoder` decodes
    greedily in the model's place (expunge.subjects.serving).
    """

    model: nn.Module
    tokenizer: Any
    encoder: Encoder
    source: str = ""
    can: frozenset[str] = WEIGHTS
    info: dict[str, Any] = field(default_factory=dict)
    decoder: Decoder | None = None
    drafts: ClassVar[bool] = True  # whether greedy decoding follows from `logits`, token by token

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def vocab_size(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    @property
    def adapter(self) -> bool:
        """Whether the model carries peft adapters."""
        return hasattr(self.model, "peft_config")

    def need(self, *abilities: str, what: str = "this") -> None:
        """Raise Unsupported when the subject cannot do what is asked."""
        lacking = [a for a in abilities if a not in self.can]
        if lacking:
            needs, can = f"{what} needs {', '.join(lacking)}", f"It can: {', '.join(sorted(self.can))}"
            raise Unsupported(Problem(self.source or "this subject", needs, can))

    def logits(self, batch: Batch) -> Tensor:
        """Teacher-forced logits at the batch's answer positions, [A, V], in eval mode without gradients."""
        with self.evaluating() as model:
            found = forward(model, batch).logits
        assert found is not None
        return found

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        length: int,
        *,
        stop: Sequence[int],
        pad_id: int,
    ) -> list[list[int]]:
        """At most `length` greedy tokens after each prompt and answer begun; after a stop id: anything."""
        texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        if self.decoder:
            return self.decoder(texts, length, stop)
        with self.evaluating() as model:
            return greedy_ids(model, texts, length, stop, pad_id)

    def fingerprint(self) -> str:
        """A hash of all that its answers depend on, the tokenizer apart: the weights."""
        from expunge.subjects.weights import fingerprint

        return fingerprint(self.model)

    def unwrapped(self) -> Subject:
        """What the holder of the weights has in hand: a plain subject is that itself."""
        return self

    def write(self, folder: Path) -> None:
        """Model and tokenizer as files that `load_subject` reads; `save_subject` calls it safely."""
        with quiet():
            self.model.save_pretrained(folder)  # type: ignore[operator]
            self.tokenizer.save_pretrained(folder)

    def limited(self, can: frozenset[str]) -> Subject:
        """The same subject, of which no more than `can` may be asked."""
        self.can &= can
        return self

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
    """Without the libraries' own progress bars and advice: ours are the ones that are read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft: an old name
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft corrects it by itself
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

    where = check_source(source)
    if (Path(where) / WRAPPER_FILE).is_file():
        from expunge.subjects.wrapped import load_wrapped

        settings = {"dtype": dtype, "device": device, "max_length": max_length, "attention": attention}
        return load_wrapped(Path(where), trust_remote_code=trust_remote_code, **settings)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with _loading(where):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        if attention:
            options["attn_implementation"] = attention
        model, missing = _load_model(where, dtype, options)
    _check(model, tokenizer, missing, where)
    model.to(pick_device(device))
    model.eval()
    context = max_length or context_length(model.config, tokenizer)
    return Subject(model, tokenizer, Encoder(tokenizer, max_length=context), where)


def load_encoder(
    source: str | Path, *, max_length: int | None = None, trust_remote_code: bool = False
) -> Encoder:
    """Tokenizer and context of a model without its weights: enough to check a request."""
    import transformers

    where = plain_source(check_source(source))
    options = {"trust_remote_code": trust_remote_code}
    with _loading(where):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        config = transformers.AutoConfig.from_pretrained(_base(where) or where, **options)
    return Encoder(tokenizer, max_length=max_length or context_length(config, tokenizer))


def check_source(source: str | Path) -> str:
    """The model's folder, or a hub id. Raises ModelError where a local path is not a folder with a model."""
    path, where = Path(source).expanduser(), str(source)
    looks_local = path.exists() or where.startswith((".", "/", "~"))
    if looks_local and not path.is_dir():
        raise ModelError(
            Problem(where, "no such model folder", "Give a folder with config.json, or a hub id")
        )
    if path.is_dir() and not any((path / name).is_file() for name in MODEL_FILES):
        raise ModelError(Problem(where, "holds no config.json", "Give the folder that save_pretrained wrote"))
    return str(path) if path.is_dir() else where


def plain_source(source: str) -> str:
    """The folder that holds the model itself: below a wrapped subject's, that of its base."""
    while (Path(source) / WRAPPER_FILE).is_file():
        source = str(Path(source) / "base")
    return source


def context_length(config: Any, tokenizer: Any) -> int:
    """The context of the model, or of the tokenizer where the config does not say; 2,048 at a loss."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        if isinstance(getattr(text, name, None), int):
            return int(getattr(text, name))
    limit = getattr(tokenizer, "model_max_length", 0)
    return int(limit) if 0 < limit < 10**7 else 2048


def _base(source: str) -> str | None:
    """The model a folder of peft adapters belongs to; None where the folder holds no adapters."""
    config = Path(source) / "adapter_config.json"
    if not config.is_file():
        return None
    return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])


def _load_model(source: str, dtype: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """(the model, names of weights its files lack)"""
    import transformers

    base = _base(source)
    auto: Any = transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(
        base or source, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
    )
    if base:
        import peft

        if not (Path(source) / "adapter_model.safetensors").is_file():
            raise OSError("no file named adapter_model.safetensors")  # peft would unpickle another
        model = peft.PeftModel.from_pretrained(model, source).merge_and_unload()
    return model, sorted(report["missing_keys"])


def _check(model: nn.Module, tokenizer: Any, missing: list[str], source: str) -> None:
    if getattr(model, "is_quantized", False):
        fix = "Unlearn and control full-precision weights, quantize afterwards"
        raise ModelError(Problem(source, "holds quantized weights", fix))
    problems = []
    if missing:
        fix = "They would be random: bring the complete model"
        problems.append(Problem(source, f"lacks {len(missing)} weights ({', '.join(missing[:3])})", fix))
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        what = f"non-finite weights in {', '.join(broken[:3])}"
        problems.append(Problem(source, what, "Bring an undamaged model"))
    largest = max(tokenizer.get_vocab().values(), default=0)
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if largest >= rows:
        what = f"its tokenizer writes ids up to {largest}, the model knows {rows} tokens"
        problems.append(Problem(source, what, "Bring the tokenizer the model was trained with"))
    if problems:
        raise ModelError(problems)


_MEANINGS = (
    ("trust_remote_code", "brings code of its own", "Read it, then set trust_remote_code: true"),
    (
        "model.safetensors",
        "holds no weights in safetensors",
        "expunge unpickles nothing: save the model again with save_pretrained",
    ),
    ("header", "holds a damaged safetensors file", "Copy or download it again"),
    ("unrecognized configuration class", "is not a causal LM", "Use a decoder-only language model"),
    (
        "ignore_mismatched_sizes",
        "has weights of other shapes than its config.json says",
        "Bring its own config",
    ),
    ("tokenizer", "holds no tokenizer that can be loaded", "Save the tokenizer into the same folder"),
)
"""A part of the library's message, what it means, what to do."""


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Hub, file, config and architecture errors all mean one thing to the user: this model does not load."""
    try:
        with quiet():
            yield
    except Exception as error:
        text = " ".join(str(error).split())
        known = ((meaning, fix) for part, meaning, fix in _MEANINGS if part in text.lower())
        meaning, fix = next(known, ("cannot be loaded", "Check the folder or the hub id"))
        raise ModelError(Problem(source, f"{meaning} ({type(error).__name__}: {text[:160]})", fix)) from error
