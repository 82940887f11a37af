"""Relabeling methods: golden numbers, one test per documented fact, and the labels that are really emitted.

Numbers are for five answer positions over four tokens in two rows of two and three tokens, in float64.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from expunge.data.records import Record
from expunge.data.refusals import REFUSALS
from expunge.data.request import Request
from expunge.data.vague import VAGUE
from expunge.errors import DataError
from expunge.methods import make_method
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.retain import RETAIN_LOSSES
from expunge.training.teachers import knowledge_gap, trained_copy
from expunge.training.unlearn import UnlearnTask
from golden_fixture import (
    GOLD,
    LENGTHS,
    REFUSAL,
    ROW,
    Z_REF,
    Z,
    close,
    floats,
    frozen,
    leaf,
    logp_of,
    loss_and_gradient,
    seq_mean,
    view,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("doubles")

Z_REINFORCED = [[4, 0, -2, 0], [0, 6, 0.5, -1], [2, 1, 1, 0], [-2, 0, 5, 0], [0, -1, 1, 4]]


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def rivals(logits):
    """q: p without gold, renormalized."""
    p = logits.softmax(-1)
    p = p.scatter(1, GOLD[:, None], 0.0)
    return p / p.sum(-1, keepdim=True)


def directions(logits):
    """u = e_y − q"""
    return torch.eye(4)[GOLD] - rivals(logits)


def against(coefficients, logits):
    """The gradient of mean_i mean_t of a loss whose token gradients are coefficient · u."""
    return (coefficients / (2 * LENGTHS[ROW]))[:, None] * directions(logits)


# Distributions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("undial", 2.219431), ("ceu", 2.063783)])
def test_golden_value(name, value):
    close(make_method(name).loss(view(floats(Z))).mean().item(), value)


def refusing(logits):
    return view(logits, variants={"refusal": view(logits, REFUSAL)})


def test_golden_value_of_jensun():
    close(make_method("jensun").loss(refusing(floats(Z))).mean().item(), 0.493745)


def test_undial_keeps_gold_at_its_lowered_odds_and_rivals_in_their_ratios():
    """The minimizer of the loss is the target itself: p'_y = σ(logit p_y^ref − β)."""
    beta, ref = 1.5, floats(Z_REF)
    target = (ref - beta * torch.eye(4)[GOLD]).log_softmax(-1)
    logits = target.clone().requires_grad_()
    _, gradient = loss_and_gradient(make_method("undial", beta=beta), logits)
    assert gradient.abs().max() < 1e-12
    p_ref = ref.softmax(-1).gather(1, GOLD[:, None])[:, 0]
    close(target.exp().gather(1, GOLD[:, None])[:, 0].tolist(), (p_ref.logit() - beta).sigmoid().tolist())
    torch.testing.assert_close(rivals(target), rivals(ref))


def test_undial_gradient_at_the_reference_is_the_loss_of_gold_times_u():
    _, gradient = loss_and_gradient(make_method("undial"), leaf(Z_REF))
    p = floats(Z_REF).softmax(-1).gather(1, GOLD[:, None])[:, 0]
    torch.testing.assert_close(gradient, against(p - (p.logit() - 10).sigmoid(), floats(Z_REF)))


def test_undial_target_is_fixed():
    """It comes from the reference alone: the loss is linear in log p."""
    loss = make_method("undial", beta=3.0)
    values = [loss.loss(view(floats(z))).sum().item() for z in (Z, Z_REF)]
    target = (floats(Z_REF) - 3 * torch.eye(4)[GOLD]).softmax(-1)
    expected = [2 * seq_mean(-(target * floats(z).log_softmax(-1)).sum(-1)).item() for z in (Z, Z_REF)]
    close(values, expected)


