"""Selections: which weights are chosen, and that no other weight ever moves."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, LlamaConfig

from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, ExpungeError
from expunge.methods import make_method
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace, finetune
from expunge.training.gradients import answer_rows, fisher_diagonal, mean_gradient, row_losses
from expunge.training.hooks import TrainingControl
from expunge.training.selections import (
    SELECTIONS,
    intersect,
    keep_largest,
    load_mask,
    make_selection,
    save_mask,
)
from expunge.training.selections import memflex as memflex_file
from expunge.training.selections import salun as salun_file
from expunge.training.selections import sure as sure_file
from expunge.training.selections import wagle as wagle_file
from expunge.training.transforms import make_transform
from tiny_models import make_subject, some_records

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def names_of(subject):
    return [name for name, _ in subject.model.named_parameters()]


def select(name, subject=None, request=None, names=None, seed=0, **settings):
    subject = subject or tiny_subject()
    chosen = make_selection(name, **settings)
    return chosen.select(subject, request or tiny_request(), names or names_of(subject), seed)


def spread(mask, subject=None):
    """The mask as one boolean vector over all weights of the model."""
    parameters = (subject or tiny_subject()).model.named_parameters()
    parts = []
    for name, p in parameters:
        found = mask.get(name, False)
        parts.append(torch.full((p.numel(),), found) if isinstance(found, bool) else found.reshape(-1))
    return torch.cat(parts)


def same(one, other):
    as_tensor = lambda mask: {n: torch.tensor(m) if isinstance(m, bool) else m for n, m in mask.items()}  # noqa: E731
    one, other = as_tensor(one), as_tensor(other)
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# How many are kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [1e-9, 0.01, 0.37, 0.5, 0.999, 1.0])
def test_share_is_exact_to_one_element_and_equals_a_stable_sort(share, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(97, generator=generator) ** 20  # over many orders of magnitude
    values[::3] = values[3]  # ties
    values[5:9] = 0
    scores = {"b": values[:40].reshape(5, 8), "a": values[40:77], "c": values[77:].reshape(2, 2, 5)}
    mask = keep_largest(scores, share)
    count = max(1, round(share * 97))
    expected = torch.zeros(97, dtype=torch.bool)
    expected[values.argsort(descending=True, stable=True)[:count]] = True
    whole = [mask.get(n, False) for n in scores]
    found = torch.cat(
        [
            torch.full((s.numel(),), m) if isinstance(m, bool) else m.reshape(-1)
            for m, s in zip(whole, scores.values(), strict=True)
        ]
    )
    assert torch.equal(found, expected)
    assert all(m is True or (m.any() and not m.all()) for m in mask.values())
    assert all(m is True or m.shape == scores[n].shape for n, m in mask.items())


def test_equal_scores_are_kept_in_the_order_of_the_model():
    mask = keep_largest({"z": torch.ones(3), "a": torch.ones(3)}, 4 / 6)
    assert mask["z"] is True
    assert mask["a"].tolist() == [True, False, False]


def test_threshold_is_global_and_not_per_tensor():
    mask = keep_largest({"large": torch.tensor([5.0, 6.0]), "small": torch.tensor([1.0, 2.0])}, 0.5)
    assert mask == {"large": True}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_no_scores_are_an_error(bad):
    with pytest.raises(ExpungeError, match=r"broken.*not finite"):
        keep_largest({"fine": torch.ones(2), "broken": torch.tensor([1.0, bad])}, 0.5)


EVERY = {
    "pattern": {"match": "down_proj"},
    "layers": {"first": 1, "last": 1},
    "random": {"share": 0.3},
    "magnitude": {"share": 0.3},
    "salun": {"share": 0.3},
    "wagle": {"share": 0.3},
    "sure": {"share": 0.3},
    "memflex": {"gradient": 1e-3},
}
ELEMENTS = ["random", "magnitude", "salun", "wagle"]


def test_every_selection_is_tested_here():
    assert set(SELECTIONS.names()) == {*EVERY, "mask"}
    defaults = {name: vars(make_selection(name)) for name in ("salun", "wagle", "sure", "memflex")}
    assert defaults == {
        "salun": {"share": 0.5},
        "wagle": {"share": 0.8, "mu": None},
        "sure": {"share": 0.1},
        "memflex": {"cosine": 0.92, "gradient": 6e-4, "labels": "random", "copies": 3},
    }
    assert all(SELECTIONS.card(name).summary for name in SELECTIONS.names())


@pytest.mark.parametrize("name", ELEMENTS)
def test_share_of_the_model(name):
    subject = tiny_subject()
    mask = select(name, subject, share=0.3)
    assert int(spread(mask).sum()) == round(0.3 * subject.num_parameters())


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_mask_and_the_subject_is_left_alone(name):
    subject = tiny_subject()
    before = fingerprint(subject.model)
    mask = select(name, subject, **EVERY[name])
    assert mask
    assert same(mask, select(name, names=names_of(subject)[::-1], **EVERY[name])), "order of names matters"
    assert fingerprint(subject.model) == before
    assert all(p.requires_grad and p.grad is None for p in subject.model.parameters())
    inside = [n for n in names_of(subject) if "layers.1" in n]
    assert set(select(name, subject, names=inside, **EVERY[name])) <= set(inside)


# What is kept --------------------------------------------------------------------------------------------


def gradient(subject, records):
    """∇ of the mean NLL by autograd, without the package's own accumulation."""
    loss = row_losses(subject, answer_rows(subject, records)).mean()
    found = torch.autograd.grad(loss, list(subject.model.parameters()), materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in found])


