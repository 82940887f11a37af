"""Quantizing and pruning: against rounding, least squares and counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.data.request import Request
from expunge.errors import ConfigError, DataError
from expunge.interventions import INTERVENTIONS, make_intervention
from expunge.interventions.activations import Inputs, inputs_of
from expunge.interventions.awq import awq, rounded
from expunge.interventions.base import calibration_rows
from expunge.interventions.columns import inverse_factor
from expunge.interventions.gptq import gptq
from expunge.interventions.matrices import linear_maps, matrices
from expunge.interventions.pruning import lowest, magnitude_prune_, set_difference_, wanda_prune_
from expunge.interventions.rounding import grid_codes
from expunge.interventions.sparsegpt import prune_columns, sparsegpt
from expunge.subjects import fingerprint
from tiny_models import make_subject, some_records

FAMILIES = ("llama", "gpt2", "mixtral")
COMPRESSIONS = [c.name for c in INTERVENTIONS.cards() if c.fields["family"] != "edit"]
DAMP = 1e-9


def layer(seed: int = 0, outputs: int = 6, inputs: int = 24, tokens: int = 60):
    """(weights, inputs, X) of a linear map whose input channels differ in size and hang together."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 8, generator=draw, dtype=torch.float64)
    mix = torch.randn(8, inputs, generator=draw, dtype=torch.float64)
    size = torch.rand(inputs, generator=draw, dtype=torch.float64) * 3 + 0.2
    x = (shared @ mix + torch.randn(tokens, inputs, generator=draw, dtype=torch.float64)) * size
    weight = torch.randn(outputs, inputs, generator=draw, dtype=torch.float64)
    return weight, Inputs(x.T @ x, x.abs().sum(0), tokens), x


def request(forget: int = 4) -> Request:
    known, keep = some_records(forget, entity="secret"), some_records(8)
    return Request({"forget": tuple(known), "retain": tuple(replace(r, id=f"k-{r.id}") for r in keep)})


def stored(subject) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in subject.model.named_parameters()}


# Activations ------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_inputs_without_padding():
    subject = make_subject()
    rows = calibration_rows(subject, request(), 128, "x")
    assert len({len(r.ids) for r in rows}) > 1, "padding must matter here"
    found = inputs_of(subject, rows)
    name = "1.mlp.down_proj.weight"
    seen = []
    module = linear_maps(subject.model)[name]
    handle = module.register_forward_pre_hook(lambda _, x: seen.append(x[0].reshape(-1, x[0].shape[-1])))
    with torch.no_grad():
        for row in rows:  # one at a time: no padding at all
            subject.model(torch.tensor([row.ids]))
    handle.remove()
    x = torch.cat(seen).double()
    assert found[name].count == len(x) == sum(len(r.ids) for r in rows)
    torch.testing.assert_close(found[name].gram, x.T @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[name].size, x.abs().sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[name].norms, x.norm(dim=0), rtol=1e-4, atol=1e-4)


def test_output_error_is_that_of_the_outputs():
    weight, inputs, x = layer()
    change = torch.randn(weight.shape, dtype=torch.float64)
    assert inputs.error(change) == pytest.approx(float((x @ change.T).square().sum()))


def test_calibration_rows_are_retain_records_spread_over_the_set():
    subject = make_subject()
    asked = request()
    texts = [subject.encoder.decode(r.ids) for r in calibration_rows(subject, asked, 4, "x")]
    assert len(texts) == 4
    assert [any(f"person {i} born" in t for t in texts) for i in range(8)] == [True, False] * 4
    with pytest.raises(DataError, match="retain"):
        calibration_rows(subject, Request({"forget": asked.forget}), 4, "gptq")


# Quantization -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("group", [0, 8])
def test_gptq_error_is_below_rounding(seed, group):
    weight, inputs, _ = layer(seed)
    nearest = inputs.error(rounded(weight, 4, group) - weight)
    assert inputs.error(gptq(weight, inputs.gram, 4, group, 0.01) - weight) < 0.8 * nearest


@pytest.mark.parametrize("group", [0, 8, 7])
def test_gptq_is_rounding_where_the_hessian_is_diagonal(group):
    weight, inputs, _ = layer()
    made = gptq(weight, inputs.gram.diagonal().diag(), 4, group, 0.01)
    torch.testing.assert_close(made, rounded(weight, 4, group))


def test_gptq_lies_on_a_grid_of_fifteen_points():
    weight, inputs, _ = layer()
    made = gptq(weight, inputs.gram, 4, 0, 0.01)
    scale = grid_codes(weight, 4)[1]
    codes = made / scale
    torch.testing.assert_close(codes, codes.round())
    assert codes.abs().max() <= 7 + 1e-9


