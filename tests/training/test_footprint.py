"""The arithmetic of `plan` against models that are really there."""

import pytest
from perf.memory import live_bytes

from expunge.subjects.adapters import attach_lora
from expunge.training.footprint import Size, hollow, size_of, step_flops, step_memory
from tiny_models import make_subject

TOY = Size(parameters=1000, layers=2, hidden=10, inner=20, queries=10, vocabulary=50, lora=60)


@pytest.fixture(scope="module")
def subject():
    return make_subject(num_hidden_layers=3, hidden_size=64, intermediate_size=160)


def test_sizes_are_those_of_the_model(subject, tmp_path):
    subject.model.config.save_pretrained(tmp_path)
    size = size_of(hollow(str(tmp_path)))
    assert size.parameters == subject.num_parameters()
    assert (size.layers, size.hidden, size.inner) == (3, 64, 160)
    adapted = attach_lora(subject.clone(), rank=4)
    adapters = sum(p.numel() for name, p in adapted.model.named_parameters() if "lora_" in name)
    assert 4 * size.lora == adapters


def test_by_hand():
    block = 6 * 10 * 4 + (5 * 10 + 4 * 20) * 4
    assert step_memory(TOY, tokens=7, answers=3) == {
        "weights": 4000,
        "gradients and optimizer": 12_000,
        "activations": 7 * 2 * block,
        "logits and their gradient": 3 * 50 * 8,
    }
    shared = step_memory(TOY, tokens=7, answers=3, shards=4)
    assert (shared["weights"], shared["gradients and optimizer"]) == (1000, 3000)
    low = step_memory(TOY, tokens=7, answers=3, trained=120, adapter=True, master=2)
    assert low["weights"] == 2 * 1000 + 4 * 120
    assert low["gradients and optimizer"] == 12 * 120
    assert step_flops(TOY, 7) == 6 * 1000 * 7
    assert step_flops(TOY, 7, trained=120) == 2 * 7 * (1000 + 1000 + 120)
    assert step_flops(TOY, 7, trained=120, checkpointing=True) == 2 * 7 * (3000 + 120)


@pytest.mark.parametrize(("layers", "rows"), [(2, 4), (4, 4), (4, 12)])
def test_memory_is_what_a_step_holds(layers, rows):
    from perf.world import make_records
    from perf.world import make_subject as make_random

    from expunge.data.request import Request
    from expunge.methods.likelihood.ascent import GradientDifference
    from expunge.training.loop import Loop
    from expunge.training.settings import TrainSettings
    from expunge.training.unlearn import UnlearnTask

    told = {}

    def build():
        subject = make_random(128, 384, layers, 4)
        request = Request({s: make_records(rows, s) for s in ("forget", "retain")})
        settings = TrainSettings(batch=rows)
        task = UnlearnTask(GradientDifference(), subject, request, settings)
        loop, micro = Loop(subject, task, settings), task.micro_batches(0)[0]
        encoded = [subject.encoder.encode(r) for s in ("forget", "retain") for r in request[s]]
        answers = sum(e.num_targets for e in encoded)
        told.update(step_memory(size_of(subject.model), tokens=task.tokens(micro), answers=answers))

        def step():
            loop.gradients(0)
            loop.optimizer.step()
            loop.optimizer.zero_grad(set_to_none=True)

        return step, lambda: task.terms(micro)

    held = live_bytes(build)
    told["gradients and optimizer"] *= 8 / 12  # gradients come with the backward pass, those of logits too
    told["logits and their gradient"] /= 2
    assert sum(told.values()) == pytest.approx(held, rel=0.15)
