"""Maps and masks: against brute force, back through a selection, and whether they are faithful."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.explain.small_facts import KNOWN, PLANTED, knowing, nll, planted
from tests.tiny_models import make_subject, some_records

from expunge.data.batching import collate
from expunge.data.records import Record
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, NotComputable
from expunge.explain.base import LOCALIZERS, Case
from expunge.explain.faithfulness import ablated, faithfulness, mask_size, random_masks
from expunge.explain.localization.causal_tracing import CausalTracing, mention
from expunge.explain.localization.gradient_saliency import GradientSaliency
from expunge.explain.localization.integrated_gradients import IntegratedGradients
from expunge.explain.localization.masks import block_mask, inner_width, neuron_mask
from expunge.explain.localization.representation_distance import RepresentationDistance
from expunge.explain.localization.weight_importance import WeightImportance
from expunge.explain.record_gradients import block_parameters, gradient_source
from expunge.stats import seed_from
from expunge.training.gradients import differentiable
from expunge.training.linear_memory import mlp_output
from expunge.training.selections import make_selection, save_mask

RECORDS = some_records(5)


def flat(subject, record):
    with gradient_source(subject) as gradients:
        return gradients.of(record)


# Gradient maps ----------------------------------------------------------------------------------------


def test_saliency_is_forget_over_retain():
    subject = make_subject()
    found = GradientSaliency(share=0.02).localize(subject, Case(RECORDS[:2], RECORDS[2:]))
    forget, retain = ([flat(subject, r) for r in some] for some in (RECORDS[:2], RECORDS[2:]))
    names = block_parameters(subject.model)
    norm = lambda g, i: sum(g[n].square().sum() for n in names[i]).sqrt()  # noqa: E731
    expected = norm(forget[0], 1) / torch.stack([norm(g, 1).square() for g in retain]).mean().sqrt()
    assert found.map[0, 1] == pytest.approx(float(expected), rel=1e-4)
    name = "model.layers.1.mlp.down_proj.weight"
    rms = torch.stack([g[name].square() for g in retain]).mean(0).sqrt()
    score = ((forget[0][name] + forget[1][name]) / 2).abs() / (rms + rms.mean())
    kept = score[found.mask[name]]
    assert kept.min() >= score[~found.mask[name]].max()
    total = sum(p.numel() for n, p in subject.model.named_parameters() if ".layers." in n)
    assert mask_size(subject.model, found.mask) == round(0.02 * total)


def test_importance_is_the_fisher_ratio():
    subject = make_subject()
    found = WeightImportance().localize(subject, Case(RECORDS[:2], RECORDS[2:]))
    forget, retain = ([flat(subject, r) for r in some] for some in (RECORDS[:2], RECORDS[2:]))
    values = []
    for name in block_parameters(subject.model)[2]:
        floor = torch.stack([g[name].square() for g in retain]).mean(0)
        values.append((forget[1][name].square() / (floor + floor.mean())).reshape(-1))
    assert found.map[1, 2] == pytest.approx(float(torch.cat(values).mean()), rel=1e-4)
    with pytest.raises(DataError, match="needs retain records"):
        WeightImportance().localize(subject, Case(RECORDS))


# Causal tracing ---------------------------------------------------------------------------------------


def test_the_mention_is_the_entity_alone():
    subject = make_subject()
    record = Record("x", "Ada Lund", "Where was Ada Lund born?", "In Tarn.")
    row = subject.encoder.encode(record)
    span = mention(subject.encoder, row, record.entity)
    text = subject.encoder.decode(row.ids[span.start : span.stop])
    assert "Ada Lund" in text
    assert len(text) <= len("Ada Lund") + 4  # a token may reach beyond the name
    assert mention(subject.encoder, row, "Nobody") == range(row.num_prompt)


def test_only_tokens_from_the_entity_on_can_bring_the_answer_back():
    record = KNOWN[0]
    found = CausalTracing(part="block", samples=3).localize(knowing(), Case([record]))
    detail = found.details[record.id]
    effects, first = np.array(detail["effects"]), detail["entity"][0]
    assert effects.shape == (4, knowing().encoder.encode(record).num_prompt)
    assert detail["total"] > 0.3
    assert first > 0
    np.testing.assert_allclose(effects[:, :first], 0, atol=1e-5)  # nothing was spoiled there
    assert effects[:, first:].max() > 0.5 * detail["total"]
    np.testing.assert_allclose(found.map[0], effects.max(1))


def test_indirect_effect_by_hand():
    """One layer, one token, one draw: the same intervention by plain hooks."""
    subject, record = knowing(), KNOWN[1]
    tracing = CausalTracing(part="mlp", samples=1, noise=2.0)
    found = tracing.localize(subject, Case([record], seed=5))
    row = subject.encoder.encode(record)
    detail, layer = found.details[record.id], 2
    place = detail["entity"][-1]
    noise = tracing._noise(subject, len(detail["entity"]), seed_from(5, "causal tracing", record.id))[0]
    ids, model = torch.tensor([row.ids]), subject.model
    mlp = model.model.layers[layer].mlp

    @torch.no_grad()
    def run(*hooks):
        handles = [m.register_forward_hook(h) for m, h in hooks]
        logits = model(ids).logits[0, row.num_prompt - 1 : -1]
        for handle in handles:
            handle.remove()
        logp = logits.log_softmax(-1).gather(1, torch.tensor(row.answer_ids)[:, None])
        return float(logp.mean().exp())

    kept = []
    clean = run((mlp, lambda m, i, o: kept.append(o.clone())))

    def spoil(m, i, o):
        o = o.clone()
        o[0, detail["entity"]] += noise
        return o

    def restore(m, i, o):
        o = o.clone()
        o[0, place] = kept[0][0, place]
        return o

    corrupted = run((model.model.embed_tokens, spoil))
    restored = run((model.model.embed_tokens, spoil), (mlp, restore))
    assert detail["total"] == pytest.approx(clean - corrupted, abs=1e-5)
    assert detail["effects"][layer][place] == pytest.approx(restored - corrupted, abs=1e-5)


def test_tracing_takes_out_what_retain_records_show_too():
    plain = CausalTracing(samples=2).localize(knowing(), Case(KNOWN[:2]))
    compared = CausalTracing(samples=2).localize(knowing(), Case(KNOWN[:2], KNOWN[2:4]))
    others = CausalTracing(samples=2).localize(knowing(), Case(KNOWN[2:4]))
    np.testing.assert_allclose(compared.map, plain.map - others.map.mean(0), atol=1e-6)


def test_documents_cannot_be_traced():
    with pytest.raises(DataError, match="needs records with a prompt"):
        CausalTracing().localize(make_subject(), Case([Record("d", "", "", "a text")]))


# Neurons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_integrated_gradients_are_complete(family):
    """Over all neurons they add up to P with the layer's MLP less P without it."""
    subject, record = make_subject(family), RECORDS[0]
    row = subject.encoder.encode(record)
    batch = collate([row], subject.encoder.pad_id)
    module = mlp_output(subject.model, 1)

    @torch.no_grad()
    def probability(scale):
        handle = module.register_forward_pre_hook(lambda m, i: (i[0] * scale,))
        logits = subject.model(batch.input_ids).logits[batch.row, batch.col]
        handle.remove()
        return float(logits.softmax(-1).gather(1, batch.targets[:, None]).mean())

    with differentiable(subject, ()):
        found = IntegratedGradients(steps=64).attributed(subject, record, 1)
    assert found.shape == (inner_width(subject.model, 1),)
    assert float(found.sum()) == pytest.approx(probability(1.0) - probability(0.0), rel=0.02, abs=1e-7)


