"""A LoRA over a quantized base: codes as published, gradients intact, and nothing quantized ships."""

import math
import os
import signal

import pytest
import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from expunge.data.request import Request
from expunge.errors import ModelError
from expunge.methods import make_method
from expunge.subjects import attach_lora, fingerprint, merge
from expunge.subjects.adapters import lora_modules, merge_onto
from expunge.subjects.quantized import (
    QuantizedLinear,
    dequantized,
    nf4_levels,
    quantize_base,
    quantized,
)
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace, finetune, workspace
from expunge.training.checkpoint import trainable
from expunge.training.gradients import answer_rows, row_losses
from expunge.training.hooks import TrainingControl
from expunge.training.loop import check_gradients
from expunge.training.selections import make_selection
from tiny_models import make_subject, some_records

BITS = ["int8", "nf4"]
PLAIN = {"steps": 4, "batch": 4, "lr": 1e-2, "warmup": 0.0, "checkpoint_seconds": 0.0}


def unlearn(bits, method="npo", subject=None, request=None, folder=None, controls=(), more=None, **settings):
    space = Workspace(
        TrainSettings(**{**PLAIN, **settings}), folder, controls=controls,
        lora=LoraSettings(rank=2, base=bits), **(more or {}),
    )  # fmt: skip
    result = make_method(method).unlearn(subject or tiny_subject(), request or tiny_request(), space)
    return result, space


def adapted(bits, subject=None, rank=2):
    subject = subject or tiny_subject()
    quantize_base(subject.model, bits)
    return attach_lora(subject, rank=rank)


def adapter_gradients(subject):
    subject.model.zero_grad()
    row_losses(subject, answer_rows(subject, some_records(4))).mean().backward()
    return {name: p.grad.clone() for name, p in trainable(subject.model).items()}


# Codes ---------------------------------------------------------------------------------------------------

PUBLISHED = [
    -1.0, -0.6961928010, -0.5250730515, -0.3949174881, -0.2844413817, -0.1847734302, -0.0910500363, 0.0,
    0.0795802996, 0.1609302014, 0.2461123019, 0.3379152417, 0.4407098293, 0.5626170039, 0.7229568362, 1.0,
]  # fmt: skip


def test_nf4_levels_are_the_published_ones():
    torch.testing.assert_close(nf4_levels(), torch.tensor(PUBLISHED), rtol=0, atol=2e-6)