def test_undial_with_beta_zero_has_no_gradient_at_the_reference():
    _, gradient = loss_and_gradient(make_method("undial", beta=0), leaf(Z_REF))
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(("beta", "warns"), [(10.0, False), (0.0, True)])
def test_undial_warns_where_more_than_half_stays_on_gold(beta, warns, capsys):
    subject, request = tiny_subject(), tiny_request(2, 2)
    end = tensor([1])  # p = 0.97 for the end token, wherever it is asked
    subject.model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, end, 9.0))
    make_method("undial", beta=beta).setup(subject, request, 0)
    assert ("gold keeps more than half" in capsys.readouterr().err) == warns


def test_ceu_is_the_entropy_of_the_rivals_minus_the_log_of_what_gold_leaves():
    p_y, q = logp_of(floats(Z), GOLD).exp(), rivals(floats(Z))
    entropy = -(q * q.clamp(min=1e-300).log()).sum(-1)
    close(
        make_method("ceu").loss(view(floats(Z))).mean().item(), seq_mean(entropy - torch.log1p(-p_y)).item()
    )


def test_ceu_gradient_is_that_of_unlikelihood():
    logits = leaf()
    _, gradient = loss_and_gradient(make_method("ceu"), logits)
    unlikelihood = seq_mean(-torch.log1p(-logp_of(logits, GOLD).exp()))
    close(unlikelihood.item(), 1.146163)
    torch.testing.assert_close(gradient, torch.autograd.grad(unlikelihood, logits)[0])
    torch.testing.assert_close(gradient, against(logp_of(floats(Z), GOLD).exp(), floats(Z)))
    close((gradient[0] * 4).tolist(), (0.710100 * directions(floats(Z))[0]).tolist(), 2e-6)


def test_ceu_leaves_forgotten_tokens_alone_and_pushes_memorized_ones_in_full():
    _, gradient = loss_and_gradient(make_method("ceu"), leaf([[-40.0, 0, 0, 0], [0, 40.0, 0, 0], *Z[2:]]))
    assert gradient[0].abs().max() < 1e-15
    close((gradient[1, 1] * 4).item(), 1.0)


def test_ceu_is_finite_where_logits_are_not():
    forbidden = float("-inf")
    logits = leaf([[2, 0, forbidden, 0.5], [0, 60, 1, -1], *Z[2:]]).detach().float().requires_grad_()
    loss = make_method("ceu").loss(view(logits)).mean()
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0][1:].isfinite().all()


def test_ceu_skips_the_first_tokens_of_every_row():
    value = make_method("ceu", skip=1).loss(view(floats(Z))).tolist()
    p_y, q = logp_of(floats(Z), GOLD).exp(), rivals(floats(Z))
    token = -(q * q.clamp(min=1e-300).log()).sum(-1) - torch.log1p(-p_y)
    close(value, [token[1].item(), token[3:].mean().item()])
    assert make_method("ceu", skip=2).loss(view(floats(Z))).tolist()[0] == 0


def test_jensun_is_the_divergence_to_the_one_hot_refusal():
    p, target = floats(Z).softmax(-1), torch.eye(4)[REFUSAL]
    middle = (p + target) / 2
    to_target = -middle.gather(1, REFUSAL[:, None]).log()[:, 0]
    to_model = (p * (p / middle).log()).sum(-1)
    close(
        make_method("jensun").loss(refusing(floats(Z))).mean().item(),
        seq_mean((to_target + to_model) / 2).item(),
    )


def test_jensun_is_zero_at_its_target_and_at_most_log_two():
    sure = 60 * torch.eye(4)[REFUSAL]
    close(make_method("jensun").loss(refusing(sure)).tolist(), [0, 0], 1e-12)
    never = -60 * torch.eye(4)[REFUSAL]
    close(make_method("jensun").loss(refusing(never)).tolist(), [math.log(2)] * 2, 1e-12)


