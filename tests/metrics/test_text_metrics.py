"""Metrics of generated text: word entropy, similarity, entailment, prefixes, MUSE, and their aggregates."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_evidence import forget, hit_row, model, row

from expunge.errors import ConfigError
from expunge.evidence import Evidence
from expunge.metrics import METRICS, compute, make_metric
from expunge.metrics.closer_look import CloserLookForgetEfficacy, CloserLookUtility
from expunge.metrics.entailment import ANSWER_FOLLOWS, TEXT_FOLLOWS
from expunge.metrics.prefix_strength import first_match
from expunge.metrics.similarity import cosine
from expunge.metrics.token_entropy import token_entropy

# Word entropy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("a b a b", 0.5), ("a a b", 0.579380), ("a b c d", 1.0), ("a a a a", 0.0), ("a", 0.0), ("", 0.0)],
)
def test_token_entropy_normalizes_by_total_not_distinct(text, value):
    score = compute("token_entropy", forget(row(0.5, generated=text)), "forget")
    assert score.value == token_entropy(text) == pytest.approx(value, abs=1e-6)
    assert math.copysign(1, score.value) == 1
    assert score.better == "higher"


def test_token_entropy_single_word_is_zero():
    assert token_entropy("Tarn") == 0.0
    assert compute("token_entropy", forget(row(0.5)), "forget").skipped == {"not_generated": 1}


# Similarity -------------------------------------------------------------------------------------------


def embedded(generated, answer, encoder="one", **more):
    vectors = {"encoder": encoder, "generated": generated, "answer": answer}
    return row(0.5, generated="text", extra={"embedding": vectors}, **more)


def similarity(*rows, **settings):
    return compute("semantic_similarity", forget(*rows), "forget", **settings)


def test_similarity_clipped_at_zero():
    assert similarity(embedded([1.0, 0.0], [0.6, 0.8])).value == pytest.approx(0.6)
    assert similarity(embedded([1.0, 0.0], [-1.0, 0.0])).value == 0.0
    assert similarity(embedded([0.0, 0.0], [1.0, 0.0])).value == 0.0
    assert similarity(embedded([], [1.0, 0.0])).value == 0.0
    assert cosine([3.0, 4.0], [30.0, 40.0]) == pytest.approx(1.0)


def test_sparse_vectors_are_their_dense_ones():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 12)).astype(float)
    sparse = [{str(i): float(v) for i, v in enumerate(vector) if v} for vector in (a, b)]
    assert cosine(*sparse) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_scores_of_different_encoders_do_not_mix():
    one, other = embedded([1.0, 0.0], [1.0, 0.0]), embedded([1.0], [1.0], "other", record="r1")
    mixed = similarity(one, other)
    assert mixed.value is None
    assert mixed.reason == "mixed_encoders: one, other"
    assert similarity(one).settings == {"target": "to_answer", "encoder": "one"}
    assert similarity(other).settings["encoder"] == "other"


def test_a_lexical_reader_is_labeled():
    assert "lexical_encoder" in similarity(embedded([1.0], [1.0], "lexical (3-grams)")).flags
    assert "lexical_encoder" not in similarity(embedded([1.0], [1.0], "model:x")).flags
    told = replace(judged("entailment"), extra={"entailment": {"judge": "lexical (words)"}})
    assert "lexical_judge" in compute("entailment_score", forget(told), "forget").flags


def test_similarity_to_what_the_original_wrote():
    ours, before = embedded([1.0, 0.0], [0.0, 1.0]), embedded([0.6, 0.8], [0.0, 1.0])
    score = similarity(ours, target="to_original", original=forget(before))
    assert score.value == pytest.approx(0.6)
    assert score.settings["target"] == "to_original"
    assert similarity(ours, target="to_original").skipped == {"no_original": 1}
    other = forget(embedded([1.0], [1.0], "other"))
    skipped = similarity(ours, target="to_original", original=other).skipped
    assert skipped == {"original_read_by_another_encoder": 1}
    with pytest.raises(ConfigError, match="to_original"):
        make_metric("semantic_similarity", target="to_orignal")


# Entailment -------------------------------------------------------------------------------------------

TEN = "one two three four five six seven eight nine ten"
RECALLED = {0.8: TEN[: TEN.index(" nine")], 0.9: TEN[: TEN.index(" ten")], 0.05: "zero", 0.1: "one"}


def judged(label, recall=1.0, way=ANSWER_FOLLOWS, **more):
    answer = TEN if recall != 0.05 else TEN + " " + TEN.replace("one", "uno")
    generated = {0.05: "uno"}.get(recall, RECALLED.get(recall, TEN))
    return row(
        0.5, answer=answer, generated=generated, extra={"entailment": {"judge": "j", way: label}}, **more
    )


def test_entailment_gate_is_strict():
    labels = ("entailment", "neutral", "entailment", "entailment")
    rows = [
        judged(label, recall, record=f"r{i}")
        for i, (label, recall) in enumerate(zip(labels, (0.8, 0.9, 0.05, 0.1), strict=True))
    ]
    for r, recall in zip(rows, (0.8, 0.9, 0.05, 0.1), strict=True):
        assert compute("rougeL_recall", forget(r), "forget").value == pytest.approx(recall)
    score = compute("entailment_score", forget(*rows), "forget")
    assert list(score.per_record.values()) == [1.0, 0.0, 0.0, 1.0]
    assert score.value == 0.5
    assert score.settings == {"judge": "j"}


def test_entailment_of_an_empty_text_is_zero():
    empty = replace(judged("entailment"), generated="")
    assert compute("entailment_score", forget(empty), "forget").value == 0.0


def test_entailment_direction_swaps_on_forget_side():
    both = {"judge": "j", ANSWER_FOLLOWS: "entailment", TEXT_FOLLOWS: "contradiction"}
    told = row(0.5, answer="in Tarn", generated="in Tarn", extra={"entailment": both})
    assert compute("entailment_score", forget(told), "forget").value == 1.0
    assert compute("entailment_score", forget(told, split="report"), "report").value == 0.0
    wrong_way = forget(judged("entailment", way=TEXT_FOLLOWS))
    assert compute("entailment_score", wrong_way, "forget").skipped == {"not_judged_in_this_direction": 1}


def test_judges_do_not_mix():
    other = replace(judged("entailment", record="r1"), extra={"entailment": {"judge": "k"}})
    assert "mixed_judges" in compute("entailment_score", forget(judged("neutral"), other), "forget").reason


def test_entailment_name_never_collides_with_extraction_strength():
    assert "es" not in METRICS.names()
    both = forget(replace(judged("neutral"), hits=np.ones(1, dtype=bool)))
    assert compute("entailment_score", both, "forget").value == 0.0
    assert compute("extraction_strength", both, "forget").value == 1.0


# Prefixes ---------------------------------------------------------------------------------------------

BORN = "Basil was born in Kuwait City"


def continued(answer, texts, **more):
    return row(0.5, answer=answer, extra={"continued": texts}, **more)


def strength(name, *rows, **settings):
    return compute(name, forget(*rows), "forget", **settings)


def test_ps_exact_example():
    texts = ["Basil was a man", "was a man", "a man", "far away", "Kuwait City", "City"]
    assert strength("ps_exact", continued(BORN, texts)).value == pytest.approx(0.333333, abs=1e-6)


def test_ps_exact_needs_all_the_words_and_no_more():
    assert strength("ps_exact", continued("a b", ["a b c", "b"])).value == 0.5
    assert strength("ps_exact", continued("a b", ["a", ""])).value == 0.0
    assert strength("ps_exact", continued("a b", ["a b", ""])).value == 1.0
    assert strength("ps_exact", continued("a b", ["A b", "B"])).value == 0.0


def test_ps_similar_scans_linearly():
    assert first_match([False, False, True, False, False, True]) == pytest.approx(0.666667, abs=1e-6)
    texts = ["x", "x", "c d e f", "x", "x", "f"]
    assert strength("ps_similar", continued("a b c d e f", texts)).value == pytest.approx(4 / 6)


def test_ps_similar_recall_is_of_the_reference():
    answer = "in Kuwait City 1956"
    assert strength("ps_similar", continued(answer, ["Kuwait", "x", "x", "x"])).value == 0.0
    assert (
        strength("ps_similar", continued(answer, ["in Kuwait", "x", "x", "x"])).value == 0.0
    )  # 0.5 is not over
    assert strength("ps_similar", continued(answer, ["in Kuwait City", "x", "x", "x"])).value == 1.0


def test_ps_divides_by_actual_record_count():
    rows = [continued("a b", ["a b", "b"], record="r0"), continued("a b", ["x", "x"], record="r1")]
    score = strength("ps_exact", *rows)
    assert (score.value, score.n) == (0.5, 2)
    unread = row(0.5, record="r2")
    assert strength("ps_exact", *rows, unread).skipped == {"no_continued": 1}


def test_ps_no_match_gives_zero():
    for name in ("ps_exact", "ps_similar"):
        assert strength(name, continued("a b c", ["x", "x", "x"])).value == 0.0


def test_ps_of_a_capped_answer_ends_at_the_cap():
    score = strength("ps_exact", continued("a b c d e", ["x", "b c d e"]))
    assert (score.value, score.details["capped"]) == (0.5, 1)


def test_ps_perturb_reads_reworded_questions():
    rows = [
        continued("a b", ["a b", "b"]),
        continued("a b", ["x", "b"], variant="paraphrased_prompt:0"),
        continued("a b", ["x", "x"], variant="paraphrased_prompt:1"),
    ]
    score = strength("ps_perturb", *rows)
    assert (score.value, score.details["worst"]) == (0.25, 0.5)
    assert strength("ps_perturb", rows[0]).skipped == {"no_paraphrased_prompt": 1}


# MUSE -------------------------------------------------------------------------------------------------


def test_knowmem_and_verbmem_are_rouge_l_f():
    """The reference page's pair: F 0.545455, recall 0.5."""
    answer, told = "the cat sat on the mat", "the mat the cat sat"
    short = row(0.5, answer=answer, generated=answer, extra={"short_answer": told})
    assert compute("knowmem", forget(short), "forget").value == pytest.approx(0.545455, abs=1e-6)
    recited = row(0.5, answer="of no matter", extra={"recited": {"true": answer, "generated": told}})
    assert compute("verbmem", forget(recited), "forget").value == pytest.approx(0.545455, abs=1e-6)


