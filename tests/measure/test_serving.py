"""Where vLLM fits in, shown with a stand-in that reports as vLLM does; vLLM itself needs a GPU."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from expunge.data.records import Record
from expunge.errors import ConfigError, MissingDependency
from expunge.measure import EvidencePlan, take_evidence
from expunge.subjects import load_subject, save_subject
from expunge.subjects.decoding import greedy_ids
from expunge.subjects.serving import pick_engine, served
from tiny_models import make_subject

RECORDS = tuple(
    Record(
        f"r{i}",
        f"person {i}",
        f"Where does person {i} live?",
        "In the town by the lake.",
        paraphrased_prompts=("Home?",),
    )
    for i in range(5)
)


@pytest.fixture
def folder(tmp_path):
    return save_subject(make_subject(), tmp_path / "model")


@pytest.fixture
def vllm(monkeypatch):
    """A package whose LLM answers prompts of ids; a stop id is reported as the reason, not as a token."""
    module = ModuleType("vllm")
    module.asked = []

    class LLM:
        def __init__(self, model, **options):
            self.subject, self.options = load_subject(model, device="cpu"), options

        def generate(self, prompts, params, use_tqdm):
            module.asked.append(len(prompts))
            outputs = []
            for prompt in prompts:
                stop = params.stop_token_ids
                with self.subject.evaluating() as model:
                    (ids,) = greedy_ids(model, [prompt["prompt_token_ids"]], params.max_tokens, stop, 0)
                ends = [k for k, token in enumerate(ids) if token in stop]
                reason, ids = ("stop", ids[: ends[0]]) if ends else ("length", ids)
                last = None if reason == "length" else stop[0]
                outputs.append(
                    SimpleNamespace(
                        outputs=[SimpleNamespace(token_ids=ids, finish_reason=reason, stop_reason=last)]
                    )
                )
            return outputs

    module.LLM = LLM
    module.SamplingParams = lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_evidence_is_the_same_whoever_generates(folder, vllm):
    plan = EvidencePlan(("gold", "paraphrased_prompt"), max_new_tokens=12)
    plain = take_evidence(load_subject(folder), {"forget": RECORDS}, plan=plan)["forget"]
    with served(load_subject(folder), folder, "vllm") as subject:
        other = take_evidence(subject, {"forget": RECORDS}, plan=plan)["forget"]
    assert subject.decoder is None
    assert vllm.asked
    assert max(vllm.asked) == 10  # every prompt in one call, not in batches
    assert [(r.generated, r.finish_reason) for r in other] == [(r.generated, r.finish_reason) for r in plain]
    assert any(r.generated for r in plain)


def test_an_engine_that_is_not_there_is_an_error_and_auto_does_without(vllm, monkeypatch):
    assert pick_engine("auto", "cpu") == "transformers"
    with pytest.raises(ConfigError, match="vllm needs a GPU"):
        pick_engine("vllm", "cpu")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependency, match="pip install vllm"):
        pick_engine("vllm", "cpu")


def test_transformers_is_left_alone(folder):
    with served(load_subject(folder), folder, "transformers") as subject:
        assert subject.decoder is None
