"""Gradients over records, against plain autograd on one row at a time."""

import pytest
import torch

from expunge.errors import ConfigError, DataError
from expunge.training.gradients import fisher_diagonal, mean_gradient, sum_gradient
from tiny_models import FAMILIES, make_subject, some_records


def by_hand(subject, records):
    """∇m_i per record: the model's own forward, unpadded, the causal shift spelled out."""
    found = []
    for record in records:
        row = subject.encoder.encode(record)
        subject.model.zero_grad(set_to_none=True)
        logp = subject.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        answer = range(row.num_prompt, len(row.ids))
        (-sum(logp[t - 1, row.ids[t]] for t in answer) / len(answer)).backward()
        named = subject.model.named_parameters()
        found.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named})
    subject.model.zero_grad(set_to_none=True)
    return found


def assert_near(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_over_rows_of_the_mean_over_tokens(family):
    subject, records = make_subject(family), some_records(3)
    rows = by_hand(subject, records)
    assert_near(mean_gradient(subject, records), {n: sum(r[n] for r in rows) / 3 for n in rows[0]})


def test_fisher_squares_rows_before_it_averages_them():
    subject, records = make_subject(), some_records(5)
    rows = by_hand(subject, records)
    assert_near(fisher_diagonal(subject, records), {n: sum(r[n] ** 2 for r in rows) / 5 for n in rows[0]})


def test_batch_changes_nothing_and_the_sum_is_n_times_the_mean():
    subject, records = make_subject(), some_records(5)
    one = mean_gradient(subject, records, batch=1)
    assert_near(mean_gradient(subject, records, batch=4), one)
    total = sum_gradient(subject, records, batch=5)
    assert_near({n: g / 5 for n, g in total.items()}, one)
    again = mean_gradient(subject, records, batch=1)
    assert all(torch.equal(one[n], again[n]) for n in one)


def test_long_documents_count_by_window():
    subject = make_subject()
    record = some_records(1)[0]
    long = type(record)("doc", "doc", "", "Ada Lund was born in Tarn. " * 12)
    windows = len(subject.encoder.windows(long))
    assert windows > 1
    mean, total = mean_gradient(subject, [long]), sum_gradient(subject, [long])
    assert_near(mean, {n: g / windows for n, g in total.items()})


def test_tied_weights_are_there_once_with_both_uses():
    subject = make_subject("qwen2")
    gradient = mean_gradient(subject, some_records(2))
    assert "lm_head.weight" not in gradient
    assert_near(gradient, {n: sum(r[n] for r in by_hand(subject, some_records(2))) / 2 for n in gradient})


@pytest.mark.parametrize("take", [mean_gradient, fisher_diagonal])
def test_leaves_the_model_as_it_was(take):
    subject, records = make_subject("phi"), some_records(2)  # phi has dropout
    subject.model.train()
    frozen = next(iter(subject.model.parameters()))
    frozen.requires_grad_(False)
    marks = {}
    for name, parameter in subject.model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = marks[name] = torch.full_like(parameter, 7.0)
    names = [name for name in marks if "mlp" in name]
    one, again = (take(subject, records, names=names) for _ in range(2))
    assert list(one) == names
    assert all(torch.equal(one[n], again[n]) for n in one), "dropout was on"
    assert subject.model.training
    assert not frozen.requires_grad
    for name, parameter in subject.model.named_parameters():
        assert parameter.requires_grad == (name in marks)
        assert parameter.grad is marks.get(name)
        assert parameter.grad is None or bool((parameter.grad == 7.0).all())


def test_says_what_is_wrong():
    subject = make_subject()
    with pytest.raises(ConfigError, match="lm_head"):
        mean_gradient(subject, some_records(1), names=["lm_head.wieght"])
    with pytest.raises(DataError, match="answer"):
        mean_gradient(subject, [])