def weights(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 64), (3, 50), (1, 7)])
def test_nf4_takes_the_nearest_level_of_each_block(shape):
    weight = weights(*shape)
    codes, scales = quantized(weight, "nf4")
    found = dequantized(codes, scales, weight.shape, torch.float32).reshape(-1)
    flat = weight.reshape(-1)
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        choices = block.abs().max() * torch.tensor(PUBLISHED)
        nearest = choices[(block[:, None] - choices).abs().argmin(1)]
        torch.testing.assert_close(found[start : start + 64], nearest, rtol=0, atol=1e-5)
    assert codes.dtype == torch.uint8
    assert codes.numel() == -(-weight.numel() // 64) * 32


def test_int8_rounds_each_row_to_127_steps():
    weight = weights(5, 33) * torch.tensor([[1e-6], [1.0], [1e6], [0.0], [3.0]])
    codes, scales = quantized(weight, "int8")
    found = dequantized(codes, scales, weight.shape, torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((found - weight).abs() <= step / 2 * (1 + 1e-5)).all()
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 0, 127]


@pytest.mark.parametrize("bits", BITS)
def test_rounding_twice_changes_nothing(bits):
    once = dequantized(*quantized(weights(6, 64), bits), torch.Size((6, 64)), torch.float32)
    twice = dequantized(*quantized(once, bits), torch.Size((6, 64)), torch.float32)
    torch.testing.assert_close(once, twice, rtol=1e-6, atol=0)


# The layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["linear", "bias", "conv1d"])
def test_layer_is_the_linear_map_of_its_rounded_weight(bits, kind):
    torch.manual_seed(0)
    base = Conv1D(9, 20) if kind == "conv1d" else torch.nn.Linear(20, 9, bias=kind == "bias")
    layer = QuantizedLinear(base, bits)
    rounded = layer.matrix(torch.float32)
    full = (base.weight.T if kind == "conv1d" else base.weight).detach()
    assert 0 < float((rounded - full).abs().max()) < 0.2 * float(full.abs().max())
    x = torch.randn(2, 3, 20, requires_grad=True)
    expected = linear(x, rounded, base.bias)
    torch.testing.assert_close(layer(x), expected)
    pull = torch.randn(2, 3, 9)
    (found,) = torch.autograd.grad(layer(x), x, pull)
    torch.testing.assert_close(found, torch.autograd.grad(expected, x, pull)[0])


@pytest.mark.parametrize(("bits", "share"), [("int8", 0.27), ("nf4", 0.15)])
def test_codes_take_a_quarter_or_an_eighth_of_the_memory(bits, share):
    base = torch.nn.Linear(256, 256, bias=False)
    layer = QuantizedLinear(base, bits)
    stored = sum(t.numel() * t.element_size() for t in layer.buffers())
    assert stored < share * base.weight.numel() * 4
    assert not list(layer.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mixtral", "qwen2_moe"])
def test_the_linear_maps_of_the_blocks_are_quantized_and_nothing_else(family):
    subject = make_subject(family)
    before = {n: type(m).__name__ for n, m in subject.model.named_modules()}
    count = quantize_base(subject.model, "nf4")
    after = {n: type(m).__name__ for n, m in subject.model.named_modules()}
    changed = {n for n in before if before[n] != after[n]}
    assert len(changed) == count > 0
    assert {before[n] for n in changed} <= {"Linear", "Conv1D"}
    assert {after[n] for n in changed} == {"QuantizedLinear"}
    assert not any("head" in n or "embed" in n or n.endswith(("mlp.gate", "router")) for n in changed)
    left = {n for n, kind in after.items() if kind in ("Linear", "Conv1D")}
    assert all("gate" in n or "head" in n for n in left), left


# Traps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_every_adapter_hears_the_loss_before_and_after_evaluation(bits):
    """With bitsandbytes in 4 bits on CPU, gradients are gone after one forward in eval mode."""
    subject = adapted(bits)
    first = adapter_gradients(subject)
    with subject.evaluating() as model:
        model(torch.arange(2, 20)[None])
    again = adapter_gradients(subject)
    assert len(list(lora_modules(subject.model))) == 14
    for name, gradient in again.items():
        assert gradient.isfinite().all()
        assert torch.equal(gradient, first[name])
        assert ("lora_B" in name) == bool(gradient.any()), "at the start only B hears: B = 0"
    check_gradients(subject)


@pytest.mark.parametrize("bits", BITS)
def test_gradient_checkpointing_changes_no_gradient(bits):
    plain, one = unlearn(bits)
    recomputed, other = unlearn(bits, gradient_checkpointing=True)
    assert one.result.history[0]["grad_norm"] == pytest.approx(other.result.history[0]["grad_norm"], rel=1e-6)
    for a, b in zip(plain.model.parameters(), recomputed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_bf16_computes_in_bfloat16_under_fp32_adapters(bits):
    seen = set()

    class Watch(TrainingControl):
        def begin(self, subject):
            for module in subject.model.modules():
                if isinstance(module, QuantizedLinear):
                    module.register_forward_hook(lambda *args: seen.add(args[-1].dtype))

    rough, space = unlearn(bits, bf16=True, controls=[Watch()])
    assert seen == {torch.bfloat16}
    _, plain = unlearn(bits)
    norms = [s.result.history[0]["grad_norm"] for s in (space, plain)]
    assert norms[0] != norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    assert all(p.dtype == torch.float32 for p in rough.model.parameters())


def test_at_the_first_step_the_reference_is_the_model():
    """It is the quantized model: against θ_o the ratio would not be one."""
    for mode in ("cache", "live", "adapter_off"):
        _, space = unlearn("nf4", more={"reference": mode})
        first = space.result.history[0]["terms"]["forget"]
        assert first == pytest.approx(2 / 0.1 * math.log(2), rel=1e-6)


# What ships ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("bits", BITS)
def test_what_ships_is_the_original_plus_the_adapters(bits, family, monkeypatch):
    """No rounding error is in it: every change is exactly s·B·A."""
    kept = []
    monkeypatch.setattr(
        workspace, "merge_onto", lambda work, original: kept.append(work) or merge_onto(work, original)
    )
    records = some_records(6)
    request = Request({"forget": tuple(records[:3]), "retain": tuple(records[3:])})
    original = make_subject(family)
    mark = fingerprint(original.model)
    result, _ = unlearn(bits, "graddiff", original, request)
    assert fingerprint(original.model) == mark
    layers = {n.removeprefix("base_model.model."): m for n, m in lora_modules(kept[0].model)}
    assert all(isinstance(m.get_base_layer(), QuantizedLinear) for m in layers.values())
    before = dict(original.model.named_parameters())
    after = dict(result.model.named_parameters())
    assert set(before) == set(after)
    assert not any(isinstance(m, QuantizedLinear) for m in result.model.modules())
    assert not result.adapter
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {f"{n}.weight" for n in layers}
    for name, layer in layers.items():
        product = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        weight = before[f"{name}.weight"]
        expected = weight + (product.T if product.shape != weight.shape or family == "gpt2" else product)
        torch.testing.assert_close(after[f"{name}.weight"], expected, rtol=0, atol=0)
    assert all(p.requires_grad for p in result.model.parameters())


def test_what_was_trained_over_codes_forgets_over_the_full_weights():
    records = some_records(6)
    request = Request({"forget": tuple(records[:3]), "retain": tuple(records[3:])})
    original = make_subject("llama", spread=0.05)
    finetune(original, records, TrainSettings(steps=80, lr=5e-3, batch=6))

    def loss(subject, records):
        with torch.no_grad():
            return float(row_losses(subject, answer_rows(subject, records)).mean())

    assert loss(original, request.forget) < 0.3
    for bits in BITS:
        result, _ = unlearn(bits, "graddiff", original, request, steps=16)
        forget = loss(result, request.forget)
        assert forget > 1
        assert loss(result, request.retain) < 0.5 * forget


def test_merge_onto_equals_the_plain_merge_over_a_full_base():
    subject = tiny_subject()
    work = attach_lora(subject.clone(), rank=2)
    with torch.no_grad():
        for _, layer in lora_modules(work.model):
            layer.lora_B["default"].weight.normal_()
    onto = merge_onto(work, subject.clone())
    for a, b in zip(onto.model.parameters(), merge(work).model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


class StopAt(TrainingControl):
    def __init__(self, step):
        self.step = step

    def after_step(self, step, subject):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return False


def test_a_resumed_run_has_the_bits_of_a_straight_one(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        unlearn("nf4", folder=tmp_path, controls=[StopAt(2)])
    resumed, _ = unlearn("nf4", folder=tmp_path, controls=[StopAt(-1)])
    straight, _ = unlearn("nf4", controls=[StopAt(-1)])
    assert fingerprint(resumed.model) == fingerprint(straight.model)


def test_selections_look_at_the_full_weights():
    chosen = make_selection("memflex", gradient=5e-4)
    result, _ = unlearn("int8", "graddiff", more={"selections": [chosen]})
    subject = tiny_subject()
    names = [n for n, _ in subject.model.named_parameters()]
    expected = {n for n in chosen.select(subject, tiny_request(), names, 0) if "layers" in n and "proj" in n}
    moved = {
        n for n, p in result.model.named_parameters() if not torch.equal(p, subject.model.get_parameter(n))
    }
    assert moved == expected


def test_fila_needs_a_full_base():
    lora = LoraSettings(rank=2, base="nf4", start="fila")
    space = Workspace(TrainSettings(steps=1, batch=4, lr=1e-2), lora=lora)
    with pytest.raises(ModelError, match="is quantized"):
        make_method("npo").unlearn(tiny_subject(), tiny_request(), space)
