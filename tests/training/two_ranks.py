"""What the tests of several processes run under torchrun; rank 0 writes what was found as JSON.

Every number is computed twice: by each rank alone, which is one process, and by all of them together.
"""

import json
import os
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from expunge import ranks
from expunge.measure import EvidencePlan, score, take_evidence
from expunge.methods import METHODS, Objective, make_method
from expunge.subjects import fingerprint
from expunge.testing import tiny_request, tiny_subject
from expunge.training import LoraSettings, TrainSettings, Workspace, finetune
from expunge.training.checkpoint import trainable
from expunge.training.hooks import TrainingControl
from expunge.training.loop import Loop
from expunge.training.transforms import make_transform
from expunge.training.unlearn import UnlearnTask
from tiny_models import make_subject, some_records

torch.set_num_threads(1)


def settings(**more):
    return TrainSettings(**{"steps": 20, "batch": 4, "lr": 1e-3, "checkpoint_seconds": 1e9, **more})


def first_gradient(method, transforms=(), **more):
    """The gradient of step 0, one long vector."""
    subject, request = tiny_subject(), tiny_request()
    names = method.selects(subject)
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(names is None or name in names)
    own = method.settings_for(settings(batch=8, **more), request)
    task = UnlearnTask(
        method, subject, request, own, teacher=method.teacher(subject, request, Workspace(own))
    )
    if hasattr(method, "begin"):
        method.begin(subject, own.seed)
    loop = Loop(subject, task, own, state=task.state, transforms=transforms)
    step = getattr(method, "step", None)
    step(loop, 0) if step else loop.gradients(0)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(subject.model).values()]
    return torch.cat([g.flatten() for g in parts]).double()


def apart(one, other):
    """‖a − b‖ / ‖a‖"""
    return float((one - other).norm() / one.norm())


def both(work):
    """(what one process finds, what all ranks find together)"""
    with ranks.alone():
        one = work()
    return one, work()


def train(name="npo", *, controls=(), folder=None, transforms=(), method=None, steps=20, **more):
    own = {key: more.pop(key) for key in ("lora", "divide") if key in more}
    workspace = Workspace(
        settings(steps=steps, **more), folder, controls=[c() for c in controls],
        transforms=[make_transform(t) for t in transforms], **own,
    )  # fmt: skip
    made = method or make_method(name)
    subject = made.unlearn(tiny_subject(), tiny_request(), workspace)
    return subject, workspace.result


def losses(*args, **more):
    subject, result = train(*args, **more)
    return {
        "terms": [sorted(entry["terms"].items()) for entry in result.history],
        "norms": [entry["grad_norm"] for entry in result.history],
        "active": [entry["active"] for entry in result.history],
        "status": result.status,
        "steps": result.steps,
        "marks": ranks.gather(fingerprint(subject.model)),
    }


def hinge():
    from expunge.controls.hinge_cap import HingeCap

    return HingeCap(delta=6.2, divide_by="batch").attach(None)


class Interrupt(TrainingControl):
    """Ctrl-C on the second rank alone."""

    def after_step(self, step, subject):
        if step == 3 and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return False


def gradients():
    found = {}
    for name in METHODS.names():
        card, cls = METHODS.card(name), METHODS.get(name)
        if card.fields["scale"] != "single" and issubclass(cls, Objective):
            found[name] = apart(*both(lambda name=name: first_gradient(make_method(name))))
    for transform in ("gru", "sam", "disruption"):
        work = lambda t=transform: first_gradient(make_method("npo"), [make_transform(t)])  # noqa: E731
        found[f"npo + {transform}"] = apart(*both(work))
    return found


def trainings():
    cases = {
        "npo": {},
        "uneven": {"batch": 3, "accumulate": 2},
        "fewer rows than ranks": {"batch": 1},
        "gru": {"transforms": ["gru"]},
        "sam": {"transforms": ["sam"]},
        "lora": {"lora": LoraSettings(rank=2)},
        "hinge": {"method": make_method("ga"), "controls": [hinge], "lr": 1e-2},
        "early stop": {"method": make_method("ga"), "controls": [watched], "lr": 1e-2},
        "l2": {"method": replace(make_method("npo"), retain="l2"), "steps": 6},
    }
    return {name: both(lambda more=more: losses(**more)) for name, more in cases.items()}


