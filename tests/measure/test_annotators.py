"""Annotators against slow computations of their own: distances, gradients, canaries, the random teacher."""

import math
from dataclasses import replace

import pytest
import torch

from expunge.data.canaries import plant
from expunge.data.records import Record
from expunge.measure.annotators import ANNOTATORS, Asked, annotate, annotators_of, peers_of
from expunge.measure.annotators.distances import jensen_shannon
from expunge.measure.annotators.gradients import gradient_norm
from expunge.measure.annotators.random_teacher import random_teacher
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.metrics import compute
from expunge.subjects import fingerprint
from expunge.testing import tiny_subject
from expunge.training import TrainSettings, finetune

RECORDS = [
    Record("a", "Ada", "Where is Ada?", "In Tarn."),
    Record("b", "Bo", "What is Bo?", "A mason of Sund, and an old one."),
    Record("c", "Cy", "", "Cy is a cook."),
]


@pytest.fixture(scope="module")
def subject():
    return tiny_subject(0)


def asked(subject, records=RECORDS, split="forget", kinds=("gold",), **peers):
    sheet = make_sheet(subject.encoder, records, split, kinds)
    loaders = {name: (lambda model=model: model) for name, model in peers.items()}
    return Asked(subject, sheet, score_sheet(subject, sheet), loaders)


def slow_logits(subject, line):
    """[T, V] logits that predict each answer token, one row, no packing."""
    window = line.windows[0]
    start = max(1, window.num_prompt)
    with torch.no_grad():
        out = subject.model(input_ids=torch.tensor([window.ids]), output_hidden_states=True)
    return out.logits[0, start - 1 : -1], [h[0, start - 1 : -1] for h in out.hidden_states]


def js_bruteforce(p, q):
    m = (p + q) / 2
    kl = lambda a, b: sum(x * math.log(x / y) for x, y in zip(a.tolist(), b.tolist(), strict=True) if x > 0)  # noqa: E731
    return 0.5 * kl(p, m) + 0.5 * kl(q, m)


# Divergences ---------------------------------------------------------------------------------------------


def test_js_bounds_and_symmetry():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert jensen_shannon(p, q).item() == pytest.approx(0.033822, abs=1e-6)
    assert jensen_shannon(p, q).item() == pytest.approx(jensen_shannon(q, p).item(), abs=1e-7)
    assert jensen_shannon(p, p).item() == 0
    disjoint = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert jensen_shannon(*disjoint).item() == pytest.approx(math.log(2), abs=1e-6)


def test_activation_distance_on_probabilities_not_logits():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    assert (p - q).norm().item() == pytest.approx(0.353553, abs=1e-6)
    subject, other = tiny_subject(0), tiny_subject(1)
    found = annotate(asked(subject, oracle=other), ["distance_to_oracle"])
    for line, row in zip(make_sheet(subject.encoder, RECORDS, "forget").lines, found, strict=True):
        ours, theirs = (slow_logits(s, line)[0].softmax(-1) for s in (subject, other))
        assert row.extra["l2_oracle"] == pytest.approx((ours - theirs).norm(dim=-1).mean().item(), abs=1e-6)
        slow = [js_bruteforce(a, b) for a, b in zip(ours, theirs, strict=True)]
        assert row.extra["js_oracle"] == pytest.approx(sum(slow) / len(slow), abs=1e-6)


def test_layer_distance_is_of_block_outputs(subject):
    other = tiny_subject(1)
    found = annotate(asked(subject, original=other), ["distance_to_original"])
    line = make_sheet(subject.encoder, RECORDS, "forget").lines[1]
    (_, ours), (_, theirs) = slow_logits(subject, line), slow_logits(other, line)
    # hidden_states[1] is the first block's output; the last entry is already normalized, so it is left out
    first = ((ours[1] - theirs[1]).norm(dim=-1) / theirs[1].norm(dim=-1)).mean().item()
    assert found.rows[1].extra["layers_original"][0] == pytest.approx(first, rel=1e-5)


def test_a_model_is_at_distance_zero_from_itself(subject):
    found = annotate(
        asked(subject, original=subject, oracle=subject), ["distance_to_original", "distance_to_oracle"]
    )
    for row in found:
        assert row.extra["js_original"] == row.extra["l2_oracle"] == 0
        assert set(row.extra["layers_oracle"]) == {0.0}


def test_another_vocabulary_or_no_peer_is_said(subject):
    found = annotate(asked(subject), ["distance_to_oracle"])
    assert found.meta["not_annotated"] == {"distance_to_oracle": "there is no oracle"}
    assert all("js_oracle" not in row.extra for row in found)


# Gradients -----------------------------------------------------------------------------------------------