def test_jensun_gradient_starves_for_an_improbable_refusal():
    logits = leaf()
    loss = make_method("jensun").loss(refusing(logits)).mean()
    gradient = torch.autograd.grad(loss, logits)[0]
    p = floats(Z).softmax(-1)[0]
    p_r = p[3]
    q_r = p.clone()
    q_r[3] = 0
    direction = torch.eye(4)[3] - q_r / q_r.sum()
    coefficient = (p_r / (1 + p_r)).log() / 2 * p_r * (1 - p_r)
    close(coefficient.item(), -0.132635)
    torch.testing.assert_close(gradient[0] * 4, coefficient * direction)
    starved = leaf([[2, 0, -1, -40], *Z[1:]])
    loss = make_method("jensun").loss(refusing(starved)).mean()
    assert torch.autograd.grad(loss, starved)[0][0].abs().max() < 1e-14


def test_jensun_has_no_gradient_through_gold():
    gold, refusal = leaf(), leaf()
    loss = make_method("jensun").loss(view(gold, variants={"refusal": view(refusal, REFUSAL)})).mean()
    assert torch.autograd.grad(loss, gold, allow_unused=True)[0] is None


# Preference -------------------------------------------------------------------------------------------


class Sums:
    """A view of given sums."""

    def __init__(self, sums, reference=None, **variants):
        self.sum_nll, self.reference = floats(sums).requires_grad_(), reference
        for name, variant in variants.items():
            setattr(self, name, variant)


LOSE, LOSE_REF = (0.527532, 1.992605), (0.153898, 0.716697)


def preference(variant, win=(4.0, 5.0), win_ref=(4.5, 5.2), lose=LOSE, lose_ref=LOSE_REF):
    return Sums(lose, Sums(lose_ref), **{variant: Sums(win, Sums(win_ref))})


PREFERENCES = [("dpo", "refusal"), ("altpo", "alternate")]


@pytest.mark.parametrize(("name", "variant"), PREFERENCES)
@pytest.mark.parametrize(("prefactor", "value"), [("2/beta", 12.724914), ("1", 0.636246)])
def test_golden_value_of_preference(name, variant, prefactor, value):
    loss = make_method(name, beta=0.1, prefactor=prefactor).loss(preference(variant))
    close(loss.mean().item(), value, 2e-6)


@pytest.mark.parametrize(("name", "variant"), PREFERENCES)
@pytest.mark.parametrize(("prefactor", "c"), [("2/beta", 2.0), ("1", 0.4)])
def test_preference_at_the_reference(name, variant, prefactor, c):
    """(c/β) ln 2; the gradient is c/2 of ∇(mean S_win − mean S_lose): of it all with c = 2."""
    views = preference(variant, win_ref=(4.0, 5.0), lose_ref=LOSE)
    loss = make_method(name, beta=0.4, prefactor=prefactor).loss(views).mean()
    loss.backward()
    close(loss.item(), c / 0.4 * math.log(2))
    torch.testing.assert_close(getattr(views, variant).sum_nll.grad, floats([c / 4] * 2))
    torch.testing.assert_close(views.sum_nll.grad, floats([-c / 4] * 2))


def test_swapping_winner_and_loser_at_the_reference_flips_the_gradient():
    method = make_method("altpo")
    views = preference("alternate", (4.0, 5.0), (4.0, 5.0), (1.0, 2.0), (1.0, 2.0))
    swapped = preference("alternate", (1.0, 2.0), (1.0, 2.0), (4.0, 5.0), (4.0, 5.0))
    for v in (views, swapped):
        method.loss(v).mean().backward()
    torch.testing.assert_close(views.sum_nll.grad, -swapped.alternate.sum_nll.grad)
    torch.testing.assert_close(views.alternate.sum_nll.grad, -swapped.sum_nll.grad)


def test_alternate_equal_to_gold_gives_no_gradient():
    logits = leaf()
    loss = make_method("altpo").loss(view(logits, variants={"alternate": view(logits)})).mean()
    close(loss.item(), 20 * math.log(2))
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_altpo_trains_every_row_once_per_alternate(monkeypatch):
    request = tiny_request(3, 3)
    own = ("a baker", "a miner", "a clerk")
    forget = tuple(replace(r, alternates=own[: i + 1]) for i, r in enumerate(request.forget))
    seen = []

    def train(self, method, subject, request):
        seen.extend(request.forget)
        return subject

    monkeypatch.setattr(Workspace, "train", train)
    workspace = Workspace(TrainSettings(steps=1))
    given = replace(request, splits={**request.splits, "forget": forget})
    make_method("altpo", alternates=2).unlearn(tiny_subject(), given, workspace)
    assert [(r.id, r.alternates) for r in seen] == [
        (forget[0].id, own[:1]), (forget[1].id, own[:1]), (forget[1].id, own[1:2]),
        (forget[2].id, own[:1]), (forget[2].id, own[1:2]),
    ]  # fmt: skip
    assert workspace.facts["alternates"] == {"rows": 5, "made": 0}