def test_gptq_in_blocks_is_gptq_column_by_column(monkeypatch):
    import expunge.interventions.gptq as file

    weight, inputs, _ = layer()
    whole = gptq(weight, inputs.gram, 4, 0, 0.01)
    monkeypatch.setattr(file, "BLOCK", 5)
    torch.testing.assert_close(gptq(weight, inputs.gram, 4, 0, 0.01), whole)


def test_awq_error_is_never_above_rounding_and_mostly_below():
    below = 0
    for seed in range(6):
        weight, inputs, _ = layer(seed)
        nearest = rounded(weight, 4, 0)
        error, limit = (inputs.error(made - weight) for made in (awq(weight, inputs, 4, 0, 20), nearest))
        assert error <= limit
        below += error < 0.95 * limit
        assert torch.equal(awq(weight, inputs, 4, 0, 1), nearest), "α = 0 is rounding"
    assert below >= 3


def test_awq_spares_the_channel_with_large_activations():
    """By hand: at α → 1 the loud channel's weight is scaled up, so its rounding error shrinks."""
    weight = torch.tensor([[1.0, 0.36]], dtype=torch.float64)
    x = torch.tensor([[0.01, 10.0]], dtype=torch.float64)
    inputs = Inputs(x.T @ x, x.abs().sum(0), 1)
    plain, spared = rounded(weight, 3, 0), awq(weight, inputs, 3, 0, 20)
    assert plain[0, 1] == pytest.approx(1 / 3)
    assert abs(spared[0, 1] - 0.36) < 0.005 < abs(plain[0, 1] - 0.36)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressing_keeps_exact_zeros(name):
    subject, asked = make_subject(), request()
    magnitude_prune_(subject.model, 0.5)
    before = {n: w == 0 for n, w in matrices(subject.model)}
    after = make_intervention(name).apply(subject, asked)
    assert all((w[before[n]] == 0).all() for n, w in matrices(after.model))


# Pruning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5])
def test_exactly_so_many_weights_are_pruned(sparsity):
    subject = make_subject()
    magnitude_prune_(subject.model, sparsity)
    for _, weight in matrices(subject.model):
        assert int((weight == 0).sum()) == round(sparsity * weight.numel())
    subject = make_subject()
    wanda_prune_(subject, calibration_rows(subject, request(), 8, "x"), sparsity)
    for _, weight in matrices(subject.model):
        assert ((weight == 0).sum(1) == round(sparsity * weight.shape[1])).all()
    weight, inputs, _ = layer()
    made = sparsegpt(weight, inputs.gram, sparsity, 0.01, 7)
    assert int((made == 0).sum()) == round(sparsity * weight.numel())


def test_the_smallest_go():
    assert lowest(torch.tensor([[3.0, 1.0, 2.0, 1.0]]), 0.5).tolist() == [[False, True, False, True]]
    subject = make_subject()
    weight = next(w for n, w in matrices(subject.model) if n == "0.mlp.up_proj.weight")
    was = weight.detach().clone()
    magnitude_prune_(subject.model, 0.25)
    gone = weight == 0
    assert was[gone].abs().max() <= was[~gone].abs().min()


def test_wanda_weighs_with_activations():
    subject = make_subject()
    rows = calibration_rows(subject, request(), 8, "x")
    norms = inputs_of(subject, rows, [0])["0.self_attn.q_proj.weight"].norms
    weight = next(w for n, w in matrices(subject.model) if n == "0.self_attn.q_proj.weight")
    size = weight.detach().double().abs()
    scores = size * norms
    wanda_prune_(subject, rows, 0.5)
    gone = weight == 0
    assert all(scores[i][gone[i]].max() <= scores[i][~gone[i]].min() for i in range(len(scores)))
    assert not torch.equal(gone, lowest(size, 0.5))


def test_wanda_sees_the_pruned_blocks_before():
    subject = make_subject()
    rows = calibration_rows(subject, request(), 8, "x")
    dense = inputs_of(subject, rows, [2])["2.self_attn.q_proj.weight"].norms
    weight = next(w for n, w in matrices(subject.model) if n == "2.self_attn.q_proj.weight")
    was = weight.detach().clone().double()
    wanda_prune_(subject, rows, 0.5)
    now = inputs_of(subject, rows, [2])["2.self_attn.q_proj.weight"].norms
    assert torch.equal(weight == 0, lowest(was.abs() * now, 0.5))
    assert not torch.equal(weight == 0, lowest(was.abs() * dense, 0.5))


