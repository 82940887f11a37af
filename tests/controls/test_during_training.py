"""What the controls inside the loss and around the step promise, and their worked numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import tensor

from expunge.controls import make_control
from expunge.controls.ball import _lora_norm
from expunge.controls.select import smallest
from expunge.controls.token_mask import tokens_of_words
from expunge.data.encoding import Encoder
from expunge.data.records import Record
from expunge.errors import ConfigError, DataError
from expunge.methods import make_method
from expunge.subjects import attach_lora, fingerprint
from expunge.subjects.adapters import lora_modules
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace
from expunge.training.loop import Loop
from expunge.training.transforms import inner
from expunge.training.unlearn import UnlearnTask
from expunge.training.views import View

TRAIN = TrainSettings(batch=8)
EVERY = frozenset({"sum_nll", "mean_nll", "token_logprobs"})


class Nothing:
    """A reference nobody reads."""

    def only(self, mask, num_tokens):
        return self


def view_of(logits, lengths):
    row = torch.repeat_interleave(torch.arange(len(lengths)), tensor(lengths))
    targets = torch.zeros(len(row), dtype=torch.long)
    return View(targets, row, tensor(lengths), logits, {}, Nothing(), Nothing(), {}, EVERY)


def with_nll(values):
    """Logits over two tokens in which the first has these NLLs."""
    p = (-tensor(values, dtype=torch.float64)).exp()
    return torch.stack([p.log(), (1 - p).log()], dim=1).requires_grad_()


def run(method="graddiff", control=None, steps=6, request=None, lora=None, **settings):
    plain = {"steps": steps, "batch": 8, "lr": 5e-3, "warmup": 0.0, "schedule": "constant"}
    hooks = [make_control(control[0], **control[1]).attach(None)] if control else []
    workspace = Workspace(TrainSettings(**{**plain, **settings}), controls=hooks, lora=lora)
    made = make_method(method) if isinstance(method, str) else method
    result = made.unlearn(tiny_subject(), request or tiny_request(), workspace)
    return result, workspace, hooks[0] if hooks else None


# select -----------------------------------------------------------------------------------------------


def test_select_example_takes_lowest_not_highest():
    logits = with_nll([0.1, 2.0, 0.5, 3.0, 1.0])
    hooks = make_control("select", q=0.6).attach(None)
    value = -hooks.forget_view(view_of(logits, [5])).mean_nll
    assert value.item() == pytest.approx(-0.533333, abs=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert [bool(g.abs().max() > 0) for g in gradient] == [True, False, True, False, True]
    assert hooks.active == pytest.approx(0.4)


def test_selection_equals_sorted_oracle_per_sequence():
    generator = torch.Generator().manual_seed(0)
    for q in (0.07, 0.3, 0.8, 1.0):
        lengths = [100, 1, 7, 13]
        nll = torch.rand(sum(lengths), generator=generator).round(decimals=1)  # with ties
        row = torch.repeat_interleave(torch.arange(4), tensor(lengths))
        mask, start = smallest(nll, row, 4, q), 0
        for n in lengths:
            values = nll[start : start + n].tolist()
            kept = max(1, math.ceil(q * n - 1e-6))
            oracle = sorted(range(n), key=lambda i, v=values: (v[i], i))[:kept]
            assert mask[start : start + n].nonzero()[:, 0].tolist() == sorted(oracle)
            start += n
    assert int(smallest(torch.rand(100), torch.zeros(100, dtype=torch.long), 1, 0.07).sum()) == 7


def test_selection_of_everything_equals_gradient_ascent():
    assert fingerprint(run(control=("select", {"q": 1.0}))[0].model) == fingerprint(run()[0].model)
    assert fingerprint(run(control=("select", {"q": 0.5}))[0].model) != fingerprint(run()[0].model)


@pytest.mark.parametrize("control", ["select", "token_mask"])
def test_part_of_a_row_binds_no_loss_over_whole_rows(control):
    with pytest.raises(ConfigError, match="whole answers"):
        run("npo", (control, {}))
    with pytest.raises(ConfigError, match="no likelihood"):
        run("idk", (control, {}))


# temperature ------------------------------------------------------------------------------------------


def test_temperature_example():
    for temperature, nll, slope in ((1.0, 0.126928, -0.119203), (2.0, 0.313262, -0.134471)):
        logits = tensor([[2.0, 0.0]], requires_grad=True)
        hooks = make_control("temperature", temperature=temperature).attach(None)
        value = hooks.forget_view(view_of(logits, [1])).mean_nll
        assert value.item() == pytest.approx(nll, abs=1e-6)
        assert torch.autograd.grad(value.sum(), logits)[0][0, 0].item() == pytest.approx(slope, abs=1e-6)


def test_temperature_one_equals_gradient_ascent_and_zero_is_refused():
    plain = fingerprint(run("ga")[0].model)
    assert fingerprint(run("ga", ("temperature", {"temperature": 1.0}))[0].model) == plain
    assert fingerprint(run("ga", ("temperature", {"temperature": 2.0}))[0].model) != plain
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError, match="temperature"):
            make_control("temperature", temperature=bad).attach(None)


def test_temperature_never_reaches_retain_or_the_logits_of_a_loss():
    hooks = make_control("temperature", temperature=3.0).attach(None)
    tasks = [
        UnlearnTask(
            make_method("graddiff"), tiny_subject(), tiny_request(), TrainSettings(batch=8), controls=c
        )
        for c in ([], [hooks])
    ]
    plain, tempered = (t.terms(t.micro_batches(0)[0]) for t in tasks)
    assert torch.equal(plain["retain"].rows, tempered["retain"].rows)
    assert not torch.equal(plain["forget"].rows, tempered["forget"].rows)


# token_mask -------------------------------------------------------------------------------------------


def sentencepiece_like():
    """Words begin with ▁ and are cut in pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<pad>",
        "<end>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?.:\n",
        "▁Old",
        "Mi",
        "ll",
        "▁Mi",
    ]
    merges = [("▁", "O"), ("▁O", "l"), ("▁Ol", "d"), ("M", "i"), ("l", "l"), ("▁", "Mi")]
    vocabulary = dict.fromkeys([*pieces, "▁O", "▁Ol"])
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_mask_covers_all_pieces_of_a_word(kind):
    encoder = tiny_subject().encoder if kind == "bytes" else Encoder(sentencepiece_like(), max_length=64)
    row = encoder.encode(Record("r", "e", "Where?", "a cook in Old Mill by the sea"))
    mask = tokens_of_words(row, encoder, ["old mill"])
    tokens = [encoder.tokenizer.convert_ids_to_tokens(i) for i in row.answer_ids]
    kept = "".join(t for t, m in zip(tokens, mask, strict=True) if m)
    assert kept.replace("Ġ", " ").replace("▁", " ").strip() == "Old Mill"
    assert len(mask) == len(row.answer_ids)
    assert sum(mask) > 1