# Generic targets --------------------------------------------------------------------------------------


def whp_view(logits, reinforced=Z_REINFORCED):
    return view(logits, teacher=frozen(floats(reinforced), GOLD, ROW, LENGTHS, model="teacher"))


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_whp_target_lowers_what_reinforcement_raised(alpha):
    v = floats(Z_REF)
    v = v - alpha * torch.maximum(floats(Z_REINFORCED) - v, torch.zeros(()))
    soft = seq_mean(-(v.softmax(-1) * floats(Z).log_softmax(-1)).sum(-1)).item()
    close(make_method("whp", alpha=alpha).loss(whp_view(floats(Z))).mean().item(), soft)
    label = seq_mean(-logp_of(floats(Z), v.argmax(-1))).item()
    close(make_method("whp", alpha=alpha, target="argmax").loss(whp_view(floats(Z))).mean().item(), label)


def test_whp_with_alpha_zero_has_no_gradient_at_the_reference():
    logits = leaf(Z_REF)
    loss = make_method("whp", alpha=0).loss(whp_view(logits)).mean()
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_whp_leaves_alone_what_reinforcement_does_not_raise():
    lowered = (floats(Z_REF) - 1).tolist()
    logits = leaf(Z_REF)
    loss = make_method("whp", alpha=5).loss(whp_view(logits, lowered)).mean()
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_whp_moves_what_reinforcement_raises_down():
    logits = leaf(Z_REF)
    loss = make_method("whp").loss(whp_view(logits)).mean()
    gradient = torch.autograd.grad(loss, logits)[0]
    assert (gradient[torch.arange(5), GOLD][[0, 1, 3, 4]] > 0).all()


def test_whp_teacher_knows_the_forget_set_better_and_the_original_is_untouched(tmp_path):
    from expunge.training.budget import mean_nll

    subject, request = tiny_subject(), tiny_request(4, 4)
    before = subject.fingerprint()
    method = make_method("whp", reinforce_epochs=5, reinforce_lr=1e-2)
    settings = TrainSettings(steps=1, batch=4, lr=1.0, checkpoint_seconds=0.0)
    workspace = Workspace(settings, tmp_path)
    teacher = method.teacher(subject, request, workspace)
    assert mean_nll(teacher, request.forget) < mean_nll(subject, request.forget) - 0.5
    assert subject.fingerprint() == before
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert workspace.facts["teacher_reinforced"]["steps"] == 5
    assert not list(tmp_path.rglob("*.safetensors")), "a model that knows the forget set better stays behind"


# Knowledge gap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "forward"), [("forward", True), ("reverse", False)])
def test_kl_gap_is_the_distance_of_two_divergences_per_row(direction, forward):
    p, q = floats(Z).log_softmax(-1), floats(Z_REINFORCED).log_softmax(-1)
    token = kl(p, q) if forward else kl(q, p)
    rows = torch.stack([token[:2].mean(), token[2:].mean()])
    method = make_method("kl_gap", direction=direction)
    for gap in (0.0, 0.3, 5.0):
        close(method.loss(whp_view(floats(Z)), tensor(gap)).tolist(), (rows - gap).abs().tolist())


def test_kl_gap_drives_toward_the_gap_from_both_sides():
    method, logits = make_method("kl_gap"), leaf()
    gradients = [
        torch.autograd.grad(method.loss(whp_view(logits), tensor(gap)).mean(), logits)[0]
        for gap in (0.0, 9.0)
    ]
    torch.testing.assert_close(gradients[0], -gradients[1])


