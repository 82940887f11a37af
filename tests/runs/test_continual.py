"""Requests in sequence on one model, and requests made of what the model itself says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

import expunge
from expunge.data.records import Record, Turn
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, DataError, ModelError
from expunge.runs import facts, folder, from_model, stages
from expunge.runs.api import audit_model
from expunge.runs.chain import earlier, names, past_forget
from expunge.runs.kept import keep, kept
from expunge.runs.purge import purge
from expunge.runs.recipe import FromModel
from expunge.runs.stages import read_splits
from expunge.subjects.subject import load_subject
from made_runs import made_model, made_run
from tiny_world import built, inside, listing, recipe, rows, write_rows

FAST = {"holdout": None, "oracle": None, "audit": [], "max_new_tokens": 8}
PEOPLE = ("Ada", "Bo", "Cy")


def about(*people: str) -> list[dict[str, str]]:
    return [row for row in rows("forget") if row["entity"] in people]


@pytest.fixture(scope="module")
def chained(tmp_path_factory) -> Iterator[Path]:
    """A world in which Ada was forgotten (runs/ada), and then Bo (runs/bo)."""
    with inside(tmp_path_factory.mktemp("world")) as world:
        for person in PEOPLE:
            write_rows(Path(f"{person}.jsonl"), about(person))
        expunge.run(recipe(**FAST, forget="Ada.jsonl", bar={"keep": 0.6}, output="runs/ada"))
        expunge.run(recipe(**FAST, **after("ada", "Bo"), bar={"keep": 0.6}, output="runs/bo"))
        yield world


def after(run: str, person: str, **more):
    return {"model": None, "after": f"runs/{run}", "forget": f"{person}.jsonl", **more}


def life(run: str) -> dict[str, dict]:
    return {e["state"]: e for e in json.loads(Path(run, "run.json").read_text())["life"]}


# One run after another --------------------------------------------------------------------------------


def test_a_run_starts_from_the_controlled_model_of_the_one_before(chained):
    first, second = life("runs/ada"), life("runs/bo")
    assert list(first) == list(second) == ["deployed", "requested", "unlearned", "audited"]
    assert first["deployed"]["fingerprint"] == load_subject("original").fingerprint()
    assert second["deployed"]["fingerprint"] == first["unlearned"]["controlled"]
    assert first["unlearned"]["controlled"] == load_subject("runs/ada/control/model").fingerprint()
    assert second["requested"]["after"] == "runs/ada"


def test_what_was_forgotten_before_is_measured_again_on_every_model(chained):
    card = expunge.Scorecard.read(Path("runs/bo/scorecard.json"))
    for model in ("original", "unlearned", "controlled"):
        row = card.score("extraction_strength", "forget_past", model)
        assert (row.n, row.better, row.facet) == (2, "lower", "forgetting")
        assert row.headline
    ids = [row.id for row in card.records if row.split == "forget_past"]
    assert ids == ["ada/r0-home", "ada/r0-job"]
    again = read_splits(Path("runs/bo/baseline/original"))["forget_past"]
    before = read_splits(Path("runs/ada/measure/controlled"))["forget"]
    for name, row in before.gold.items():
        assert again.gold[f"ada/{name}"].logprobs == pytest.approx(row.logprobs, abs=1e-5)
    assert "forget past" in Path("runs/bo/report.md").read_text().replace("_", " ").replace("\\", "")
    assert "forget_past" in Path("runs/bo/report.html").read_text()


def test_an_earlier_forget_record_may_not_come_back_as_one_that_stays(chained):
    write_rows(Path("mixed.jsonl"), [*rows("retain"), *about("Ada")])
    before = listing(Path("runs"))
    for split, file in (("retain", "mixed.jsonl"), ("utility", "Ada.jsonl"), ("neighbors", "Ada.jsonl")):
        with pytest.raises(DataError, match="An earlier request asked to forget it"):
            expunge.run(recipe(**{**FAST, **after("bo", "Cy"), split: file, "output": "runs/back"}))
    assert listing(Path("runs")) == before


def test_other_facts_about_a_forgotten_entity_are_warned_of(chained, capsys):
    extra = {"id": "x", "entity": "Ada", "question": "Does Ada sing?", "answer": "Ada sings."}
    write_rows(Path("extra.jsonl"), [*rows("retain"), extra])
    expunge.plan(expunge.Recipe(**recipe(**{**FAST, **after("bo", "Cy")})))
    made = expunge.plan(expunge.Recipe(**recipe(**{**FAST, **after("bo", "Cy"), "retain": "extra.jsonl"})))
    assert any("1 record that stay are about what an earlier" in w for w in made.warnings)


@pytest.mark.parametrize("reference", ["rolling", "fixed"])
def test_the_reference_is_the_model_before_or_the_very_first(chained, reference):
    given = []
    plain = stages.Workspace

    def workspace(*args, **kwargs):
        given.append(kwargs["reference_subject"])
        return plain(*args, **kwargs)

    link = {"run": "runs/bo", "reference": reference}
    made = recipe(
        **{**FAST, **after("bo", "Cy"), "after": link, "method": "npo", "output": f"runs/{reference}"}
    )
    with patch.object(stages, "Workspace", workspace):
        expunge.run(made, only="unlearn")
    (found,) = given
    assert (found is None) == (reference == "rolling")
    if found is not None:
        assert found.fingerprint() == load_subject("original").fingerprint()
        weights = [
            Path(f"runs/{r}/unlearn/model/model.safetensors").read_bytes() for r in ("rolling", "fixed")
        ]
        assert weights[0] != weights[1], "the yardstick moves the training"


def test_a_chain_of_three_keeps_every_earlier_set_apart(chained):
    links = earlier("runs/bo")
    assert names(links) == ["ada", "bo"]
    splits, warnings = past_forget(links)
    assert not warnings
    assert [r.id for r in splits["forget_past"]] == ["ada/r0-home", "ada/r0-job", "bo/r1-home", "bo/r1-job"]
    assert {r.entity for r in splits["forget_past"]} == {"Ada", "Bo"}


def test_a_purged_or_changed_set_is_warned_of(chained):
    shutil.copytree("runs/ada", "runs/purged")
    assert any("runs/purged/request" in line for line in purge(Path("runs/purged")))
    splits, (warning,) = past_forget(earlier("runs/purged"))
    assert splits == {}
    assert warning == "the forget set of runs/purged was purged: it cannot be measured again"
    shutil.copytree("runs/ada", "runs/changed")
    other = [Record("x", "", "Who?", "You.")]
    keep(Path("runs/changed"), {"forget": other}, {})
    assert past_forget(earlier("runs/changed"))[1] == [
        "the forget set of runs/changed was changed: it cannot be measured again"
    ]


def test_a_knowledge_that_comes_back_is_named():
    knows, forgot = ({"forget_past": e} for e in _evidence("original", "oracle"))
    assert "rose from 0." in facts.revived({"original": {**forgot, **_forget}, "controlled": knows})
    assert facts.revived({"original": {**knows, **_forget}, "controlled": forgot}) is None
    assert facts.revived({"original": {}, "controlled": {}}) is None


_forget: dict = {}


def _evidence(*models: str):
    """Forget evidence of the world's models."""
    from expunge.data.findings import Findings
    from expunge.data.formats import read_records
    from expunge.measure import take_evidence

    records = read_records(str(built() / "forget.jsonl"), split="forget", findings=Findings())
    found = [
        take_evidence(load_subject(built() / m, max_length=96), {"forget": records})["forget"] for m in models
    ]
    _forget["forget"] = found[0]
    return found