def top(scores, share):
    return set(scores.argsort(descending=True, stable=True)[: round(share * len(scores))].tolist())


def nearly(mask, scores, share):
    """All but a handful: sums in another order move scores beside the threshold."""
    kept, expected = set(mask.nonzero()[:, 0].tolist()), top(scores, share)
    return len(kept) == len(expected) and len(kept ^ expected) <= 1e-3 * len(kept)


def test_scores_by_hand():
    subject, request = tiny_subject(), tiny_request()
    theta = torch.cat([p.detach().reshape(-1) for p in subject.model.parameters()])
    forget, retain = gradient(subject, request.forget), gradient(subject, request.retain)
    expected = {
        ("magnitude", ()): theta.abs(),
        ("salun", ()): forget.abs(),
        ("wagle", (("mu", 0.02),)): ((theta - retain / 0.02) * forget).abs(),
    }
    for (name, more), scores in expected.items():
        mask = spread(select(name, subject, request, share=0.2, **dict(more)))
        assert nearly(mask, scores, 0.2), name
        others = [s for (other, _), s in expected.items() if other != name]
        assert not any(nearly(mask, s, 0.2) for s in others), f"{name} cannot be told from the others"
    plus = ((theta + retain / 0.02) * forget).abs()
    assert not nearly(spread(select("wagle", subject, request, share=0.2, mu=0.02)), plus, 0.2)


def test_wagle_with_infinite_curvature_is_weight_times_gradient():
    subject, request = tiny_subject(), tiny_request()
    found = make_selection("wagle", mu=1e30).scores(subject, request, names_of(subject), 0)
    forget = mean_gradient(subject, request.forget)
    for name, p in subject.model.named_parameters():
        assert torch.equal(found[name], (p.detach() * forget[name]).abs())