def test_set_difference_takes_what_only_forget_needs():
    subject = make_subject()
    forget = [subject.encoder.encode(r) for r in request().forget]
    retain = calibration_rows(subject, request(), 8, "x")
    name = "1.mlp.up_proj.weight"
    one, other = (inputs_of(subject, rows)[name].norms for rows in (forget, retain))
    weight = dict(matrices(subject.model))[name]
    was = weight.detach().clone().double().abs()
    count = set_difference_(subject, forget, retain, q=0.5, p=0.5)
    width = was.shape[1]
    for i, row in enumerate(was):
        top = set((row * one).argsort()[-width // 2 :].tolist())
        kept = set((row * other).argsort()[-width // 2 :].tolist())
        assert set((weight[i] == 0).nonzero()[:, 0].tolist()) == top - kept
    assert count == sum(int((w == 0).sum()) for _, w in matrices(subject.model))
    same = make_subject()
    assert set_difference_(same, forget, forget, q=0.3, p=0.3) == 0
    assert fingerprint(same.model) == fingerprint(make_subject().model)


def test_sparsegpt_is_least_squares_where_all_kept_columns_come_after_the_pruned():
    """Elimination in order is then exact: brute force over the kept columns gives the same weights."""
    weight, inputs, x = layer(outputs=3)
    gone = torch.zeros(3, 24, dtype=torch.bool)
    gone[:, :9] = True
    made = prune_columns(
        weight, inverse_factor(inputs.gram, DAMP), lambda at, w, _: gone[:, at : at + w.shape[1]], 5
    )
    best = torch.linalg.lstsq(x[:, 9:], x @ weight.T).solution.T
    torch.testing.assert_close(made[:, 9:], best, rtol=1e-5, atol=1e-6)
    assert (made[:, :9] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_sparsegpt_error_lies_between_least_squares_and_magnitude(seed):
    weight, inputs, x = layer(seed)
    made = sparsegpt(weight, inputs.gram, 0.5, DAMP, 8)
    error = inputs.error(made - weight)
    small = weight.masked_fill(lowest(weight.abs().reshape(-1), 0.5).view(weight.shape), 0.0)
    assert error < 0.8 * inputs.error(small - weight)
    assert error < inputs.error(weight.masked_fill(made == 0, 0.0) - weight), "the corrections help"
    best = torch.zeros_like(weight)
    for i, row in enumerate(made):
        kept = row != 0
        best[i, kept] = torch.linalg.lstsq(x[:, kept], (x @ weight[i])[:, None]).solution[:, 0]
    assert inputs.error(best - weight) <= error + 1e-9


# Whole models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressions_change_the_matrices_of_the_blocks_alone(name, family):
    subject, asked = make_subject(family), request()
    before, mark = stored(subject), fingerprint(subject.model)
    made = make_intervention(name).apply(subject, asked)
    assert fingerprint(subject.model) == mark, "the subject given is left alone"
    after = stored(made)
    for key, tensor in after.items():
        assert torch.isfinite(tensor).all()
        block = ".layers." in key or ".h." in key
        assert torch.equal(tensor, before[key]) == (not (block and tensor.ndim > 1)), key
    again = make_intervention(name).apply(subject, asked)
    assert fingerprint(again.model) == fingerprint(made.model)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_forget_records_calibrate_nothing(name):
    subject = make_subject()
    one, other = (make_intervention(name).apply(subject, request(n)) for n in (2, 4))
    assert fingerprint(one.model) == fingerprint(other.model)


@pytest.mark.parametrize("name", ["gptq", "awq", "sparsegpt"])
def test_transposed_matrices_are_treated_by_output_channel(name):
    """GPT-2 stores [in, out]; the same map as a Linear gives the same weights."""
    subject, asked = make_subject("gpt2"), request()
    key = "0.mlp.c_fc.weight"
    rows = calibration_rows(subject, asked, 128, "x")
    inputs = inputs_of(subject, rows, [0])[key]
    weight = dict(matrices(subject.model))[key].detach().clone()
    assert weight.shape == (128, 32)
    expected = {
        "gptq": lambda: gptq(weight, inputs.gram, 4, 128, 0.01),
        "awq": lambda: awq(weight, inputs, 4, 128, 20),
        "sparsegpt": lambda: sparsegpt(weight, inputs.gram, 0.5, 0.01, 128),
    }[name]()
    made = make_intervention(name).apply(subject, asked)
    torch.testing.assert_close(dict(matrices(made.model))[key].detach(), expected.float())


def test_unknown_names_and_settings_name_the_nearest():
    with pytest.raises(ConfigError, match="gptq"):
        make_intervention("gtpq")
    with pytest.raises(ConfigError, match="bits"):
        make_intervention("rtn", bit=3)
    with pytest.raises(ConfigError, match="sparsity"):
        make_intervention("wanda", sparsity=1.0)
