"""Exact removal: the bits of a training without the records; certificates that say no more than is true."""

import json
from dataclasses import replace

import pytest
import torch

from expunge.data.batching import collate
from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, DataError
from expunge.methods import make_method
from expunge.methods.exact import retrain
from expunge.subjects import fingerprint, load_subject, save_subject
from expunge.subjects.weights import check_mixable, dump_weights
from expunge.subjects.wrappers.ensemble import Ensemble, EnsembleRule, together
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, exact, finetune
from expunge.training.shard_plan import ShardPlan
from expunge.training.shards import replay, train_shards

SETTINGS = TrainSettings(epochs=2, lr=1e-2, batch=4, warmup=0.0)
METHODS = ("sisa", "sharded_lora")


@pytest.fixture(scope="module")
def original():
    return tiny_subject()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of the original's kind from before exposure, on disk."""
    return str(save_subject(tiny_subject(seed=5), tmp_path_factory.mktemp("before") / "base"))


def unlearn(name, original, place=None, request=None, **hyper):
    workspace = Workspace(SETTINGS, place)
    result = make_method(name, **hyper).unlearn(original, request or tiny_request(), workspace)
    return result, workspace.facts.get("certificate", {}), workspace


def prints(subject):
    """The weights of every model a subject is made of."""
    parts = [subject.base, *subject.parts.values()] if isinstance(subject, Ensemble) else [subject]
    return [fingerprint(part.model) for part in parts]


# The methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_bits_of_a_training_that_never_saw_them(name, original, base, tmp_path):
    request = tiny_request()
    hyper = {"base": base, "shards": 3, "slices": 2, "replay": "none"}
    method = make_method(name, **hyper)
    result, *_ = unlearn(name, original, **hyper)
    kept = [record for split in method.splits for record in request[split]]
    scratch = train_shards(
        load_subject(base), kept, ShardPlan(3, 2), SETTINGS, tmp_path, lora=method.adapter()
    )
    assert prints(result) == prints(method.serve(scratch))
    with_forget = train_shards(
        load_subject(base), [*request.forget, *kept], ShardPlan(3, 2), SETTINGS, tmp_path / "w",
        lora=method.adapter(),
    )  # fmt: skip
    assert prints(result) != prints(method.serve(with_forget))


@pytest.mark.parametrize("name", METHODS)
def test_deleting_from_a_training_that_lies_there(name, original, base, tmp_path):
    """Set up long before the request; what deletes knows base, plan and settings from the folder."""
    request, method = tiny_request(), make_method(name)
    records = [*request.forget, *(r for split in method.splits for r in request[split])]
    made = train_shards(
        load_subject(base), records, ShardPlan(3), SETTINGS, tmp_path, lora=method.adapter(), clean=True,
        origin="trained from a clean base",
    )  # fmt: skip
    workspace = Workspace(TrainSettings(epochs=9, lr=1.0, seed=9))  # none of the set-up's business any more
    result = make_method(name, folder=str(tmp_path)).unlearn(original, request, workspace)
    found = workspace.facts["certificate"]
    assert prints(result) == prints(unlearn(name, original, base=base, shards=3)[0])
    assert (found["exact"], found["reason"]) == (True, "trained from a clean base")
    assert found["verified"]
    assert workspace.facts["steps_to_set_up"] == 0 < workspace.facts["steps_to_delete"] <= made.spent.steps
    assert workspace.result.steps == workspace.facts["steps_to_delete"]


def test_merged_adapters_ship_like_the_original(original, base, tmp_path):
    result, *_ = unlearn("sharded_lora", original, base=base)
    files = [dump_weights(s.model, tmp_path / f"{i}.safetensors") for i, s in enumerate((original, result))]
    check_mixable(original.clone().model, *files)
    assert result.can == original.can
    assert not result.adapter