def test_wagle_takes_its_curvature_from_the_retain_fisher(monkeypatch):
    subject, request = tiny_subject(), tiny_request()
    diagonal = fisher_diagonal(subject, request.retain)
    mean = float(sum(d.sum() for d in diagonal.values())) / subject.num_parameters()
    found = make_selection("wagle").curvature(subject, request, names_of(subject))
    assert found == pytest.approx(mean, rel=1e-5)
    expected = make_selection("wagle", mu=found).scores(subject, request, names_of(subject), 0)
    assert same(make_selection("wagle").scores(subject, request, names_of(subject), 0), expected)
    seen = []
    monkeypatch.setattr(
        wagle_file, "fisher_diagonal", lambda s, records, names: seen.append(len(records)) or diagonal
    )
    many = replace(request, splits={**request.splits, "retain": request.retain * 20})  # 180
    make_selection("wagle").curvature(subject, many, names_of(subject))
    assert seen == [60]  # every third


@pytest.mark.parametrize("name", ["salun", "wagle", "sure"])
def test_scaling_the_forget_loss_changes_no_mask(name, monkeypatch):
    plain = select(name, **EVERY[name])
    file = {"salun": salun_file, "wagle": wagle_file, "sure": sure_file}[name]
    forget = {r.id for r in tiny_request().forget}

    def scaled(subject, records, **more):
        factor = 64.0 if records[0].id in forget else 1.0  # a power of two: exact
        return {n: factor * g for n, g in mean_gradient(subject, records, **more).items()}

    monkeypatch.setattr(file, "mean_gradient", scaled)
    assert same(select(name, **EVERY[name]), plain)


def test_sure_keeps_whole_rows_of_largest_norm():
    subject, request = tiny_subject(), tiny_request()
    mask = select("sure", subject, request, share=0.25)
    forget = mean_gradient(subject, request.forget)
    shapes = {n: p.shape for n, p in subject.model.named_parameters()}
    matrices = [n for n in shapes if len(shapes[n]) == 2]
    assert set(mask) <= set(matrices)
    norms = torch.cat([forget[n].square().sum(1).sqrt() for n in matrices])
    full = {n: mask.get(n, torch.zeros(shapes[n], dtype=torch.bool)) for n in matrices}
    full = {n: torch.ones(shapes[n], dtype=torch.bool) if m is True else m for n, m in full.items()}
    for kept in full.values():
        assert torch.equal(kept.all(1), kept.any(1)), "a row is kept in part"
    rows = torch.cat([full[n][:, 0] for n in matrices])
    assert set(rows.nonzero()[:, 0].tolist()) == top(norms, 0.25)


def test_output_neurons_of_a_conv1d_are_columns():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128)
    subject = tiny_subject(config=config)
    mask = select("sure", subject, share=0.3)
    weight = "transformer.h.0.mlp.c_fc.weight"  # [in 32, out 128]
    kept = mask[weight]
    assert torch.equal(kept.all(0), kept.any(0))
    assert not torch.equal(kept.all(1), kept.any(1))
    rows = mask["transformer.wpe.weight"]
    assert torch.equal(rows.all(1), rows.any(1))


def test_memflex_by_hand(monkeypatch):
    names = {"alike": [1.0, 0.0], "aside": [0.0, 1.0], "weak": [0.0, 1e-4], "against": [-1.0, 0.1]}
    sides = [{n: torch.tensor(g) for n, g in names.items()}, dict.fromkeys(names, torch.tensor([1.0, 0.0]))]
    monkeypatch.setattr(memflex_file, "mean_gradient", lambda *_, **__: sides.pop(0))
    assert select("memflex") == {"aside": True, "against": True}


def test_memflex_says_what_the_thresholds_should_be():
    with pytest.raises(ConfigError, match=r"mean \|g\| > 1000.*largest mean \|g\| 0\.0"):
        select("memflex", gradient=1000.0)


