"""Reference quantities: cached = live = base under the adapter, within a budget that is what it says."""

import pytest
import torch
from transformers import GPT2Config

from expunge.data.batching import collate
from expunge.methods import make_method
from expunge.subjects import attach_lora
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace
from expunge.training.reference import Reference, reference_bytes, resolve_mode
from expunge.training.unlearn import UnlearnTask

LAYERS = {"forget": [1], "retain": [1]}
READS = frozenset({"sum_nll", "token_logprobs", "logits", "hidden"})


def rows_of(subject):
    request = tiny_request()
    return {part: [subject.encoder.encode(r) for r in request[part]] for part in ("forget", "retain")}


def fetch_all(reference, rows, quantity):
    found = []
    for part in rows:
        for indices in ([0, 3, 1], [5]):
            batch = collate([rows[part][i] for i in indices], 0)
            layer = 1 if quantity == "hidden" else None
            found.append(reference.fetch(part, indices, batch, quantity, layer))
    return torch.cat(found)


def disturbed(subject):
    """Move every weight, or the adapter's where there is one, as steps would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if not subject.adapter or "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("quantity", sorted(READS))
def test_cached_live_and_adapter_off_agree_and_do_not_follow_the_training(quantity):
    wanted = dict.fromkeys(("forget", "retain"), READS)
    values = {}
    for mode in ("cache", "live", "adapter_off"):
        subject = tiny_subject()
        if mode == "adapter_off":
            subject = attach_lora(subject, rank=4)
        rows = rows_of(subject)
        reference = Reference(subject, rows, wanted, layers=LAYERS, mode=mode)
        assert reference.mode == mode
        before = fetch_all(reference, rows, quantity)
        disturbed(subject)
        values[mode] = fetch_all(reference, rows, quantity)
        torch.testing.assert_close(values[mode], before)
        assert not values[mode].requires_grad
    torch.testing.assert_close(values["cache"], values["live"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values["cache"], values["adapter_off"], rtol=1e-5, atol=1e-5)


def test_values_are_those_of_a_plain_forward():
    subject = tiny_subject()
    rows = rows_of(subject)
    reference = Reference(subject, rows, {"forget": READS}, layers={"forget": [0]}, mode="cache")
    row = rows["forget"][2]
    out = subject.model(torch.tensor([row.ids]), output_hidden_states=True)
    where = slice(row.num_prompt - 1, len(row.ids) - 1)
    logp = out.logits[0, where].log_softmax(-1)
    gold = logp.gather(1, torch.tensor(row.answer_ids)[:, None])[:, 0]
    batch = collate([row], 0)
    expected = {
        "token_logprobs": gold,
        "sum_nll": -gold.sum()[None],
        "logits": out.logits[0, where],
        "hidden": out.hidden_states[1][0, where],
    }
    for quantity, value in expected.items():
        torch.testing.assert_close(
            reference.fetch("forget", [2], batch, quantity, 0 if quantity == "hidden" else None),
            value,
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "reads",
    [{"sum_nll"}, {"token_logprobs"}, {"hidden"}, {"logits"}, READS],
    ids=lambda reads: "+".join(sorted(reads)),
)
def test_estimated_bytes_are_the_bytes_taken(reads):
    subject = tiny_subject()
    rows = rows_of(subject)
    reference = Reference(subject, rows, dict.fromkeys(rows, frozenset(reads)), layers=LAYERS, mode="cache")
    taken = sum(t.numel() * t.element_size() for values in reference._cache.values() for t in values)
    if reference._head is not None:
        taken += sum(p.numel() * p.element_size() for p in reference._head.module.parameters())
    assert taken == reference.bytes


def test_budget_decides_and_says_so(capsys):
    subject = tiny_subject()
    rows = rows_of(subject)
    wanted = dict.fromkeys(rows, frozenset({"logits"}))
    need = Reference(subject, rows, wanted, mode="cache").bytes
    assert Reference(subject, rows, wanted, budget=need).mode == "cache"
    assert capsys.readouterr().err == ""
    assert Reference(subject, rows, wanted, budget=need - 1).mode == "live"
    assert "exceed the budget" in capsys.readouterr().err
    assert Reference(attach_lora(subject, rank=2), rows, wanted, budget=need - 1).mode == "adapter_off"
    assert resolve_mode("live", adapter=True, need=0, budget=1) == "live"


def test_nothing_read_costs_nothing():
    subject, calls = tiny_subject(), []
    subject.model.register_forward_pre_hook(lambda *_: calls.append(1))
    Reference(subject, rows_of(subject), {"forget": frozenset()}, mode="live")
    assert not calls
    assert reference_bytes({}, {}, 32, 1000) == 0


@pytest.mark.parametrize("mode", ["cache", "live"])
def test_npo_ratio_is_exactly_one_at_step_0_with_a_dropout_model(mode):
    """Dropout in the reference or in the training pass would make it another number."""
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    workspace = Workspace(TrainSettings(steps=1, batch=8, lr=1e-4, warmup=0.0), reference=mode)
    make_method("npo", beta=1.0, retain="none").unlearn(
        tiny_subject(config=config), tiny_request(), workspace
    )
    assert workspace.result.history[0]["terms"]["forget"] == pytest.approx(2 * 0.6931471806, rel=1e-6)


def test_kl_to_the_reference_is_zero_at_step_0_also_in_bfloat16():
    subject = tiny_subject()
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)  # large logits, so that precision shows
    for bf16 in (False, True):
        for mode in ("cache", "live"):
            settings = TrainSettings(batch=8, lr=1e-4, bf16=bf16)
            task = UnlearnTask(make_method("ga_kl"), subject, tiny_request(), settings, reference=mode)
            with settings.autocast(subject.device):
                rows = task.terms(task.micro_batches(0)[0])["retain"].rows
            assert rows.abs().max() < 1e-6