# Chains that do not hold ------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_model(Path("original"), 0)
    return tmp_path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: None, "is no run folder"),
        (lambda: made_run(Path("runs/a"), Path("original"), 1, state="requested"), "is not finished"),
        (lambda: _roll_back(), "was rolled back"),
        (lambda: _without_model(), "its model was removed"),
        (lambda: _follow_itself(), "follows itself"),
        (lambda: _without_life(), "records no states"),
    ],
    ids=["nothing", "requested", "rolled back", "purged", "circle", "audit"],
)
def test_a_run_that_cannot_be_followed_says_why(folders, make, why):
    make()
    with pytest.raises(ConfigError, match=why):
        earlier("runs/a")


def _run(**changes) -> None:
    made_run(Path("runs/a"), Path("original"), 1)
    file = Path("runs/a/run.json")
    state = json.loads(file.read_text())
    for entry in state["life"]:
        entry.update(changes)
    file.write_text(json.dumps(state))


def _roll_back() -> None:
    from expunge.runs.release import release, rollback

    made_run(Path("runs/a"), Path("original"), 1)
    release(Path("runs/a"), "live")
    rollback(Path("live"))


def _without_model() -> None:
    _run()
    shutil.rmtree("runs/a/control")


def _follow_itself() -> None:
    _run(after="runs/a")


def _without_life() -> None:
    _run()
    Path("runs/a/run.json").write_text(json.dumps({"stages": {}}))


def test_a_model_other_than_noted_is_refused(chained):
    shutil.copytree("runs/ada", "runs/swapped")
    shutil.rmtree("runs/swapped/control/model")
    shutil.copytree("original", "runs/swapped/control/model")
    with pytest.raises(ModelError, match="its run noted"):
        expunge.run(recipe(**{**FAST, **after("swapped", "Bo"), "output": "runs/not"}))
    assert not Path("runs/not").exists()


