"""Weights, zeros, bits and operations, counted by hand on tiny models."""

from __future__ import annotations

import pytest
import torch

from expunge.interventions import make_intervention
from expunge.interventions.inventory import flops_per_token, inventory
from expunge.interventions.matrices import matrices
from expunge.interventions.pruning import magnitude_prune_
from expunge.measure.latency import latency_per_token
from expunge.metrics.compression import average_bits, sparsity
from tiny_models import make_subject, some_records


def test_tied_weights_counted_once():
    tied, loose = (make_subject(tie_word_embeddings=t).model for t in (True, False))
    head = tied.get_output_embeddings().weight.numel()
    counts = [sum(t.weights for t in inventory(m)) for m in (tied, loose)]
    assert counts[1] - counts[0] == head
    assert counts[0] == sum(p.numel() for p in tied.parameters())
    assert average_bits(inventory(tied)) == (None, 32.0)
    assert flops_per_token(tied) == flops_per_token(loose), "the head is multiplied either way"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bits_of_a_quantized_model_count_codes_and_scales(family):
    subject = make_subject(family)
    made = make_intervention("rtn", bits=4, group=16)
    found = inventory(subject.model, made.stored_bits(subject.model), compressed=True)
    inner = [w for _, w in matrices(subject.model)]
    assert all(w.shape[-1] % 16 == 0 for w in inner)
    assert average_bits(found).compressed == 4 + 16 / 16
    count, whole = (sum(w.numel() for w in ws) for ws in (inner, subject.model.parameters()))
    assert average_bits(found).whole == pytest.approx((5 * count + 32 * (whole - count)) / whole)
    awq = make_intervention("awq", bits=4, group=16).stored_bits(subject.model)
    scales = sum(16 * w.shape[-1] for w in inner)
    assert sum(awq.values()) == 5 * count + scales


def test_a_last_group_that_is_not_full_has_a_scale_too():
    subject = make_subject()  # rows of 32 and 48
    bits = make_intervention("rtn", bits=4, group=20).stored_bits(subject.model)
    assert bits["0.mlp.down_proj.weight"] == 4 * 32 * 48 + 16 * 32 * 3
    whole = make_intervention("rtn", bits=4, group=0).stored_bits(subject.model)
    assert whole["0.mlp.down_proj.weight"] == 4 * 32 * 48 + 16 * 32


def test_sparsity_and_operations_follow_the_zeros():
    subject = make_subject()
    before = flops_per_token(subject.model)
    inner = sum(w.numel() for _, w in matrices(subject.model))
    head = subject.model.get_output_embeddings().weight.numel()
    assert before == (2 * (inner + head), 2 * (inner + head))
    magnitude_prune_(subject.model, 0.5)
    found = inventory(subject.model, compressed=True)
    assert sparsity(found).compressed == 0.5
    assert sparsity(found).whole == pytest.approx(inner / 2 / sum(t.weights for t in found))
    assert flops_per_token(subject.model) == (before.dense, 2 * (inner / 2 + head))
    assert average_bits(found) == (32.0, 32.0), "zeros are stored like any weight"


def test_a_token_passes_the_experts_it_is_routed_to():
    subject = make_subject("mixtral")
    experts = sum(p.numel() for n, p in subject.model.named_parameters() if ".experts." in n)
    others = sum(w.numel() for n, w in matrices(subject.model) if ".experts." not in n)
    head = subject.model.get_output_embeddings().weight.numel()
    assert experts > others
    assert flops_per_token(subject.model).dense == 2 * (experts * 2 / 4 + others + head)


def test_latency_counts_its_tokens():
    with torch.no_grad():
        found = latency_per_token(make_subject(), some_records(3), tokens=4)
    assert found.tokens == 12
    assert 0 < found.least <= found.median