def test_public_records_teach_the_base_and_no_adapter(original, tmp_path):
    public = tuple(Record(f"u{i}", "", f"Sum {i}?", f"It is {i + i}") for i in range(4))
    request = tiny_request()
    request = replace(request, splits={**request.splits, "utility": public})
    unlearn("sharded_lora", original, tmp_path, request, replay="none")
    taught = exact.reinitialized(original, SETTINGS.seed)
    finetune(taught, public, SETTINGS)
    assert fingerprint(load_subject(tmp_path / "shards" / "base").model) == fingerprint(taught.model)
    told = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    seen = sum(len(stage["records"]) for stage in told["stages"])
    assert seen == sum(len(request[split]) for split in ("retain", "calibration"))


@pytest.mark.parametrize("name", [*METHODS, "retrain"])
def test_refusals(name, original):
    with pytest.raises(ConfigError, match="must not train on forget_hard"):
        unlearn(name, original, splits=("retain", "forget_hard"))
    with pytest.raises(DataError, match="nothing to train on"):
        unlearn(name, original, splits=())
    with pytest.raises(ConfigError, match="shards is 0"):
        make_method("sisa", shards=0)


# Certificates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METHODS, "retrain"])
def test_exact_only_from_clean_weights(name, original, base, tmp_path):
    fresh = unlearn(name, original)[1]
    assert (fresh["exact"], fresh["reason"]) == (True, "training began with random weights")
    unvouched = unlearn(name, original, base=base)[1]
    assert not unvouched["exact"]
    assert "nobody vouches" in unvouched["reason"]
    assert unlearn(name, original, base=base, base_is_clean=True)[1]["exact"]
    exposed = str(save_subject(original, tmp_path / "original"))
    told = unlearn(name, original, base=exposed, base_is_clean=True)[1]
    assert not told["exact"], "the original is no model from before exposure, whatever is vouched"
    assert "has seen the forget set" in told["reason"]


