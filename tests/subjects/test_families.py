"""Every family: the narrow forward equals the full one, weights mix, save and adapt as they should."""

import json

import pytest
import torch

from expunge.data.batching import collate
from expunge.subjects import attach_lora, fingerprint, load_subject, merge, save_subject, scale_lora
from expunge.subjects.architecture import blocks, without_dropout
from expunge.subjects.forward import forward
from expunge.subjects.weights import (
    check_mixable,
    dump_weights,
    load_weights,
    mix_into,
    moved_fraction,
    named_weights,
)
from expunge.training.reference import Reference
from tiny_models import FAMILIES, make_subject, some_records

close = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=FAMILIES)
def subject(request):
    return make_subject(request.param)


@pytest.fixture
def batch(subject):
    rows = [subject.encoder.encode(r) for r in some_records(5)]
    return collate(rows, subject.encoder.pad_id)


def full(model, batch, **options):
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)


def as_loaded(subject, folder):
    """The subject as transformers reads it: some families get its own tokenizer in place of a plain one."""
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    dtype = str(subject.model.dtype).removeprefix("torch.")
    return load_subject(folder, dtype=dtype)


def jolt(subject, seed=1, size=0.05):
    """The subject with every weight moved, a tied one once."""
    other = subject.clone()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in named_weights(other.model):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * size
                tensor.add_(noise.to(tensor.dtype))
    return other


def test_packed_head_gives_the_full_logits(subject, batch):
    expected = full(subject.model, batch).logits[batch.row, batch.col]
    with subject.evaluating() as model:
        out = forward(model, batch, last=True)
        torch.testing.assert_close(out.logits, expected, **close)
        some = torch.tensor([0, 3, 11])
        torch.testing.assert_close(forward(model, batch, positions=some).logits, expected[some], **close)
    assert out.last.shape == (len(batch.targets), 32)


def test_capture_is_the_hidden_state_after_the_block(subject, batch):
    states = full(subject.model, batch, output_hidden_states=True).hidden_states
    with subject.evaluating() as model:
        out = forward(model, batch, layers=[0, 1])
    real = batch.attention_mask.bool()
    for layer in (0, 1):
        torch.testing.assert_close(out.hidden[layer][real], states[layer + 1][real], **close)


def test_pass_ends_after_the_deepest_layer_that_is_read(subject, batch):
    ran = []
    for i, block in enumerate(blocks(subject.model)):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    with subject.evaluating() as model:
        forward(model, batch, logits=False, layers=[1])
        assert ran == [0, 1]
        forward(model, batch, logits=True, layers=[1])
    assert ran == [0, 1, 0, 1, 2]
    with subject.evaluating() as model:
        out = full(model, batch)  # no hook is left behind
    assert out.logits.shape[:2] == batch.input_ids.shape


def test_gradients_flow_through_the_narrow_forward(subject, batch):
    forward(subject.model, batch).logits.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in subject.model.parameters())
    assert torch.isfinite(
        torch.stack([p.grad.sum() for p in subject.model.parameters() if p.grad is not None])
    ).all()


def test_saved_model_comes_back_bit_for_bit(subject, tmp_path):
    subject = as_loaded(subject, tmp_path / "given")
    folder = save_subject(subject, tmp_path / "out" / "model", info={"method": "npo"})
    again = load_subject(folder)
    assert fingerprint(again.model) == fingerprint(subject.model)
    assert again.encoder.fingerprint() == subject.encoder.fingerprint()
    assert json.loads((folder / "expunge.json").read_text())["method"] == "npo"
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    assert fingerprint(jolt(subject).model) != fingerprint(subject.model)


def test_mixing_end_points_are_exact_and_the_middle_is_the_mean(subject, tmp_path):
    other = jolt(subject)
    live = subject.clone()
    original = dump_weights(subject.model, tmp_path / "o.safetensors")
    unlearned = dump_weights(other.model, tmp_path / "u.safetensors")
    check_mixable(live.model, original, unlearned)
    for alpha, expected in ((1.0, other), (0.0, subject)):
        mix_into(live.model, original, unlearned, 0.37)
        mix_into(live.model, original, unlearned, alpha)
        assert fingerprint(live.model) == fingerprint(expected.model)
    mix_into(live.model, original, unlearned, 0.25)
    ends = zip(
        named_weights(subject.model), named_weights(other.model), named_weights(live.model), strict=True
    )
    for (name, a), (_, b), (_, mixed) in ends:
        if a.is_floating_point():
            torch.testing.assert_close(mixed, 0.75 * a + 0.25 * b, msg=name)
    assert moved_fraction(live.model, original) > 0.99
    load_weights(live.model, original)
    assert moved_fraction(live.model, original) == 0


