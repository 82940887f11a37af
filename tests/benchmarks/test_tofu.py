import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from expunge.benchmarks import BENCHMARKS
from expunge.benchmarks.tofu import FORGET, LARGER, METRICS, Tofu
from expunge.data.checks import check_request
from expunge.errors import ConfigError, DataError
from expunge.metrics import METRICS as KNOWN_METRICS

SHARED = Path("../shared/data/tofu")
MODEL = Path("../shared/models/stories260K")
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/tofu is not here")
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models/stories260K is not here")


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SHARED / f"{name}.jsonl").read_text("utf-8").splitlines()]


def tofu(split: str = "forget01", **options) -> Tofu:
    return Tofu.from_part(split, **{"folder": str(SHARED), **options})


def test_paper_metrics_exist():
    assert {metric for metric, _ in METRICS} <= set(KNOWN_METRICS.names())
    assert "tofu" in BENCHMARKS.names()


def test_bad_options_are_named_all_at_once():
    with pytest.raises(ConfigError) as caught:
        Tofu.from_part("forget02", retain_rows=30, batch=0, lr="1e-5")
    where = [p.where.removeprefix("benchmark.") for p in caught.value.problems]
    assert where == ["part", "retain_rows", "batch", "lr"]
    assert "forget01" in str(caught.value)


@needs_data
@pytest.mark.parametrize("split", FORGET)
def test_counts_are_the_published_ones(split):
    request = tofu(split).request()
    forget = FORGET[split]
    counts = {name: len(request[name]) for name in request}
    assert counts == {
        "forget": forget, "forget_hard": forget, "holdout": forget, "real_authors": 100, "world_facts": 117,
        "report": 400, "calibration": 400, "retain": 4000 - forget - 800,
    }  # fmt: skip
    assert len(request.refusals) == 100
    assert request.target.kind == "entity"


@needs_data
def test_first_record_is_the_files_first_row():
    first = tofu("forget05").request().forget[0]
    row = lines("forget05_perturbed")[0]
    assert (first.prompt, first.answer) == (row["question"], row["answer"])
    assert first.paraphrased_prompts == (row["paraphrased_question"],)
    assert first.paraphrased_answers == (row["paraphrased_answer"],)
    assert first.perturbed_answers == tuple(row["perturbed_answer"])
    assert (first.id, first.entity) == ("3800", "author-190")


@needs_data
def test_entities_are_blocks_of_twenty_rows_of_full():
    full = lines("full")
    request = tofu("forget10").request()
    for split in ("forget", "retain", "calibration", "report"):
        for record in request[split]:
            assert full[int(record.id)]["question"] == record.prompt
            assert record.entity == f"author-{int(record.id) // 20}"
        authors = [r.entity for r in request[split]]
        assert all(authors.count(a) == 20 for a in set(authors))


@needs_data
@pytest.mark.parametrize(("rows", "part"), [(360, 120), (600, 200), (1500, 400)])
def test_splits_share_no_author_and_no_row(rows, part):
    request = tofu("forget01", retain_rows=rows).request()
    assert [len(request[s]) for s in ("calibration", "report", "retain")] == [part, part, rows - 2 * part]
    splits = ("forget", "retain", "calibration", "report", "holdout")
    entities = [{r.entity for r in request[s]} for s in splits]
    texts = [{(r.prompt, r.answer) for r in request[s]} for s in splits]
    assert sum(map(len, entities)) == len(set().union(*entities))
    assert sum(map(len, texts)) == len(set().union(*texts))
    assert not check_request(request).problems


@needs_data
def test_parts_that_end_inside_an_author_still_share_none():
    request = tofu(retain_rows=100).request()
    entities = [{r.entity for r in request[s]} for s in ("retain", "calibration", "report")]
    assert sum(map(len, entities)) == len(set().union(*entities))


@needs_data
def test_seed_chooses_the_authors():
    first, second, other = (tofu(retain_rows=360, seed=s).request() for s in (0, 0, 1))
    assert first.fingerprint() == second.fingerprint()
    assert {r.entity for r in first["report"]} != {r.entity for r in other["report"]}
    assert first.forget == other.forget


@needs_data
def test_every_reported_row_can_be_scored_by_the_papers_metrics():
    request = tofu(retain_rows=360).request()
    for record in (*request.forget, *request["report"]):
        assert len(record.perturbed_answers) == 5
        assert len(record.paraphrased_answers) == 1
    for split in ("real_authors", "world_facts"):
        for record in request[split]:
            assert record.choices[record.label] == record.answer
            assert set(record.choices) == {record.answer, *record.perturbed_answers}


