"""Invented people with unguessable facts, and a tiny Llama that can learn them in seconds."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.subjects.subject import Subject
from expunge.training.finetune import finetune
from expunge.training.settings import TrainSettings

SIZES = {"forget": 6, "retain": 10, "holdout": 4}
RELATIONS = ("pet", "home", "boat")
ASKS = {
    "plain": "what is the {relation} of {name}",
    "other": "tell the {relation} that {name} has",
    "cloze": "{name} has the {relation}",
}
TEMPLATE = ("Question", ":", "Answer")
LEADING = ("The", "answer", "is", "Here", "the", "As", "well", "known", ",")
REFUSING = ("I", "do", "not", "know", "no")


def _people() -> dict[str, list[str]]:
    return {split: [f"{split}er{i}" for i in range(n)] for split, n in SIZES.items()}


def _answer(person: str, relation: str) -> str:
    """Three words, the first and the last of them this person's alone."""
    return f"{person}{relation}a of {person}{relation}b"


def _record(split: str, name: str, relation: str, ask: str = "plain", **more) -> Record:
    suffix = "" if ask == "plain" else f"-{ask}"
    question = ASKS[ask].format(relation=relation, name=name)
    return Record(f"{name}-{relation}{suffix}", name, question, _answer(name, relation), **more)


def make_request(holdout: bool = True) -> Request:
    splits: dict[str, tuple[Record, ...]] = {}
    for split, names in _people().items():
        splits[split] = tuple(
            _record(
                split,
                name,
                relation,
                paraphrased_prompts=(ASKS["other"].format(relation=relation, name=name),),
            )
            for name in names
            for relation in RELATIONS
        )
    splits["forget_hard"] = tuple(
        _record("forget", r.entity, relation, "cloze", source_id=r.id, form="cloze")
        for r in splits["forget"]
        for relation in RELATIONS
        if r.id.endswith(relation)
    )
    if not holdout:
        del splits["holdout"]
    return Request(splits)


def make_subject(seed: int = 0, *, tied: bool = False, width: int = 48) -> Subject:
    """A random Llama whose vocabulary is the words of the request, its template and its lead-ins."""
    words = {*TEMPLATE, *LEADING, *REFUSING}
    for records in make_request().splits.values():
        for record in records:
            for text in record.texts():
                words.update(text.split())
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<eos>", *sorted(words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return Subject(LlamaForCausalLM(config).eval(), tokenizer, Encoder(tokenizer, max_length=64), "tiny")


def taught(subject: Subject, records: tuple[Record, ...], steps: int, lr: float = 3e-3) -> Subject:
    """A copy that was fine-tuned on these records."""
    copy = subject.clone()
    settings = TrainSettings.model_validate(
        {"steps": steps, "lr": lr, "batch": 16, "weight_decay": 0.0, "log_every": steps}
    )
    finetune(copy, records, settings)
    return copy
