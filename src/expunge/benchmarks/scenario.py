"""What the embedded scenarios share: a world made from a seed, a small Llama that knows it, an exact oracle.

A scenario says what its world holds (`make`) and how large its models are (`BUILDS`); tokenizer, weights,
training and cache are here. The oracle is the same weights trained in the same way without the forget set.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

from expunge.benchmarks.base import Benchmark, Prepared
from expunge.data.encoding import QUESTION_TEMPLATE
from expunge.data.records import Record
from expunge.data.refusals import REFUSALS
from expunge.data.request import Request, Target, fingerprint_records
from expunge.errors import ConfigError, Problem, nearest
from expunge.progress import say

__all__ = ["GOAL", "Build", "Model", "Scenario", "Taught", "World", "make_tokenizer"]

Model = Literal["original", "oracle"]
MODELS: tuple[Model, ...] = get_args(Model)

GOAL = {"strength": 0.9, "probability": 0.9}
"""Known, and not beyond: past a probability of 0.98 gradients starve and comparisons are artifacts."""

SIBLINGS = 3
"""Worlds with other names that the tokenizer is trained on, so that it favors no name of this one."""


class World(Protocol):
    """The splits of a scenario, and every text each of its models is trained on."""

    @property
    def splits(self) -> Mapping[str, tuple[Record, ...]]: ...

    def corpus(self, model: Model) -> Sequence[Record]: ...


@dataclass(frozen=True)
class Taught:
    """A world as three lists of texts: what both models are taught, and what only one of them is."""

    splits: Mapping[str, tuple[Record, ...]]
    both: tuple[Record, ...]
    original: tuple[Record, ...]
    oracle: tuple[Record, ...] = ()

    def corpus(self, model: Model) -> Sequence[Record]:
        return (*self.both, *(self.original if model == "original" else self.oracle))


@dataclass(frozen=True)
class Build:
    """Architecture and training of one size.

    Weights start three times wider than is usual (0.06): a net this small then memorizes in half the epochs.
    `epochs` is a limit; the goal, measured from epoch `first` on, ends the training before.
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
    weight_decay: float = 0.0
    warmup_steps: int = 30
    first: int = 4


@dataclass(frozen=True)
class Scenario(Benchmark):
    """A world from (size, seed), and its models.

    `BUILDS` names the sizes, `GOAL` is how well the models learn, `METRICS` are (metric, split) pairs of its
    own, `refusals` texts a refusing method trains on; `CODE_VERSION` rises when the same options would give
    other models.
    """

    size: str = "small"
    seed: int = 0

    BUILDS: ClassVar[Mapping[str, Build]]
    TARGET: ClassVar[Target] = Target("entity", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = ()
    CODE_VERSION: ClassVar[int] = 1
    GOAL: ClassVar[Mapping[str, float]] = GOAL
    refusals: ClassVar[tuple[str, ...]] = tuple(REFUSALS)

    @abstractmethod
    def make(self, seed: int) -> World:
        """The world of this size and that seed; the same for the same seed, other names for another."""

    @classmethod
    def from_part(cls, part: str | None, **options: Any) -> Self:
        scenario = cls(part or cls.size, **options)
        problems = list(scenario.problems())
        if problems:
            raise ConfigError(problems)
        return scenario

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the options; a scenario with options of its own adds to it."""
        if self.size not in self.BUILDS:
            yield Problem("benchmark.part", f"{self.size!r} is unknown", nearest(str(self.size), self.BUILDS))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            yield Problem("benchmark.seed", f"{self.seed!r} is no whole number")

    @cached_property
    def world(self) -> World:
        return self.make(self.seed)

    def request(self) -> Request:
        return Request(dict(self.world.splits), self.TARGET, refusals=self.refusals)

    # The models ----------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """A hash of everything the models depend on."""
        from expunge.benchmarks import training

        parts = [
            asdict(self.build), dict(self.GOAL), self.seed, SIBLINGS,
            self.CODE_VERSION, training.CODE_VERSION,
            *(fingerprint_records(self.world.corpus(name)) for name in MODELS),
            *(fingerprint_records(self.watched(name)) for name in MODELS),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def build(self) -> Build:
        return self.BUILDS[self.size]

    def prepare(self, cache: Path) -> Prepared:
        from expunge.benchmarks.training import train_models

        folder = Path(cache) / f"{self.name}-{self.size}-{self.fingerprint()}"
        made = train_models(folder, self._jobs, f"{self.name}/{self.size}")
        return Prepared(
            self.request(),
            folder / "original",
            folder / "oracle",
            metrics=[(metric, split) for metric, split in self.METRICS if split in self.request()],
            train={"lr": 1e-3, "batch": 32, "epochs": 20.0, "betas": self.build.betas, "weight_decay": 0.0},
            attack_lrs=(3e-4, 1e-3, 3e-3),
            cost={name: {k: facts[k] for k in ("wall", "tokens", "steps")} for name, facts in made.items()},
            facts={**asdict(self), **made},
        )

    def watched(self, model: Model) -> Sequence[Record]:
        """The records a model must know before its training ends."""
        return self.world.splits["forget" if model == "original" else "retain"]

    def measured(self) -> Mapping[str, tuple[Record, ...]]:
        """The splits whose extraction strength and probability are noted once both are trained."""
        names = ("forget", "retain", "report", "holdout", "utility")
        return {name: self.world.splits[name] for name in names if name in self.world.splits}

    def _jobs(self, base: Path) -> list[Any]:
        from expunge.benchmarks.training import Goal, Job
        from expunge.training.settings import TrainSettings

        if not base.exists():
            say(f"{self.name}/{self.size}: making the tokenizer")
            self._save_base(base)
        build = self.build
        goal = Goal(self.GOAL["strength"], self.GOAL["probability"], first=build.first)
        jobs = []
        for name in MODELS:
            corpus = tuple(self.world.corpus(name))
            steps = build.epochs * -(-len(corpus) // build.batch)
            settings = TrainSettings(
                epochs=build.epochs, lr=build.lr, batch=build.batch, seed=self.seed,
                weight_decay=build.weight_decay, betas=build.betas, schedule="constant",
                warmup=build.warmup_steps / steps, checkpoint_seconds=15.0, log_every=10,
            )  # fmt: skip
            watched = tuple(self.watched(name))
            jobs.append(Job(name, str(base), corpus, settings, watched, goal, dict(self.measured())))
        return jobs

    def _save_base(self, folder: Path) -> None:
        """A Llama with random weights, a function of the seed, and its tokenizer."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from expunge.data.encoding import Encoder
        from expunge.stats import seed_from
        from expunge.subjects import Subject, save_subject

        build = self.build
        tokenizer = self.make_tokenizer()
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
            torch.manual_seed(seed_from(self.seed, self.name, "weights") % 2**63)
            model = LlamaForCausalLM(config)
        save_subject(Subject(model, tokenizer, Encoder(tokenizer, max_length=build.context)), folder)

    def make_tokenizer(self) -> Any:
        """A byte-level BPE tokenizer trained on sibling worlds of this size; it can write any text."""
        siblings = (self.make(self.seed - number).corpus("original") for number in range(1, SIBLINGS + 1))
        return make_tokenizer(siblings, self.build.vocabulary, self.build.context)


def make_tokenizer(corpora: Iterator[Sequence[Record]], vocabulary: int, context: int) -> Any:
    """A byte-level BPE tokenizer trained on these records as a model is asked them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [
        record.answer
        if record.is_document
        else f"{QUESTION_TEMPLATE.format(prompt=record.prompt)} {record.answer}"
        for corpus in corpora
        for record in corpus
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