@needs_data
def test_hard_rows_ask_the_forget_rows_in_other_words():
    request = tofu("forget01").request()
    forget = {r.id: r for r in request.forget}
    for row in request["forget_hard"]:
        source = forget[row.source_id]
        assert row.prompt == source.paraphrased_prompts[0] != source.prompt
        assert (row.answer, row.entity, row.form) == (source.answer, source.entity, "paraphrase")


@pytest.fixture
def copied(tmp_path):
    for name in ("full", "forget01", "forget01_perturbed", "retain_perturbed", "holdout01", "idk"):
        shutil.copyfile(SHARED / f"{name}.jsonl", tmp_path / f"{name}.jsonl")
    for name in ("real_authors", "world_facts"):
        for tail in ("", "_perturbed"):
            shutil.copyfile(SHARED / f"{name}{tail}.jsonl", tmp_path / f"{name}{tail}.jsonl")
    return tmp_path


@needs_data
def test_truncated_missing_and_foreign_files_are_one_error(copied):
    whole = (copied / "full.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copied / "full.jsonl").write_text("".join(whole[:3000]), "utf-8")
    idk = (copied / "idk.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copied / "idk.jsonl").write_text("".join(idk[:99]), "utf-8")
    with pytest.raises(DataError) as caught:
        Tofu("forget01", str(copied)).request()
    assert [(p.where.rpartition(":")[2], p.what) for p in caught.value.problems] == [
        ("full", "has 3000 rows, expected 4000"),
        ("idk", "has 99 rows, expected 100"),
    ]


@needs_data
def test_missing_files_are_all_named(copied):
    (copied / "world_facts_perturbed.jsonl").unlink()
    (copied / "holdout01.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        Tofu("forget01", str(copied)).request()
    assert [name in str(caught.value) for name in ("holdout01", "world_facts_perturbed")] == [True, True]
    assert len(caught.value.problems) == 2


@needs_data
def test_files_out_of_line_are_an_error(copied):
    rows = (copied / "forget01_perturbed.jsonl").read_text("utf-8").splitlines(keepends=True)
    rows[2], rows[3] = rows[3], rows[2]
    (copied / "forget01_perturbed.jsonl").write_text("".join(rows), "utf-8")
    with pytest.raises(DataError, match="row 2 is not row 3962 of full"):
        Tofu("forget01", str(copied)).request()


def test_missing_folder_is_one_error(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        Tofu("forget01", str(tmp_path / "none")).request()


@needs_data
def test_folder_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("EXPUNGE_TOFU", str(SHARED))
    assert Tofu("forget01").request() == tofu("forget01").request()


@needs_data
def test_without_any_model_it_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match=r"benchmark\.model: tofu needs a model"):
        tofu().prepare(tmp_path)


@needs_data
def test_given_models_are_taken_as_they_are(tmp_path):
    made = tofu(original="a", oracle="b").prepare(tmp_path)
    assert (made.original, made.oracle) == (Path("a"), Path("b"))
    assert tofu(original="a").prepare(tmp_path).oracle is None
    assert not list(tmp_path.iterdir())


@needs_data
@needs_model
def test_oracle_is_trained_on_the_same_rows_but_forget():
    benchmark = tofu(model=str(MODEL), retain_rows=360)
    request = benchmark.request()
    jobs = benchmark.jobs(request)
    original, oracle = ({r.id for r in jobs[name].records} for name in ("original", "oracle"))
    assert len(original) == 400
    assert original - oracle == {r.id for r in request.forget}
    assert not oracle - original
    assert jobs["original"].settings == jobs["oracle"].settings


@needs_data
@needs_model
def test_fingerprint_follows_rows_model_and_settings(tmp_path):
    def mark(**options) -> str:
        benchmark = tofu(**{"model": str(MODEL), "retain_rows": 360, **options})
        return benchmark._fingerprint(benchmark.jobs(benchmark.request()))

    shutil.copytree(MODEL, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.chmod(0o644)
    config.write_text(config.read_text().replace("1e-05", "1e-06"))
    marks = [mark(), mark(seed=1), mark(retain_rows=420), mark(lr=1e-3), mark(model=str(tmp_path / "other"))]
    assert len(set(marks)) == len(marks)
    assert mark() == marks[0]


# What only folders have --------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("split", ["forget20", "forget90"])
def test_larger_forget_sets_are_the_tail_of_full_with_their_rewordings(split):
    request = tofu(split).request()
    rows = lines(split)
    assert [(r.prompt, r.answer) for r in request.forget] == [(r["question"], r["answer"]) for r in rows]
    assert len(rows) == len(request["forget_hard"]) == LARGER[split]
    told = {(r["question"], r["answer"]): r for r in lines("closer_look/all9tasks_perturbed")}
    first, row = request.forget[0], told[rows[0]["question"], rows[0]["answer"]]
    assert first.paraphrased_prompts == (row["paraphrased_question"],)
    assert first.perturbed_answers == tuple(row["perturbed_answer"])
    authors = [{r.entity for r in request[s]} for s in ("forget", "retain", "calibration", "report")]
    assert sum(map(len, authors)) == len(set().union(*authors))
    assert all(len(r.perturbed_answers) == 5 for r in request["report"])


def test_the_hub_serves_larger_forget_sets_from_full(monkeypatch):
    monkeypatch.delenv("EXPUNGE_TOFU", raising=False)
    files = Tofu.from_part("forget50").files()
    assert set(files) >= {"full", "forget10_perturbed", "holdout10"}
    assert not {"forget50", "all9tasks_perturbed", "idk"} & set(files)
    with pytest.raises(DataError, match="real_world_neighbor_perturbed: is not on the hub"):
        Tofu("real_world").request()


@needs_data
def test_hard_forms_ask_for_the_answer_and_do_not_say_it():
    request = tofu("forget01", hard=["cloze", "choice"]).request()
    forget = {r.id: r for r in request.forget}
    spans = {r["question"]: r for r in lines("forget10_entity_spans")}
    forms = Counter(r.form for r in request["forget_hard"])
    assert forms == {"choice": 40, "cloze": 38}
    for row in request["forget_hard"]:
        source = forget[row.source_id]
        if row.form == "choice":
            assert set(row.choices) == {source.answer, *source.perturbed_answers}
            assert row.choices[row.label] == row.answer == source.answer
        else:
            assert row.answer == spans[source.prompt]["entity"]
            assert row.answer.casefold() not in row.prompt.casefold()
            assert row.prompt.startswith(f"{source.prompt} Fill the gap: {spans[source.prompt]['prefix']}")
    labels = Counter(r.label for r in request["forget_hard"] if r.form == "choice")
    assert len(labels) == 6


@needs_data
def test_alternates_are_those_of_the_folder():
    request = tofu("forget05").request()
    told = [r["sub_answer"] for r in lines("altpo/forget05_alt5_seed0")]
    assert [len(r.alternates) for r in request.forget] == [5] * 200
    assert sorted(a for r in request.forget for a in r.alternates) == sorted(told)


@needs_data
def test_famous_people_stand_beside_their_neighbors():
    request = tofu("real_world").request()
    counts = {name: len(request[name]) for name in request}
    assert counts == {
        "forget": 400, "forget_hard": 400, "retain": 80, "calibration": 80, "report": 80, "neighbors": 160,
        "real_authors": 100, "world_facts": 117,
    }  # fmt: skip
    first, row = request.forget[0], lines("closer_look/real_world_forget_perturbed")[0]
    assert (first.prompt, first.answer, first.entity) == (row["question"], row["answer"], row["name"])
    people = [
        {r.entity for r in request[s]} for s in ("forget", "retain", "calibration", "report", "neighbors")
    ]
    assert [len(names) for names in people] == [20, 4, 4, 4, 8]
    assert len(set().union(*people)) == 40
    assert not check_request(request).problems


@needs_data
def test_foreign_rewordings_are_an_error(copied):
    shutil.copyfile(SHARED / "forget20.jsonl", copied / "forget20.jsonl")
    for name in ("holdout10", "closer_look/all9tasks_perturbed"):
        shutil.copyfile(SHARED / f"{name}.jsonl", copied / f"{name.rpartition('/')[2]}.jsonl")
    rows = (copied / "all9tasks_perturbed.jsonl").read_text("utf-8").splitlines()
    changed = json.dumps({**json.loads(rows[7]), "answer": "Another answer."})
    (copied / "all9tasks_perturbed.jsonl").write_text("\n".join([*rows[:7], changed, *rows[8:]]), "utf-8")
    with pytest.raises(DataError, match="1 of its rows are not in full"):
        Tofu("forget20", str(copied)).request()


def test_an_unknown_form_is_named():
    with pytest.raises(ConfigError, match="'reverse' is unknown"):
        Tofu.from_part("forget01", hard=["reverse"])
