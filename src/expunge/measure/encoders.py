"""Encoders of texts: what turns a text into a vector that can be compared with another.

`lexical` needs nothing and knows no meaning: it counts runs of letters. `model:PATH` takes the mean of a
transformer's last hidden states, `sentence-transformers:NAME` what that library makes of a text.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from expunge.errors import ConfigError, ModelError, Problem, require
from expunge.metrics.similarity import Vector
from expunge.subjects.subject import pick_device, quiet

__all__ = ["KNOWN", "TextEncoder", "load_pretrained", "make_encoder", "mean_pooled", "split_spec"]

KNOWN = {
    "lexical": "character n-grams; sees shared words and stems, no meaning",
    "model:": "a folder or hub id of a transformer: mean of its last hidden states",
    "sentence-transformers:": "a model of that library, by name or folder",
}

GRAMS = (3, 4, 5)
BUCKETS = 2**20
BATCH = 32


@dataclass(frozen=True)
class TextEncoder:
    """`name` with a fingerprint of what it computes, and the function: texts → one vector each."""

    name: str
    encode: Callable[[Sequence[str]], list[Vector]]


def split_spec(spec: str, known: Sequence[str], where: str) -> tuple[str, str]:
    """("model:", "./minilm") of "model:./minilm". Raises ConfigError on what is none of the known kinds."""
    for kind in known:
        rest = spec.removeprefix(kind)
        if (spec == kind and kind[-1] != ":") or (kind[-1] == ":" and rest not in (spec, "")):
            return kind, rest
    shown = ", ".join(kind + "…" * kind.endswith(":") for kind in known)
    raise ConfigError(Problem(where, f"{spec!r} is no kind known", f"Known: {shown}"))


@lru_cache(maxsize=2)
def make_encoder(spec: str, device: str = "cpu") -> TextEncoder:
    """The encoder that a recipe names; the last ones made are kept."""
    kind, rest = split_spec(spec, list(KNOWN), "embeddings encoder")
    if kind == "lexical":
        return TextEncoder(f"lexical ({_lexical_mark()})", lambda texts: [n_grams(text) for text in texts])
    if kind == "model:":
        return _transformer(rest, device)
    return _sentence_transformer(rest, device)


# Lexical ----------------------------------------------------------------------------------------------


def n_grams(text: str) -> dict[str, float]:
    """Counts of the character 3- to 5-grams inside each word, hashed: {bucket: count}; lower case, no order.

    >>> n_grams("Tarn") == n_grams(" tarn! ")
    True
    """
    letters = "".join(c if c.isalnum() else " " for c in text.lower())
    grams: Counter[str] = Counter()
    for word in letters.split():
        edged = f" {word} "
        for n in GRAMS:
            grams.update(edged[i : i + n] for i in range(len(edged) - n + 1))
    found: Counter[str] = Counter()
    for gram, count in grams.items():
        found[str(zlib.crc32(gram.encode()) % BUCKETS)] += count
    return {bucket: float(count) for bucket, count in found.items()}


def _lexical_mark() -> str:
    return f"character {GRAMS[0]}-{GRAMS[-1]}-grams, {BUCKETS} buckets"


# Models -----------------------------------------------------------------------------------------------


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each row, padding left out: [B, T, D], [B, T] → [B, D]."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def load_pretrained(loader: Any, source: str, **options: Any) -> Any:
    """`loader.from_pretrained`, whose failures all mean one thing to the user. Safetensors only."""
    try:
        with quiet():
            return loader.from_pretrained(source, **options)
    except Exception as error:  # hub, file, config and architecture errors
        text = " ".join(str(error).split())[:160]
        fix = "Check the folder or the hub id; weights must be safetensors"
        raise ModelError(
            Problem(source, f"cannot be loaded ({type(error).__name__}: {text})", fix)
        ) from error


def _transformer(source: str, device: str) -> TextEncoder:
    import transformers

    from expunge.subjects.weights import fingerprint

    tokenizer = load_pretrained(transformers.AutoTokenizer, source)
    tokenizer.padding_side = "right"  # a mean of states must not depend on where a text begins
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model = load_pretrained(transformers.AutoModel, source, use_safetensors=True)
    model.to(pick_device(device)).eval()
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", 512)

    def encode(texts: Sequence[str]) -> list[Vector]:
        found: list[Vector] = []
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            batch = tokenizer(part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            batch = batch.to(model.device)
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state.float()
            found += _rounded(mean_pooled(hidden, batch["attention_mask"]))
        return found

    return TextEncoder(f"model:{source} ({fingerprint(model)})", encode)


def _sentence_transformer(name: str, device: str) -> TextEncoder:
    library = require(
        "sentence_transformers", "sentence-transformers", f"the encoder sentence-transformers:{name}"
    )
    from expunge.subjects.weights import fingerprint

    try:
        with quiet():
            model = library.SentenceTransformer(name, device=str(pick_device(device)))
    except Exception as error:
        raise ModelError(Problem(name, f"cannot be loaded ({error})", "Check the name or folder")) from error

    def encode(texts: Sequence[str]) -> list[Vector]:
        with quiet():
            return _rounded(torch.as_tensor(model.encode(list(texts), show_progress_bar=False)))

    return TextEncoder(f"sentence-transformers:{name} ({fingerprint(model)})", encode)


def _rounded(vectors: Tensor) -> list[Vector]:
    """Six digits are more than a cosine can use."""
    return [[float(f"{value:.6g}") for value in vector] for vector in vectors.tolist()]