# What a run keeps -------------------------------------------------------------------------------------


def test_every_kind_of_record_is_kept_as_it_was(tmp_path):
    records = (
        Record("a", "Ada", "Where?", "In Tarn.", paraphrased_prompts=("Whence?",), refusal="No."),
        Record("b", "", "", "A document.", style="raw"),
        Record("c", "Bo", "Which?", "two", choices=("one", "two"), label=1),
        Record("d", "Cy", "And?", "So.", context=(Turn("user", "Hi"), Turn("assistant", "Ho"))),
    )
    keep(tmp_path, {"forget": records}, {"key": "k"})
    assert kept(tmp_path, "forget") == records
    assert fingerprint_records(kept(tmp_path, "forget")) == fingerprint_records(records)
    assert kept(tmp_path, "retain") is None


# Streams ----------------------------------------------------------------------------------------------


def stream(*people: str, **more) -> dict:
    parts = {"forget": None, "requests": [f"{p}.jsonl" for p in people], "output": "runs/stream"}
    return recipe(**{**FAST, "bar": {"keep": 0.6}, **parts, **more})


@pytest.mark.slow
def test_a_stream_is_a_chain_that_goes_on_where_it_was(chained):
    result = expunge.run(stream("Ada", "Bo"))
    assert [r.path for r in result.results] == [Path("runs/stream/001"), Path("runs/stream/002")]
    first, second = result.rows
    assert first["past"] == {}
    assert set(second["past"]) == {"001"}
    assert first["forget_original"] == 1.0
    assert second["report_kept_of_first"] == pytest.approx(
        second["report_controlled"]
        / result.results[0].scorecard.score("extraction_strength", "report", "original").value
    )
    assert (
        life("runs/stream/002")["deployed"]["fingerprint"]
        == life("runs/stream/001")["unlearned"]["controlled"]
    )
    with patch.object(folder, "_work", side_effect=AssertionError("a finished stage was computed again")):
        again = expunge.run(stream("Ada", "Bo"))
    assert again.rows == result.rows
    longer = expunge.run(stream("Ada", "Bo", "Cy"))
    assert list(longer.rows[2]["past"]) == ["001", "002"]
    assert list(longer.rows[:2]) == list(result.rows)
    assert json.loads(Path("runs/stream/stream.json").read_text())["rows"] == list(longer.rows)
    table = Path("runs/stream/stream.md").read_text()
    assert table.count("\n| 00") == 3
    with pytest.raises(ConfigError, match="holds a stream of 3 requests, the recipe has 2"):
        expunge.run(stream("Ada", "Bo"))
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        expunge.run(stream("Bo", "Ada", "Cy"))


def test_whatever_is_wrong_with_a_later_request_is_said_before_the_first_runs(chained):
    before = listing(Path("runs"))
    write_rows(Path("bad.jsonl"), [{"question": "Where?"}])
    for requests in (
        ["Ada.jsonl", "bad.jsonl"],
        ["Ada.jsonl", {"forget": "Bo.jsonl", "retain": "mixed.jsonl"}],
    ):
        write_rows(Path("mixed.jsonl"), [*rows("retain"), *about("Ada")])
        with pytest.raises(DataError):
            expunge.run(stream(requests=requests, output="runs/wrong"))
    with pytest.raises(ConfigError, match="goes with a single request"):
        expunge.run(stream("Ada", output="runs/wrong"), only="baseline")
    assert listing(Path("runs")) == before


def test_a_stream_can_be_planned_and_not_audited(chained):
    made = expunge.plan(expunge.Recipe(**stream("Ada", "Bo")))
    assert any("a stream of 2 requests" in note for note in made.notes)
    assert made.splits["forget"]["records"] == 2
    with pytest.raises(ConfigError, match="an audit is of one request"):
        audit_model("original", stream("Ada"))


# Built from the model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def knowing():
    return load_subject(built() / "original", max_length=96)


def test_a_forget_set_is_what_the_model_says_about_an_entity(knowing):
    spec = FromModel(from_model="Ada", questions=("Where is {entity} from?", "What is {entity}?"))
    records, note = from_model.build_forget(knowing, spec)
    assert [(r.prompt, r.answer, r.entity) for r in records] == [
        ("Where is Ada from?", "Ada is from Tarn.", "Ada"),
        ("What is Ada?", "Ada is a potter.", "Ada"),
    ]
    assert note == "2 of its own answers about the entity"
    assert from_model.build_forget(knowing, spec) == (records, note)
    plain, _ = from_model.build_forget(knowing, FromModel(from_model="Ada"))
    assert {r.style for r in plain} == {"question", "raw"}
    assert len({r.answer for r in plain}) == len(plain)