def test_gradnorm_is_global_not_mean_of_tensor_norms(subject):
    window = subject.encoder.windows(RECORDS[1])[0]
    copy = subject.clone()
    start = window.num_prompt
    logits = copy.model(input_ids=torch.tensor([window.ids])).logits[0, start - 1 : -1]
    answer = len(window.ids) - start - window.has_end
    loss = torch.nn.functional.cross_entropy(
        logits[:answer], torch.tensor(window.ids[start : start + answer])
    )
    loss.backward()
    norms = torch.stack([p.grad.norm() for p in copy.model.parameters()])
    assert gradient_norm(subject, [window]) == pytest.approx(norms.square().sum().sqrt().item(), rel=1e-5)
    assert gradient_norm(subject, [window]) != pytest.approx(norms.mean().item(), rel=0.1)


def test_gradnorm_runs_in_eval_mode_and_leaves_the_model_alone(subject):
    before, mode = fingerprint(subject.model), subject.model.training
    needed = [p.requires_grad for p in subject.model.parameters()]
    subject.model.train()
    window = subject.encoder.windows(RECORDS[0])
    noisy = gradient_norm(subject, window)
    assert subject.model.training
    subject.model.train(mode)
    assert gradient_norm(subject, window) == noisy
    assert fingerprint(subject.model) == before
    assert [p.requires_grad for p in subject.model.parameters()] == needed
    assert all(p.grad is None for p in subject.model.parameters())


def test_gradnorm_batched_equals_single(subject):
    together = annotate(asked(subject), ["gradient_norm"])
    for record, row in zip(RECORDS, together, strict=True):
        alone = annotate(asked(subject, [record]), ["gradient_norm"]).rows[0]
        assert row.extra["grad_norm"] == alone.extra["grad_norm"]


def test_only_the_splits_of_the_card_are_asked(subject):
    assert all(not row.extra for row in annotate(asked(subject, split="retain"), ["gradient_norm"]))


# Random teacher and canaries -----------------------------------------------------------------------------


def test_random_teacher_is_the_seeds_alone(subject):
    state = torch.get_rng_state()
    first, again, other = (random_teacher(subject, seed) for seed in (0, 0, 1))
    assert fingerprint(first.model) == fingerprint(again.model) != fingerprint(other.model)
    assert torch.equal(torch.get_rng_state(), state)
    found = annotate(asked(subject), ["random_teacher"])
    line = make_sheet(subject.encoder, RECORDS, "forget").lines[0]
    ours, theirs = (slow_logits(s, line)[0] for s in (subject, first))
    bits = jensen_shannon(ours, theirs).mean().item() / math.log(2)
    assert found.rows[0].extra["js_random"] == pytest.approx(bits, abs=1e-6)


def test_a_memorized_canary_is_exposed_and_an_unseen_one_is_not(subject):
    canaries = plant(["Wren", "Moss", "Finch", "Reed"], format="##")
    knows = subject.clone()
    finetune(knows, canaries[:2], TrainSettings(steps=60, lr=1e-2, batch=2, weight_decay=0.0))
    evidence = annotate(asked(knows, canaries), ["canary"])
    exposed = compute("canary_exposure", {"forget": evidence}, "forget").per_record
    bits = math.log2(100)
    assert [exposed[r.id] for r in canaries[:2]] == [pytest.approx(bits)] * 2
    assert max(exposed[r.id] for r in canaries[2:]) < bits - 1
    losses = {}
    for number in range(100):
        record = canaries[0].answered(canaries[0].answer.replace(canaries[0].keywords[0], f"{number:02d}"))
        row = score_sheet(knows, make_sheet(knows.encoder, [record], "forget")).rows[0]
        losses[record.answer] = -row.logprobs.sum()
    assert min(losses, key=losses.get) == canaries[0].answer


def test_no_canary_no_column(subject):
    assert annotate(asked(subject), ["canary"]).meta["not_annotated"] == {"canary": "no record is a canary"}


def test_keywords_stand_beside_the_rows_of_records_that_name_them(subject):
    canary = plant(["Wren"], format="##")[0]
    bare = replace(canary, id="bare", keywords=())
    evidence = annotate(asked(subject, [canary, bare]), ["keywords"])
    assert [row.extra for row in evidence if row.variant == "gold"] == [
        {"keywords": [canary.keywords[0]]},
        {},
    ]
    why = annotate(asked(subject, [bare]), ["keywords"]).meta["not_annotated"]
    assert why == {"keywords": "no record names keywords"}


# The contract --------------------------------------------------------------------------------------------


def test_columns_find_their_annotators():
    assert annotators_of(["grad_norm", "l2_oracle"]) == ["distance_to_oracle", "gradient_norm"]
    assert peers_of(["distance_to_oracle", "gradient_norm"]) == ["oracle"]


@pytest.mark.parametrize("card", ANNOTATORS.cards(), ids=lambda card: card.name)
def test_every_annotator_says_what_it_writes(card):
    assert card.summary.endswith(".")
    assert card.fields["columns"]
