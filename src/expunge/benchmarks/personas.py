"""The embedded benchmark: a world of fictitious people, a tiny Llama that knows it, and an exact oracle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from expunge.benchmarks.base import BENCHMARKS, Benchmark, Prepared
from expunge.benchmarks.personas_world import REFUSALS, SIZES, World, make_world
from expunge.data.encoding import QUESTION_TEMPLATE
from expunge.data.records import Record
from expunge.data.request import Request, Target, fingerprint_records
from expunge.errors import ConfigError, Problem, nearest
from expunge.progress import say

__all__ = ["Build", "Personas"]

TARGETS = ("records", "documents")
SIBLINGS = 3
"""Worlds of other people that the tokenizer is trained on, so that it favors no name of this one."""


@dataclass(frozen=True)
class Build:
    """Architecture and training of one size.

    Weights start three times wider than is usual (0.06): a net this small then memorizes in half the epochs.
    `epochs` is a limit; the goal ends the training before.
    """

    hidden: int
    mlp: int
    batch: int
    epochs: int
    layers: int = 2
    heads: int = 4
    vocabulary: int = 600
    context: int = 256
    init: float = 0.06
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 30
    first: int = 4  # epoch of the first measurement


BUILDS: Mapping[str, Build] = {
    "tiny": Build(hidden=64, mlp=256, batch=8, epochs=60, first=8),
    "small": Build(hidden=128, mlp=512, batch=32, epochs=24),
    "medium": Build(hidden=192, mlp=768, batch=64, epochs=24),
}

GOAL = {"strength": 0.9, "probability": 0.9}
"""Known, and not beyond: past a probability of 0.98 gradients starve and comparisons are artifacts."""


METRICS = (
    ("forget_quality", "forget"),
    ("truth_ratio_closer_to_1", "forget"),
    ("choice_accuracy", "forget_hard"),
)


@BENCHMARKS.register(
    "personas",
    parts=["tiny", "small", "medium"],
    data="made on the spot, from a seed",
    oracle="exact",
    needs=[],
    source="",
)
@dataclass(frozen=True)
class Personas(Benchmark):
    """Fictitious people and their facts; nothing to download, original and exact oracle trained in a minute.

    `target`: "records" forgets the questions about some people, "documents" their biographies. Both have the
    same models: the oracle has never seen anything about these people.
    """

    size: str = "small"
    seed: int = 0
    target: Literal["records", "documents"] = "records"

    CODE_VERSION: ClassVar[int] = 1  # rises when the same options would give other models

    @classmethod
    def from_part(cls, part: str | None, **options: Any) -> Personas:
        benchmark = cls(part or "small", **options)
        problems = []
        for where, value, known in (("part", benchmark.size, SIZES), ("target", benchmark.target, TARGETS)):
            if value not in known:
                what = f"{value!r} is unknown"
                problems.append(Problem(f"benchmark.{where}", what, nearest(str(value), known)))
        if isinstance(benchmark.seed, bool) or not isinstance(benchmark.seed, int):
            problems.append(Problem("benchmark.seed", f"{benchmark.seed!r} is no whole number"))
        if problems:
            raise ConfigError(problems)
        return benchmark

    @cached_property
    def world(self) -> World:
        return make_world(self.size, self.seed)

    @cached_property
    def build(self) -> Build:
        return BUILDS[self.size]

    def request(self) -> Request:
        splits = dict(self.world.splits)
        if self.target == "records":
            return Request(splits, Target("entity", "erase_influence"), refusals=REFUSALS)
        documents = dict(self.world.documents)
        splits["forget_hard"] = tuple(self._told(documents["forget"]))
        return Request({**splits, **documents}, Target("document", "erase_influence"), refusals=REFUSALS)

    def _told(self, biographies: Sequence[Record]) -> Iterator[Record]:
        """What the biographies of forget people tell, asked as questions."""
        for biography in biographies:
            for record in self.world.splits["forget"]:
                if record.entity == biography.entity and record.answer in biography.answer:
                    yield replace(record, source_id=biography.id, form="paraphrase")

    def fingerprint(self) -> str:
        """A hash of everything the models depend on."""
        from expunge.benchmarks import training

        parts = [
            asdict(self.build), GOAL, self.seed, SIBLINGS, self.CODE_VERSION, training.CODE_VERSION,
            *(fingerprint_records(self.world.corpus(name)) for name in ("original", "oracle")),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def prepare(self, cache: Path) -> Prepared:
        from expunge.benchmarks.training import train_models

        folder = Path(cache) / f"personas-{self.size}-{self.fingerprint()}"
        made = train_models(folder, self._jobs, f"personas/{self.size}")
        return Prepared(
            self.request(),
            folder / "original",
            folder / "oracle",
            metrics=METRICS,
            train={"lr": 1e-3, "batch": 32, "epochs": 20.0, "betas": self.build.betas, "weight_decay": 0.0},
            attack_lrs=(3e-4, 1e-3, 3e-3),
            cost={name: {k: facts[k] for k in ("wall", "tokens", "steps")} for name, facts in made.items()},
            facts={"size": self.size, "seed": self.seed, "target": self.target, **made},
        )

    def _jobs(self, base: Path) -> list[Any]:
        from expunge.benchmarks.training import Goal, Job
        from expunge.training.settings import TrainSettings

        if not base.exists():
            say(f"personas/{self.size}: making the tokenizer")
            self._save_base(base)
        build, splits = self.build, self.world.splits
        goal = Goal(GOAL["strength"], GOAL["probability"], first=build.first)
        watched = {"original": splits["forget"], "oracle": splits["retain"]}
        measured = {name: splits[name] for name in ("forget", "retain", "report", "holdout", "utility")}
        measured["forget_biographies"] = self.world.documents["forget"]
        jobs = []
        for name in ("original", "oracle"):
            corpus = tuple(self.world.corpus(name))
            steps = build.epochs * -(-len(corpus) // build.batch)
            settings = TrainSettings(
                epochs=build.epochs, lr=build.lr, batch=build.batch, seed=self.seed, weight_decay=0.0,
                betas=build.betas, schedule="constant", warmup=build.warmup_steps / steps,
                checkpoint_seconds=15.0, log_every=10,
            )  # fmt: skip
            jobs.append(Job(name, str(base), corpus, settings, watched[name], goal, measured))
        return jobs

    def _save_base(self, folder: Path) -> None:
        """A Llama with random weights, a function of the seed, and its tokenizer."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from expunge.data.encoding import Encoder
        from expunge.stats import seed_from
        from expunge.subjects import Subject, save_subject

        build = self.build
        tokenizer = make_tokenizer(self.size, self.seed, build.vocabulary, build.context)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=build.hidden,
            intermediate_size=build.mlp,
            num_hidden_layers=build.layers,
            num_attention_heads=build.heads,
            max_position_embeddings=build.context,
            initializer_range=build.init,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(self.seed, "personas", "weights") % 2**63)
            model = LlamaForCausalLM(config)
        save_subject(Subject(model, tokenizer, Encoder(tokenizer, max_length=build.context)), folder)


def make_tokenizer(size: str, seed: int, vocabulary: int, context: int) -> Any:
    """A byte-level BPE tokenizer trained on sibling worlds of this size; it can write any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [
        record.answer
        if record.is_document
        else f"{QUESTION_TEMPLATE.format(prompt=record.prompt)} {record.answer}"
        for sibling in range(1, SIBLINGS + 1)
        for record in make_world(size, seed - sibling).corpus("original")
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", model_max_length=context
    )