def test_neuron_mask_is_rows_in_and_columns_out():
    subject = make_subject("llama")
    neurons = torch.zeros(48, dtype=torch.bool)
    neurons[[3, 7]] = True
    mask = neuron_mask(subject.model, {1: neurons, 2: torch.zeros(48, dtype=torch.bool)})
    assert set(mask) == {f"model.layers.1.mlp.{m}_proj.weight" for m in ("gate", "up", "down")}
    up, down = (mask[f"model.layers.1.mlp.{m}_proj.weight"] for m in ("up", "down"))
    assert up.any(1).nonzero()[:, 0].tolist() == down.any(0).nonzero()[:, 0].tolist() == [3, 7]
    assert mask_size(subject.model, mask) == 3 * 2 * 32
    turned = neuron_mask(make_subject("gpt2").model, {0: torch.arange(128) == 5})
    assert turned["transformer.h.0.mlp.c_fc.weight"][:, 5].all()
    assert turned["transformer.h.0.mlp.c_proj.weight"][5].all()
    with ablated(subject.model, mask):  # without its weights a neuron says nothing
        kept = []
        handle = mlp_output(subject.model, 1).register_forward_pre_hook(lambda m, i: kept.append(i[0]))
        subject.model(torch.tensor([[5, 6, 7]]))
        handle.remove()
    assert (kept[0][..., [3, 7]] == 0).all()


# Distance ---------------------------------------------------------------------------------------------