def keyed(request, words=("in",)):
    records = tuple(replace(r, keywords=words) for r in request.forget)
    return replace(request, splits={**request.splits, "forget": records})


def test_mask_gradient_only_at_listed_tokens():
    hooks = make_control("token_mask").attach(None)
    request, subject = keyed(tiny_request()), tiny_subject()
    task = UnlearnTask(make_method("ga"), subject, request, TrainSettings(batch=8), controls=[hooks])
    hooks.prepare(task)
    captured = []
    subject.model.get_output_embeddings().register_forward_hook(
        lambda m, a, o: (o.retain_grad(), captured.append(o))[0]
    )
    micro = task.micro_batches(0)[0]
    task.terms(micro)["forget"].rows.sum().backward()
    listed = []
    for i in micro.parts[0].indices:
        record, row = task.sources["forget"][i]
        listed += tokens_of_words(row, subject.encoder, record.keywords)
    pushed = captured[0].grad[0].abs().amax(-1) > 0
    assert pushed.tolist() == listed
    assert 0 < sum(listed) < len(listed)


def test_mask_of_all_tokens_equals_gradient_ascent():
    """With the answer listed only its leading blank and the end token stand outside."""
    request, plain = tiny_request(), fingerprint(run("ga")[0].model)
    whole = ("token_mask", {"on_missing": "all_tokens", "words": ["zebra"]})
    assert fingerprint(run("ga", whole)[0].model) == plain
    records = tuple(replace(r, keywords=(r.answer,)) for r in request.forget)
    listed = replace(request, splits={**request.splits, "forget": records})
    result, _, hooks = run("ga", ("token_mask", {}), request=listed)
    assert all(not mask[-1] and mask[1:-1].all() for mask in hooks._masks)
    assert fingerprint(result.model) != plain