def test_memflex_scrambles_half_of_each_answer_and_nothing_else():
    subject, request = tiny_subject(), tiny_request()
    gold = answer_rows(subject, request.forget)
    plain = make_selection("memflex", labels="gold")._rows(subject, request.forget, "forget", 0)
    assert plain == gold
    made = make_selection("memflex")._rows(subject, request.forget, "forget", 0)
    assert len(made) == 3 * len(gold)
    assert len(set(made)) == len(made), "copies are equal"
    assert made == make_selection("memflex")._rows(subject, request.forget, "forget", 0)
    for i, row in enumerate(made):
        old = gold[i % len(gold)]
        assert row.ids[: row.num_prompt] == old.ids[: old.num_prompt]
        assert row.ids[-1] == old.ids[-1] == subject.tokenizer.eos_token_id
        changed = sum(a != b for a, b in zip(row.ids, old.ids, strict=True))
        assert 0 < changed <= (old.num_targets - 1) // 2
        assert not {0, 1} & set(row.answer_ids[:-1]), "special tokens were drawn"


def test_layers():
    subject = tiny_subject(config=LlamaConfig(**SHAPE, max_position_embeddings=128))
    blocks = lambda **more: {n.split(".")[2] for n in select("layers", subject, **more)}  # noqa: E731
    assert blocks() == {"0", "1", "2"}
    assert blocks(first=1) == {"1", "2"}
    assert blocks(first=-2, last=1) == {"1"}
    assert all(m is True for m in select("layers", subject).values())
    assert not any("embed" in n or "head" in n or n == "model.norm.weight" for n in select("layers", subject))
    for wrong in ({"first": 3}, {"first": 2, "last": 1}, {"last": -4}):
        with pytest.raises(ConfigError, match="Blocks are 0 to 2"):
            select("layers", subject, **wrong)


def test_layer_one_is_not_layer_ten():
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": 11}, max_position_embeddings=128)
    subject = tiny_subject(config=config)
    assert {n.split(".")[2] for n in select("layers", subject, first=1, last=1)} == {"1"}


@pytest.mark.parametrize("name", ["wagle", "memflex"])
def test_without_a_retain_set_there_is_a_clear_error(name):
    request = tiny_request()
    bare = replace(request, splits={"forget": request.forget})
    with pytest.raises(DataError, match=f"selection.{name}: needs retain records"):
        select(name, request=bare, **EVERY[name])


def test_two_selections_are_what_both_choose():
    half = torch.tensor([True, False, True])
    other = torch.tensor([True, True, False])
    both = intersect({"b": True, "a": half, "c": True}, {"c": True, "a": other, "b": half, "d": True})
    assert list(both) == ["b", "a", "c"]
    assert both["b"] is half
    assert both["a"].tolist() == [True, False, False]
    assert both["c"] is True


# What moves ------------------------------------------------------------------------------------------------


def unlearn(*selections, method="graddiff", subject=None, folder=None, controls=(), lora=None, **more):
    given = {"steps": 5, "batch": 4, "lr": 1e-2, "warmup": 0.0, "weight_decay": 0.3, **more}
    transforms = given.pop("transforms", ())
    given.setdefault("checkpoint_seconds", 0.0)
    space = Workspace(
        TrainSettings(**given), folder, controls=controls, lora=lora, transforms=transforms,
        selections=[make_selection(name, **more) for name, more in selections],
    )  # fmt: skip
    return make_method(method).unlearn(subject or tiny_subject(), tiny_request(), space), space


def check_only_inside(result, mask, subject=None):
    subject = subject or tiny_subject()
    inside = spread(mask, subject)
    before, after = (
        torch.cat([p.detach().reshape(-1) for p in s.model.parameters()]) for s in (subject, result)
    )
    moved = before.view(torch.int32) != after.view(torch.int32)
    assert not moved[~inside].any(), f"{int(moved[~inside].sum())} unselected weights moved"
    assert moved[inside].float().mean() > 0.9


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "sophia"])
def test_weights_outside_are_bit_identical_under_decay_and_momentum(name, optimizer):
    if optimizer == "sophia" and name != "salun":
        pytest.skip("one mask is enough for sophia")
    result, space = unlearn((name, EVERY[name]), optimizer=optimizer)
    mask = select(name, **EVERY[name])
    check_only_inside(result, mask)
    assert space.facts["trained_parameters"] == int(spread(mask).sum())