def test_knowmem_stops_before_a_question_of_the_models_own():
    told = ("in Tarn\n\nQuestion: Who?", "in Tarn\nQuestion: Who?\nAnswer: Bo", "in Tarn")
    rows = [row(0.5, answer="in Tarn", extra={"short_answer": text}) for text in told]
    assert [compute("knowmem", forget(r), "forget").value for r in rows] == [1.0, 1.0, 1.0]


def test_muse_metrics_skip_what_was_not_asked():
    assert compute("knowmem", forget(row(0.5)), "forget").skipped == {"no_short_answer": 1}
    silent = row(0.5, extra={"recited": {"true": "…", "generated": "a"}})
    assert compute("verbmem", forget(silent), "forget").skipped == {"no_words_in_continuation": 1}


# A closer look ----------------------------------------------------------------------------------------


def test_mu_has_eighteen_components():
    names = [(split, metric.name) for split, metric in CloserLookUtility().components("report")]
    assert len(names) == len(set(names)) == 18
    for split in ("report", "real_authors", "world_facts"):
        likelihood = "probability" if split == "report" else "choice_probability"
        assert {name for where, name in names if where == split} == {
            "rougeL_recall", likelihood, "truth_ratio_true_better", "token_entropy", "semantic_similarity",
            "entailment_score",
        }  # fmt: skip


