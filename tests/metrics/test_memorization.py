"""Extraction strength and exact memorization: worked examples, brute force over every prefix, properties."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_evidence import forget, hit_row, row

from expunge.errors import NotComputable
from expunge.metrics import compute
from expunge.metrics.extraction_strength import strength, suffix_share

HITS = ("10110111", "1110", "111")
hits_lists = st.lists(st.booleans(), min_size=1, max_size=30).map(np.array)


def three():
    return forget(*(hit_row(h, f"r{i}") for i, h in enumerate(HITS)))


def test_extraction_strength_example():
    result = compute("extraction_strength", three(), "forget")
    assert list(result.per_record.values()) == [0.375, 0.0, 1.0]
    assert result.value == pytest.approx(0.458333, abs=1e-6)


def test_es_is_zero_not_one_over_n_when_last_token_is_missed():
    assert compute("extraction_strength", forget(hit_row("11111110")), "forget").value == 0.0


def test_es_counts_suffix_not_prefix():
    assert compute("extraction_strength", forget(hit_row("1110001")), "forget").value == pytest.approx(1 / 7)


def test_es_excludes_end_token():
    rambles = hit_row("1110", has_end=True)
    assert compute("extraction_strength", forget(rambles), "forget").value == 1.0
    assert compute("exact_memorization", forget(rambles), "forget").value == 1.0


def test_em_macro_average():
    result = compute("exact_memorization", three(), "forget")
    assert list(result.per_record.values()) == [0.75, 0.75, 1.0]
    assert result.value == pytest.approx(0.833333, abs=1e-6)


def test_em_keeps_last_token_of_documents():
    assert compute("exact_memorization", forget(hit_row("1110")), "forget").value == 0.75


def test_es_paraphrase_refuses_fallback():
    result = compute("extraction_strength_paraphrase", forget(hit_row("111")), "forget")
    assert result.value is None
    assert result.skipped == {"no_paraphrased_prompt": 1}


def test_paraphrased_prompt_is_not_paraphrased_answer():
    evidence = forget(
        hit_row("1111"),
        hit_row("1111", variant="paraphrased_answer:0"),
        hit_row("0111", variant="paraphrased_prompt:0"),
        hit_row("0000", variant="paraphrased_prompt:1"),
    )
    result = compute("extraction_strength_paraphrase", evidence, "forget")
    assert result.value == 0.375
    assert result.details["worst"] == 0.75


def test_strength_of_probes_equals_the_metric():
    hits = [r.hits for r in three()["forget"]]
    assert strength([*hits, np.zeros(0, bool)]) == compute("extraction_strength", three(), "forget").value
    with pytest.raises(NotComputable):
        strength([np.zeros(0, bool)])


def greedy(table, context, steps):
    """What a two-token Markov model writes after `context`."""
    text = list(context)
    for _ in range(steps):
        text.append(table[text[-2], text[-1]])
    return text[len(context) :]


@pytest.mark.parametrize("seed", range(25))
def test_es_equals_brute_force_over_every_prefix(seed):
    rng = random.Random(seed)
    table = {(a, b): rng.randrange(4) for a in range(4) for b in range(4)}
    for _ in range(8):
        prompt, n = [rng.randrange(4), rng.randrange(4)], rng.randrange(1, 12)
        # Answers the model half knows: its own text with some tokens changed.
        answer = [token if rng.random() < 0.85 else rng.randrange(4) for token in greedy(table, prompt, n)]
        text = prompt + answer
        hits = "".join(str(int(table[text[t], text[t + 1]] == text[t + 2])) for t in range(n))
        start = min(k for k in range(n + 1) if greedy(table, prompt + answer[:k], n - k) == answer[k:])
        assert compute("extraction_strength", forget(hit_row(hits)), "forget").value == (n - start) / n


@given(hits_lists)
def test_es_is_the_reverse_cumulative_product(hits):
    assert suffix_share(hits) == np.cumprod(hits[::-1].astype(int)).sum() / len(hits)


@given(hits_lists, st.data())
def test_es_never_falls_when_a_miss_becomes_a_hit_and_never_exceeds_em(hits, data):
    more = hits.copy()
    more[data.draw(st.integers(0, len(hits) - 1))] = True
    assert suffix_share(more) >= suffix_share(hits)
    assert suffix_share(hits) <= hits.mean() + 1e-12


def test_one_forgotten_token_leaves_probability_and_extraction_apart():
    # Greedy hits and likelihood are separate evidence: neither may stand in for the other.
    evidence = forget(row(0.9, 0.9, 0.9, 0.4, hits="1110", has_end=False))
    assert compute("extraction_strength", evidence, "forget").value == 0.0
    assert compute("probability", evidence, "forget").value > 0.7