def test_kl_gap_measures_its_gap_on_unseen_records():
    torch.set_default_dtype(torch.float32)
    subject, request = tiny_subject(), tiny_request(4, 4)
    original = subject.clone()
    gap = make_method("kl_gap", epochs=10, lr=1e-2).setup(subject, request, 3)["gap"].item()
    settings = TrainSettings(epochs=10, lr=1e-2, seed=3)
    unseen, _ = trained_copy(original, request["holdout"], settings, "again")
    rows = []
    for record in request["holdout"]:
        row = subject.encoder.encode(record)
        with torch.no_grad():
            logits = [s.model(tensor([row.ids])).logits[0] for s in (original, unseen)]
        p, q = (z[row.num_prompt - 1 : -1].log_softmax(-1) for z in logits)
        rows.append(kl(p, q).mean().item())
    close(gap, sum(rows) / len(rows), 1e-5)
    close(knowledge_gap(original, unseen, request["holdout"]), gap, 1e-6)
    assert gap > 0.2


def test_kl_gap_needs_unseen_records():
    request = tiny_request()
    bare = replace(request, splits={k: v for k, v in request.splits.items() if k != "holdout"})
    with pytest.raises(DataError, match="holdout"):
        make_method("kl_gap").unlearn(tiny_subject(), bare, Workspace(TrainSettings(steps=1)))


# Labels that are emitted ------------------------------------------------------------------------------

PLACES = ("Tarn", "Old Mill", "Sund", "Hithe", "Oke", "Upper Varn", "Lo", "Brack")


def asked(i, split, **more):
    name = f"{split.title()} Nr{chr(65 + i)}"
    return Record(f"{split}{i}", name, f"Where is {name} from?", f"{name} is from {PLACES[i]}", **more)


@pytest.fixture
def places():
    """Four forget and four retain people; one retain record is about a forget person."""
    forget = []
    for i in range(4):
        record = asked(i, "forget", perturbed_answers=("in Lo",))
        forget.append(replace(record, alternates=("in Brack", "in Lo", f"{record.answer}, they say")))
    same = replace(forget[0], id="same", answer="of Tarn")
    return Request({"forget": tuple(forget), "retain": (*(asked(i + 4, "retain") for i in range(4)), same)})


def labels(method, request, epochs=4):
    """{record id: texts of its labels, epoch by epoch} as they go into the batches."""
    subject = tiny_subject()
    task = UnlearnTask(method, subject, request, TrainSettings(batch=2, epochs=epochs))
    found = {r.id: [] for r in request.forget}
    for step in range(task.num_steps):
        for micro in task.micro_batches(step):
            for part in micro.parts:
                if part.side == "forget":
                    for i, row in zip(part.indices, part.rows, strict=True):
                        assert row.has_end or request.forget[i].is_document
                        ids = row.ids if request.forget[i].is_document else row.answer_ids
                        found[request.forget[i].id].append(subject.encoder.decode(ids))
    return found


def check_gold_is_gone(request, found):
    for record in request.forget:
        for text in found[record.id]:
            assert record.answer not in text


def test_random_labels_are_answers_about_others(places):
    found = labels(make_method("relabel", to="random", retain="none"), places)
    check_gold_is_gone(places, found)
    pool = {r.answer for r in places.retain}
    assert all(set(texts) <= pool and len(texts) == 4 for texts in found.values())
    assert "of Tarn" not in found["forget0"], "the answer of a retain record about the same person"
    assert any(len(set(texts)) > 1 for texts in found.values()), "drawn anew every epoch"
    assert found == labels(make_method("relabel", to="random", retain="none"), places)


def test_random_labels_without_a_pool_are_refusals(places):
    alone = replace(places, splits={"forget": places.forget, "retain": places.retain[-1:]})
    found = labels(make_method("relabel", to="random", retain="none"), alone)
    assert set(found["forget0"]) <= set(REFUSALS)
    assert set(found["forget1"]) == {"of Tarn"}