def test_ties_are_listed_once_and_stay_tied(subject, tmp_path):
    names = [name for name, _ in named_weights(subject.model)]
    assert len(names) == len(set(names))
    assert sum(t.numel() for n, t in named_weights(subject.model)) >= subject.num_parameters()
    other = jolt(subject)
    files = [dump_weights(s.model, tmp_path / f"{i}.safetensors") for i, s in enumerate((subject, other))]
    live = subject.clone()
    mix_into(live.model, *files, 0.5)
    tied = subject.model.get_input_embeddings().weight is subject.model.get_output_embeddings().weight
    assert (live.model.get_input_embeddings().weight is live.model.get_output_embeddings().weight) == tied


def with_adapter(subject, seed=3):
    """A LoRA whose factors are no longer zero."""
    adapted = attach_lora(subject.clone(), rank=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted


def test_fresh_adapter_changes_nothing_and_switches_off(subject, batch):
    before = full(subject.model, batch).logits
    torch.testing.assert_close(full(attach_lora(subject.clone()).model, batch).logits, before, **close)
    adapted = with_adapter(subject)
    assert not torch.allclose(full(adapted.model, batch).logits, before, atol=1e-3)
    with adapted.model.disable_adapter():
        assert torch.equal(full(adapted.model, batch).logits, before)
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_scaled_adapter_is_the_mix_of_the_merged_model(subject, batch, tmp_path):
    """Linear in α, not α²; scaling twice is scaling once; 1 restores."""
    adapted = with_adapter(subject)
    unscaled = full(adapted.model, batch).logits
    merged = merge(with_adapter(subject))
    torch.testing.assert_close(full(merged.model, batch).logits, unscaled, **close)
    original = dump_weights(subject.model, tmp_path / "o.safetensors")
    unlearned = dump_weights(merged.model, tmp_path / "u.safetensors")
    live = subject.clone()
    for alpha in (0.3, 0.7):
        scale_lora(adapted.model, alpha)
        mix_into(live.model, original, unlearned, alpha)
        torch.testing.assert_close(full(adapted.model, batch).logits, full(live.model, batch).logits, **close)
    scale_lora(adapted.model, 0.0)
    torch.testing.assert_close(full(adapted.model, batch).logits, full(subject.model, batch).logits, **close)
    scale_lora(adapted.model, 1.0)
    assert torch.equal(full(adapted.model, batch).logits, unscaled)


def test_fingerprint_sees_the_scale_of_an_adapter(subject):
    adapted = with_adapter(subject)
    whole = fingerprint(adapted.model)
    scale_lora(adapted.model, 0.5)
    assert fingerprint(adapted.model) != whole
    scale_lora(adapted.model, 1.0)
    assert fingerprint(adapted.model) == whole
    with adapted.model.disable_adapter():
        assert fingerprint(adapted.model) != whole


def test_cached_reference_equals_the_live_one(subject):
    rows = {"retain": [subject.encoder.encode(r) for r in some_records(6)]}
    reads = {"retain": frozenset({"logits", "sum_nll", "token_logprobs", "hidden"})}
    cached = Reference(subject, rows, reads, layers={"retain": (1,)}, mode="cache")
    live = Reference(subject, rows, reads, layers={"retain": (1,)}, mode="live")
    expected = jolt(subject)  # training moves the weights; neither reference may follow
    with torch.no_grad():
        for (_, mine), (_, moved) in zip(
            named_weights(subject.model), named_weights(expected.model), strict=True
        ):
            mine.copy_(moved)
    indices = [4, 0, 5]
    batch = collate([rows["retain"][i] for i in indices], subject.encoder.pad_id)
    for quantity in ("logits", "sum_nll", "token_logprobs", "hidden"):
        layer = 1 if quantity == "hidden" else None
        first, second = (r.fetch("retain", indices, batch, quantity, layer) for r in (cached, live))
        torch.testing.assert_close(first, second, **close)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_gone_when_asked(subject, batch, dropout):
    subject.model.train()
    if not dropout:
        without_dropout(subject.model)
        first, second = (full(subject.model, batch).logits for _ in range(2))
        subject.model.eval()
        assert torch.equal(first, second)
        torch.testing.assert_close(first, full(subject.model, batch).logits, **close)
    elif type(subject.model).__name__.startswith(("GPT2", "Phi")):
        assert not torch.equal(full(subject.model, batch).logits, full(subject.model, batch).logits)


def test_bf16_weights_mix_in_fp32(subject, tmp_path):
    subject.model.to(torch.bfloat16)
    other = jolt(as_loaded(subject, tmp_path / "given"))
    again = load_subject(save_subject(other, tmp_path / "m"), dtype="bfloat16")
    assert fingerprint(again.model) == fingerprint(other.model)
    original = dump_weights(subject.model, tmp_path / "o.safetensors")
    unlearned = dump_weights(other.model, tmp_path / "u.safetensors")
    mix_into(again.model, original, unlearned, 0.3)
    mixed = dict(named_weights(again.model))
    for name in original:
        a, b = original[name].float(), unlearned[name].float()
        assert torch.equal(mixed[name], torch.lerp(a, b, 0.3).to(torch.bfloat16)), name
