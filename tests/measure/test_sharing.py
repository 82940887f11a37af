"""Answers that share their prompt's row are scored as they are alone."""

import numpy as np
import pytest
import torch

from expunge.data.batching import collate, collate_shared, shared_length
from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.measure import sharing
from expunge.measure.score import per_token, score_sheet
from expunge.measure.sharing import grouped
from expunge.measure.sheet import make_sheet
from expunge.subjects.forward import forward
from tiny_models import FAMILIES, make_subject

KINDS = ("gold", "paraphrased_prompt", "paraphrased_answer", "perturbed")
RECORDS = tuple(
    Record(
        f"r{i}", "", f"Where does person {i} live?", "By the lake.", paraphrased_prompts=("Home?",),
        paraphrased_answers=("At the lake",), perturbed_answers=("In a town.", "On a hill", "By the sea."),
    )
    for i in range(4)
)  # fmt: skip
WINDOWED = ("gemma2",)


def evidence(subject, shares):
    sharing._SHARES[subject.model] = shares
    return score_sheet(subject, make_sheet(subject.encoder, RECORDS, "forget", KINDS))


def rows_read(subject, shares):
    """Rows of every batch, and the answers in them."""
    sharing._SHARES[subject.model] = shares
    seen = []

    def read(batch):
        seen.append((len(batch), len(batch.num_tokens), int(batch.input_ids.numel())))
        return [np.zeros(len(batch.targets))]

    per_token(subject, make_sheet(subject.encoder, RECORDS, "forget", KINDS), read)
    return np.sum(seen, axis=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_gives_the_same_evidence(family):
    subject = make_subject(family)
    assert sharing.sharing(subject) == (family not in WINDOWED)
    found = evidence(subject, sharing.sharing(subject))
    for a, b in zip(found, evidence(subject, False), strict=True):
        assert (a.record_id, a.variant) == (b.record_id, b.variant)
        for name in ("logprobs", "vocab_mean", "vocab_std"):
            assert np.allclose(getattr(a, name), getattr(b, name), atol=2e-5)
        assert (a.greedy_ids == b.greedy_ids).all()
        assert (a.hits == b.hits).all()


def test_the_prompt_is_read_once():
    subject = make_subject()
    rows, answers, tokens = rows_read(subject, True)
    alone, same, more = rows_read(subject, False)
    assert (rows, answers) == (4 + 1, 4 * 6)  # the paraphrase asks all four the same
    assert (alone, same) == (4 * 6, 4 * 6)
    assert tokens < 0.8 * more


def test_divergence_to_a_reference_is_the_same():
    subject, reference = make_subject(), make_subject(seed=1)
    sheet = make_sheet(subject.encoder, RECORDS, "forget", KINDS)
    found = []
    for shares in (True, False):
        sharing._SHARES[subject.model] = sharing._SHARES[reference.model] = shares
        found.append([row.kl for row in score_sheet(subject, sheet, reference=reference)])
    for a, b in zip(*found, strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_an_answer_sees_no_other():
    model = make_subject().model.eval()
    one, two, other = (Encoded((5, 6, *tail), 2, False) for tail in ((7, 8), (9, 10, 11), (12,)))
    first = forward(model, collate_shared([[one, two]], 0, torch.float32)).logits
    second = forward(model, collate_shared([[other, two]], 0, torch.float32)).logits
    alone = forward(model, collate([two], 0)).logits
    assert torch.allclose(first[-3:], alone, atol=1e-5)
    assert torch.allclose(second[-3:], alone, atol=1e-5)


def test_groups_end_where_a_row_would_grow_too_long():
    windows = [Encoded((1, 2, *answer), 2, False) for answer in ((3,), (4, 5), (6,), (7, 8))]
    windows.insert(2, Encoded((9, 3), 1, False))
    windows.append(Encoded((4, 4), 0, False))  # a document shares nothing
    windows.append(Encoded((4, 5), 0, False))
    groups = grouped(windows, 1024, longest=6)
    assert groups == [[0, 1, 3], [2], [4], [5], [6]]
    assert [shared_length([windows[i] for i in g]) for g in groups] == [6, 2, 4, 2, 2]


def test_a_row_takes_no_answer_that_costs_more_attention_than_it_saves():
    prompt = tuple(range(10))
    windows = [Encoded((*prompt, *([1] * 100)), 10, False) for _ in range(6)]
    wide, narrow = (grouped(windows, width) for width in (8192, 16))
    assert wide == [[0, 1, 2, 3, 4, 5]]
    assert narrow == [[i] for i in range(6)]
    # the second answer: 210² − 110² = 32,000 against 6·w·10/3 + 110² = 20·w + 12,100
    assert grouped(windows[:2], 994) == [[0], [1]]
    assert grouped(windows[:2], 996) == [[0, 1]]


def test_windows_and_kernels_without_masks_do_not_share():
    windowed = make_subject()
    windowed.model.config.sliding_window = 4
    assert not sharing.sharing(windowed)
    flash = make_subject(seed=3)
    flash.model.config._attn_implementation = "flash_attention_2"
    assert not sharing.sharing(flash)
