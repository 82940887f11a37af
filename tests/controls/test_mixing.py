"""θ(α) = (1−α)·θ_o + α·θ_u: end points, ties, dtypes, buffers, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from expunge.controls import make_control
from expunge.controls.model_mixing import MixingPath
from expunge.errors import ConfigError, ModelError
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods import make_method
from expunge.subjects import attach_lora, fingerprint, load_subject, save_subject, scale_lora
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace


def tied():
    return LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip


def path_of(tmp_path, config=None):
    """The path between two random models; returns it with copies of both ends."""
    original, unlearned = tiny_subject(0, config and config()), tiny_subject(1, config and config())
    return MixingPath(original.clone(), unlearned, tmp_path), original, unlearned


class Toy(nn.Module):
    """A linear map with a running mean, a counter and a table that is not saved."""

    def __init__(self, weight, mean=0.0, count=3, dtype=torch.float32):
        super().__init__()
        self.map = nn.Linear(2, 2, bias=False)
        self.map.weight.data = torch.full((2, 2), float(weight), dtype=dtype)
        self.register_buffer("mean", torch.full((2,), float(mean)))
        self.register_buffer("count", torch.tensor(count))
        self.register_buffer("table", torch.tensor([float(weight)]), persistent=False)


def toy_path(tmp_path, first, second):
    subject = tiny_subject()
    return MixingPath(replace(subject, model=first), replace(subject, model=second), tmp_path)


def test_mixing_alpha_direction(tmp_path):
    path = toy_path(tmp_path, Toy(1), Toy(3))
    assert path.at(0.0).model.map.weight[0, 0] == 1, "α = 0 is the original"
    assert path.at(0.25).model.map.weight[0, 0] == 1.5
    assert path.at(1.0).model.map.weight[0, 0] == 3


@pytest.mark.parametrize("config", [None, tied], ids=["untied", "tied"])
def test_mixing_endpoints_bit_exact(tmp_path, config):
    path, original, unlearned = path_of(tmp_path, config)
    for alpha, end in ((1.0, unlearned), (0.0, original), (0.5, None), (1.0, unlearned), (0.0, original)):
        mixed = path.at(alpha)
        if end is not None:
            assert fingerprint(mixed.model) == fingerprint(end.model)


def test_mixing_path_independent(tmp_path):
    path, *_ = path_of(tmp_path)
    direct = fingerprint(path.at(0.3).model)
    for alpha in (0.0, 1.0, 0.1, 0.7):
        path.at(alpha)
    assert fingerprint(path.at(0.3).model) == direct


def test_mixing_keeps_ties(tmp_path):
    path, original, unlearned = path_of(tmp_path, tied)
    model = path.at(0.5).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any("lm_head" in name for name in path.original)
    ends = (original.model.model.embed_tokens.weight, unlearned.model.model.embed_tokens.weight)
    torch.testing.assert_close(model.lm_head.weight, (ends[0] + ends[1]) / 2)


def test_mixing_linear_model_interpolates(tmp_path):
    path, original, unlearned = path_of(tmp_path)
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    outputs = [subject.model.lm_head(states) for subject in (original, unlearned)]
    torch.testing.assert_close(path.at(0.25).model.lm_head(states), 0.75 * outputs[0] + 0.25 * outputs[1])


def test_mixing_of_equal_models_is_identity(tmp_path):
    original = tiny_subject()
    path = MixingPath(original.clone(), original, tmp_path)
    assert fingerprint(path.at(0.37).model) == fingerprint(original.model)


@pytest.mark.parametrize("ends", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_mixing_mixed_dtypes_lifts_to_fp32(tmp_path, ends):
    first, second = Toy(1.0, dtype=ends[0]), Toy(1.0078125, dtype=ends[1])  # one bf16 spacing apart
    mixed = toy_path(tmp_path, first, second).at(0.25).model.map.weight
    assert mixed.dtype == ends[0]
    expected = torch.tensor(1 + 0.25 * 0.0078125).to(ends[0])
    assert (mixed == expected).all()


def test_mixing_integer_buffers_untouched_and_float_buffers_mixed(tmp_path):
    mixed = toy_path(tmp_path, Toy(1, mean=2), Toy(3, mean=6)).at(0.5).model
    assert mixed.count == 3
    assert mixed.count.dtype == torch.long
    assert mixed.mean.tolist() == [4, 4]
    assert mixed.table.tolist() == [1], "tables that are not saved are left alone"


def test_mixing_refuses_unequal_integer_buffers(tmp_path):
    with pytest.raises(ModelError, match="count"):
        toy_path(tmp_path, Toy(1, count=3), Toy(3, count=4))


def test_mixing_rejects_shape_and_name_mismatch(tmp_path):
    wider = Toy(3)
    wider.map = nn.Linear(3, 2, bias=False)
    with pytest.raises(ModelError, match="shape"):
        toy_path(tmp_path, Toy(1), wider)
    more = Toy(3)
    more.extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"extra\.bias"):
        toy_path(tmp_path, Toy(1), more)


def test_mixing_rejects_a_tie_in_one_model_only(tmp_path):
    loose = tiny_subject(1, tied())
    loose.model.lm_head.weight = nn.Parameter(loose.model.lm_head.weight.detach().clone())
    with pytest.raises(ModelError, match="lm_head"):
        MixingPath(tiny_subject(0, tied()), loose, tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_mixing_rejects_broken_weights(tmp_path, bad):
    broken = Toy(3)
    broken.map.weight.data[0, 0] = bad
    with pytest.raises(ModelError, match="cannot rescue"):
        toy_path(tmp_path, Toy(1), broken)


def test_mixing_outside_the_segment_is_refused(tmp_path):
    path = toy_path(tmp_path, Toy(1), Toy(3))
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match="outside"):
            path.at(alpha)
        with pytest.raises(ConfigError, match="outside"):
            make_control("model_mixing", alpha=alpha).attach(None)


def evidence(subject):
    sheet = make_sheet(subject.encoder, tiny_request()["calibration"], "calibration")
    return torch.cat([torch.from_numpy(row.logprobs) for row in score_sheet(subject, sheet)])


def test_mixing_ships_what_it_measured(tmp_path):
    path, *_ = path_of(tmp_path)
    mixed = path.at(0.4)
    saved = save_subject(mixed, tmp_path / "model")
    assert torch.equal(evidence(load_subject(saved, max_length=128)), evidence(mixed))


# Adapters ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted():
    """An adapter with random, non-zero factors on a tiny model, and that model."""
    subject = tiny_subject()
    result = attach_lora(subject.clone(), rank=4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in result.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return result, subject


def test_lora_scaling_equals_dense_mixing(adapted, tmp_path):
    from expunge.subjects import merge

    result, subject = adapted
    path = MixingPath(subject.clone(), merge(result.clone()), tmp_path)
    for alpha in (0.25, 0.5, 1.0):
        scale_lora(result.model, alpha)
        torch.testing.assert_close(evidence(result), evidence(path.at(alpha)), rtol=1e-4, atol=1e-5)
    scale_lora(result.model, 1.0)


def test_lora_scaling_not_quadratic_and_zero_is_the_base_bit_for_bit(adapted):
    result, subject = adapted
    layer = result.model.base_model.model.model.layers[0].mlp.down_proj
    states = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    base = layer.base_layer(states)
    moves = {}
    for alpha in (1.0, 0.5, 0.25):
        scale_lora(result.model, alpha)
        moves[alpha] = layer(states) - base
    torch.testing.assert_close(moves[0.5], 0.5 * moves[1.0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moves[0.25], 0.25 * moves[1.0], rtol=1e-4, atol=1e-6)
    scale_lora(result.model, 0.0)
    assert torch.equal(evidence(result), evidence(subject))
    scale_lora(result.model, 1.0)


def test_a_model_unlearned_through_lora_can_be_mixed(tmp_path):
    subject = tiny_subject()
    workspace = Workspace(TrainSettings(steps=2, batch=4, lr=1e-2, warmup=0.0), lora=LoraSettings(rank=2))
    unlearned = make_method("npo").unlearn(subject, tiny_request(), workspace)
    path = MixingPath(subject.clone(), unlearned, tmp_path)
    assert fingerprint(path.at(0.0).model) == fingerprint(subject.model)
    assert fingerprint(path.at(1.0).model) == fingerprint(unlearned.model)
