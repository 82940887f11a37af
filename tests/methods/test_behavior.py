"""What each method does to a model that knows something: the facets its card says are verified, verified."""

import numpy as np
import pytest
from tiny_settings import TINY, Tiny, needed

from expunge.measure.score import score_sheet
from expunge.measure.sheet import make_sheet
from expunge.methods import METHODS, make_method
from expunge.testing import tiny_request, tiny_subject
from expunge.training import TrainSettings, Workspace, finetune


@pytest.fixture(scope="module")
def knowing():
    """A tiny model that was trained on forget and retain answers to p of about 0.8, and the request."""
    subject, request = tiny_subject(seed=1), tiny_request(6, 6)
    settings = TrainSettings(steps=70, lr=1e-2, batch=12, warmup=0.05, schedule="cosine")
    finetune(subject, [*request.forget, *request.retain], settings)
    return subject, request


def nll_and_hits(subject, records):
    """Mean over all answer tokens."""
    rows = list(score_sheet(subject, make_sheet(subject.encoder, records, "forget")))
    return -np.concatenate([r.logprobs for r in rows]).mean(), np.concatenate([r.hits for r in rows]).mean()


def verifying(facet):
    return [card.name for card in METHODS.cards() if facet in card.fields.get("verified", ())]


@pytest.fixture(scope="module")
def unlearned(knowing):
    """Each method's result on the knowing model, made once."""
    made = {}

    def make(name):
        if name not in made:
            tiny = TINY.get(name, Tiny())
            settings = TrainSettings(steps=tiny.steps, lr=tiny.lr, batch=6, warmup=0.0)
            made[name] = make_method(name, **needed(name), **tiny.hyper).unlearn(
                *knowing, Workspace(settings)
            )
        return made[name]

    return make


@pytest.mark.parametrize("name", verifying("forgetting"))
def test_forgets_what_it_is_given(name, knowing, unlearned):
    subject, request = knowing
    known, forgotten = (nll_and_hits(s, request.forget) for s in (subject, unlearned(name)))
    assert known[1] > 0.9
    assert forgotten[0] > known[0] + 0.2


@pytest.mark.parametrize("name", verifying("utility"))
def test_keeps_the_rest(name, knowing, unlearned):
    subject, request = knowing
    result = unlearned(name)
    before, kept = (nll_and_hits(s, request.retain) for s in (subject, result))
    assert kept[1] >= TINY.get(name, Tiny()).kept * before[1]
    assert kept[0] < nll_and_hits(result, request.forget)[0] - 0.2


@pytest.mark.parametrize(("records", "lr"), [("forget", 1e-3), ("retain", 3e-3)])
@pytest.mark.parametrize("name", verifying("robustness"))
def test_withstands_relearning(name, records, lr, knowing, unlearned):
    """Trained on half of forget, or on retain, the other half comes back less than after `wga`."""
    _, request = knowing
    attack = TrainSettings(steps=20, lr=lr, batch=6, warmup=0.0)
    back = {}
    for who in (name, "wga"):
        attacked = unlearned(who).clone()
        finetune(attacked, request[records][: 3 if records == "forget" else None], attack)
        back[who], _ = nll_and_hits(attacked, request.forget[3:])
    assert back[name] > back["wga"] + 0.3


def test_every_facet_a_card_names_is_one_of_these():
    named = {facet for card in METHODS.cards() for facet in card.fields["verified"]}
    assert named <= {"forgetting", "utility", "robustness"}