def test_distance_is_charged_to_the_block_that_makes_it():
    found = RepresentationDistance().localize(knowing(), Case(PLANTED, other=planted(1)))
    np.testing.assert_allclose(found.map[:, [0, 2, 3]], 0, atol=1e-6)
    assert (found.map[:, 1] > 0.1).all()
    states = np.array(found.details["states"])
    assert np.allclose(states[:, 0], 0, atol=1e-6)
    assert (states[:, 1:] > 0.01).all()
    same = RepresentationDistance().localize(knowing(), Case(PLANTED, other=knowing().clone()))
    assert np.allclose(same.map, 0)
    with pytest.raises(DataError, match="compares two models"):
        RepresentationDistance().localize(knowing(), Case(PLANTED))


# Masks as files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient_saliency", "integrated_gradients", "representation_distance"])
def test_mask_goes_through_a_file_into_a_selection(tmp_path, name):
    subject = planted(1)
    found = LOCALIZERS.make(name).localize(subject, Case(PLANTED[:1], KNOWN[:2], knowing()))
    save_mask(tmp_path / "mask.safetensors", found.mask, {"fingerprint": subject.fingerprint()})
    selection = make_selection("mask", path=str(tmp_path / "mask.safetensors"))
    names = [n for n, _ in subject.model.named_parameters()]
    read = selection.select(subject, Request({"forget": tuple(PLANTED)}), names, 0)
    assert set(read) == set(found.mask)
    assert all(read[n] is True if m is True else torch.equal(read[n], m) for n, m in found.mask.items())
    with pytest.raises(ConfigError, match="another model"):
        selection.select(knowing(), Request({"forget": tuple(PLANTED)}), names, 0)


# Faithfulness -----------------------------------------------------------------------------------------


def test_ablation_is_undone_bit_for_bit():
    subject = make_subject()
    before = subject.fingerprint()
    weight = dict(subject.model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    chosen = torch.rand(weight.shape) < 0.3
    kept, mean = weight.detach().clone(), float(weight.detach().mean())
    with ablated(subject.model, {"model.layers.0.mlp.up_proj.weight": chosen, "model.norm.weight": True}):
        assert (weight[chosen] == 0).all()
        assert torch.equal(weight[~chosen], kept[~chosen])
        assert (subject.model.model.norm.weight == 0).all()
    assert subject.fingerprint() == before
    with ablated(subject.model, {"model.layers.0.mlp.up_proj.weight": chosen}, "mean"):
        assert float(weight.detach()[chosen].mean()) == pytest.approx(mean, rel=1e-4)
    assert subject.fingerprint() == before


def test_random_masks_are_as_large_tensor_by_tensor():
    subject = make_subject()
    up, down = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
    weights = {up: torch.rand(48, 32) < 0.1, down: True}
    drawn = list(random_masks(subject.model, weights, "weight", 3, 0))
    assert all(m[up].sum() == weights[up].sum() and m[down] is True for m in drawn)
    assert not torch.equal(drawn[0][up], drawn[1][up])
    neurons = neuron_mask(subject.model, {1: torch.arange(48) < 4})
    for mask in random_masks(subject.model, neurons, "neuron", 3, 0):
        rows, columns = mask[up].any(1), mask[down].any(0)
        assert rows.sum() == 4
        assert torch.equal(rows, columns)  # the same neurons in and out
    blocks = block_mask(subject.model, [1], "mlp")
    moved = list(random_masks(subject.model, blocks, "block", 20, 0))
    assert sorted(sorted(m)[0].split(".")[2] for m in moved) == ["0", "2"]
    with pytest.raises(NotComputable, match="no other mask"):
        faithfulness(subject, block_mask(subject.model, [0, 1, 2], "mlp"), RECORDS, unit="block")


@pytest.mark.parametrize(
    ("name", "settings"), [("integrated_gradients", {"steps": 8, "share": 0.05}), ("causal_tracing", {})]
)
def test_mask_of_planted_facts_is_faithful_and_a_random_one_is_not(name, settings):
    subject = planted(2)
    localizer = LOCALIZERS.make(name, **settings)
    found = localizer.localize(subject, Case(PLANTED, KNOWN[:8]))
    unit = localizer.card.fields["unit"]
    tested = faithfulness(subject, found.mask, PLANTED, KNOWN[:8], unit=unit)
    assert tested.selective >= 0.95
    assert tested.forget > 5 * max(abs(tested.retain), 0.01)
    if unit == "neuron":
        assert tested.faithful
        assert len(tested.random_forget) == 20
        other = next(random_masks(subject.model, found.mask, unit, 1, seed=9))
        assert not faithfulness(subject, other, PLANTED, KNOWN[:8], unit=unit).faithful
    with ablated(subject.model, found.mask):
        rise = nll(subject, PLANTED)
    assert tested.forget == pytest.approx(rise - nll(subject, PLANTED), rel=1e-4)
