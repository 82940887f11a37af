"""Rounding weights: the grid, what is rounded, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import make_request, make_subject
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.attacks import Field
from expunge.attacks.quantize import (
    GROUP,
    Grid,
    Quantize,
    code_difference,
    codes,
    quantize_,
)
from expunge.interventions.matrices import matrices as _matrices
from expunge.interventions.rounding import grid_codes as _round
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.subjects import fingerprint

SCOPES = ("row", "tensor", "group")
matrices = st.tuples(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 70)).map(
    lambda t: torch.randn(t[1], t[2], generator=torch.Generator().manual_seed(t[0]))
)


def rounded(weight, bits, scope="row"):
    code, scale = _round(weight, bits, scope)
    return (code * scale).to(weight.dtype)


@pytest.mark.parametrize(
    ("bits", "scale", "code", "value"),
    [
        (4, 0.128571, [7, -3, 1, 0], [0.9, -0.385714, 0.128571, 0]),
        (3, 0.3, [3, -1, 0, 0], [0.9, -0.3, 0, 0]),
    ],
)
def test_golden_row(bits, scale, code, value):
    found, s = _round(torch.tensor([[0.9, -0.35, 0.12, 0.05]]), bits, "row")
    assert s.item() == pytest.approx(scale, abs=1e-6)
    assert found[0].tolist() == code
    assert (found * s)[0].tolist() == pytest.approx(value, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(matrices, st.sampled_from([3, 4, 8]), st.sampled_from(SCOPES))
def test_rounding_is_near_idempotent_and_scales_with_powers_of_two(weight, bits, scope):
    code, scale = _round(weight, bits, scope)
    once = rounded(weight, bits, scope)
    assert ((once - weight).abs() <= scale / 2 + 1e-6).all()
    assert code.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.equal(rounded(once, bits, scope), once)
    assert torch.equal(rounded(weight * 4, bits, scope), once * 4)


def test_a_row_of_zeros_stays_zero():
    assert torch.equal(rounded(torch.zeros(2, 5), 4), torch.zeros(2, 5))


def test_groups_have_their_own_scale():
    weight = torch.cat([torch.full((1, GROUP), 1.0), torch.full((1, 8), 0.01)], dim=1)
    assert torch.allclose(rounded(weight, 4, "group"), weight)
    assert (rounded(weight, 4, "row")[0, GROUP:] == 0).all()


def test_norms_embeddings_and_head_keep_full_precision():
    subject = make_subject()
    before = {n: p.detach().clone() for n, p in subject.model.named_parameters()}
    count = quantize_(subject.model, 3)
    changed = {n for n, p in subject.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if "_proj" in n}
    assert count == sum(before[n].numel() for n in changed)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_rounded_once_and_stay_tied(tied):
    subject = make_subject(tied=tied)
    model = subject.model
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    found = codes(model, 4, embeddings=True)
    assert sum(t.numel() for t in found.values()) == sum(p.numel() for p in model.parameters() if p.ndim > 1)
    expected = rounded(table.detach().clone(), 4)
    quantize_(model, 4, embeddings=True)
    assert torch.equal(table, expected)
    assert (head.data_ptr() == table.data_ptr()) == tied


def test_transposed_matrices_are_rounded_by_output_channel():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=1)
    )
    weight = model.transformer.h[0].mlp.c_fc.weight  # [inputs, outputs]
    expected = rounded(weight.detach().clone().T, 4).T
    quantize_(model, 4)
    assert torch.equal(weight, expected)
    largest = weight.abs().amax(0)
    assert len(torch.unique(largest)) > 1
    assert codes(model, 4)["0.mlp.c_fc.weight"].shape == (32, 8)


def test_sixteen_bits_are_nearly_the_identity():
    subject, ids = make_subject(), torch.arange(2, 20)[None]
    with torch.no_grad():
        before = subject.model(ids).logits
        quantize_(subject.model, 16)
        assert (subject.model(ids).logits - before).abs().max() < 1e-3


def test_equal_codes_and_scales_give_the_original_back():
    """An update below the rounding step, away from the largest weight of each row, is undone to the bit."""
    original, unlearned = make_subject(), make_subject()
    with torch.no_grad():
        for (_, p), (_, q) in zip(
            original.model.named_parameters(), unlearned.model.named_parameters(), strict=True
        ):
            code, scale = _round(p, 4, "row")
            q.copy_(
                torch.where(code.abs() == 7, p, (code * scale + 0.2 * scale).to(p.dtype)) if p.ndim > 1 else p
            )
    for end in ("get_input_embeddings", "get_output_embeddings"):
        getattr(unlearned.model, end)().weight.data.copy_(getattr(original.model, end)().weight)
    assert fingerprint(original.model) != fingerprint(unlearned.model)
    assert code_difference(codes(original.model, 4), codes(unlearned.model, 4)) == 0
    quantize_(original.model, 4)
    quantize_(unlearned.model, 4)
    assert fingerprint(original.model) == fingerprint(unlearned.model)


def test_code_difference_counts_codes():
    a = {"x": torch.tensor([[1, 2, 3, 4]]), "y": torch.tensor([0, 0, 0, 0])}
    b = {"x": torch.tensor([[1, 2, 3, 5]]), "y": torch.tensor([0, 1, 0, 0])}
    assert code_difference(a, b) == 0.25
    assert code_difference(a, a) == 0
    with pytest.raises(ValueError, match="architectures"):
        code_difference(a, {"x": b["x"]})


def test_outcomes_name_the_grid_and_score_the_rounded_model():
    subject, request = make_subject(), make_request()
    before = fingerprint(subject.model)
    outcomes = list(Quantize(grids=(Grid(3, "tensor"), Grid(8))).run(subject, Field(request)))
    assert [dict(o.config) for o in outcomes] == [
        {"bits": 3, "scope": "tensor", "embeddings": False},
        {"bits": 8, "scope": "row", "embeddings": False},
    ]
    assert all("simulated" in o.details["quantizer"] for o in outcomes)
    assert fingerprint(subject.model) == before
    sheet = make_sheet(subject.encoder, request.forget, "forget")
    quantize_(subject.model, 3, "tensor")
    for a, b in zip(outcomes[0].evidence["forget"], score_sheet(subject, sheet), strict=True):
        np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_profiles_hold_int8_and_int4():
    for profile in ("quick", "default", "deep"):
        bits = {o.config["bits"] for o in Quantize().run(make_subject(), Field(make_request(), profile))}
        assert {8, 4} <= bits
        assert (3 in bits) == (profile == "deep")


def test_nf4_rounds_the_blocks_to_sixteen_levels():
    subject = make_subject()
    (outcome,) = Quantize(grids=(Grid(4, by="nf4"),)).changed(subject, Field(make_request()))
    assert outcome.details["rounded_weights"] == sum(w.numel() for _, w in _matrices(subject.model))
    for (_, before), (_, after) in zip(
        _matrices(subject.model), _matrices(outcome.subject.model), strict=True
    ):
        block, levels = after.detach().reshape(-1)[:64], before.detach().reshape(-1)[:64].abs().max()
        assert len(torch.unique(block)) <= 16
        assert block.abs().max() == pytest.approx(float(levels), rel=1e-5)


def test_without_an_original_it_says_that_codes_have_nothing_to_compare_with():
    (outcome,) = Quantize(grids=(Grid(4),)).run(make_subject(), Field(make_request()))
    assert outcome.details["codes_moved"] == "no original to compare with"
