"""Training in shards: where records go, that deleting is as never having seen, what a kill leaves."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.data.records import Record
from expunge.errors import ConfigError, DataError
from expunge.subjects import fingerprint
from expunge.testing import tiny_subject
from expunge.training import TrainSettings, loop, shards
from expunge.training.checkpoint import save_checkpoint
from expunge.training.shard_plan import KeyedOrder, ShardPlan
from expunge.training.shards import Shards, open_shards, replay, train_shards
from expunge.training.workspace import LoraSettings

LORA = LoraSettings(rank=2, alpha=None)
SETTINGS = TrainSettings(epochs=2, lr=1e-2, batch=4, warmup=0.0, checkpoint_seconds=0.0)


def people(count, per=2):
    """`per` records about each of `count` people, of unequal length."""
    return [
        Record(f"p{i}-{j}", f"person {i}", f"Job {j} of {i}?", "painter " * (1 + (i + j) % 3))
        for i in range(count)
        for j in range(per)
    ]


RECORDS = people(8)


@pytest.fixture(scope="module")
def base():
    return tiny_subject()


def trained(base, folder, records=RECORDS, plan=None, lora=None, settings=SETTINGS):
    return train_shards(base, records, plan or ShardPlan(3, 2), settings, Path(folder), lora=lora)


def without(*ids):
    return [record for record in RECORDS if record.id not in ids]


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).glob("shard-*")}


# Plan and order ---------------------------------------------------------------------------------------


def test_where_a_record_goes_depends_on_nobody_else():
    plan = ShardPlan(5, 3, seed=1, by="id")
    whole = plan.assign(RECORDS)
    for gone in RECORDS:
        rest = plan.assign(reversed([r for r in RECORDS if r is not gone]))
        assert rest == [[[r for r in part if r is not gone] for part in shard] for shard in whole]
    assert ShardPlan(5, 3, seed=2, by="id").assign(RECORDS) != whole


def test_places_are_the_same_in_every_process():
    assert [ShardPlan(4, 3).place(r) for r in RECORDS[::4]] == [(2, 0), (2, 0), (2, 1), (1, 1)]


def test_by_entity_keeps_what_is_known_of_one_together():
    many = people(40, per=3)
    places = lambda plan: [{plan.place(r) for r in many if r.entity == f"person {i}"} for i in range(40)]  # noqa: E731
    assert all(len(found) == 1 for found in places(ShardPlan(4, 2)))
    assert len({place for found in places(ShardPlan(4, 2)) for place in found}) == 8
    assert any(len(found) > 1 for found in places(ShardPlan(4, 2, by="id")))
    nobody = [Record(f"r{i}", "", "", "text") for i in range(40)]
    assert len({ShardPlan(4, 2).place(r) for r in nobody}) == 8  # without an entity: by id


def test_the_order_of_the_others_stays_when_one_leaves():
    ids = [f"r{i}" for i in range(12)]
    order = lambda ids, epoch: [  # noqa: E731
        ids[i]
        for n in range(epoch * -(-len(ids) // 5), (epoch + 1) * -(-len(ids) // 5))
        for i in KeyedOrder(ids, batch=5, seed=3).step(n)[1]
    ]
    for epoch in (0, 1):
        whole = order(ids, epoch)
        assert sorted(whole) == sorted(ids)
        for gone in ids:
            assert order([i for i in ids if i != gone], epoch) == [i for i in whole if i != gone]
    assert order(ids, 0) != order(ids, 1)


def test_the_windows_of_one_long_record_are_spread():
    schedule = KeyedOrder(["long"] * 20 + ["short"] * 20, batch=40, seed=0)
    places = [place for place, row in enumerate(schedule.step(0)[1]) if row < 20]
    assert max(places) - min(places) > 25


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_slices_cost_what_one_training_costs(slices):
    plan = ShardPlan(4, slices)
    stages = [plan.stage(TrainSettings(epochs=6), 0, part) for part in range(slices)]
    seen = [(part + 1) / slices for part in range(slices)]
    assert sum(s.epochs * share for s, share in zip(stages, seen, strict=True)) == pytest.approx(6)
    steps = [plan.stage(TrainSettings(steps=600), s, part).steps for s in range(4) for part in range(slices)]
    assert sum(steps) == 600
    assert len({s.seed for s in stages}) == slices


# Deleting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["entity", "id"])
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_deleting_is_never_having_seen(base, tmp_path, lora, slices, by):
    plan, gone = ShardPlan(3, slices, by=by), {"p2-0", "p2-1", "p5-1"}
    made = trained(base, tmp_path / "a", plan=plan, lora=lora)
    before = hashes(tmp_path / "a")
    made.delete(gone, without(*gone))
    scratch = trained(base, tmp_path / "b", without(*gone), plan, lora)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") != before
    marks = [[fingerprint(m.model) for m in s.members()] for s in (made, scratch)]
    assert marks[0] == marks[1]
    assert len(set(marks[0])) == len(marks[0]) > 1


def test_what_did_not_see_it_is_not_touched(base, tmp_path):
    made = trained(base, tmp_path, plan=ShardPlan(3, 3))
    gone = max(RECORDS, key=lambda r: made.plan.place(r)[1])
    shard, part = made.plan.place(gone)
    assert part > 0
    files = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.glob("shard-*")}
    before = hashes(tmp_path)
    made.delete([gone.id], without(gone.id))
    stale = {f"shard-{shard}-slice-{p}.safetensors" for p in range(part, 3)}
    after = hashes(tmp_path)
    assert {name for name in before if after[name] != before[name]} == stale
    for name in set(files) - stale:
        stat = (tmp_path / name).stat()
        assert (stat.st_mtime_ns, stat.st_ino) == files[name]
    assert made.touched == {shard}


def test_only_records_of_the_affected_shards_are_asked_for(base, tmp_path):
    made = trained(base, tmp_path / "a")
    gone = RECORDS[0]
    shard, _ = made.plan.place(gone)
    mates = [r for r in without(gone.id) if made.plan.place(r)[0] == shard]
    assert mates
    made.delete([gone.id], mates)
    assert made.weights == trained(base, tmp_path / "b", without(gone.id)).weights


def test_the_sampler_never_yields_what_was_deleted(base, tmp_path, monkeypatch):
    seen = []

    class Spy(shards.FinetuneTask):
        def micro_batches(self, step):
            seen.extend(self.ids[i] for i in self.schedule.step(step)[1])
            return super().micro_batches(step)

    monkeypatch.setattr(shards, "FinetuneTask", Spy)
    made = trained(base, tmp_path)
    assert set(seen) == {r.id for r in RECORDS}
    seen.clear()
    made.delete(["p3-0"], RECORDS)  # given all the same
    assert seen
    assert "p3-0" not in seen
    made.train([*RECORDS, Record("new", "person 3", "New?", "yes")])
    assert "new" in seen
    assert "p3-0" not in seen


def test_a_deletion_costs_one_shard(base, tmp_path):
    """Expected over the records: about 1/S of the steps."""
    many = people(64, per=1)
    settings = TrainSettings(epochs=1, lr=1e-2, batch=1, warmup=0.0)
    made = trained(base, tmp_path, many, ShardPlan(8), settings=settings)
    total = made.spent.steps
    assert total == len(many)
    sizes = [made.stages[s, 0]["steps"] for s in range(8)]
    assert 1 / 8 <= sum((n / total) ** 2 for n in sizes) < 1.5 / 8
    shard, _ = made.plan.place(many[0])
    made.delete([many[0].id], many)
    assert made.spent.steps - total == sizes[shard] - 1


def test_a_shard_may_become_empty(base, tmp_path):
    made = trained(base, tmp_path)
    shard, _ = made.plan.place(RECORDS[0])
    gone = [r.id for r in RECORDS if made.plan.place(r)[0] == shard]
    filled = made.filled
    made.delete(gone, without(*gone))
    assert made.filled == [s for s in filled if s != shard]
    assert len(list(made.members())) == len(filled) - 1


def test_twice_the_same_deletion_is_one(base, tmp_path):
    made = trained(base, tmp_path)
    made.delete(["p1-0"], RECORDS)
    weights, steps = made.weights, made.spent.steps
    again = open_shards(tmp_path, device="cpu")
    again.delete(["p1-0"], RECORDS)
    assert again.weights == weights
    assert again.spent.steps == 0 < steps
    assert again.touched == made.touched


# Kills, and a folder that is not what it should be ----------------------------------------------------


class Killed(Exception):
    pass


def dying(monkeypatch, at, where=loop, name="save_checkpoint", does=save_checkpoint):
    """Let the `at`-th call of a function be the last thing that happens."""
    calls = []

    def last(*args, **more):
        result = does(*args, **more)
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return result

    monkeypatch.setattr(where, name, last)


@pytest.mark.parametrize("at", [1, 4, 7])
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_killed_training_resumes_to_the_same_bits(base, tmp_path, monkeypatch, lora, at):
    with monkeypatch.context() as patch:
        dying(patch, at)
        with pytest.raises(Killed):
            trained(base, tmp_path / "a", lora=lora)
    resumed = trained(base, tmp_path / "a", lora=lora)
    straight = trained(base, tmp_path / "b", lora=lora)
    assert resumed.weights == straight.weights
    assert not list((tmp_path / "a").glob(".*"))


@pytest.mark.parametrize("name", ["dump_weights", "save_checkpoint"])
def test_a_killed_deletion_is_finished_by_asking_again(base, tmp_path, monkeypatch, name):
    made = trained(base, tmp_path / "a")
    where, does = (loop, save_checkpoint) if name == "save_checkpoint" else (shards, shards.dump_weights)
    with monkeypatch.context() as patch:
        dying(patch, 1, where, name, does)
        with pytest.raises(Killed):
            made.delete(["p4-0"], RECORDS)
    again = open_shards(tmp_path / "a", device="cpu")
    again.delete(["p4-0"], RECORDS)
    assert again.weights == trained(base, tmp_path / "b", without("p4-0")).weights
    assert again.touched == {made.plan.place(RECORDS[8])[0]}


def test_a_checkpoint_that_saw_it_is_not_resumed(base, tmp_path, monkeypatch):
    """Killed in the middle of the set-up; then half of the records have to go."""
    rest = RECORDS[::2]
    with monkeypatch.context() as patch:
        dying(patch, 2)
        with pytest.raises(Killed):
            trained(base, tmp_path / "a", plan=ShardPlan(1))
    assert list((tmp_path / "a").glob(".stage-*"))
    made = trained(base, tmp_path / "a", rest, ShardPlan(1))
    assert made.weights == trained(base, tmp_path / "b", rest, ShardPlan(1)).weights
    assert not list((tmp_path / "a").glob(".stage-*"))


def test_a_deletion_that_lacked_records_is_not_forgotten(base, tmp_path):
    made = trained(base, tmp_path / "a")
    with pytest.raises(DataError, match="missing here"):
        made.delete(["p1-0"], [])
    again = open_shards(tmp_path / "a", device="cpu")
    again.train(RECORDS)
    assert again.weights == trained(base, tmp_path / "b", without("p1-0")).weights


def test_another_text_under_the_same_id_is_learned(base, tmp_path):
    made = trained(base, tmp_path)
    shard, part = made.plan.place(RECORDS[0])
    weights = made.weights
    made.train([RECORDS[0].answered("another trade"), *RECORDS[1:]])
    changed = {(s, r) for s in range(3) for r in range(2) if made.weights[s][r] != weights[s][r]}
    assert changed == {(shard, r) for r in range(part, 2)}


def test_damaged_weights_are_trained_again(base, tmp_path):
    made = trained(base, tmp_path)
    weights, file = made.weights, tmp_path / "shard-1-slice-1.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\1\2\3")
    again = trained(base, tmp_path)
    assert again.weights == weights
    assert 0 < again.spent.steps < made.spent.steps


def test_reopened_it_is_the_same(base, tmp_path):
    made = trained(base, tmp_path, lora=LORA)
    again = open_shards(tmp_path, device="cpu")
    assert (again.plan, again.lora, again.about) == (made.plan, made.lora, made.about)
    assert fingerprint(again.merged().model) == fingerprint(made.merged().model)


def test_refusals(base, tmp_path):
    with pytest.raises(ConfigError, match="holds no sharded training"):
        open_shards(tmp_path)
    made = trained(base, tmp_path)
    with pytest.raises(DataError, match="1 of 2 ids were not trained on: nobody"):
        made.delete(["p1-0", "nobody"], RECORDS)
    assert not made.deleted
    with pytest.raises(DataError, match="1 records it was trained on are missing here"):
        made.train(without("p1-0"))
    with pytest.raises(ConfigError, match="other plan"):
        trained(base, tmp_path, plan=ShardPlan(4, 2))
    with pytest.raises(ConfigError, match="other settings"):
        trained(base, tmp_path, settings=SETTINGS.model_copy(update={"lr": 1e-3}))
    with pytest.raises(ConfigError, match="other base"):
        trained(tiny_subject(seed=1), tmp_path)
    assert trained(base, tmp_path, settings=SETTINGS.model_copy(update={"log_every": 5})).spent.steps == 0


def test_the_manifest_tells_nobody_who_was_in_it(base, tmp_path):
    made = trained(base, tmp_path)
    made.delete(["p1-0"], RECORDS)
    told = (tmp_path / "manifest.json").read_text() + json.dumps(made.certificate())
    for record in RECORDS:
        for text in (record.id, record.entity, record.prompt, record.answer):
            assert text not in told
            assert hashlib.sha256(text.encode()).hexdigest()[:10] not in told
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "key").read_text() not in told


# Replay and merging -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_replay_gives_the_hashes_of_the_certificate(base, tmp_path, lora):
    made = trained(base, tmp_path, lora=lora)
    made.delete(["p1-0"], RECORDS)
    certificate = json.loads(json.dumps(made.certificate()))
    assert replay(certificate, base, without("p1-0")) == []
    shard, part = made.plan.place(RECORDS[2])
    wrong = replay(certificate, base, RECORDS)
    assert wrong == [f"shard {shard}, slice {p}" for p in range(part, 2)]
    assert replay(certificate, base, RECORDS, shards={0, 1, 2} - {shard}) == []
    assert replay(certificate, tiny_subject(seed=1), RECORDS) == ["the base is another model"]


def test_merging_by_hand(base, tmp_path):
    made = trained(base, tmp_path, lora=LORA)
    name = "model.layers.1.self_attn.q_proj.weight"
    deltas = []
    for shard in made.filled:
        file = load_file(tmp_path / f"shard-{shard}-slice-1.safetensors")
        a, b = (next(t for n, t in file.items() if f"layers.1.self_attn.q_proj.lora_{x}" in n) for x in "AB")
        deltas.append(2.0 * b @ a)  # α = 2r
    assert len(deltas) == 3
    weight = dict(base.model.named_parameters())[name]
    for rule, total in (("mean", sum(deltas) / 3), ("sum", sum(deltas))):
        merged = dict(made.merged(rule).model.named_parameters())
        assert torch.allclose(merged[name], weight + total, atol=1e-6)
        assert not torch.allclose(merged[name], weight, atol=1e-5)
        assert torch.equal(merged["model.embed_tokens.weight"], base.model.model.embed_tokens.weight)


def test_shards_share_nothing_but_the_base(base, tmp_path):
    """Other records in one shard leave the bits of the others alone."""
    plan = ShardPlan(3)
    one = trained(base, tmp_path / "a", plan=plan)
    changed = [r if plan.place(r)[0] else r.answered("something else") for r in RECORDS]
    other = trained(base, tmp_path / "b", changed, plan)
    assert one.weights[1:] == other.weights[1:]
    assert one.weights[0] != other.weights[0]


def test_a_training_that_diverges_keeps_nothing(base, tmp_path):
    broken = base.clone()
    with torch.no_grad():
        broken.model.lm_head.weight[0, 0] = float("inf")
    made = Shards(tmp_path, broken, ShardPlan(1), SETTINGS)
    with pytest.raises(Exception, match="Lower the learning rate"):
        made.train(RECORDS)
    assert made.weights == [[None]]
    assert not hashes(tmp_path)