def test_mask_missing_is_not_silent():
    with pytest.raises(DataError, match="forget"):
        run("ga", ("token_mask", {"words": ["potter"]}))
    _, workspace, _ = run("ga", ("token_mask", {"words": ["potter"], "on_missing": "skip"}))
    assert "words found in" in workspace.result.notes[0]
    with pytest.raises(ConfigError, match="no listed word"):
        run("ga", ("token_mask", {"words": ["zebra"], "on_missing": "skip"}))


# capped_mix -------------------------------------------------------------------------------------------


def test_mix_matches_lambda_form():
    """ρ·F + (1−ρ)·R is ρ times F + λR with λ = (1−ρ)/ρ; worked number 1.28."""
    hooks = make_control("capped_mix", rho=0.1).attach(None)
    forget, retain = hooks.weights(1.0, 1.0)
    assert retain * 1.2 + forget * 2.0 == pytest.approx(1.28)
    assert retain / forget == pytest.approx(9.0)
    nll = tensor([1.0, 5.0, 3.0])
    rows = make_control("capped_mix", delta=4.0, normalize="sum").attach(None).forget_rows(
        -nll, view_of(with_nll([1.0, 5.0, 3.0]), [1, 1, 1])
    )  # fmt: skip
    assert rows.mean().item() == pytest.approx(2.0)


def test_mix_rho_one_does_no_retain_forward_and_zero_is_refused():
    hooks = make_control("capped_mix", rho=1.0).attach(None)
    task = UnlearnTask(
        make_method("graddiff"), tiny_subject(), tiny_request(), TrainSettings(batch=8), controls=[hooks]
    )
    assert not task.with_retain
    assert {part.side for part in task.micro_batches(0)[0].parts} == {"forget"}
    with pytest.raises(ConfigError, match="rho"):
        make_control("capped_mix", rho=0.0).attach(None)
    with pytest.raises(ConfigError, match="capped_mix"):
        run("npo", ("capped_mix", {}))


def test_mix_skip_step_advances_no_optimizer_state():
    result, workspace, _ = run("graddiff", ("capped_mix", {"delta": 0.01}), steps=3)
    assert fingerprint(result.model) == fingerprint(tiny_subject().model)
    assert workspace.result.steps == 3


# ball -------------------------------------------------------------------------------------------------


