"""Formatting, the terminal summary and the side-by-side view."""

import doctest
import io

import pytest
import synthetic_scorecards as made
from rich.console import Console

from expunge.errors import DataError
from expunge.reports import find_record, formatting, markdown, print_record, print_summary, words


@pytest.mark.parametrize("module", [formatting, markdown, words], ids=lambda m: m.__name__)
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (1.0, "1.000"),
        (0.0004, "4.0e−4"),
        (0.0005, "0.001"),
        (9.9994, "9.999"),
        (10.0, "10.0"),
        (999.94, "999.9"),
        (12345.6, "12,346"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
        (float("nan"), "NaN"),
        (None, "n/a"),
    ],
)
def test_number(value, text):
    assert formatting.number(value) == text


def test_missing_amounts_are_na():
    assert {
        f(None) for f in (formatting.amount, formatting.duration, formatting.byte_size, formatting.operations)
    } == {"n/a"}
    assert formatting.interval(float("nan"), 1.0) == ""


def test_every_verdict_and_model_has_words():
    from expunge.audit.scorecard import Verdict

    for word in Verdict.model_fields["word"].annotation.__args__:
        tone, sentence = words.verdict_meaning(word)
        assert tone in ("good", "caution", "bad")
        assert sentence.endswith(".")
    assert all(map(words.model_meaning, words.MODELS))


def summary(card, **options) -> str:
    out = io.StringIO()
    print_summary(card, Console(file=out, width=80, **options), made_path := "runs/person-042/report.html")
    assert made_path in out.getvalue()
    return out.getvalue()


@pytest.mark.parametrize("name", ["good", "no_oracle", "collapsed", "hostile", "empty"])
def test_summary_fits_80_columns_without_a_tty(name):
    text = summary(getattr(made, name)())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert getattr(made, name)().verdict.word.upper() in text


def test_summary_says_what_matters():
    text = " ".join(summary(made.good()).split())
    assert "extraction strength · forget ↓ 0.962 0.021 0.062 0.034" in text
    assert "α = 0.500" in text
    assert "bar 0.903" in text
    assert "benign (lr 0.001, data retain), recovery 0.440" in text
    assert "Requirement not met: forget_above_oracle" in summary(made.collapsed())


def test_summary_survives_an_ascii_terminal():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_summary(made.collapsed(), Console(file=raw, width=80))
    raw.flush()
    assert b"extraction strength - forget v" in raw.buffer.getvalue()


def test_record_side_by_side():
    card = made.good(shows_text=True)
    out = io.StringIO()
    print_record(find_record(card, card.records[0].id[:8]), Console(file=out, width=80))
    text = out.getvalue()
    assert text.index("original") < text.index("controlled") < text.index("oracle")
    assert "original says: She keeps bees 0." in text
    assert "leaks" in text


def test_record_cannot_steer_the_terminal():
    record = (
        made.good(records=1)
        .records[0]
        .model_copy(update={"generated": {"controlled": "\x1b]0;x\x07[bold]no"}})
    )
    out = io.StringIO()
    print_record(record, Console(file=out, width=80))
    assert "\x1b" not in out.getvalue()
    assert "[bold]no" in out.getvalue()


def test_unknown_record_is_an_input_error():
    card = made.good(records=3)
    with pytest.raises(DataError, match="no such record"):
        find_record(card, "zzz")
    twins = card.model_copy(
        update={"records": [r.model_copy(update={"id": f"ab{i}"}) for i, r in enumerate(card.records)]}
    )
    with pytest.raises(DataError, match="3 records begin so"):
        find_record(twins, "ab")