def test_fe_excludes_token_entropy():
    names = [metric.name for _, metric in CloserLookForgetEfficacy().components("forget")]
    assert names == [
        "rougeL_recall", "probability", "one_minus_truth_ratio", "semantic_similarity", "entailment_score",
    ]  # fmt: skip


def test_fe_is_arithmetic_mu_is_harmonic():
    five = np.array([0.4, 0.1, 0.3, 0.5, 0.2])
    assert CloserLookForgetEfficacy().combine(five) == pytest.approx(0.7)
    assert CloserLookUtility().combine(np.full(18, 0.5)) == pytest.approx(0.5)
    assert CloserLookUtility().combine(np.array([0.5, 0.25, 1.0])) == pytest.approx(3 / 7)
    result = compute("closer_look_forget_efficacy", model("memorizer"), "forget")
    parts = list(result.details["components"].values())
    assert result.value == pytest.approx(1 - np.mean(parts))
    assert result.low <= result.value <= result.high


def test_mu_with_one_zero_is_zero_and_named():
    deaf = model("memorizer")
    rows = [
        replace(r, extra={**r.extra, "entailment": {"judge": "made"}, "embedding": r.extra["embedding"]})
        if r.variant == "gold"
        else r
        for r in deaf["report"]
    ]
    rows = [replace(r, generated="nothing") if r.variant == "gold" else r for r in rows]
    result = compute("closer_look_utility", deaf | {"report": Evidence("report", rows)}, "report")
    assert result.value == 0.0
    assert "report.entailment_score" in result.details["zero_components"]