class Point(torch.nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.one = torch.nn.Parameter(tensor(values))


def projected(start, end, **settings):
    hooks = make_control("ball", relative=False, **settings).attach(None)
    model = Point(*start)
    subject = type("S", (), {"model": model, "adapter": False})()
    hooks.prepare(type("T", (), {"subject": subject})())
    with torch.no_grad():
        model.one.copy_(tensor(end))
    hooks.after_update(subject)
    return model.one.detach(), hooks


def test_ball_examples():
    torch.testing.assert_close(projected((0.0, 0.0), (3.0, 4.0), radius=1.0)[0], tensor([0.6, 0.8]))
    found, hooks = projected((0.0, 0.0), (3.0, 4.0), radius=1.0, norm="linf")
    assert found.tolist() == [1.0, 1.0]
    assert hooks.active == 1
    assert projected((0.5, 1.0), (3.0, 4.0), radius=0.0)[0].tolist() == [0.5, 1.0]
    inside, hooks = projected((0.1, 0.2), (0.3, 0.4), radius=1.0)
    assert torch.equal(inside, tensor([0.3, 0.4])), "inside nothing changes, bit for bit"
    assert hooks.active == 0


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_ball_norm_never_exceeds_radius(norm, scope):
    result, _, _ = run("ga", ("ball", {"radius": 1e-3, "norm": norm, "scope": scope}), steps=3)
    original = dict(tiny_subject().model.named_parameters())
    change = {n: (p - original[n]).detach() for n, p in result.model.named_parameters()}
    size = (lambda t: t.norm()) if norm == "l2" else (lambda t: t.abs().max())
    if scope == "tensor":
        assert all(size(change[n]) <= 1e-3 * size(original[n]) * (1 + 1e-4) for n in change)
        assert any(size(change[n]) > 0.9e-3 * size(original[n]) for n in change)
    else:
        every = [torch.cat([t.flatten() for t in group.values()]) for group in (change, original)]
        assert 0.99e-3 * size(every[1]) < size(every[0]) <= 1e-3 * size(every[1]) * (1 + 1e-4)


def test_ball_lora_norm_equals_dense_and_bounds_the_effective_update():
    subject = attach_lora(tiny_subject(), rank=3)
    with torch.no_grad():
        for _, module in lora_modules(subject.model):
            for b in module.lora_B.values():
                b.weight.normal_()
    for _, module in lora_modules(subject.model):
        dense = float(module.get_delta_weight("default").detach().norm())
        assert _lora_norm(module) == pytest.approx(dense, rel=1e-4)
    result, _, _ = run("ga", ("ball", {"radius": 1e-3}), steps=3, lora=LoraSettings(rank=4))
    original = dict(tiny_subject().model.named_parameters())
    moved = {n: (p - original[n]).detach() for n, p in result.model.named_parameters()}
    moved = {n: change for n, change in moved.items() if change.any()}
    total = sum(float(t.square().sum()) for t in moved.values()) ** 0.5
    limit = 1e-3 * sum(float(original[n].detach().square().sum()) for n in moved) ** 0.5
    assert 0.9 * limit < total <= limit * (1 + 1e-3)
    with pytest.raises(ConfigError, match="linf"):
        run("ga", ("ball", {"norm": "linf"}), steps=1, lora=LoraSettings(rank=4))


# gradient_projection, dual_lambda ---------------------------------------------------------------------


def test_projection_after_accumulation_equals_large_batch_and_leaves_retain_alone():
    found = []
    for accumulate in (1, 4):
        hooks = make_control("gradient_projection").attach(None)
        task = UnlearnTask(
            make_method("graddiff"), tiny_subject(), tiny_request(),
            TrainSettings(batch=8, accumulate=accumulate), controls=[hooks],
        )  # fmt: skip
        loop = Loop(task.subject, task, task.settings, controls=[hooks])
        forget, retain = loop.side(0, "forget"), loop.side(0, "retain")
        loop.gradients(0)
        total = [p.grad for p in loop.parameters]
        change = [t - r for t, r in zip(total, retain, strict=True)]
        assert float(inner(forget, retain)) < 0, "the two sides conflict here"
        assert abs(float(inner(change, retain))) < 1e-4 * float(inner(retain, retain))
        found.append(torch.cat([t.flatten() for t in total]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match="no retain term"):
        run("ga", ("gradient_projection", {}))
    with pytest.raises(ConfigError, match="step of its own"):
        run("mudman", ("gradient_projection", {}))


def test_projection_sign_convention():
    """A small plain step under projection does not raise the retain loss to first order."""
    values = {}
    for control in (None, ("gradient_projection", {})):
        result, _, _ = run(
            "graddiff" if control else "ga", control, steps=1, optimizer="sgd", lr=1e-3, max_grad_norm=0.0
        )
        task = UnlearnTask(make_method("graddiff"), result, tiny_request(), TrainSettings(batch=8))
        values[control is None] = float(task.terms(task.micro_batches(0)[0])["retain"].rows.detach().mean())
    task = UnlearnTask(make_method("graddiff"), tiny_subject(), tiny_request(), TrainSettings(batch=8))
    before = float(task.terms(task.micro_batches(0)[0])["retain"].rows.detach().mean())
    assert values[True] > before
    assert values[False] <= before + 1e-6


def test_dual_lambda_worked_numbers_and_once_per_step():
    hooks = make_control("dual_lambda", eta=0.5, limit=1.0).attach(None)
    assert hooks.weights(1.0, 1.0) == (1.0, 1.0)
    hooks.observe({"retain": 1.4})
    assert hooks.weights(1.0, 7.0) == (1.0, pytest.approx(1.2))
    hooks.observe({"retain": -2.0})
    assert hooks.weights(1.0, 7.0) == (1.0, 0.0)
    ends = []
    for accumulate in (1, 4):
        _, workspace, hooks = run(control=("dual_lambda", {}), accumulate=accumulate, steps=4)
        ends.append(hooks.value)
        assert hooks.steps == 4
        assert "dual λ" in workspace.result.notes[0]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    with pytest.raises(ConfigError, match="no retain term"):
        run("ga", ("dual_lambda", {}))