@pytest.mark.parametrize("optimizer", ["adamw", "sophia"])
def test_masks_hold_under_transforms_and_through_a_resume(tmp_path, optimizer):
    class StopAt(TrainingControl):
        def __init__(self, step):
            self.step = step

        def after_step(self, step, subject):
            if step == self.step:
                os.kill(os.getpid(), signal.SIGINT)
            return False

    more = {
        "optimizer": optimizer,
        "transforms": [make_transform(n) for n in ("sam", "smoothing", "gru", "disruption")],
    }
    chosen = ("wagle", {"share": 0.2})
    with pytest.raises(KeyboardInterrupt):
        unlearn(chosen, folder=tmp_path, controls=[StopAt(2)], **more)
    resumed, _ = unlearn(chosen, folder=tmp_path, controls=[StopAt(-1)], **more)
    straight, _ = unlearn(chosen, controls=[StopAt(-1)], **more)
    assert fingerprint(resumed.model) == fingerprint(straight.model)
    check_only_inside(resumed, select("wagle", share=0.2))


def test_sam_moves_only_selected_weights_and_measures_only_them():
    shifts = []

    class Watch(type(make_transform("sam"))):
        def around(self, gradient, scene):
            before = [p.detach().clone() for p in scene.parameters]

            def spy():
                shifts.append([p.detach() - b for p, b in zip(scene.parameters, before, strict=True)])
                return gradient()

            return super().around(spy, scene)

    result, _ = unlearn(("salun", {"share": 0.2}), steps=1, transforms=[Watch(rho=0.5)])
    mask = select("salun", share=0.2)
    by_name = [n for n in names_of(result) if n in mask]
    assert not any(s.any() for s in shifts[0])
    for name, shift in zip(by_name, shifts[1], strict=True):
        assert mask[name] is True or not shift[~mask[name]].any()
    length = torch.cat([s.reshape(-1) for s in shifts[1]]).norm()
    assert float(length) == pytest.approx(0.5, rel=1e-3)


def test_tied_weights_share_one_mask():
    config = LlamaConfig(**SHAPE, max_position_embeddings=128, tie_word_embeddings=True)
    make = lambda: tiny_subject(config=config)  # noqa: E731
    chosen = ("salun", {"share": 0.3})
    mask = select(chosen[0], make(), **chosen[1])
    assert "lm_head.weight" not in mask
    kept = mask["model.embed_tokens.weight"]
    assert 0 < int(kept.sum()) < kept.numel()
    result, _ = unlearn(chosen, subject=make())
    assert result.model.lm_head.weight is result.model.model.embed_tokens.weight
    assert torch.equal(result.model.lm_head.weight[~kept], make().model.lm_head.weight[~kept])
    check_only_inside(result, mask, make())


