"""What write_reports leaves in a folder."""

import json
import re

import jsonschema
import pytest
import synthetic_scorecards as made
import yaml

from expunge.audit.scorecard import Scorecard
from expunge.errors import ConfigError
from expunge.reports import charts, page, write_reports
from expunge.reports.files import sha256, write_text
from expunge.reports.model_card import SCHEMA_PATH, front_matter, render_model_card
from expunge.reports.page import render_html
from expunge.reports.schema_doc import schema_markdown
from expunge.reports.tables import report_tables

VARIANTS = ("good", "no_oracle", "collapsed", "hostile", "empty")
CSV = (
    "scores",
    "scope",
    "checks",
    "trade_off",
    "alpha_curve",
    "tau_sweep",
    "attacks",
    "relearning",
    "training",
    "records",
    "cost",
)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_html(getattr(made, name)(), scorecard_hash="ab" * 32) for name in VARIANTS}


def test_writes_every_file_and_no_temporary_one(tmp_path):
    card = made.good()
    files = write_reports(card, tmp_path)
    expected = {
        "report.html",
        "report.md",
        "scorecard.json",
        "MODEL_CARD.md",
        *(f"csv/{name}.csv" for name in CSV),
    }
    assert set(files) == expected
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == expected
    assert sha256(files["scorecard.json"]) in files["report.html"].read_text(encoding="utf-8")
    assert Scorecard.read(files["scorecard.json"]).verdict == card.verdict


def test_keeps_the_scorecard_that_is_there_and_refuses_another(tmp_path):
    target = tmp_path / "scorecard.json"
    target.write_text(
        json.dumps(json.loads(made.good().model_dump_json()))
    )  # other white space, same content
    before = target.read_bytes()
    write_reports(made.good(), tmp_path)
    assert target.read_bytes() == before
    with pytest.raises(ConfigError, match="another scorecard"):
        write_reports(made.good("someone-else"), tmp_path)
    assert target.read_bytes() == before
    write_reports(made.good("someone-else"), tmp_path, replace_scorecard=True)
    assert Scorecard.read(target).name == "someone-else"


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", VARIANTS)
def test_page_is_small_and_loads_nothing(pages, name):
    html = pages[name]
    assert len(html.encode()) < 1_500_000
    assert not re.findall(r"https?://|@import|<link|<iframe|url\(", html)
    # The only attributes that could load something are fragments of the page itself.
    assert all(target.startswith("#") for target in re.findall(r"(?<![\w-])(?:src|href)=\"([^\"]*)", html))


def test_page_stays_small_with_many_records_and_says_so():
    html = render_html(made.good(records=6000, shows_text=True))
    assert len(html.encode()) < 1_500_000
    assert re.search(r"The page shows [\d,]+ of 6,000 records, leaking ones first", html)


def test_hostile_strings_are_escaped_everywhere(pages, tmp_path):
    html = pages["hostile"]
    assert html.count("<script>") == 1  # our own
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    files = write_reports(made.hostile(), tmp_path)
    for name in ("report.md", "MODEL_CARD.md"):
        body = files[name].read_text(encoding="utf-8").split("\n---\n")[-1]
        assert "<script>" not in body
        assert "<img" not in body


def test_spreadsheets_get_no_formula():
    record = made.good(records=1, shows_text=True).records[0].model_copy(update={"answer": "=HYPERLINK(1)"})
    text = report_tables(made.good(shows_text=True).model_copy(update={"records": [record]}))["records"].csv()
    assert "'=HYPERLINK(1)" in text


@pytest.mark.parametrize("shows_text", [False, True])
def test_forget_text_appears_only_when_asked(tmp_path, shows_text):
    files = write_reports(made.good(shows_text=shows_text), tmp_path)
    shown = {name for name, path in files.items() if made.SECRET in path.read_text(encoding="utf-8")}
    assert shown == ({"report.html", "scorecard.json", "csv/records.csv"} if shows_text else set())


def test_every_plot_is_drawn_from_the_rows_of_its_csv(tmp_path, monkeypatch):
    drawn: dict[str, list] = {}
    for name in ("trade_off", "alpha_curve", "recovery", "relearning", "series"):
        monkeypatch.setattr(
            charts, name, lambda rows, *a, _n=name, **k: drawn.setdefault(_n, []).extend(rows) or "<svg/>"
        )
    monkeypatch.setattr(page, "CURVE_PANELS", 99)
    files = write_reports(made.good(), tmp_path)
    for plot, stem in (
        ("trade_off", "trade_off"),
        ("alpha_curve", "alpha_curve"),
        ("recovery", "attacks"),
        ("relearning", "relearning"),
    ):
        written = made.read_csv(files[f"csv/{stem}.csv"])
        assert len(written) == len(drawn[plot])
        for row, own in zip(written, drawn[plot], strict=True):
            numbers = {k: v for k, v in own.items() if isinstance(v, float)}
            assert numbers
            assert {k: float(row[k]) for k in numbers} == numbers
    training = made.read_csv(files["csv/training.csv"])
    assert [int(r["step"]) for r in training] == [r["step"] for r in drawn["series"][: len(training)]]


def test_csv_has_a_header_even_when_empty(tmp_path):
    files = write_reports(made.empty(), tmp_path)
    for name in CSV:
        lines = files[f"csv/{name}.csv"].read_text().splitlines()
        assert len(lines) == 1
        assert "," in lines[0]


def test_missing_numbers_are_na_with_their_reason(pages):
    html = pages["no_oracle"]
    assert "there is no oracle to compare with" in html
    assert "every record was skipped: no holdout" in html
    assert "the attack ruins the original too" in html
    assert "No oracle was given" in html
    assert re.search(r">n/a<sup><a href=\"#note-\d+\"", html)
    assert "∞" in pages["collapsed"]
    assert "did not survive control" in pages["collapsed"]
    assert "0.000" not in pages["empty"]


def test_verdict_has_word_sign_and_sentence(pages):
    for name, tone, word in (("good", "caution", "suppressed"), ("collapsed", "bad", "collapsed")):
        block = pages[name].split('class="verdict')[1].split("</section>")[0]
        assert block.startswith(f" {tone}")
        assert word in block
        assert 'class="sign"' in block
    assert "Requirement not met" in pages["collapsed"]


def test_tables_are_accessible(pages):
    for table in re.findall(r"<table.*?</table>", pages["good"], re.S):
        assert "<caption>" in table
        assert all("scope=" in head for head in re.findall(r"<th[\s>][^>]*>?", table))
    plots = re.findall(r"<svg[^>]*>", pages["good"])
    assert len(plots) > 8
    assert all('role="img"' in plot and "aria-label=" in plot for plot in plots)


@pytest.mark.parametrize("name", VARIANTS)
def test_front_matter_validates(name):
    card = getattr(made, name)()
    text = render_model_card(card, scorecard_hash="ab" * 32)
    matter = yaml.safe_load(text.split("---\n")[1])
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(matter, schema)
    assert matter["expunge"]["verdict"] == card.verdict.word
    broken = {**matter, "expunge": {**matter["expunge"], "verdict": "fine"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_base_model_is_a_hub_id_or_absent():
    assert "base_model" not in front_matter(made.good())  # ./my-model is a local folder
    card = made.good(recipe={"model": "some-lab/some-model"})
    assert front_matter(card)["base_model"] == "some-lab/some-model"


def test_schema_page_is_up_to_date(request):
    path = request.config.rootpath / "docs" / "scorecard.md"
    assert path.read_text(encoding="utf-8") == schema_markdown(), (
        "run: python -m expunge.reports.schema_doc > docs/scorecard.md"
    )