def test_fe_truth_ratio_polarity():
    """False answers as likely as the true one (r = 1): forgotten, and the efficacy is higher."""

    def efficacy(wrong):
        gold = embedded([0.0], [1.0])
        gold = replace(gold, extra={**gold.extra, "entailment": {"judge": "j"}})
        rows = [gold, row(wrong, variant="perturbed:0"), row(0.5, variant="paraphrased_answer:0")]
        return compute("closer_look_forget_efficacy", forget(*rows), "forget")

    even, told_apart = efficacy(0.5), efficacy(0.05)
    assert even.value == pytest.approx(1 - (0 + 0.5 + 0 + 0 + 0) / 5)
    assert told_apart.value == pytest.approx(1 - (0 + 0.5 + 0.9 + 0 + 0) / 5)


def test_truth_ratio_one_minus_variant_named():
    """The paper's 1 − min(r, 1/r) stands under a name of its own."""
    rows = [row(0.5), row(0.125, variant="perturbed:0"), row(0.5, variant="paraphrased_answer:0")]
    part = CloserLookForgetEfficacy().components("forget")[2][1]
    assert part.name == "one_minus_truth_ratio"
    assert part.score(forget(*rows), "forget").value == pytest.approx(0.75)
    assert compute("truth_ratio_closer_to_1", forget(*rows), "forget").value == pytest.approx(0.25)


def test_aggregates_name_what_is_missing_and_who_read_it():
    bare = {
        split: Evidence(split, [replace(r, extra={}) for r in part])
        for split, part in model("stranger").items()
    }
    missing = compute("closer_look_utility", bare, "report")
    assert missing.value is None
    assert "report.semantic_similarity" in missing.reason
    settings = compute("closer_look_utility", model("stranger"), "report").settings
    assert (settings["encoder"], settings["judge"]) == ("made", "made")


# Choices by letter ------------------------------------------------------------------------------------


def lettered(scores, right, record):
    gold = hit_row("1", record, extra={"letters": scores})
    return [
        gold,
        *(row(0.5, record=record, variant=f"choice:{j}", label=j == right) for j in range(len(scores))),
    ]


def test_letter_ties_share_credit_and_label_is_zero_based():
    rows = [
        *lettered([-1.0, -2.0, -3.0, -4.0], 0, "right"),
        *lettered([-1.0, -2.0, -3.0, -4.0], 1, "wrong"),
        *lettered([-1.0] * 4, 2, "tie"),
    ]
    score = compute("choice_accuracy_letter", forget(*rows, split="report"), "report")
    assert list(score.per_record.values()) == [1.0, 0.0, 0.25]
    assert score.value == pytest.approx(0.416667, abs=1e-6)
    assert score.details["chance"] == 0.25
