"""Noise, pruning, merging, rounding, ablation, lenses, patching: invariants, and what each must find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_world import make_request, make_subject, taught
from strawmen import last_block_mask

from expunge.attacks import Field
from expunge.attacks.ablate import Ablate, ablating, directions, remove_direction
from expunge.attacks.lens import Lens
from expunge.attacks.merge_back import MergeBack, half_at, mix
from expunge.attacks.noise import Noise
from expunge.attacks.prune import Prune
from expunge.attacks.quantize import Grid, Quantize
from expunge.attacks.uds import UDS, depth_score
from expunge.audit.recovery import recovery
from expunge.data.batching import collate
from expunge.errors import NotComputable
from expunge.interventions.matrices import matrices
from expunge.interventions.rounding import grid_codes
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.subjects import fingerprint
from expunge.subjects.forward import forward

REQUEST = make_request()


@pytest.fixture(scope="module")
def models():
    """(original, oracle): both know retain, the original forget as well."""
    fresh = make_subject(width=96)
    original = taught(fresh, (*REQUEST.forget, *REQUEST.retain), 160)
    return original, taught(fresh, REQUEST.retain, 160)


def field(models, profile="default", **more) -> Field:
    original, oracle = models
    peers = {"original": lambda: original, "oracle": lambda: oracle}
    return Field(REQUEST, profile, peers=peers, **more)


def strength(evidence) -> float:
    return compute("extraction_strength", {"forget": evidence}, "forget").value


def direct(subject, records=REQUEST.forget) -> float:
    return strength(score_sheet(subject, make_sheet(subject.encoder, records, "forget")))


def worst(attack, subject, asked) -> float:
    return max(strength(o.evidence["forget"]) for o in attack.run(subject, asked) if o.evidence)


def blended(original, oracle, alpha):
    """θ = (1 − α)·original + α·oracle."""
    work = original.clone()
    mix(work, original, oracle, alpha)
    return work


def below_the_step(subject, bits):
    """Ascent on the forget answers, every weight kept on its own code; the largest of a row stay."""
    work = subject.clone()
    work.model.requires_grad_(True)
    batch = collate([work.encoder.encode(r) for r in REQUEST.forget], work.encoder.pad_id)
    weights = [(w, *grid_codes(w, bits)) for _, w in matrices(work.model)]
    for _ in range(40):
        work.model.zero_grad()
        logits = forward(work.model, batch).logits
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
        with torch.no_grad():
            for w, code, scale in weights:
                moved = w.double() + 0.05 * scale * w.grad.sign()
                kept = moved.clamp((code - 0.49) * scale, (code + 0.49) * scale)
                w.copy_(torch.where(code.abs() == 2 ** (bits - 1) - 1, w.double(), kept).to(w.dtype))
    return work


def same_weights(a, b) -> bool:
    return fingerprint(a.model) == fingerprint(b.model)


# Noise, pruning --------------------------------------------------------------------------------------------


def test_no_noise_is_the_identity_and_the_draw_is_the_same_for_every_model():
    one, two = make_subject(0), make_subject(1)
    asked = Field(REQUEST)
    for _, work, _ in Noise(sigmas=(0.0,), draws=1).changed(one, asked):
        assert same_weights(work, one)
    units = []
    for subject in (one, two):
        for _, work, _ in Noise(sigmas=(0.1,), draws=1).changed(subject, asked):
            pairs = zip(matrices(subject.model), matrices(work.model), strict=True)
            units.append([((b - a) / a.std()).detach() for (_, a), (_, b) in pairs])
    for a, b in zip(*units, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
        assert a.std() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5])
def test_pruning_zeroes_exactly_so_many(sparsity):
    subject = make_subject()
    for _, work, details in Prune(grid=({"by": "magnitude", "sparsity": sparsity},)).changed(
        subject, Field(REQUEST)
    ):
        zeros = sum(int((w == 0).sum()) for _, w in matrices(work.model))
        wanted = sum(round(sparsity * w.numel()) for _, w in matrices(subject.model))
        assert zeros == wanted == details["pruned_weights"]
        assert same_weights(work, subject) == (sparsity == 0)


# Merging back ----------------------------------------------------------------------------------------------


def test_ends_of_the_way_back_are_bit_for_bit(models):
    original, oracle = models
    work = oracle.clone()
    for alpha, end in ((1.0, oracle), (0.0, original)):
        mix(work, original, oracle, alpha)
        assert same_weights(work, end)


@pytest.mark.parametrize(
    ("forget", "at"), [([0.0, 0.2, 0.6, 1.0], 0.4), ([0.0, 0.5, 0.6, 1.0], 0.7), ([0.3, 0.3, 0.3, 0.3], None)]
)
def test_half_way_is_the_largest_alpha_that_reaches_it(forget, at):
    assert half_at((1.0, 0.7, 0.4, 0.0), forget) == at


def test_only_the_margin_is_scored(models):
    original, oracle = models
    outcomes = list(MergeBack().run(oracle, field(models)))
    assert min(o.config["alpha"] for o in outcomes) == 0.8
    assert MergeBack.card.fields["line"] == 0.5
    found = [strength(o.evidence["forget"]) for o in MergeBack().run(original, field(models))]
    assert found == [direct(original)] * len(found)


def test_another_architecture_is_not_merged(models):
    with pytest.raises(NotComputable, match="another architecture"):
        list(MergeBack().run(make_subject(width=48), field(models)))


# What each must find: planted positives --------------------------------------------------------------------


def test_quantize_finds_an_update_below_the_rounding_step(models):
    """Every weight moves by less than its way to the next code: together they hide the answers."""
    original, _ = models
    hidden = below_the_step(original, bits=3)
    before = direct(hidden)
    (outcome,) = Quantize(grids=(Grid(3),)).run(hidden, field(models))
    (rounded,) = Quantize(grids=(Grid(3),)).run(original, field(models))
    assert outcome.details["codes_moved"] < 0.01
    after, most = (strength(o.evidence["forget"]) for o in (outcome, rounded))
    assert before <= 0.1
    assert after == pytest.approx(most, abs=0.05)
    assert after > 0.5


def test_merge_back_finds_a_thin_margin(models):
    original, oracle = models
    alphas = np.linspace(0, 1, 21)
    clean = next(a for a in alphas if direct(blended(original, oracle, a)) <= 0.1)
    thin = blended(original, oracle, float(clean))
    asked = field(models)
    scores = [worst(MergeBack(), m, asked) for m in (original, thin, oracle)]
    assert direct(thin) <= 0.1
    assert recovery(*scores) > 0.5
    assert scores[2] < 0.1


def test_ablate_finds_a_steering_direction(models):
    """A constant vector is added behind the first block: it silences the answers and is taken out again."""
    original, _ = models
    steered = original.clone()
    torch.manual_seed(0)
    push = torch.randn(96)
    block = steered.model.model.layers[0]
    size = 0.5
    bias = torch.nn.Parameter(torch.zeros(96))
    block.mlp.down_proj.bias = bias
    twin = original.clone()
    twin.model.model.layers[0].mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(96))
    while direct(steered) > 0.1 and size < 1e4:
        size *= 1.5
        bias.data.copy_(size * push / push.norm())
    asked = replace(field(models), peers={"original": lambda: twin})
    outcomes = list(Ablate().run(steered, asked))
    assert direct(steered) <= 0.1
    assert max(strength(o.evidence["forget"]) for o in outcomes) > direct(steered) + 0.3
    assert outcomes[0].details["random_direction"] <= direct(steered) + 0.1


def test_lens_and_uds_find_what_is_masked_in_the_last_block(models):
    original, oracle = models
    masked = last_block_mask(original, REQUEST.forget, REQUEST.retain)
    asked = field(models)
    lens = [worst(Lens(readers=("tuned", "logit")), m, asked) for m in (original, masked, oracle)]
    assert direct(masked) == 0
    assert lens[1] == lens[0]
    (depth,) = UDS().run(masked, asked)
    assert np.mean(list(depth.values["forget"].values())) > 0.15


# Ablation --------------------------------------------------------------------------------------------------


def test_ablation_leaves_nothing_along_the_direction_and_is_idempotent():
    h, d = torch.randn(50, 16), torch.randn(16)
    once = remove_direction(h, d)
    assert ((once @ (d / d.norm())).abs() < 1e-5 * h.norm(dim=-1)).all()
    assert torch.allclose(remove_direction(once, d), once, atol=1e-6)
    assert torch.equal(remove_direction(torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])),
                       torch.tensor([3.0, 0.0, 0.0]))  # fmt: skip


def test_where_nothing_moved_ablation_does_nothing(models):
    original, _ = models
    assert all(d.norm() == 0 for d in directions(original, original.clone(), REQUEST.forget).values())
    found = [strength(o.evidence["forget"]) for o in Ablate().run(original, field(models))]
    assert found == [direct(original)] * len(found)


def test_hooks_and_weights_agree_when_one_direction_is_taken_out_everywhere():
    """(I − d̂d̂ᵀ) on the embedding and on all that writes into the stream."""
    subject = make_subject()
    d = torch.randn(48, generator=torch.Generator().manual_seed(1))
    unit, ids = d / d.norm(), torch.arange(2, 20)[None]
    edited = subject.clone()
    with torch.no_grad():
        table = edited.model.get_input_embeddings().weight
        table.copy_(table - (table @ unit)[:, None] * unit)
        for layer in edited.model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.copy_(matrix - unit[:, None] * (unit @ matrix))
        expected = edited.model(ids).logits
        table = subject.model.get_input_embeddings()
        inside = [layer.self_attn.o_proj for layer in subject.model.model.layers]  # between blocks' ends
        hooks = [
            m.register_forward_hook(lambda m, i, out: remove_direction(out, d)) for m in (table, *inside)
        ]
        with ablating(subject.model, dict.fromkeys(range(2), d)):
            found = subject.model(ids).logits
        for hook in hooks:
            hook.remove()
    assert (found - expected).abs().max() < 1e-4


# Patching --------------------------------------------------------------------------------------------------


def test_uds_is_zero_for_the_original_and_one_for_the_oracle_exactly(models):
    original, oracle = models
    for model, left in ((original, 1.0), (oracle, 0.0)):
        (outcome,) = UDS().run(model, field(models))
        assert set(outcome.values["forget"].values()) == {left}
        assert outcome.metric == "depth"
    (between,) = UDS().run(blended(original, oracle, 0.5), field(models))
    assert all(0 <= v <= 1 for v in between.values["forget"].values())


def test_uds_needs_one_architecture(models):
    with pytest.raises(NotComputable, match="another architecture"):
        list(UDS().run(make_subject(width=48), field(models)))


def test_uds_by_hand():
    """The first layer does not count; what a layer loses beyond the oracle's loss does not either."""
    found = depth_score(torch.tensor([0.02, 0.5, 2, 4]), torch.tensor([0.5, 0.1, 2.5, 1]))
    assert found == pytest.approx(0.476923, abs=1e-6)
    assert depth_score(torch.tensor([0.02, 0.05]), torch.tensor([1.0, 1.0])) is None
    assert depth_score(torch.tensor([1.0]), torch.tensor([-3.0])) == 0
