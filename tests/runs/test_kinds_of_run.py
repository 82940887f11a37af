"""Runs with less than everything: no oracle, holdout or retain; adapters, documents, a set nobody knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

import expunge
from expunge.controls.bar import Probe
from expunge.errors import BarMissed, ConfigError
from expunge.runs.stages import read_splits
from tiny_world import recipe, rows, write_rows

pytestmark = pytest.mark.slow


def score(card, metric, split, model):
    row = card.score(metric, split, model)
    return None if row is None else row.value


def test_a_forget_set_nobody_knows_is_named_and_the_run_finishes(world, capsys):
    made = recipe(forget="holdout.jsonl", holdout=None, audit=["quantize"], output="runs/unknown")
    result = expunge.run(made)
    card = result.scorecard
    assert result.report.is_file()
    (warning,) = [w for w in card.warnings if w.startswith("not_known: ")]
    assert "the original shows no sign of knowing the forget set" in warning
    assert f"warning: {warning}" in capsys.readouterr().err
    assert card.verdict.word == "not resolved"
    assert card.verdict.sentence.startswith("Nothing to forget")


def test_a_forget_set_it_does_know_is_not_so_named(world):
    card = expunge.run(recipe(audit=[], output="runs/known")).scorecard
    assert not any("not_known" in warning for warning in card.warnings)


def test_no_mix_is_asked_about_calibration_twice(world, monkeypatch):
    asked, ask = [], Probe.__call__
    monkeypatch.setattr(Probe, "__call__", lambda self, subject: asked.append(self) or ask(self, subject))
    made = recipe(audit=[], bar={"keep": 0.93}, output="runs/asked")  # a stage of its own
    card = expunge.run(made).scorecard
    calibration = asked[-1]
    probed = {alpha for alpha, _, _ in card.control[0].probes}
    shown = {point.alpha for point in card.alpha_curve}
    assert asked.count(calibration) == len(probed | shown)


def test_without_an_oracle_the_holdout_is_the_placebo(world):
    card = expunge.run(recipe(oracle=None, audit=["quantize"], output="runs/placebo")).scorecard
    assert "oracle" not in card.models
    assert card.verdict.oracle == "none (placebo)"
    assert {row.baseline for row in card.attacks} == {"placebo"}
    assert all(row.recovery is not None for row in card.attacks if row.worst)
    assert score(card, "mia_min_k_plus_plus", "forget", "original") is not None
    assert card.score("privleak", "forget", "original") is None


def test_without_oracle_and_holdout_it_says_what_it_cannot_say(world):
    made = recipe(oracle=None, holdout=None, audit=["quantize"], output="runs/alone")
    card = expunge.run(made).scorecard
    assert card.verdict.oracle == "none"
    assert all(row.recovery is None and "an oracle or holdout" in row.reason for row in card.attacks)
    assert card.score("mia_min_k_plus_plus", "forget", "original") is None
    assert any("holdout" in limit for limit in card.limits)
    assert any("oracle" in limit for limit in card.limits)
    assert card.verdict.word in ("not resolved", "not unlearned")


def test_without_retain_a_given_calibration_holds_the_bar(world):
    write_rows(Path("calibration.jsonl"), rows("retain")[:8])
    made = recipe(
        retain=None, calibration="calibration.jsonl", method={"name": "ga", "retain": "none"},
        audit=["benign"], watch=False, output="runs/no-retain",
    )  # fmt: skip
    card = expunge.run(made).scorecard
    assert score(card, "extraction_strength", "calibration", "controlled") >= 0.95
    assert score(card, "extraction_strength", "calibration", "unlearned") < 0.5, "plain ascent, uncontrolled"
    assert any("no report records" in warning for warning in card.warnings)
    assert not card.attacks
    assert any("benign" in reason for reason in card.verdict.reasons) or card.verdict.word == "not unlearned"


def test_a_training_that_wrecks_the_model_is_ended_and_the_report_says_so(world):
    ascent = {"method": {"name": "ga", "retain": "none"}, "audit": []}
    control = [{"name": "watch", "ratio": 2.0, "every": 1, "patience": 0}, "uwc"]
    card = expunge.run(recipe(**ascent, control=control, output="runs/watched")).scorecard
    assert any("excessive unlearning" in warning for warning in card.warnings)
    loose = expunge.run(recipe(**ascent, watch=False, output="runs/loose")).scorecard
    assert not any("excessive unlearning" in warning for warning in loose.warnings)
    ended, wrecked = (score(c, "perplexity", "report", "unlearned") for c in (card, loose))
    assert ended < wrecked / 2


def test_watch_is_in_force_unless_a_recipe_says_otherwise(world):
    from expunge.training.workspace import Workspace

    seen = []

    class Stop(Exception):
        pass

    def train(self, *_args, **_more):
        seen.append([type(control).__name__ for control in self.controls])
        raise Stop

    for more in ({}, {"watch": False}, {"control": "none"}):
        made = recipe(audit=[], seed=77, output=f"runs/look-{len(seen)}", **more)  # nothing of it is cached
        with patch.object(Workspace, "train", train), pytest.raises(Stop):
            expunge.run(made)
    assert seen == [["_WatchHooks"], [], []]


def test_without_retain_and_calibration_the_bar_holds_on_what_the_model_says_by_itself(world, capsys):
    card = expunge.run(recipe(retain=None, audit=[], output="runs/none")).scorecard
    assert "warning: retain is built from the model" in capsys.readouterr().err
    assert {s.name for s in card.splits if s.built} == {"retain", "calibration", "report"}
    assert card.control[0].value >= card.control[0].bar


def test_a_bar_that_nothing_can_carry_is_refused(world):
    made = recipe(bar={"metric": "mia_loss"}, output="runs/bar", audit=[])
    with pytest.raises(ConfigError, match=r"bar.metric: mia_loss"):
        expunge.run(made)
    assert not Path("runs/bar").exists()


def test_lora_moves_weights_and_ships_a_plain_model(world):
    made = recipe(
        adapter="lora",
        lora={"rank": 8},
        train={**recipe()["train"], "lr": 1e-2},
        audit=[],
        output="runs/lora",
    )
    card = expunge.run(made).scorecard
    facts = card.models["unlearned"]
    assert 0 < facts["trained_parameters"] < card.models["original"]["parameters"] * 8
    assert facts["moved_fraction"] > 0.5
    assert score(card, "extraction_strength", "forget", "unlearned") < 0.5
    shipped = expunge.load_subject("runs/lora/control/model")
    assert not shipped.adapter
    assert shipped.num_parameters() == card.models["original"]["parameters"]


def test_documents_are_forgotten_too(world):
    for split in ("forget", "retain", "holdout"):
        texts = [{"id": r["id"], "entity": r["entity"], "text": r["answer"]} for r in rows(split)]
        write_rows(Path(f"{split}-text.jsonl"), texts)
    files = {split: f"{split}-text.jsonl" for split in ("forget", "retain", "holdout")}
    # the original knows these sentences as answers, so their likelihood is what there is to lower
    bar = {"metric": "perplexity", "keep": 0.9}
    made = recipe(**files, target={"kind": "document"}, bar=bar, audit=["quantize"], output="runs/text")
    card = expunge.run(made).scorecard
    assert card.target["kind"] == "document"
    assert card.control[0].metric == "perplexity"
    assert card.control[0].better == "lower"
    value, bar = card.control[0].value, card.control[0].bar
    assert value <= bar
    stored = read_splits(Path("runs/text/measure/controlled"))["forget"]
    assert all(row.num_prompt_tokens <= 1 for row in stored.gold.values())
    assert (Path("runs/text") / "report.html").is_file()


def test_an_oracle_can_be_retrained(world):
    settings = {"steps": 60, "lr": 1e-2, "batch": 18}
    made = recipe(oracle={"retrain": True, "train": settings}, audit=[], output="runs/retrained")
    card = expunge.run(made).scorecard
    assert card.ratio_basis == "measured"
    assert card.ratio_to_retraining > 0
    assert {"oracle", "baseline/oracle"} <= {row.stage for row in card.cost}
    assert score(card, "extraction_strength", "forget", "oracle") < 0.3
    assert card.verdict.oracle == "retrained"
    start = json.loads(Path("runs/retrained/run.json").read_text())["stages"]
    assert list(start)[:2] == ["baseline/original", "oracle"], (
        "the original is measured before anything is trained"
    )


def test_a_python_run_reports_a_missed_requirement_when_asked(world):
    result = expunge.run(recipe(audit=[], require={"recovery": 0.1}, output="runs/missed"))
    with pytest.raises(BarMissed, match="worst recovery"):
        result.check()


def test_unlearn_works_in_memory(world):
    from expunge.training import TrainSettings

    subject = expunge.load_subject("original", max_length=96)
    request, _ = expunge.load_request({"forget": "forget.jsonl", "retain": "retain.jsonl"})
    settings = TrainSettings(steps=2, lr=1e-3, batch=6)
    assert expunge.unlearn(subject, request, "npo", settings) is not subject


def test_the_tokenizer_is_part_of_what_a_stage_depends_on(world):
    expunge.run(recipe(audit=[], output="runs/plain"), only="baseline")
    shutil.copytree("original", "other-words", dirs_exist_ok=True)
    file = Path("other-words/tokenizer_config.json")
    template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    expunge.run(recipe(model="other-words", audit=[], output="runs/other"), only="baseline")
    states = [json.loads(Path(f"runs/{run}/run.json").read_text()) for run in ("plain", "other")]
    keys = {state["stages"]["baseline/original"]["key"] for state in states}
    assert len(keys) == 2
