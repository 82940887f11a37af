"""FILA: the model is unchanged at step 0, its adapters hold what matters to forget and not to retain."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config

from expunge.errors import DataError, ModelError
from expunge.methods import make_method
from expunge.subjects import attach_lora, fingerprint, merge, scale_lora
from expunge.subjects.adapters import base_moved, lora_modules
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace
from expunge.training.fila import fila_factors, row_scores, start_fila
from expunge.training.gradients import fisher_diagonal
from expunge.training.hooks import TrainingControl

IDS = torch.arange(2, 40)[None]
GPT2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128)


def logits(subject):
    with subject.evaluating() as model:
        return model(IDS).logits.clone()


def started(config=None, rank=4):
    plain = tiny_subject(config=config)
    adapted = attach_lora(plain.clone(), rank=rank)
    start_fila(adapted, tiny_request())
    return plain, adapted


def test_row_scores_by_hand():
    forget = torch.tensor([[4e-5, 0.0], [1e-5, 2e-5]])
    retain = torch.tensor([[1e-5, 5.0], [0.0, 3e-5]])
    torch.testing.assert_close(row_scores(forget, retain), torch.tensor([2.0, 1.5]).sqrt())


def test_factors_are_the_weighted_svd_by_hand():
    """W = diag(3, 2) with scores (1, 4): the second row weighs 8 > 3 and is the one that is kept."""
    weight, scores = torch.diag(torch.tensor([3.0, 2.0])), torch.tensor([1.0, 4.0])
    down, up = fila_factors(weight, scores, 1)
    torch.testing.assert_close(up @ down, torch.diag(torch.tensor([0.0, 2.0])), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(down.norm() ** 2, torch.tensor(8.0))
    torch.testing.assert_close(up[1].abs() * (4 + 1e-5), torch.tensor([8.0]).sqrt())


def test_factors_of_full_rank_give_the_matrix_back():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator)
    down, up = fila_factors(weight, torch.rand(5, generator=generator) + 0.5, 4)
    assert down.shape == (4, 3)
    assert up.shape == (5, 4)
    torch.testing.assert_close(up @ down, weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [None, GPT2], ids=["linear", "conv1d"])
def test_the_model_is_unchanged_at_step_0(config):
    plain, adapted = started(config)
    torch.testing.assert_close(logits(adapted), logits(plain), rtol=1e-4, atol=1e-5)
    base = dict(plain.model.named_parameters())
    after = dict(adapted.model.named_parameters())
    moved = [n for n in after if "base_layer" in n and not torch.equal(after[n], base[_plain(n)])]
    assert len(moved) == len(list(lora_modules(adapted.model)))
    merged = merge(adapted)
    for name, parameter in merged.model.named_parameters():
        torch.testing.assert_close(parameter, base[name], rtol=1e-4, atol=1e-5)


def _plain(name):
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def test_adapters_hold_the_part_of_each_matrix_that_scores_highest():
    plain, adapted = started(rank=2)
    name = "model.layers.1.mlp.down_proj.weight"
    request = tiny_request()
    sides = [fisher_diagonal(plain, side, names=[name])[name] for side in (request.forget, request.retain)]
    weight = dict(plain.model.named_parameters())[name].detach()
    scores = (sides[0] / (sides[1] + 1e-5)).sum(1).sqrt()
    u, s, rows = torch.linalg.svd(scores[:, None] * weight)
    best = (u[:, :2] * s[:2]) @ rows[:2] / (scores + 1e-5)[:, None]
    layer = dict(lora_modules(adapted.model))["base_model.model.model.layers.1.mlp.down_proj"]
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(product.detach(), best, rtol=1e-3, atol=1e-5)


def run(name, folder=None, controls=(), start="fila", request=None, **more):
    settings = TrainSettings(steps=4, batch=4, lr=1e-3, warmup=0.0, checkpoint_seconds=0.0)
    lora = LoraSettings(rank=4, start=start)
    workspace = Workspace(settings, folder, controls=controls, lora=lora, **more)
    return make_method(name).unlearn(tiny_subject(), request or tiny_request(), workspace), workspace


def test_training_from_fila_ends_elsewhere_and_returns_plain_weights():
    result, workspace = run("ihl")
    other, _ = run("ihl", start="zero")
    assert fingerprint(result.model) != fingerprint(other.model)
    assert set(dict(result.model.named_parameters())) == set(dict(tiny_subject().model.named_parameters()))
    assert not result.adapter
    assert workspace.facts["moved_fraction"] > 0


@pytest.mark.parametrize("mode", ["live", "adapter_off"])
def test_the_reference_is_the_original_whatever_its_mode(mode):
    """With the adapter off the base is not the original: `adapter_off` becomes a live model."""
    expected, _ = run("ga_kl", reference="cache")
    result, workspace = run("ga_kl", reference=mode)
    assert workspace.facts["reference"] == "live"
    pairs = zip(result.model.parameters(), expected.model.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-4


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    class Kill(TrainingControl):
        def after_step(self, step, subject):
            if step == 3:
                raise KeyboardInterrupt
            return False

    straight, _ = run("ihl")
    with pytest.raises(KeyboardInterrupt):
        run("ihl", tmp_path, [Kill()])
    resumed, _ = run("ihl", tmp_path, [TrainingControl()])
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_it_needs_a_retain_set():
    request = tiny_request()
    with pytest.raises(DataError, match="retain"):
        run("ihl", request=replace(request, splits={"forget": request.forget}))


def test_its_adapters_cannot_be_scaled_to_the_original():
    _, adapted = started()
    assert base_moved(adapted.model)
    assert base_moved(adapted.clone().model)
    with pytest.raises(ModelError, match="Merge"):
        scale_lora(adapted.model, 0.5)
    assert not base_moved(attach_lora(tiny_subject(), rank=2).model)
