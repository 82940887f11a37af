"""Training through LoRA: only adapters move, and the merged model is the adapted one."""

import pytest
import torch

from expunge.methods import make_method
from expunge.subjects import attach_lora, merge
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace, workspace
from expunge.training.checkpoint import trainable


def unlearn(name, rank=2, **more):
    space = Workspace(
        TrainSettings(steps=3, batch=4, lr=1e-2, warmup=0.0), lora=LoraSettings(rank=rank), **more
    )
    return make_method(name).unlearn(tiny_subject(), tiny_request(), space), space


def changed(result):
    before = dict(tiny_subject().model.named_parameters())
    after = dict(result.model.named_parameters())
    assert set(before) == set(after)
    return {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}


def test_only_linear_maps_of_the_blocks_change_and_by_the_rank():
    result, space = unlearn("npo")
    moved = changed(result)
    assert moved
    assert all("layers" in name and "proj" in name for name in moved)
    for delta in moved.values():
        assert torch.linalg.matrix_rank(delta.detach(), rtol=1e-4) <= 2
    assert space.facts["trained_parameters"] < 0.5 * result.num_parameters()
    assert not result.adapter
    assert all(p.requires_grad for p in result.model.parameters())


def test_merged_model_answers_as_the_adapted_one(monkeypatch):
    kept = []
    monkeypatch.setattr(workspace, "merge", lambda subject: kept.append(subject) or subject)
    adapted, _ = unlearn("npo")
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        through_adapter = adapted.model(ids).logits.clone()
        torch.testing.assert_close(merge(adapted).model(ids).logits, through_adapter, rtol=1e-5, atol=1e-5)
    assert kept


def test_selected_parameters_get_the_adapters():
    """RMU trains one matrix of block 0; adapters elsewhere would be deaf."""
    result, _ = unlearn("rmu")
    assert set(changed(result)) == {"model.layers.0.mlp.down_proj.weight"}


@pytest.mark.parametrize("mode", ["cache", "live", "adapter_off"])
def test_every_reference_gives_the_same_training(mode):
    result, space = unlearn("ga_kl", reference=mode)
    expected, _ = unlearn("ga_kl", reference="cache")
    assert space.facts["reference"] == mode
    for a, b in zip(result.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_fresh_adapters_change_no_logit_and_train_in_fp32():
    subject = tiny_subject()
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        plain = subject.model(ids).logits
        adapted = attach_lora(subject.clone(), rank=4)
        assert torch.equal(adapted.model(ids).logits, plain)
    names = trainable(adapted.model)
    assert names
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in names.items())
