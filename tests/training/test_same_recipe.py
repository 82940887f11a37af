"""One recipe, two families, two kinds of target: loop, methods and measurement know no architecture."""

from functools import cache

import pytest
import torch

from expunge.data.records import Record
from expunge.data.request import Request, Target
from expunge.measure import EvidencePlan, take_evidence
from expunge.methods.base import METHODS
from expunge.metrics.base import METRICS
from expunge.subjects import fingerprint
from expunge.training import LoraSettings, TrainSettings, Workspace, finetune
from tiny_models import make_subject, some_words

FAMILIES = {
    "gpt2": {"n_embd": 64, "n_layer": 2},
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
}
TARGETS = ("records", "document")
RECIPE = {"epochs": 10, "batch": 4, "accumulate": 2, "seed": 3}
RATES = {"full": 5e-4, "lora": 3e-3}
PEOPLE = {"forget": range(6), "retain": range(6, 18)}


def passage(person, words):
    """A text that no order of its words gives away."""
    generator = torch.Generator().manual_seed(person)
    picks = torch.randint(40, (words,), generator=generator).tolist()
    return " ".join([f"name{person}", *(f"thing{i}" for i in picks)])


@cache
def request_of(kind):
    splits = {}
    for split, people in PEOPLE.items():
        if kind == "records":
            made = (Record(f"{split}{i}", f"name{i}", f"who is name{i}", passage(i, 4)) for i in people)
        else:  # some of them longer than the context of 64
            made = (Record(f"{split}{i}", f"name{i}", "", passage(i, 20 + 16 * (i % 4))) for i in people)
        splits[split] = tuple(made)
    return Request(splits, Target(kind=kind))


@cache
def original(family, kind):
    """A model that knows all of the request; shared, so never changed."""
    subject = make_subject(family, some_words(), spread=0.02, **FAMILIES[family])
    request = request_of(kind)
    settings = TrainSettings(epochs=60, lr=4e-3, batch=6, weight_decay=0.0)
    finetune(subject, [*request.forget, *request.retain], settings)
    return subject


def known(subject, request):
    """split → mean probability of its answers, with extraction strength"""
    splits = {name: request[name] for name in request}
    evidence = take_evidence(subject, splits, plan=EvidencePlan(("gold",), max_new_tokens=8))
    return {
        name: {
            m: METRICS.get(m)().score(evidence, name).value for m in ("probability", "extraction_strength")
        }
        for name in splits
    }


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("method", ["graddiff", "npo"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_recipe(family, kind, method, adapter):
    subject, request = original(family, kind), request_of(kind)
    mark, before = fingerprint(subject.model), known(subject, request)
    assert before["forget"]["extraction_strength"] > 0.9
    assert before["retain"]["extraction_strength"] > 0.9
    lora = LoraSettings(rank=8) if adapter == "lora" else None
    workspace = Workspace(TrainSettings(lr=RATES[adapter], **RECIPE), lora=lora)
    unlearned = METHODS.get(method)().unlearn(subject, request, workspace)
    after = known(unlearned, request)
    assert workspace.result.status == "finished"
    assert workspace.result.steps == workspace.result.history[-1]["step"]
    assert workspace.facts["moved_fraction"] > 0.5
    assert not unlearned.adapter
    assert fingerprint(subject.model) == mark
    lost = {split: before[split]["probability"] - after[split]["probability"] for split in before}
    assert lost["forget"] > 0.25
    assert lost["forget"] > 1.4 * lost["retain"]
    assert after["forget"]["extraction_strength"] < min(0.9, after["retain"]["extraction_strength"])
