"""What holds of every benchmark on published data that has files of its own."""

import shutil

import pytest
from published import DATA, MODEL, benchmark, needs, needs_model

from expunge.benchmarks import BENCHMARKS
from expunge.data.checks import check_request
from expunge.errors import ConfigError, DataError
from expunge.metrics import METRICS

NAMES = ["rwku", "lume", "knowundo", "pistol", "eval_du", "random_birthdays", "years"]
every = pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_paper_metrics_exist(name):
    cls = BENCHMARKS.get(name)
    assert {metric for metric, _ in cls.METRICS} <= set(METRICS.names())
    assert set(cls.card.fields) == {"parts", "data", "oracle", "needs", "source"}


@every
def test_splits_do_not_overlap_and_sources_are_there(name):
    assert not check_request(benchmark(name).request()).problems


@every
def test_the_same_seed_gives_the_same_request(name):
    again = BENCHMARKS.get(name).from_part(None, folder=str(DATA / name))
    again.__dict__["data"] = benchmark(name).data
    assert again.request().fingerprint() == benchmark(name).request().fingerprint()


@every
def test_metrics_are_of_splits_that_there_are(name):
    request = benchmark(name).request()
    asked = benchmark(name).metrics(request)
    assert asked
    assert all(split in request and METRICS.get(metric)().applies(split) for metric, split in asked)


@every
def test_cut_and_missing_files_are_one_error_without_a_word_of_them(name, tmp_path):
    files = list(benchmark(name).files())
    for path in (DATA / name).iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, tmp_path / path.name)
    lines = {file: (DATA / name / f"{file}.jsonl").read_text("utf-8").splitlines() for file in files}
    for file in files[1:]:
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines[file][:3]), "utf-8")
    with pytest.raises(DataError) as caught:
        BENCHMARKS.get(name).from_part(None, folder=str(tmp_path)).request()
    text = str(caught.value)
    assert f"no file of it is named {files[0]}" in text
    for file in files[1:]:
        if file in BENCHMARKS.get(name).from_part(None, folder=str(tmp_path)).files():
            assert f"{file}: has 3 rows, expected {len(lines[file])}" in text
    assert lines[files[1]][0][20:60] not in text


@every
@needs_model
def test_the_oracle_is_taught_all_but_what_is_to_go(name):
    made = benchmark(name, model=str(MODEL))
    request = made.request()
    jobs = made.jobs(request)
    original, oracle = ({r.id for r in jobs[model].records} for model in ("original", "oracle"))
    assert original - oracle == {r.id for split in made.LEARNED for r in request[split]}
    assert oracle >= {r.id for r in (*request.retain, *request["calibration"], *request["report"])}
    assert not original & {r.id for split in ("holdout", "utility") for r in request[split]}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parts_and_numbers_are_named(name, tmp_path):
    with pytest.raises(ConfigError) as caught:
        BENCHMARKS.get(name).from_part(None, retain_rows=1, batch=0)
    assert [p.where for p in caught.value.problems] == ["benchmark.retain_rows", "benchmark.batch"]
