"""Read-outs by layer: lens, tuned lens, probe, depth profile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny_models import FAMILIES, make_subject, some_records, some_words

from expunge.data.batching import collate
from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.errors import ConfigError, NotComputable
from expunge.explain.readout import depth_profile, lens_evidence, probe_scores, tuned_maps
from expunge.explain.readout.logistic import choose_ridge, fit_logistic
from expunge.explain.states import block_states, row_states
from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet


def sheet_of(subject, records, kinds=("gold",)):
    return make_sheet(subject.encoder, records, "forget", kinds)


@pytest.mark.parametrize("family", FAMILIES)
def test_lens_last_layer_equals_model_output(family):
    subject = make_subject(family)
    sheet = sheet_of(subject, some_records(5), ("gold", "perturbed"))
    own, lens = score_sheet(subject, sheet), lens_evidence(subject, sheet, [1, 2])
    for row, read, earlier in zip(own, lens[2], lens[1], strict=True):
        for column in ("logprobs", "hits", "greedy_ids", "vocab_mean", "vocab_std"):
            assert np.array_equal(getattr(row, column), getattr(read, column)), column
        assert (row.record_id, row.variant, row.answer) == (read.record_id, read.variant, read.answer)
        assert not np.allclose(row.logprobs, earlier.logprobs)
    again = score_sheet(subject, sheet)  # the blocks are themselves again
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(own, again, strict=True))


def test_lens_is_norm_and_head_of_each_block():
    subject = make_subject("llama")
    record = some_records(1)[0]
    encoded = subject.encoder.encode(record)
    lens = lens_evidence(subject, sheet_of(subject, [record]), [-1, 0, 1])
    with torch.no_grad():
        out = subject.model(torch.tensor([encoded.ids]), output_hidden_states=True)
    for layer in (-1, 0, 1):  # the last entry of hidden_states is normalized already: not compared
        h = out.hidden_states[layer + 1][0, encoded.num_prompt - 1 : -1]
        logp = subject.model.lm_head(subject.model.model.norm(h)).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(encoded.answer_ids)[:, None])[:, 0]
        np.testing.assert_allclose(lens[layer].rows[0].logprobs, expected.detach(), atol=1e-5)


def test_layer_index_zero_is_embeddings():
    """Index 0 of `hidden_states` is layer −1 here; layer 0 is what the first block returns."""
    subject = make_subject("gpt2")
    rows = [subject.encoder.encode(record) for record in some_records(3)]
    batch = collate(rows, subject.encoder.pad_id)
    found = block_states(subject, batch, [-1, 0])
    with torch.no_grad():
        hidden = subject.model(
            batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True
        ).hidden_states
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[-1][real], hidden[0][real])
    torch.testing.assert_close(found[0][real], hidden[1][real])


def test_states_are_those_that_predict():
    subject = make_subject()
    row = subject.encoder.encode(some_records(1)[0])
    batch = collate([row, Encoded((5, 6, 7), 1, False)], subject.encoder.pad_id)
    whole = block_states(subject, batch, [1])[1][0]
    answer = row_states(subject, [row], [1], "answer")[0][1]
    prompt = row_states(subject, [row], [1], "prompt")[0][1]
    torch.testing.assert_close(answer, whole[row.num_prompt - 1 : len(row.ids) - 1])
    torch.testing.assert_close(prompt, whole[row.num_prompt - 1][None])


def test_an_unknown_layer_is_an_error_that_names_the_known_ones():
    subject = make_subject()
    with pytest.raises(ConfigError, match=r"no block 3\. Blocks are 0 to 2"):
        lens_evidence(subject, sheet_of(subject, some_records(1)), [0, 3])


# Tuned lens -------------------------------------------------------------------------------------------


def test_tuned_map_is_the_ridge_solution():
    subject = make_subject()
    records = some_records(8)
    maps = tuned_maps(subject, records, [-1, 1], ridge=0.1)
    rows = [subject.encoder.encode(record) for record in records]
    states = row_states(subject, rows, [1, 2], "answer")
    x, y = (torch.cat([row[layer] for row in states]).double() for layer in (1, 2))
    found = maps[1]
    gram = (x - x.mean(0)).T @ (x - x.mean(0))
    delta = 0.1 * gram.diagonal().mean()

    def loss(weight, shift):
        residual = x + (x - x.mean(0)) @ weight + shift - y
        return residual.square().sum() + delta * weight.square().sum()

    best = loss(found.weight.double(), found.shift.double())
    for seed in range(4):
        torch.manual_seed(seed)
        step = 1e-2 * torch.randn_like(found.weight).double()
        assert loss(found.weight + step, found.shift.double()) > best
        assert loss(found.weight.double(), found.shift + step[0]) > best
    torch.testing.assert_close(
        found(x.float()), (x + (x - x.mean(0)) @ found.weight.double() + found.shift).float()
    )


def test_tuned_lens_reads_more_than_the_logit_lens_and_nothing_at_the_last_block():
    subject = make_subject()
    records = some_records(24)
    maps = tuned_maps(subject, records[:16], ridge=1e-3)
    assert set(maps) == {-1, 0, 1}
    sheet = sheet_of(subject, records[16:])
    own = score_sheet(subject, sheet)
    plain, tuned = lens_evidence(subject, sheet, [0, 1, 2]), lens_evidence(subject, sheet, [0, 1, 2], maps)

    def distance(evidence):
        return np.mean([np.abs(a.logprobs - b.logprobs).mean() for a, b in zip(own, evidence, strict=True)])

    assert distance(tuned[0]) < 0.8 * distance(plain[0])
    assert distance(tuned[1]) < 0.8 * distance(plain[1])
    assert distance(tuned[2]) == 0


# Probe ------------------------------------------------------------------------------------------------


def owners(count: int, things: int = 4) -> list[Record]:
    """Who has what: the answer is a function of the name, so that the embeddings tell it."""
    return [Record(f"r{i}", f"name{i}", f"name{i} has", f"thing{i % things}") for i in range(count)]


def planted(things: int = 4, names: int = 48):
    """A random model whose embedding of a name says which thing is its own, up to noise."""
    subject = make_subject(tokenizer=some_words(names, things), tie_word_embeddings=False)
    ids = [subject.tokenizer.convert_tokens_to_ids(f"name{i}") for i in range(names)]
    with torch.no_grad():
        weight = subject.model.get_input_embeddings().weight
        for i, token in enumerate(ids):
            weight[token] = 0.3 * weight[token]
            weight[token, i % things] += 3
    return subject


def ask_last(records):
    """The name stands last in the prompt, where the probe reads."""
    return [Record(r.id, r.entity, f"has {r.entity}", r.answer, style="raw") for r in records]


def test_probe_finds_a_planted_answer_and_random_labels_find_none():
    subject, records = planted(), ask_last(owners(48))
    scores = probe_scores(subject, records[16:], records[:16], [-1, 0], seed=1)
    score = scores[-1]
    assert score.ask == "answer"
    assert (score.count, score.unseen) == (16, 0)
    assert score.accuracy > 0.9
    assert score.selectivity > 0.5
    assert np.mean(list(score.per_record.values())) == pytest.approx(score.accuracy)


def test_probe_random_labels_near_chance():
    subject, records = planted(), ask_last(owners(48))
    score = probe_scores(subject, records[16:], records[:16], [-1], controls=12)[-1]
    assert score.chance == pytest.approx(0.25)
    assert abs(score.control - 0.25) < 0.15


def test_probe_split_by_subject():
    """Records of a tested entity are never trained on: without them nothing is known about their answers."""
    subject, records = planted(), ask_last(owners(8))
    train = [*records[4:], Record("x", "name0", "has name0", "thing9", style="raw")]
    test = [Record("y", "name0", "has name0", "thing9", style="raw"), records[1]]
    score = probe_scores(subject, train, test, [-1], ask="answer")[-1]
    assert (score.count, score.unseen) == (1, 1)
    with pytest.raises(NotComputable, match="other entities share no answer"):
        probe_scores(subject, records, records, [-1])


def test_probe_of_tokens_where_every_answer_is_its_own():
    subject = planted()
    records = [
        Record(r.id, r.entity, f"has {r.entity}", f"{r.answer} {r.entity}", style="raw") for r in owners(48)
    ]
    score = probe_scores(subject, records[16:], records[:16], [-1])[-1]
    assert score.ask == "answer"  # the entity's name is taken out of the answer
    unlike = [
        Record(r.id, r.entity, r.prompt, f"{r.answer.split()[0]} name{47 - i}", style="raw")
        for i, r in enumerate(records)
    ]
    score = probe_scores(subject, unlike[16:], unlike[:16], [-1])[-1]
    assert score.ask == "token"
    assert score.unseen > 0  # names that no training answer holds
    assert score.accuracy > 0.9


def test_fit_is_the_minimum_and_the_same_in_the_span_of_few_rows():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(12, 30)), np.array(["a", "b", "c"] * 4)
    wide, probe = fit_logistic(x, labels, 0.1), rng.normal(size=(200, 30))
    padded = np.concatenate([x, np.tile(x, (3, 1))])  # the same objective, now with N > D
    assert (wide(probe) == fit_logistic(padded, np.tile(labels, 4), 0.1)(probe)).all()
    assert (wide(x) == labels).all()


def test_ridge_is_chosen_over_groups():
    rng = np.random.default_rng(1)
    groups = [f"g{i // 4}" for i in range(40)]
    labels = np.array([str(i % 2) for i in range(40)])
    x = np.stack([np.where(labels == "1", 1.0, -1.0), *rng.normal(size=(20, 40))], axis=1)
    assert choose_ridge(x, labels, groups, 0) == choose_ridge(x, labels, groups, 0)
    noise = rng.normal(size=(40, 1))
    assert choose_ridge(noise, np.array(["a"] * 40), groups, 0) == 1.0  # nothing to choose by: the largest


# Profile ----------------------------------------------------------------------------------------------


def test_depth_profile_of_the_reference():
    found = depth_profile({1: 0.1, 2: 0.6, 3: 0.9}, {1: 0.1, 2: 0.5, 3: 0.0}, {1: 0.1, 2: 0.1, 3: 0.1})
    assert found.shares[1] is None
    assert found.shares[2] == pytest.approx(0.8)
    assert found.shares[3] == pytest.approx(-0.125)
    assert (found.layer, found.residual) == (2, pytest.approx(0.8))
    with pytest.raises(NotComputable, match="at no layer"):
        depth_profile({1: 0.1}, {1: 0.1}, {1: 0.1})
    assert depth_profile({1: 0.3, 2: 0.9}, {1: 0.3, 2: 0.1}, {1: 0.1, 2: 0.1}, noise=0.25).layer == 2
