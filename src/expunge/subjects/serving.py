"""Greedy decoding by vLLM from a model's files, where it is installed and there is a GPU.

Scoring stays in transformers: only texts are decoded elsewhere. Near-ties aside, both write the same tokens.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from expunge.errors import ConfigError, Problem, require
from expunge.ranks import launched
from expunge.subjects.subject import Subject, pick_device
from expunge.subjects.wrapped import Wrapped

__all__ = ["Engine", "pick_engine", "served"]

Engine = Literal["auto", "transformers", "vllm"]

SHARE = 0.9
"""Of the GPU memory that is free, what vLLM may take."""


def pick_engine(engine: Engine, device: str = "auto") -> Literal["transformers", "vllm"]:
    """Who generates. `vllm` asked for and not to be had is an error, never another engine.

    Raises MissingDependency with the pip line, or ConfigError where there is no GPU.
    """
    gpu = pick_device(device).type == "cuda"
    if engine == "vllm":
        require("vllm", why="engine: vllm")
        if not gpu:
            fix = "Leave the key away, or set engine: transformers"
            raise ConfigError(Problem("engine", "vllm needs a GPU, and none is in use", fix))
        return "vllm"
    if engine == "auto" and gpu and launched() == 1 and importlib.util.find_spec("vllm") is not None:
        return "vllm"
    return "transformers"


@contextmanager
def served(subject: Subject, folder: str | Path, engine: str) -> Iterator[Subject]:
    """The subject, decoding with vLLM inside the block; `folder` (or a hub id) holds its weights.

    A wrapped subject answers in its own way and is left as it is.
    """
    if engine != "vllm" or isinstance(subject, Wrapped):
        yield subject
        return
    subject.decoder = _Vllm(subject, str(folder))
    try:
        yield subject
    finally:
        subject.decoder = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Vllm:
    """Texts of ids → at most `length` greedy ids after each; a stop id ends a text and is kept."""

    def __init__(self, subject: Subject, folder: str):
        vllm = require("vllm", why="engine: vllm")
        free, total = torch.cuda.mem_get_info(subject.device) if torch.cuda.is_available() else (1, 1)
        self.params = vllm.SamplingParams
        self.llm: Any = vllm.LLM(
            model=folder,
            dtype=str(next(subject.model.parameters()).dtype).removeprefix("torch."),
            max_model_len=subject.encoder.max_length,
            gpu_memory_utilization=SHARE * free / total,
            skip_tokenizer_init=True,  # ids in, ids out: encoding is expunge's
            generation_config="vllm",  # the model's own may ask for penalties
            disable_log_stats=True,
        )

    def __call__(self, texts: Sequence[Sequence[int]], length: int, stop: Sequence[int]) -> list[list[int]]:
        params = self.params(
            temperature=0.0, max_tokens=length, stop_token_ids=list(stop), ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": list(text)} for text in texts]
        outputs = [found.outputs[0] for found in self.llm.generate(prompts, params, use_tqdm=False)]
        return [self._ended(out, stop) for out in outputs]

    @staticmethod
    def _ended(out: Any, stop: Sequence[int]) -> list[int]:
        ids = list(out.token_ids)
        if out.finish_reason == "stop" and not (ids and ids[-1] in stop):
            ids.append(int(out.stop_reason))
        return ids
