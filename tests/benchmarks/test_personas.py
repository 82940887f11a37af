import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.benchmarks import BENCHMARKS, training
from expunge.benchmarks.personas import Personas
from expunge.benchmarks.personas_world import make_world
from expunge.benchmarks.scenario import GOAL
from expunge.data.checks import check_encoded, check_request
from expunge.data.encoding import Encoder
from expunge.errors import ConfigError, ExpungeError, ModelError
from expunge.metrics import METRICS
from expunge.training.settings import TrainSettings


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def prepared(cache):
    return Personas("tiny").prepare(cache)


def test_is_registered_under_its_parts():
    assert "personas" in BENCHMARKS.names()
    assert BENCHMARKS.get("personas").from_part(None) == Personas("small")
    assert Personas.from_part("medium", seed=3).size == "medium"


def test_bad_options_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Personas.from_part("smal", target="document", seed="x")
    text = str(caught.value)
    assert "Did you mean small" in text
    assert "Did you mean documents" in text
    assert "whole number" in text


@pytest.mark.parametrize("target", ["records", "documents"])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_request_is_in_order(size, target):
    found = check_request(Personas(size, target=target).request())
    assert not found.problems
    assert not found.warnings


def test_document_target_forgets_biographies():
    request = Personas("tiny", target="documents").request()
    assert request.target.kind == "document"
    for split in ("forget", "retain", "calibration", "report", "holdout"):
        assert all(r.is_document for r in request[split])
    biographies = {r.id: r for r in request.forget}
    assert {r.source_id for r in request["forget_hard"]} == set(biographies)
    assert all(r.answer in biographies[r.source_id].answer for r in request["forget_hard"])


def test_tokenizer_writes_every_text_and_favors_no_name():
    world = make_world("small")
    tokenizer = Personas("small").make_tokenizer()
    encoder = Encoder(tokenizer, max_length=256)
    assert tokenizer.unk_token_id is None
    assert tokenizer.decode(tokenizer("Zoë — 漢字\n")["input_ids"]) == "Zoë — 漢字\n"
    found = check_encoded(Personas("small").request(), encoder)
    assert not found.problems
    assert not found.warnings

    def tokens_per_letter(split):
        answers = [r.answer for r in world.splits[split]]
        return sum(len(tokenizer(a)["input_ids"]) for a in answers) / sum(map(len, answers))

    assert tokens_per_letter("forget") == pytest.approx(tokens_per_letter("holdout"), rel=0.05)


def test_fingerprint_follows_seed_size_settings_and_code_but_not_the_target(monkeypatch):
    marks = [
        Personas("tiny").fingerprint(),
        Personas("tiny", 1).fingerprint(),
        Personas("small").fingerprint(),
    ]
    assert Personas("tiny", target="documents").fingerprint() == marks[0]
    builds = {**Personas.BUILDS, "tiny": replace(Personas.BUILDS["tiny"], lr=2e-3)}
    with monkeypatch.context() as patch:
        patch.setattr(Personas, "BUILDS", builds)
        marks.append(Personas("tiny").fingerprint())
    monkeypatch.setattr(training, "CODE_VERSION", training.CODE_VERSION + 1)
    marks.append(Personas("tiny").fingerprint())
    assert len(set(marks)) == len(marks)


@pytest.mark.slow
def test_original_knows_the_forget_set_and_the_oracle_does_not(prepared):
    for name, watched in (("original", "forget"), ("oracle", "retain")):
        reached = prepared.facts[name]["reached"]
        assert reached[watched]["extraction_strength"] >= GOAL["strength"]
        assert GOAL["probability"] <= reached[watched]["probability"] <= 0.98
        assert reached["holdout"]["extraction_strength"] < 0.1
        assert prepared.facts[name]["met"]
        assert prepared.cost[name]["steps"] > 0
        assert prepared.cost[name]["tokens"] > 1000 * prepared.cost[name]["wall"] > 0
    forgotten = prepared.facts["oracle"]["reached"]
    assert forgotten["forget"]["extraction_strength"] < 0.1
    known = prepared.facts["original"]["reached"]["forget_biographies"]["probability"]
    assert known > 5 * forgotten["forget_biographies"]["probability"]
    assert TrainSettings(**prepared.train)
    assert {metric for metric, _ in prepared.metrics} <= set(METRICS.names())
    assert all(split in prepared.request for _, split in prepared.metrics)


