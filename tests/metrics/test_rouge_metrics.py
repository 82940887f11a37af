"""ROUGE on generated text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import forget, row

from expunge.metrics import compute
from expunge.metrics.rouge import rouge


def score(name, answer, generated):
    return compute(name, forget(row(0.5, 0.5, answer=answer, generated=generated)), "forget")


def test_rouge_example():
    pair = ("the cat sat on the mat", "the mat the cat sat")
    assert score("rouge1_recall", *pair).value == pytest.approx(0.833333, abs=1e-6)
    assert rouge("rouge1", *pair).precision == 1.0
    assert rouge("rouge1", *pair).fmeasure == pytest.approx(0.909091, abs=1e-6)
    assert score("rougeL_recall", *pair).value == 0.5
    assert rouge("rougeL", *pair).precision == pytest.approx(0.6)
    assert score("rougeL_f", *pair).value == pytest.approx(0.545455, abs=1e-6)


def test_rouge_argument_order():
    assert score("rougeL_recall", "one two three four", "one two").value == 0.5
    assert score("rougeL_recall", "one two", "one two three four").value == 1.0


@pytest.mark.parametrize(
    "text", ["Он родился в Киеве", "وُلد في القاهرة", "他出生在北京", "Ζει στην Αθήνα", "Æblegrød på Ærø"]
)
def test_rouge_non_latin_text_is_not_silently_zero(text):
    assert score("rougeL_recall", text, text).value == 1.0
    assert score("rouge1_recall", text, "nothing of it").value == 0.0


def test_case_and_punctuation_do_not_count():
    assert score("rougeL_f", "In Tarn, 1956.", "in tarn 1956").value == 1.0
    assert score("rouge1_recall", "snake_case", "snake case").value == 1.0


def test_empty_candidate_is_zero_and_answer_without_words_is_skipped():
    for name in ("rouge1_recall", "rougeL_recall", "rougeL_f"):
        assert score(name, "in Tarn", "").value == 0.0
        assert score(name, "…", "in Tarn").skipped == {"no_words_in_answer": 1}
        assert score(name, "in Tarn", None).skipped == {"not_generated": 1}


words = st.lists(st.sampled_from("ab"), min_size=1, max_size=8)


@given(words, words)
def test_rouge_l_equals_a_slow_longest_common_subsequence(reference, candidate):
    def lcs(a, b):
        if not a or not b:
            return 0
        return lcs(a[1:], b[1:]) + 1 if a[0] == b[0] else max(lcs(a[1:], b), lcs(a, b[1:]))

    got = score("rougeL_recall", " ".join(reference), " ".join(candidate)).value
    assert got == pytest.approx(lcs(reference, candidate) / len(reference))


def test_every_side_of_the_overlap_is_a_metric():
    pair = ("the cat sat on the mat", "the mat the cat sat")
    values = [
        score(name, *pair).value for name in ("rouge1_precision", "rouge1_f", "rougeL_precision", "rougeL_f")
    ]
    assert values == pytest.approx([1.0, 0.909091, 0.6, 0.545455], abs=1e-6)


def test_stemming_is_a_recorded_setting_and_off():
    evidence = forget(row(0.5, answer="running quickly", generated="runs quick"))
    plain, stemmed = (compute("rouge1_recall", evidence, "forget", stem=stem) for stem in (False, True))
    assert (plain.value, stemmed.value) == (0.0, 0.5)  # Porter: run, run; quickli, quick
    assert compute("rouge1_recall", evidence, "forget").settings == {"stem": False}
    assert stemmed.settings == {"stem": True}
    short = forget(row(0.5, answer="his", generated="hi"))
    assert compute("rouge1_recall", short, "forget", stem=True).value == 0.0