def watched():
    from expunge.controls.bar import Bar
    from expunge.controls.base import Scene
    from expunge.controls.early_stop import EarlyStop
    from expunge.metrics import compute, make_metric

    metric, records = make_metric("probability"), tiny_request()["calibration"]
    plan = EvidencePlan(("gold",), generate=False)
    score = compute(metric, take_evidence(tiny_subject(), {"calibration": records}, plan=plan), "calibration")
    return EarlyStop(every=2).attach(Scene(Bar(metric, 0.8, score), records, 0))


def divided():
    """FSDP2 against one process: every method whose card allows it."""
    found = {}
    for name in METHODS.names():
        if METHODS.card(name).fields["scale"] == "fsdp":
            with ranks.alone():
                one = losses(name, steps=2)
            found[name] = one, losses(name, steps=2, divide="cpu")
    cases = {
        "20 steps": {},
        "uneven": {"batch": 3, "accumulate": 2, "steps": 6},
        "fewer rows than ranks": {"batch": 1, "steps": 4},
        "lora": {"steps": 6, "lora": LoraSettings(rank=2)},
        "early stop": {"method": make_method("ga"), "controls": [watched], "lr": 1e-2},
    }
    for name, more in cases.items():
        with ranks.alone():
            one = losses(**more)
        found[name] = one, losses(**more, divide="cpu")
    return found


def resumed(folder, **more):
    """Ctrl-C reaches one rank; all stop after the same step, and the resumed run ends with the same bits."""
    straight, _ = train(steps=6, **more)
    try:
        train(steps=6, controls=[Interrupt], folder=folder, **more)
        stopped = None
    except KeyboardInterrupt:
        stopped = len((folder / "log.jsonl").read_text().splitlines())
    again, result = train(steps=6, controls=[TrainingControl], folder=folder, **more)
    return {"stopped": ranks.gather(stopped), "steps": result.steps,
            "same": fingerprint(again.model) == fingerprint(straight.model)}  # fmt: skip


def tuned():
    def work():
        subject = tiny_subject()
        result = finetune(subject, tiny_request()["retain"], settings(steps=8))
        return [entry["terms"]["ce"] for entry in result.history]

    return both(work)


def evidence(folder):
    """Evidence of fixed weights with generated texts, KL to a reference and an annotator's columns."""
    subject, reference = make_subject(), make_subject(seed=1)
    splits = {"forget": some_records(9), "retain": some_records(4, entity="town")}
    score.batch_tokens = lambda subject: 200  # several batches
    plan = EvidencePlan(max_new_tokens=12, annotators=["short_answers"])

    def take(to=None):
        return take_evidence(subject, splits, to, plan=plan, reference=reference)

    one, together = both(take)
    take(folder)
    files = sorted(p.name for p in folder.iterdir()) if ranks.is_first() else []
    kept = take(folder)
    return {
        "rows": sum(map(len, one.values())),
        "texts": len({r.generated for e in one.values() for r in e if r.generated}),
        "differing": [differing(one[s], other[s]) for other in (together, kept) for s in splits],
        "files": files,
    }


def differing(one, other):
    """Names of the fields in which any row differs at all."""
    pairs = list(zip(one.rows, other.rows, strict=True))
    names = [f.name for f in fields(one.rows[0])]
    return [n for n in names if not all(same(getattr(a, n), getattr(b, n)) for a, b in pairs)]


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b


def main(folder):
    ranks.join()
    found = {
        "world": ranks.world(),
        "gradients": gradients(),
        "trainings": trainings(),
        "divided": divided(),
        "resumed": [resumed(folder / "whole"), resumed(folder / "divided", divide="cpu")],
        "finetune": tuned(),
        "evidence": evidence(folder / "evidence"),
    }
    if ranks.is_first():
        (folder / "found.json").write_text(json.dumps(found))
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