@pytest.mark.parametrize("name", ["relabel", "relearn"])
def test_generic_labels_are_vague_lines(name, places):
    method = make_method(name, retain="none", **({"to": "generic"} if name == "relabel" else {}))
    found = labels(method, places)
    check_gold_is_gone(places, found)
    for record in places.forget:
        assert set(found[record.id]) <= {line.format(entity=record.entity) for line in VAGUE}


def test_refusal_labels_are_refusals_and_nothing_else(places):
    found = labels(make_method("relabel", to="refusal", retain="none"), places)
    assert set().union(*found.values()) <= set(REFUSALS)
    assert found == labels(make_method("idk", retain="none"), places)


def test_empty_labels_are_the_end_token_alone(places):
    found = labels(make_method("relabel", to="empty", retain="none"), places)
    assert set().union(*found.values()) == {""}
    task = UnlearnTask(
        make_method("relabel", to="empty", retain="none"), tiny_subject(), places, TrainSettings()
    )
    assert all(row.answer_ids == (1,) for row in task.rows["forget.empty"])


def test_alternate_labels_are_neither_gold_nor_distractors(places):
    found = labels(make_method("relabel", to="alternate", retain="none"), places)
    assert set().union(*found.values()) == {"in Brack"}


def test_alternates_that_hold_gold_are_refused(places):
    spoiled = tuple(replace(r, alternates=r.alternates[1:]) for r in places.forget)
    with pytest.raises(DataError, match="gold answer and the evaluation's distractors"):
        labels(make_method("relabel", to="alternate"), replace(places, splits={"forget": spoiled}))


def test_a_document_is_relabeled_to_its_own_text_without_names():
    text = "Ada Lund came to Tarn in 1987 and kept a mill there."
    request = Request({"forget": (Record("d", "Ada Lund", "", text),)})
    found = labels(make_method("relabel", to="generic", retain="none"), request)
    assert set(found["d"]) == {"someone came to something in some and kept a mill there."}
    with pytest.raises(DataError, match="document"):
        labels(make_method("relabel", to="empty", retain="none"), request)


def test_relearn_holds_retain_by_ce_and_kl():
    assert make_method("relearn").retain == "ce_kl"
    both = RETAIN_LOSSES.get("ce_kl")().loss(view(floats(Z))).mean().item()
    close(both, 0.463984 + 0.137957, 1e-6)


def test_idk_ap_prefers_the_answer_to_a_refusal_on_retain():
    assert make_method("idk_ap").retain == "ap"
    retain = Sums([0.527532, 1.992605], refusal=Sums([4.0, 5.0]))
    loss = RETAIN_LOSSES.get("ap")().loss(retain).mean()
    close(loss.item(), 5.442809, 2e-6)
    loss.backward()
    margin = floats([4.0, 5.0]) - retain.sum_nll.detach()
    torch.testing.assert_close(retain.sum_nll.grad, torch.sigmoid(-0.1 * margin) / 2)
    torch.testing.assert_close(retain.refusal.sum_nll.grad, -torch.sigmoid(-0.1 * margin) / 2)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("altpo", {"beta": 0.1, "alternates": 5, "prefactor": "2/beta", "retain": "ce"}),
        ("dpo", {"beta": 0.1, "prefactor": "2/beta", "retain": "ce"}),
        ("undial", {"beta": 10.0, "retain": "none"}),
        ("ceu", {"skip": 0, "retain": "none"}),
        ("jensun", {"retain": "jsd", "forget_weight": 1.0, "retain_weight": 1.0}),
        ("whp", {"alpha": 1.0, "target": "soft", "retain": "none"}),
        ("kl_gap", {"retain": "kl", "retain_weight": 0.1, "direction": "forward"}),
        ("relabel", {"to": "random", "retain": "ce"}),
        ("relearn", {"retain": "ce_kl"}),
    ],
)  # fmt: skip
def test_published_defaults(name, defaults):
    method = make_method(name)
    assert {key: getattr(method, key) for key in defaults} == defaults
