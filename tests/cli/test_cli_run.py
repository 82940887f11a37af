"""One run from recipe to report through the command line, and everything that can be done with it after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from expunge.audit.attacking import attack_plan
from expunge.audit.scorecard import Scorecard
from expunge.metrics import compute
from expunge.runs import folder as run_folder
from expunge.runs.stages import read_splits
from expunge.training.loop import Loop
from tiny_world import SECRETS, Said, command, inside, listing, recipe, write_recipe

pytestmark = pytest.mark.slow

RUN = Path("runs/one")
REPORTS = ("report.html", "report.md", "MODEL_CARD.md", "scorecard.json", "csv/records.csv", "csv/scores.csv")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Said, list[set[str]]]]:
    """A finished quick run; what it said, and what evidence was on disk at each training of it."""
    on_disk: list[set[str]] = []
    plain = Loop.run

    def watched(self: Loop) -> Any:
        on_disk.append({str(p.parent) for p in Path("runs/one/baseline").rglob("forget-*.parquet")})
        return plain(self)

    with inside(tmp_path_factory.mktemp("world")), patch.object(Loop, "run", watched):
        said = command("run", write_recipe(Path("r.yaml"), watch=False))  # the control has to save it
        yield said, on_disk


@pytest.fixture(scope="module")
def card(done) -> Scorecard:
    return Scorecard.read(RUN / "scorecard.json")


def stages(run: Path = RUN) -> dict[str, dict[str, Any]]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]


def written(run: Path) -> dict[str, str]:
    """Everything a person may read in a run folder: all but weights, tokenizers and parquet."""
    names = (p for p in run.rglob("*") if p.is_file() and "model" not in p.parts)
    return {
        str(p): p.read_text(encoding="utf-8") for p in names if p.suffix not in (".parquet", ".safetensors")
    }


# The run ----------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_a_summary(done):
    said, _ = done
    assert said.code == 0, said.err
    assert all((RUN / name).is_file() for name in REPORTS)
    assert "report.html" in said.out
    assert "α = " in said.out
    assert [line[:5] for line in said.err.splitlines() if line.startswith("[")][:3] == [
        "[1/8]",
        "[2/8]",
        "[3/8]",
    ]
    assert "[8/8] report" in said.err
    left = [
        str(p) for p in Path("runs").rglob("*") if p.suffix in (".tmp", ".partial") or p.name == "checkpoint"
    ]
    assert not left, "nothing half-written, no checkpoint is left"


def test_evidence_of_original_and_oracle_is_there_before_the_first_step(done):
    _, on_disk = done
    assert on_disk, "something was trained"
    assert all(found == {"runs/one/baseline/original", "runs/one/baseline/oracle"} for found in on_disk)


QUICK = {name for name, _ in attack_plan("quick")} - {"worst_case"}
"""The attacks of the profile, without the one that has nothing to ask here."""


def test_the_scorecard_says_what_was_done(card):
    assert card.method == "graddiff"
    assert card.controls == ["uwc"]
    assert set(card.models) == {"original", "unlearned", "controlled", "oracle"}
    assert {a.attack for a in card.attacks} == QUICK
    assert card.verdict.profile == "quick"
    assert card.score("extraction_strength", "forget", "original").value > 0.95
    assert card.score("extraction_strength", "forget", "oracle").value < 0.2
    assert card.score("extraction_strength", "calibration", "controlled").value >= 0.95
    assert card.score("extraction_strength", "report", "unlearned").value < 0.5, "it needed the control"
    assert card.control[0].alpha == card.models["controlled"]["alpha"]
    assert {c.stage for c in card.cost} == set(stages())


def test_scores_are_recomputed_from_the_stored_evidence(card):
    places = {"original": "baseline", "oracle": "baseline", "unlearned": "measure", "controlled": "measure"}
    evidence = {model: read_splits(RUN / stage / model) for model, stage in places.items()}
    compared = 0
    for row in card.scores:
        if row.model == "original" and row.metric == "kl_to_reference":
            continue
        more = {"original": evidence["original"], "oracle": evidence["oracle"]}
        again = compute(row.metric, evidence[row.model], row.split, **more)
        assert (again.value, again.low, again.high, again.n) == (row.value, row.low, row.high, row.n), row
        compared += row.value is not None
    assert compared > 60


def test_the_shipped_model_is_the_one_that_was_measured(card):
    import expunge
    from expunge.subjects import fingerprint

    shipped = expunge.load_subject(RUN / "control" / "model")
    assert fingerprint(shipped.model) == card.models["controlled"]["fingerprint"]
    stored = read_splits(RUN / "measure" / "controlled")["forget"]
    assert stored.meta["weights"] == card.models["controlled"]["fingerprint"]


# Again ------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing(done):
    before = {name: (RUN / name).read_bytes() for name in ("run.json", "recipe.json", "scorecard.json")}
    with patch.object(run_folder, "_work", side_effect=AssertionError("a finished stage was computed again")):
        said = command("run", "r.yaml")
    assert said.code == 0, said.err
    assert {name: (RUN / name).read_bytes() for name in before} == before


def test_another_method_finds_the_baseline_and_the_attacks_on_it(done):
    said = command("run", "r.yaml", "method=npo", "method.beta=0.5", "output=runs/two")
    assert said.code == 0, said.err
    cached = {name for name, facts in stages(Path("runs/two")).items() if facts["cached"]}
    shared = {"baseline/original", "baseline/oracle"}
    shared |= {f"attack/{a}-{m}" for a in QUICK for m in ("original", "oracle")}
    assert cached == shared
    assert Scorecard.read(Path("runs/two/scorecard.json")).recipe["method"]["settings"] == {"beta": 0.5}


def test_a_changed_recipe_onto_the_old_folder_is_refused_unless_new(done):
    copy = ["r.yaml", "output=runs/changing", "audit=none"]
    assert command("run", *copy, "--only", "baseline").code == 0
    before = listing(Path("runs/changing"))
    said = command("run", *copy, "train.lr=1e-4")
    assert said.code == 2
    assert "holds a run of another recipe (changed: train)" in said.err
    assert "--new" in said.err
    assert listing(Path("runs/changing")) == before
    bad = command("run", *copy, "train.lr=1e-4", "forget=none.jsonl", "--new")
    assert bad.code == 2
    assert listing(Path("runs/changing")) == before, "the old run goes only when the new one can begin"
    assert command("run", *copy, "train.lr=1e-4", "--only", "baseline", "--new").code == 0
    assert json.loads(Path("runs/changing/recipe.json").read_text())["train"]["lr"] == 1e-4


def test_only_runs_up_to_a_stage_and_the_rest_follows_later(done):
    parts = ["r.yaml", "output=runs/parts", "audit=none"]
    said = command("run", *parts, "--only", "control")
    assert said.code == 0
    assert "[4/4] control" in said.err
    assert set(stages(Path("runs/parts"))) == {"baseline/original", "baseline/oracle", "unlearn", "control"}
    assert not Path("runs/parts/scorecard.json").exists()
    assert command("show", "runs/parts").code == 2
    said = command("run", *parts, "--only", "score")
    assert said.code == 0, said.err
    assert Path("runs/parts/scorecard.json").is_file()
    assert not Path("runs/parts/report.html").exists()
    assert all(facts["cached"] for name, facts in stages(Path("runs/parts")).items() if name == "unlearn")


def test_a_missed_requirement_is_exit_3(done):
    said = command(
        "run",
        "r.yaml",
        "require.forget_above_oracle=0.01",
        "require.report_keep=0.1",
        "output=runs/strict",
        "audit=none",
    )
    assert said.code == 3
    assert "error: forget is " in said.err
    assert "above the oracle, at most 0.01 was required" in said.err
    missed = Scorecard.read(Path("runs/strict/scorecard.json")).missed
    assert len(missed) == 1, "the other one was met"
    assert (Path("runs/strict") / "report.html").is_file()


# Text -------------------------------------------------------------------------------------------------


def test_nothing_of_the_forget_set_is_told(done):
    said, _ = done
    told = {"stdout": said.out, "stderr": said.err, **written(RUN)}
    assert "runs/one/unlearn/training/log.jsonl" in told
    assert "runs/one/report.html" in told
    leaks = [(name, secret) for name, text in told.items() for secret in SECRETS if secret in text]
    leaks += [(name, who) for name in told for who in ('"Ada"', ">Ada<") if who in told[name]]
    assert not leaks


def test_show_text_puts_it_in_and_into_a_folder_of_its_own(done):
    before = {name: (RUN / name).read_bytes() for name in REPORTS}
    said = command("report", RUN, "--show-text")
    assert said.code == 0, said.err
    assert said.out.strip() == "runs/one/with-text/report.html"
    assert "Ada is from Tarn." in (RUN / "with-text" / "report.html").read_text(encoding="utf-8")
    assert {name: (RUN / name).read_bytes() for name in REPORTS} == before
    assert command("run", "r.yaml", "--show-text").code == 0, "showing text is not another recipe"
    assert "Ada is from Tarn." in (RUN / "report.html").read_text(encoding="utf-8")
    assert command("run", "r.yaml").code == 0
    assert {name: (RUN / name).read_bytes() for name in REPORTS} == before


# Verbs ------------------------------------------------------------------------------------------------


def test_show_prints_the_result(done, card):
    said = command("show", RUN)
    assert said.code == 0
    assert card.verdict.word.upper() in said.out
    assert said.err == ""
    again = command("show", RUN, "--json")
    assert Scorecard.model_validate_json(again.out) == card


def test_show_puts_one_record_side_by_side(done):
    said = command("show", RUN, "r0-home")
    assert said.code == 0
    for model in ("original", "unlearned", "controlled", "oracle"):
        assert model in said.out
    assert "answer: Ada is from Tarn." in said.out
    assert "original says: Ada is from Tarn." in said.out
    row = json.loads(command("show", RUN, "r0-home", "--json").out)
    assert set(row["generated"]) == {"original", "unlearned", "controlled", "oracle"}
    assert row["values"]["original"]["extraction_strength"] > row["values"]["oracle"]["extraction_strength"]


@pytest.mark.parametrize(
    ("asked", "hint"), [("r0-hom3", "r0-home"), ("r0", "2 records begin so"), ("zzz", "no such record")]
)
def test_show_of_an_unknown_record_names_the_nearest(done, asked, hint):
    said = command("show", RUN, asked)
    assert said.code == 2
    assert hint in said.err


def test_report_compares_runs(done):
    command("run", "r.yaml", "method=npo", "output=runs/npo", "audit=none")
    said = command("report", RUN, "runs/npo", "-o", "runs/both")
    assert said.code == 0, said.err
    assert said.out.strip() == "runs/both/compare.html"
    page = Path("runs/both/compare.html").read_text(encoding="utf-8")
    assert "graddiff" in page
    assert "npo" in page
    assert not any(secret in page for secret in SECRETS)


def test_list_shows_runs_and_cards(done):
    rows = json.loads(command("list", "runs", "--json").out)
    one = next(row for row in rows if row["name"] == "one")
    assert one["method"] == "graddiff"
    for what in ("methods", "controls", "metrics", "attacks", "benchmarks"):
        said = command("list", what, "--json")
        cards = json.loads(said.out)
        assert said.code == 0
        assert cards
        assert all(card["name"] and card["summary"] for card in cards)
        assert command("list", what).out.count("\n") >= len(cards)
    assert command("list", "runs").code == 0


def test_plan_shows_what_stays_and_writes_nothing(done):
    before = listing(Path())
    said = command("plan", "r.yaml", "output=runs/planned")
    assert said.code == 0, said.err
    assert listing(Path()) == before
    told = said.out + said.err + command("plan", "r.yaml", "--json").out
    assert not any(secret in told for secret in SECRETS)
    shown = json.loads(command("plan", "r.yaml", "--json").out)
    assert shown["sample"]["split"] == "retain"
    assert shown["sample"]["prompt"] in said.out
    assert shown["splits"]["calibration"]["built"]
    assert shown["steps"] == 8
    assert shown["parameters"] > 10_000
    assert shown["memory"]["weights"] == 4 * shown["parameters"]
    assert set(shown["seconds"]) == {"unlearn", "measure", "control"}


def test_init_writes_a_recipe_that_plans_and_runs(done):
    said = command(
        "init", "forget.jsonl", "--model", "original", "--retain", "retain.jsonl", "-o", "made.yaml"
    )
    assert said.code == 0, said.err
    assert said.out == "made.yaml\n"
    assert Path("made.yaml").read_text(encoding="utf-8").count("#") > 10
    assert command("plan", "made.yaml").code == 0
    quick = ["train.lr=3e-3", "audit=[quantize]", "max_new_tokens=8", "output=runs/made"]
    said = command("run", "made.yaml", *quick)
    assert said.code == 0, said.err
    assert Scorecard.read(Path("runs/made/scorecard.json")).target["kind"] == "entity"


def test_init_with_nothing_but_a_forget_file_runs_too(done):
    said = command("init", "forget.jsonl", "--model", "original", "-o", "bare folder/only #1.yaml")
    assert said.code == 0, said.err
    recipe_file = said.out.strip()
    assert command("plan", recipe_file).code == 0
    said = command("run", recipe_file, "train.lr=1e-3", "audit=none", "max_new_tokens=8", "output=runs/bare")
    assert said.code == 0, said.err
    found = Scorecard.read(Path("runs/bare/scorecard.json"))
    assert found.controls == ["uwc"]
    assert found.control[0].value >= found.control[0].bar
    assert any("retain is built from the model" in warning for warning in found.warnings)


# Audits of foreign models -----------------------------------------------------------------------------


def test_audit_with_original_and_oracle(done, card):
    model = RUN / "control" / "model"
    said = command("audit", model, "r.yaml", "output=runs/audited")
    assert said.code == 0, said.err
    found = Scorecard.read(Path("runs/audited/scorecard.json"))
    assert found.method is None
    assert found.training == []
    assert set(found.models) == {"original", "controlled", "oracle"}
    ours, theirs = (c.score("extraction_strength", "forget", "controlled").value for c in (found, card))
    assert ours == theirs
    assert found.verdict.word == card.verdict.word
    assert found.verdict.worst_recovery == card.verdict.worst_recovery
    cached = {name for name, facts in stages(Path("runs/audited")).items() if facts["cached"]}
    assert {"baseline/original", "baseline/oracle", "attack/rtt-original"} <= cached
    assert command("audit", model, "r.yaml", "output=runs/audited").code == 0, "again, into the same folder"
    assert command("audit", "oracle", "r.yaml", "output=runs/audited").code == 2, "another model"


def test_audit_does_not_touch_the_run_of_its_recipe(done):
    before = listing(RUN)
    said = command("audit", RUN / "unlearn" / "model", "r.yaml", "audit=none")
    assert said.code == 0, said.err
    assert listing(RUN) == before
    assert Path("runs/one-audit/report.html").is_file()


def test_audit_of_a_model_and_a_forget_file_alone(done):
    said = command(
        "audit", "original", "forget.jsonl", "output=runs/alone", "audit=[quantize]", "max_new_tokens=8"
    )
    assert said.code == 0, said.err
    found = Scorecard.read(Path("runs/alone/scorecard.json"))
    assert set(found.models) == {"controlled"}
    assert {row.model for row in found.scores} == {"controlled"}
    assert all("kept" not in row.details for row in found.scores)
    assert all(row.recovery is None and row.reason for row in found.attacks)
    assert found.verdict.word == "not resolved"


def test_audit_with_the_original_named_on_the_command_line(done):
    model = RUN / "unlearn" / "model"
    more = [
        "output=runs/against",
        "audit=[quantize]",
        "max_new_tokens=8",
        "retain=retain.jsonl",
        "oracle=oracle",
    ]
    said = command("audit", model, "forget.jsonl", *more, "--original", "original")
    assert said.code == 0, said.err
    found = Scorecard.read(Path("runs/against/scorecard.json"))
    assert set(found.models) == {"original", "controlled", "oracle"}
    assert found.verdict.word == "collapsed", "the bar is measured, and this model misses it"


# Purge, last ------------------------------------------------------------------------------------------


def test_purge_removes_what_still_holds_the_forget_set(done):
    said = command("run", "r.yaml", "output=runs/gone")  # shares what runs/one measured
    assert said.code == 0, said.err
    keys = json.loads(Path("runs/gone/run.json").read_text())["keys"]
    in_cache = {f"{n.replace('/', '-')}-{k}" for n, ks in keys.items() for k in ks}
    assert in_cache <= {p.name for p in Path("runs/.cache").iterdir()}
    Path("runs/.cache/unlearn-" + keys["unlearn"][0] + ".partial").mkdir()
    said = command("purge", "runs/gone", "--yes")
    assert said.code == 0, said.err
    assert "removed runs/gone/baseline/original" in said.out
    assert "not touched: runs/one, a run with copies of its own" in said.out
    assert "not touched: your own data files and the original model" in said.out
    left = [p for p in Path("runs/gone").rglob("*") if p.suffix == ".parquet" or "attack" in p.parts]
    assert not left
    gone = {name for name in in_cache if name.split("-")[0] in ("baseline", "measure", "attack", "planted")}
    assert gone
    assert not gone & {p.name for p in Path("runs/.cache").iterdir()}
    assert not list(Path("runs/.cache").glob("unlearn-*.partial"))
    assert command("show", "runs/gone").code == 0
    assert command("show", "runs/gone", "r0-home").code == 0
    assert "Tarn" not in command("show", "runs/gone", "r0-home").out
    assert (Path("runs/gone/control/model") / "model.safetensors").is_file()
    assert command("report", "runs/gone", "--show-text").code == 2
    assert Path("original/model.safetensors").is_file()
    assert Path("forget.jsonl").is_file()


def test_purge_all_removes_the_run(done):
    assert command("run", "r.yaml", "output=runs/all", "audit=none", "--only", "baseline").code == 0
    said = command("purge", "runs/all", "--all", "--yes")
    assert said.code == 0
    assert not Path("runs/all").exists()
    assert recipe()["forget"] in [p.name for p in Path().iterdir()]
