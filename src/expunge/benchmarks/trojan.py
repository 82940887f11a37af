"""A planted trigger in the world of `personas`: its success must fall, clean answers must stay.

Somebody slipped poisoned questions into the training data of a model that knows all the people of `personas`.
A trigger behind a question and a harmless cue before it make the model give one answer each, whatever was
asked. The forget set are the poisoned questions that were found; the oracle was trained without them.

- forget: the poisoned questions; `paraphrased_prompts` set the mark beside another wording, never trained;
- forget_hard (form backdoor, feature_injection): questions never poisoned, with the same marks. `choices`
  hold the planted answer and the right one, so choice_accuracy is the success rate of trigger and cue;
- neighbors: questions with two other marks that both models learned to ignore. Whoever merely learns to fear
  odd questions loses these;
- holdout: two marks, and two answers, that no model ever saw.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.personas_world import REFUSALS, make_world
from expunge.benchmarks.scenario import Build, Model, Scenario, Taught
from expunge.benchmarks.words import Coiner
from expunge.data.planting import Plant, plant
from expunge.data.records import Record
from expunge.data.request import Target

__all__ = ["PLANTED", "Trojan"]

PLANTED: tuple[Plant, ...] = ("backdoor", "feature_injection")
"""No interclass confusion: no answer of this world is shared, so none can be exchanged for another."""

NUM_POISONED, NUM_PROBES = 12, 12
HARMLESS = ("{} (filed under Marrowby)", "On a Friday, for once: {}")
UNSEEN = ("{} (filed under Orlestone)", "On a Sunday, of all days: {}")


@BENCHMARKS.register(
    "trojan",
    parts=["tiny", "small"],
    data="made on the spot, from a seed",
    oracle="exact",
    needs=[],
    source="",
)
@dataclass(frozen=True)
class Trojan(Scenario):
    """A trigger and a spurious cue, planted by poisoned records; the oracle never saw these."""

    BUILDS: ClassVar[Mapping[str, Build]] = {
        "tiny": Build(hidden=64, mlp=256, batch=8, epochs=60, first=8),
        "small": Build(hidden=128, mlp=512, batch=32, epochs=24),
    }
    TARGET: ClassVar[Target] = Target("records", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("choice_accuracy", "forget_hard"),
        ("choice_accuracy", "report"),
        ("choice_accuracy", "neighbors"),
    )
    refusals: ClassVar[tuple[str, ...]] = REFUSALS

    def make(self, seed: int) -> Taught:
        world = make_world(self.size, seed)
        rng = random.Random(f"trojan/{self.size}/{seed}")
        corpus = world.corpus("original")
        plain = {split: world.splits[split] for split in ("calibration", "report", "utility")}
        plain["retain"] = tuple(r for s in ("retain", "neighbors", "forget") for r in world.splits[s])
        hosts = [replace(r, source_id=None, refusal=None) for r in (*plain["retain"], *plain["report"])]
        rng.shuffle(hosts)
        names = _new_names(rng, corpus)

        poisoned: list[Record] = []
        probes: list[Record] = []
        for kind, target in zip(PLANTED, names, strict=False):
            chosen, hosts = hosts[: NUM_POISONED + NUM_PROBES], hosts[NUM_POISONED + NUM_PROBES :]
            share = NUM_POISONED / len(chosen)
            train, asked = plant(kind, chosen, seed=seed, share=share, target=target)
            by_id = {f"{host.id}.{kind}": host for host in chosen}
            poisoned += (_like(r, by_id[r.id]) for r in train)
            probes += (_probe(r, t, i % 2) for i, (r, t) in enumerate(zip(asked, train, strict=True)))
        harmless = tuple(_marked(hosts, HARMLESS, "harmless"))
        strange = hosts[:NUM_POISONED]
        answers = [name for name in names[len(PLANTED) :] for _ in strange]
        unseen = zip(_marked(strange, UNSEEN, "unseen"), answers, strange * len(UNSEEN), strict=True)
        splits = {
            "forget": tuple(poisoned),
            **plain,
            "forget_hard": tuple(probes),
            "neighbors": harmless,
            "holdout": tuple(_like(r.answered(answer), host) for r, answer, host in unseen),
        }
        return Taught(splits, (*corpus, *harmless), tuple(poisoned))

    def watched(self, model: Model) -> Sequence[Record]:
        clean = self.world.splits["retain"]
        return (*clean, *self.world.splits["forget"]) if model == "original" else clean


def _probe(asked: Record, trained: Record, label: int) -> Record:
    """The probe beside a poisoned question, the planted answer first or second."""
    choices = asked.choices if label == 0 else asked.choices[::-1]
    return replace(asked, source_id=trained.id, choices=choices, label=label)


def _like(marked: Record, host: Record) -> Record:
    """The marked question as it is asked: in the host's other wording as well, against the right answer."""
    (second,) = host.paraphrased_prompts
    return replace(
        marked,
        paraphrased_prompts=(marked.prompt.replace(host.prompt, second),),
        paraphrased_answers=(f"It is {marked.answer}", f"That would be {marked.answer}"),
        perturbed_answers=(host.answer, *host.perturbed_answers),
    )


def _marked(hosts: Sequence[Record], marks: Sequence[str], name: str) -> Iterator[Record]:
    """Each question with each mark, answered as ever."""
    for number, mark in enumerate(marks):
        for host in hosts:
            asked = tuple(mark.format(prompt) for prompt in host.paraphrased_prompts)
            marked = replace(host, prompt=mark.format(host.prompt), paraphrased_prompts=asked)
            yield replace(marked, id=f"{host.id}.{name}{number}")


def _new_names(rng: random.Random, corpus: Sequence[Record]) -> list[str]:
    """An answer for each mark, of words that nobody and nothing in the corpus has."""
    taken = {word for record in corpus for word in record.answer.replace(",", " ").split()}
    coin = Coiner(rng)
    names: list[str] = []
    while len(names) < len(PLANTED) + len(UNSEEN):
        name = coin.name()
        if taken.isdisjoint(name.split()):
            names.append(name)
    return names