def test_a_base_that_lies_there_can_be_vouched_for(original, base, tmp_path):
    request = tiny_request()
    records = [*request.forget, *request.retain, *request["calibration"]]
    for name, subject in (("before", load_subject(base)), ("exposed", original)):
        train_shards(subject, records, ShardPlan(3), SETTINGS, tmp_path / name)
    hyper = {"replay": "none", "splits": ("retain", "calibration")}
    told = lambda name, **more: unlearn("sisa", original, folder=str(tmp_path / name), **hyper, **more)[1]  # noqa: E731
    assert not told("before")["exact"]
    assert told("before", base_is_clean=True)["exact"]
    assert not told("exposed", base_is_clean=True)["exact"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", ["affected", "all", "none"])
def test_verified_is_what_was_replayed(name, how, original):
    result, found, _ = unlearn(name, original, shards=3, replay=how)
    assert found["verified"] == (how != "none")
    assert found["replayed"] == {"affected": found["affected"], "all": [0, 1, 2], "none": []}[how]
    assert found["affected"]
    assert found["fingerprint"] == result.fingerprint()
    assert found["method"] == name


@pytest.mark.parametrize("name", METHODS)
def test_a_certificate_can_be_replayed_by_another(name, original, base):
    request = tiny_request()
    told = json.loads(json.dumps(unlearn(name, original, base=base, shards=3)[1]))
    kept = [record for split in make_method(name).splits for record in request[split]]
    assert replay(told, load_subject(base), kept) == []
    assert replay(told, load_subject(base), [*kept, request.forget[0]])
    assert len(told["deleted"]) == len(request.forget)
    assert not any(record.id in json.dumps(told) for record in (*request.forget, *kept))


@pytest.mark.parametrize("name", METHODS)
def test_a_replay_that_differs_is_told(name, original, monkeypatch):
    def drifting(*args, **more):
        return ["shard 1, slice 0"]

    monkeypatch.setattr(exact, "replay", drifting)
    found = unlearn(name, original)[1]
    assert found["exact"]
    assert (found["verified"], found["differing"]) == (False, ["shard 1, slice 0"])


def test_retrain_certifies(original, base, monkeypatch):
    request = tiny_request()
    plain = unlearn("retrain", original, base=base)[1]
    assert not plain["verified"]
    result, found, _ = unlearn("retrain", original, base=base, replay=True)
    assert found["verified"]
    assert found["fingerprint"] == plain["fingerprint"] == result.fingerprint()
    assert found["base"] == fingerprint(load_subject(base).model)
    assert found["data"] == fingerprint_records([*request.retain, *request["calibration"]])
    assert found["left_out"] == fingerprint_records(request.forget)
    json.dumps(found)
    calls = []

    def careless(subject, records, settings, **more):
        calls.append(1)
        return finetune(subject, records, settings.model_copy(update={"seed": len(calls)}), **more)

    monkeypatch.setattr(retrain, "finetune", careless)
    found = unlearn("retrain", original, base=base, replay=True)[1]
    assert (found["verified"], found["differing"]) == (False, True)


def test_retrain_leaves_out_a_record_that_stands_in_both(original):
    request = tiny_request()
    both = {**request.splits, "retain": (*request.retain, request.forget[0])}
    results = [
        unlearn("retrain", original, request=replace(request, splits=s))[0] for s in (both, request.splits)
    ]
    assert prints(results[0]) == prints(results[1])


def test_shards_train_alone(original, capsys):
    """No control, no adapter of the recipe: both would be shared between shards."""
    from expunge.training.workspace import LoraSettings

    workspace = Workspace(SETTINGS, lora=LoraSettings(rank=2, alpha=None))
    result = make_method("sisa", replay="none").unlearn(original, tiny_request(), workspace)
    assert "shards train alone" in capsys.readouterr().err
    assert prints(result) == prints(unlearn("sisa", original, replay="none")[0])


# Speaking with one voice ------------------------------------------------------------------------------


def by_hand(rows, rule):
    """The aggregate at one position, from each member's probabilities, in plain Python."""
    size, words = len(rows), range(len(rows[0]))
    mean = [sum(row[v] for row in rows) / size for v in words]
    if rule == "mixture":
        return mean
    if rule == "vote":
        votes = [sum(max(words, key=row.__getitem__) == v for row in rows) for v in words]
        return [(n + m) / (size + 1) for n, m in zip(votes, mean, strict=True)]
    product = [torch.tensor([row[v] for row in rows]).prod().item() ** (1 / size) for v in words]
    return [p / sum(product) for p in product]


@pytest.mark.parametrize("rule", ["logprob", "mixture", "vote"])
def test_the_voice_by_hand(rule):
    rows = [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.2, 0.45, 0.35]]
    subject = tiny_subject()
    voice = Ensemble(subject, EnsembleRule(rule), {"a": subject, "b": subject})
    logits = {n: torch.tensor([row]).log() + 3.0 for n, row in zip(("base", "a", "b"), rows, strict=True)}
    found = voice.blend(logits).softmax(-1)[0]
    assert torch.allclose(found, torch.tensor(by_hand(rows, rule)), atol=1e-6)
    if rule != "logprob":
        assert float(voice.blend(logits).exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("rule", ["logprob", "mixture", "vote"])
def test_the_voice_survives_the_disk(rule, tmp_path):
    members = [tiny_subject(seed=seed) for seed in (1, 2, 3)]
    voice = together(members, rule)
    row = voice.encoder.windows(tiny_request().forget[0])[0]
    batch = collate([row], voice.encoder.pad_id)
    again = load_subject(save_subject(voice, tmp_path / "voice"), device="cpu", max_length=128)
    assert again.fingerprint() == voice.fingerprint()
    assert torch.equal(again.logits(batch), voice.logits(batch))
    alone = torch.stack([m.logits(batch).softmax(-1) for m in members])
    if rule == "mixture":
        assert torch.allclose(voice.logits(batch).softmax(-1), alone.mean(0), atol=1e-6)
    assert voice.fingerprint() != together(members[:2], rule).fingerprint()


def test_one_shard_speaks_for_itself(original):
    result, *_ = unlearn("sisa", original, shards=1, replay="none")
    assert not isinstance(result, Ensemble)
    assert isinstance(unlearn("sisa", original, shards=4, replay="none")[0], Ensemble)