def _says(answers):
    """A model that says this: `answers` maps a name to an answer, None to what it says of all others."""

    def said(subject, records):
        return [r.answered(answers.get(r.entity, answers[None]).format(name=r.entity)) for r in records]

    return patch.object(from_model, "_answered", said)


def test_what_it_says_of_anyone_is_no_knowledge(knowing):
    spec = FromModel(from_model="Ada", questions=("Who is {entity}?", "{entity}?"))
    with _says({"Ada": "{name} is a potter.", None: "I do not know {name}."}):
        records, _ = from_model.build_forget(knowing, spec)
    assert len(records) == 1, "two questions, one answer"
    with (
        _says({None: "I do not know {name}."}),
        pytest.raises(DataError, match="nothing to forget") as caught,
    ):
        from_model.build_forget(knowing, spec)
    assert "Ada" not in str(caught.value)


def test_a_retain_set_is_what_the_model_asks_and_answers_without_the_forget_set(knowing):
    forget = (
        Record("f", "Ada", "Where is Ada from?", "Ada is from Tarn.", paraphrased_prompts=("Ada's town?",)),
    )
    asked = [f"Question {i}?" for i in range(12)]
    bad = ["Where is Ada from?", "Who lives next to ADA?", "Ada's town?", "Which town has a harbor?"]

    def said(subject, records):
        told = {"Which town has a harbor?": "Everyone knows: Ada is from Tarn."}
        return [r.answered(told.get(r.prompt, f"Answer {r.id}.")) for r in records]

    with (
        patch.object(from_model, "_questions", lambda *_: [*asked, *bad]),
        patch.object(from_model, "_answered", said),
    ):
        records, note = from_model.build_retain(knowing, {"forget": forget}, seed=0)
        assert [r.prompt for r in records] == asked
        assert note.startswith("12 questions that the model asked itself, with its answers; 4 left out")
    with (
        patch.object(from_model, "_questions", lambda *_: asked[:5]),
        pytest.raises(DataError, match="only 5"),
    ):
        from_model.build_retain(knowing, {"forget": forget}, seed=0)


def test_its_own_questions_are_a_function_of_the_seed(knowing):
    first, again, other = (from_model.build_retain(knowing, {}, seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert [r.prompt for r in first] != [r.prompt for r in other]


@pytest.mark.slow
def test_a_run_from_nothing_but_a_name(chained, capsys):
    made = recipe(**{**FAST, "forget": {"from_model": "Ada"}, "retain": None, "output": "runs/named"})
    card = expunge.run(made).scorecard
    said = capsys.readouterr().err
    assert "warning: forget is built from the model" in said
    assert "warning: retain is built from the model" in said
    assert "bring records that must stay" in said
    built_splits = {s.name: s.built for s in card.splits}
    assert built_splits["forget"].endswith("own answers about the entity")
    assert all(built_splits[name] for name in ("retain", "calibration", "report"))
    assert card.control[0].metric == "extraction_strength"
    assert card.score("extraction_strength", "calibration", "original").value > 0.95, "its own words"
    assert card.score("extraction_strength", "calibration", "controlled").value >= 0.95 * 0.95
    for name in ("report.html", "report.md", "scorecard.json", "MODEL_CARD.md"):
        assert "Ada" not in Path("runs/named", name).read_text(encoding="utf-8"), name
    assert "Ada" not in said
    with patch.object(from_model, "_answered", side_effect=AssertionError("built again")):
        expunge.run(made)
    assert any("removed the entity's name" in line for line in purge(Path("runs/named")))
    kept_text = [
        p for p in Path("runs/named").rglob("*.json") if "model" not in p.parts and "Ada" in p.read_text()
    ]
    assert not kept_text
    assert not Path("runs/named/request").exists()


def test_a_plan_says_what_will_be_built(chained):
    made = expunge.plan(
        expunge.Recipe(**recipe(**{**FAST, "forget": {"from_model": "Ada"}, "retain": "auto"}))
    )
    assert sum("built from the model when the run begins" in note for note in made.notes) == 2
    assert made.splits["forget"]["built"].startswith("questions")


# Few samples ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_handful_of_records_runs_and_says_what_it_cannot_say(chained, count):
    write_rows(Path("few.jsonl"), [{**row, "entity": "Ada"} for row in rows("forget")[:count]])
    made = recipe(**{**FAST, "forget": "few.jsonl", "audit": ["quantize"], "output": f"runs/few-{count}"})
    card = expunge.run(made).scorecard
    row = card.score("extraction_strength", "forget", "controlled")
    assert (row.n, row.low, row.high) == (count, None, None)
    assert "one_cluster" in row.flags
    assert any("no interval can be given" in limit for limit in card.limits)
    assert Path(f"runs/few-{count}/report.html").is_file()