@pytest.mark.slow
def test_second_call_trains_nothing_and_leaves_no_other_file(prepared, cache, monkeypatch):
    monkeypatch.setattr(training, "_train", None)
    again = Personas("tiny", target="documents").prepare(cache)
    assert (again.original, again.oracle) == (prepared.original, prepared.oracle)
    assert again.facts["original"] == prepared.facts["original"]
    folder = prepared.original.parent
    assert {p.name for p in folder.iterdir()} == {"original", "oracle", "facts.json"}
    assert not list(cache.glob(".*.partial"))


@pytest.mark.slow
def test_killed_half_way_leaves_nothing_under_the_final_name(tmp_path):
    script = "import sys; from pathlib import Path; from expunge.benchmarks.personas import Personas; "
    script += "Personas('tiny', 7).prepare(Path(sys.argv[1]))"
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    work = tmp_path / f".personas-tiny-{Personas('tiny', 7).fingerprint()}.partial"
    log = work / "original-run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stderr.close()
    size = _settled(log)  # the processes it had started end with it
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert size == log.stat().st_size
    made = Personas("tiny", 7).prepare(tmp_path)
    assert made.facts["original"]["met"]
    assert made.facts["oracle"]["met"]


def _settled(path: Path) -> int:
    time.sleep(1.0)
    size = path.stat().st_size
    time.sleep(1.0)
    return size


def job(**changes) -> training.Job:
    world = make_world("tiny")
    some = tuple(world.splits["retain"][:4])
    settings = TrainSettings(epochs=1, batch=4)
    plain = training.Job("original", "nowhere", some, settings, some, training.Goal(0.9), {"retain": some})
    return replace(plain, **changes)


def test_job_survives_the_way_to_the_process():
    sent = job()
    assert training._JOB.validate_json(training._JOB.dump_json(sent)) == sent


@pytest.mark.slow
def test_an_error_in_a_process_comes_back_as_what_it_was(tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(ModelError, match=r"training the original failed: .*no such model folder"):
        training.train_models(tmp_path / "made", lambda _: [job(base=missing)], "test")
    assert not (tmp_path / "made").exists()


def test_a_crash_of_a_process_is_told_with_its_last_words(tmp_path, monkeypatch):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'MemoryError: out of room' >&2\nexit 3\n")
    dying.chmod(0o755)
    monkeypatch.setattr(training.sys, "executable", str(dying))
    with pytest.raises(ExpungeError, match="training the original failed: MemoryError: out of room"):
        training.train_models(tmp_path / "made", lambda _: [job()], "test")
    assert not (tmp_path / "made").exists()


def test_ctrl_c_ends_the_processes(tmp_path, monkeypatch):
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(training.sys, "executable", str(slow))

    def interrupt(*_):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.train_models(tmp_path / "made", lambda _: [job()], "test")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "made").exists()


def test_training_stops_at_the_first_epoch_that_meets_the_goal(monkeypatch):
    values = iter([(0.95, 0.5), (0.7, 0.95), (0.92, 0.93)])
    control = training.Memorized([], training.Goal(0.9, 0.9, first=2, every=2), steps_per_epoch=3)
    monkeypatch.setattr(control, "measure", lambda subject: next(values))

    assert next(step for step in range(1, 31) if control.after_step(step, None)) == 18
    assert [point["epoch"] for point in control.curve] == [2, 4, 6]
    resumed = training.Memorized([], control.goal, steps_per_epoch=3)
    resumed.load_state(json.loads(json.dumps(control.state()[0])), {})
    assert resumed.curve == control.curve
    assert resumed.seconds >= control.seconds - 0.1