def test_selected_modules_get_the_adapters():
    chosen = ("memflex", {"gradient": 5e-4}), ("pattern", {"match": "layers.1"})
    result, _ = unlearn(*chosen, lora=LoraSettings(rank=2))
    expected = {n for n in select("memflex", gradient=5e-4) if "layers.1" in n and "proj" in n}
    before = dict(tiny_subject().model.named_parameters())
    moved = {n for n, p in result.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == expected
    assert 0 < len(expected) < 7


def test_a_lora_cannot_train_single_weights():
    with pytest.raises(ConfigError, match="a LoRA trains whole matrices"):
        unlearn(("salun", {}), lora=LoraSettings(rank=2))


def test_a_mask_with_nothing_in_it_is_an_error():
    with pytest.raises(ConfigError, match="nothing is left to train"):
        unlearn(("layers", {"first": 0, "last": 0}), ("layers", {"first": 1, "last": 1}))


def test_a_tiny_mask_is_seen_to_move():
    """The check that some weight moved looks inside the mask."""
    _, space = unlearn(("magnitude", {"share": 1e-4}))
    assert space.facts["moved_fraction"] == 1
    assert space.facts["trained_parameters"] == round(1e-4 * tiny_subject().num_parameters())


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_fact_planted_in_one_layer_is_ranked_there(block):
    """The MLP of one block alone carries a fact; those of the others write nothing."""
    subject = make_subject("llama", spread=0.05)
    others = tuple(some_records(6))
    fact = (Record("planted", "Zed", "Where was Zed born?", "Zed was born in Quill."),)
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            p.requires_grad_(f"layers.{block}.mlp" in name)
            if "down_proj" in name and not p.requires_grad:
                p.zero_()
    finetune(subject, [*fact, *others], TrainSettings(steps=30, lr=1e-2, batch=7))
    request = Request({"forget": fact, "retain": others})
    names = [n for n in names_of(subject) if "mlp" in n]
    shapes = {n: p.shape for n, p in subject.model.named_parameters()}

    def share_there(name, **more):
        mask = select(name, subject, request, names, **more)
        count = {n: shapes[n].numel() if m is True else int(m.sum()) for n, m in mask.items()}
        return sum(c for n, c in count.items() if f"layers.{block}." in n) / sum(count.values())

    assert share_there("wagle", share=0.2, mu=1e30) == 1
    assert share_there("wagle", share=0.2) > 0.5
    assert share_there("salun", share=0.2) > 0.5
    assert share_there("random", share=0.2) == pytest.approx(1 / 3, abs=0.05)


# Files -----------------------------------------------------------------------------------------------------


def test_mask_of_a_run_is_kept_and_can_be_used_again(tmp_path):
    chosen = ("wagle", {"share": 0.2})
    first, _ = unlearn(chosen, ("pattern", {"match": "mlp|norm"}), folder=tmp_path)
    file = tmp_path / "mask.safetensors"
    mask, meta = load_mask(file)
    assert meta["fingerprint"] == tiny_subject().fingerprint()
    assert meta["selections"][0] == {"name": "wagle", "share": 0.2, "mu": None}
    assert meta["selections"][1]["name"] == "pattern"
    both = intersect(select("wagle", share=0.2), select("pattern", match="mlp|norm"))
    assert same(mask, both)
    again, _ = unlearn(("mask", {"path": str(file)}))
    assert fingerprint(again.model) == fingerprint(first.model)


def test_masks_survive_the_file(tmp_path):
    file = tmp_path / "mask.safetensors"
    mask = {"whole": True, "part": torch.tensor([[True, False], [False, False]]), "one": torch.tensor([True])}
    save_mask(file, mask, {"fingerprint": "abc", "share": 0.5})
    found, meta = load_mask(file)
    assert same(found, mask)
    assert meta == {"fingerprint": "abc", "share": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["mask.safetensors"]


def test_a_mask_of_another_model_is_refused_unless_asked_for(tmp_path):
    file = tmp_path / "mask.safetensors"
    save_mask(file, {"model.norm.weight": True}, {"fingerprint": tiny_subject(seed=1).fingerprint()})
    with pytest.raises(ConfigError, match=r"another model .*any_model"):
        select("mask", path=str(file))
    assert select("mask", path=str(file), any_model=True) == {"model.norm.weight": True}
    for wrong in ({"model.norm.bias": True}, {"model.norm.weight": torch.tensor([True])}):
        save_mask(file, wrong, {"fingerprint": tiny_subject().fingerprint()})
        with pytest.raises(ConfigError, match=r"has no model\.norm"):
            select("mask", path=str(file))


def test_files_that_are_no_masks(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        select("mask", path=str(tmp_path / "none.safetensors"))
    damaged, plain = tmp_path / "damaged.safetensors", tmp_path / "plain.safetensors"
    damaged.write_bytes(b"half a file")
    save_file({"a": torch.ones(1)}, plain, {"other": json.dumps(1)})
    for file in (damaged, plain):
        with pytest.raises(ConfigError, match="is not a mask"):
            select("mask", path=str(file))
