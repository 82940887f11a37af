"""The path of an adapter: its scale is α, its end is what was trained."""

import pytest
import torch

from expunge.controls.lora_scaling import LoraPath
from expunge.controls.model_mixing import MixingPath
from expunge.controls.paths import path_of
from expunge.errors import ModelError
from expunge.methods import make_method
from expunge.subjects import attach_lora, fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    settings = TrainSettings(steps=6, batch=8, lr=1e-2, warmup=0.0)
    workspace = Workspace(settings, folder, lora=LoraSettings(rank=4))
    return make_method("npo").unlearn(tiny_subject(), tiny_request(), workspace), folder / "adapter"


def weights(subject):
    return dict(subject.model.named_parameters())


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_lora_scaling_equals_dense_mixing_and_is_not_quadratic(trained, alpha, tmp_path):
    unlearned, adapter = trained
    dense = weights(MixingPath(tiny_subject(), unlearned, tmp_path).at(alpha))
    scaled = weights(LoraPath(tiny_subject(), adapter).settled(alpha))
    assert dense.keys() == scaled.keys()
    for name, tensor in dense.items():
        torch.testing.assert_close(scaled[name], tensor, rtol=1e-5, atol=1e-6)
    if alpha < 1:
        original = weights(tiny_subject())
        name = max(original, key=lambda n: float((dense[n] - original[n]).detach().abs().max()))
        whole = (weights(unlearned)[name] - original[name]).detach().norm()
        part = (scaled[name] - original[name]).detach().norm()
        assert float(part / whole) == pytest.approx(alpha, rel=1e-3)


def test_probes_answer_as_the_settled_model_and_may_come_in_any_order(trained):
    _, adapter = trained
    path, ids = LoraPath(tiny_subject(), adapter), torch.arange(2, 40)[None]
    with torch.no_grad():
        first = path.at(0.7).model(ids).logits
        path.at(0.2)
        again = path.at(0.7).model(ids).logits
        settled = path.settled(0.7).model(ids).logits
    assert torch.equal(first, again)
    torch.testing.assert_close(settled, first, rtol=1e-5, atol=1e-5)


def test_lora_alpha_zero_equals_base_bitwise(trained):
    _, adapter = trained
    path, ids = LoraPath(tiny_subject(), adapter), torch.arange(2, 40)[None]
    with torch.no_grad():
        assert torch.equal(path.at(0.0).model(ids).logits, tiny_subject().model(ids).logits)
    path.at(0.9)
    assert fingerprint(path.settled(0.0).model) == fingerprint(tiny_subject().model)


def test_the_path_is_chosen_by_what_was_trained(trained, tmp_path):
    unlearned, adapter = trained
    assert isinstance(path_of(tiny_subject(), unlearned, tmp_path, adapter), LoraPath)
    assert isinstance(path_of(tiny_subject(), unlearned, tmp_path, tmp_path / "none"), MixingPath)
    with pytest.raises(ValueError, match="outside"):
        LoraPath(tiny_subject(), adapter).at(1.5)


def test_after_fila_the_adapter_does_not_stand_on_the_original(tmp_path):
    settings = TrainSettings(steps=1, batch=8, warmup=0.0)
    workspace = Workspace(settings, tmp_path, lora=LoraSettings(rank=4, start="fila"))
    make_method("ihl").unlearn(tiny_subject(), tiny_request(), workspace)
    assert not (tmp_path / "adapter").exists()


def test_a_folder_without_a_lora_is_refused(tmp_path):
    attach_lora(tiny_subject(), rank=2).model.save_pretrained(tmp_path / "a")
    assert LoraPath(tiny_subject(), tmp_path / "a")
    with pytest.raises((ModelError, ValueError, OSError)):
        LoraPath(tiny_subject(), tmp_path / "b")
