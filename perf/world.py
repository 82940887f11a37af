"""What the bench runs on: invented records of TOFU-like lengths, a word tokenizer, random Llamas."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.subjects.subject import Subject

__all__ = ["VOCABULARY", "make_reciter", "make_records", "make_subject"]

VOCABULARY = 8192
CONTEXT = 160

# Tokens at these shares of the records: the shape of TOFU's questions and answers, to which the question
# template adds two tokens. Mean 18 and 31.
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
QUESTION = (6, 10, 13, 15, 19, 25, 54)
ANSWER = (5, 11, 22, 30, 38, 51, 79)


def make_records(count: int, name: str, seed: int = 0) -> tuple[Record, ...]:
    """`count` records of random words; entity = five records in a row."""
    rng = np.random.default_rng([seed, *name.encode()])

    def words(quantiles: tuple[int, ...]) -> str:
        length = round(float(np.interp(rng.random(), SHARES, quantiles)))
        return " ".join(f"w{i}" for i in rng.integers(0, VOCABULARY - 4, size=length))

    return tuple(
        Record(f"{name}{i}", f"{name}-{i // 5}", words(QUESTION), words(ANSWER)) for i in range(count)
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    names = ["<unk>", "</s>", "Question:", "Answer:", *(f"w{i}" for i in range(VOCABULARY - 4))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


def make_subject(
    width: int = 256, inner: int = 896, layers: int = 8, heads: int = 8, *, tied: bool = True, seed: int = 0
) -> Subject:
    """A random Llama in fp32; by default 8 layers, 9.7 M parameters, a fifth of them in the tied head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    model = LlamaForCausalLM(config).eval()
    return Subject(model, tokenizer, Encoder(tokenizer, max_length=CONTEXT), "random")


def make_reciter(count: int, name: str) -> tuple[Subject, tuple[Record, ...]]:
    """A Llama that recites its records, and the records: what it computes is what any Llama of its size does.

    No word comes twice, so the next token depends on the last one alone: the head's row of each token is
    the embedding of the one before it, last words share one embedding, and the random blocks in between add
    little to embeddings this large.
    """
    words = iter(np.random.default_rng(0).permutation(VOCABULARY - 4))
    rename = lambda text: " ".join(f"w{next(words)}" for _ in text.split())  # noqa: E731
    records = tuple(
        replace(r, prompt=rename(r.prompt), answer=" " + rename(r.answer), style="raw")
        for r in make_records(count, name)
    )
    subject = make_subject(tied=False)
    table = subject.model.get_input_embeddings().weight.data.normal_()
    head = subject.model.get_output_embeddings().weight.data
    end = subject.tokenizer.eos_token_id
    for record in records:
        encoded = subject.encoder.encode(record)
        chain = encoded.ids[encoded.num_prompt - 1 : -1]
        table[chain[-1]] = table[end]
        for before, after in pairwise(chain):
            head[after] = table[before]
    head[end] = table[end]
    return subject, records
