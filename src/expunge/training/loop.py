"""The one training loop: gradients → transforms → mask → clip → skip? → step → controls → log → checkpoint.

Over several ranks each takes its rows of every step; gradients and loss terms are summed before anything
looks at them: transforms, clipping and controls see what one process would see, and weights stay in step.
Why not transformers.Trainer: docs/decisions/0001-training-loop.md.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import get_scheduler

from expunge import ranks
from expunge.errors import ExpungeError
from expunge.progress import say, track
from expunge.stats import seed_from
from expunge.subjects.subject import Subject
from expunge.training.checkpoint import load_checkpoint, save_checkpoint, trainable
from expunge.training.hooks import TrainingControl
from expunge.training.interrupt import clean_stop
from expunge.training.journal import journal
from expunge.training.optimizers import make_optimizer
from expunge.training.settings import TrainSettings
from expunge.training.sharding import divided, whole
from expunge.training.transforms import Gradients, GradientScene, Transform

__all__ = ["FitResult", "Loop", "Task", "Term", "check_gradients"]


_TOKENS = "#tokens"  # no term has this name

Rows = Callable[[Any], Tensor]
"""A view → one value per row, [B]."""


class Term(NamedTuple):
    """One named loss term of a micro-batch: weight · Σ rows / num_rows."""

    rows: Tensor  # [b]
    num_rows: int  # of the whole step, over all ranks
    weight: float = 1.0


class Task(Protocol):
    """What the loop trains on."""

    num_steps: int

    def micro_batches(self, step: int) -> Sequence[Any]:
        """The micro-batches of one optimizer step, of this rank's rows: a function of step and rank alone.
        Tasks with two sides take `side` (forget or retain) as a second argument; transforms need it."""

    def terms(self, micro: Any) -> dict[str, Term]:
        """The loss terms of one micro-batch, by name."""

    def tokens(self, micro: Any) -> int:
        """Padded tokens computed, for the ledger."""


@dataclass
class FitResult:
    """`status`: finished, stopped (a control ended it), diverged (the last good state was kept)."""

    status: str
    steps: int
    tokens: int
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Loop:
    """Optimizer steps over a task. With `folder`: JSONL log, checkpoints, resume to the same bits."""

    def __init__(
        self,
        subject: Subject,
        task: Task,
        settings: TrainSettings,
        *,
        folder: Path | None = None,
        controls: Sequence[TrainingControl] = (),
        name: str = "training",
        state: dict[str, Tensor] | None = None,
        own_step: Callable[[Loop, int], dict[str, float]] | None = None,
        transforms: Sequence[Transform] = (),
        masks: Mapping[str, Tensor] | None = None,
    ):
        """`masks`: parameter name → the elements that are trained, for those not trained whole."""
        self.subject, self.task, self.settings = subject, task, settings
        self.folder, self.controls, self.name = folder, controls, name
        self.state = {} if state is None else state  # of the method; checkpointed and put back
        self.own_step = own_step  # a loop method's, see methods.base.LoopMethod
        named = trainable(subject.model)
        self.parameters = list(named.values())
        self.transforms = [*transforms, *(c.transform for c in controls if c.transform is not None)]
        self._masked = [(named[n], m, named[n].detach()[~m].clone()) for n, m in (masks or {}).items()]
        self.optimizer = make_optimizer(self.parameters, settings)
        self.scheduler = get_scheduler(
            settings.schedule,
            self.optimizer,
            num_warmup_steps=round(settings.warmup * task.num_steps),
            num_training_steps=task.num_steps,
        )
        self.result = FitResult("finished", 0, 0, 0.0)
        self._divided = divided(self.parameters)
        self._joint = self._divided  # a backward pass needs every rank, and sums
        self._kept: dict[str, Tensor] = {}  # what the transforms keep between steps

    def run(self) -> FitResult:
        """All steps from where the checkpoint left off; then the controls have the last word."""
        start = self._resume()
        if start == 0:
            self._check_disk()
        for control in self.controls:
            control.begin(self.subject)
        with self._mode(), journal(self.folder, self.settings, self.result.history, start) as write:
            self._steps(start, write)
        for control in self.controls:
            note = control.finish(self.subject)
            if note:
                self.result.notes.append(note)
        self._check_in_step()
        return self.result

    def _steps(self, start: int, write: Callable[[dict[str, Any]], None]) -> None:
        total = self.task.num_steps
        saved = time.monotonic()
        began = saved - self.result.seconds
        with clean_stop() as stop, track(self.name, total) as advance:
            advance(start)
            for step in range(start, total):
                entry = self._step(step)
                if entry is None:
                    note = f"non-finite loss or gradient at step {step + 1}: stopped at the last good state"
                    self.result.status = "diverged"
                    self.result.notes.append(note)
                    say(f"{self.name}: {note}")
                    return
                self.result.steps, self.result.seconds = step + 1, time.monotonic() - began
                ended = self._after_step(entry)
                if (step + 1) % self.settings.log_every == 0 or step + 1 == total or ended:
                    write(entry)
                advance(1, note=" ".join(f"{k} {v:.3g}" for k, v in entry["terms"].items()))
                if ended:
                    self.result.status = "stopped"
                    return
                due = time.monotonic() - saved >= self.settings.checkpoint_seconds
                stopping, (due, *_) = map(list, zip(*ranks.gather((stop.is_set(), due)), strict=True))
                if any(stopping) or due:
                    self._save()
                    saved = time.monotonic()
                if any(stopping):
                    raise KeyboardInterrupt

    def _after_step(self, entry: dict[str, Any]) -> bool:
        """Ask every control, not only up to the first that wants to stop."""
        wishes = [control.after_step(entry["step"], self.subject) for control in self.controls]
        entry["calibration"] = next((c.calibration for c in self.controls if c.calibration is not None), None)
        return any(wishes)

    def gradients(self, step: int) -> dict[str, float]:
        """Put the step's gradient into `.grad`; the value of each term. A loop method may replace this."""
        if not self.transforms:
            return self._accumulate(self._micros(step))
        values: dict[str, float] = {}
        gradient: Callable[[], Gradients] = partial(self.side, step, "forget", values)
        scenes = [self._scene(i, step) for i in range(len(self.transforms))]
        for transform, scene in reversed(list(zip(self.transforms, scenes, strict=True))):
            gradient = partial(transform.around, gradient, scene)
        forget, retain = gradient(), self.side(step, "retain", values)
        for transform, scene in zip(self.transforms, scenes, strict=True):
            forget = transform.rectify(forget, retain, scene)
        for parameter, f, r in zip(self.parameters, forget, retain, strict=True):
            parameter.grad = (f + r).to(parameter.dtype)
        self._keep(scenes)
        return values

    def side(
        self, step: int, side: str, values: dict[str, float] | None = None, *, rows: Rows | None = None
    ) -> Gradients:
        """The gradient of one side's terms, weights included, at the weights as they stand.

        Their values are added to `values`, first come first kept. `rows(view)`, [B], stands in the place of
        the method's or the retain loss, with weight 1. `.grad` is left empty.
        """
        for parameter in self.parameters:
            parameter.grad = None
        found = self._accumulate(self._micros(step, side), rows)
        for name, value in found.items():
            if values is not None:
                values.setdefault(name, value)
        self._mask_gradients()
        taken = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return taken

    @torch.no_grad()
    def stand(self, weights: Sequence[Tensor]) -> None:
        """Put the trained weights where a step wants to look from; it puts them back itself."""
        for parameter, value in zip(self.parameters, weights, strict=True):
            parameter.copy_(value)

    def _micros(self, step: int, *side: str) -> list[tuple[Any, bool]]:
        """This rank's micro-batches, and whether each counts: with divided weights all ranks take as many."""
        own = [(micro, True) for micro in self.task.micro_batches(step, *side)]
        lacking = max(ranks.gather(len(own))) - len(own) if self._joint else 0
        if lacking:
            with ranks.alone():
                own += [(self.task.micro_batches(step, *side)[0], False)] * lacking
        return own

    def _accumulate(self, micros: Sequence[tuple[Any, bool]], rows: Rows | None = None) -> dict[str, float]:
        """The gradient of these micro-batches and the values of their terms, summed over the ranks."""
        within = getattr(self.task, "within", nullcontext) if rows is None else nullcontext
        values: dict[str, Tensor] = {}
        tokens = 0
        for number, (micro, counts) in enumerate(micros, start=1):
            with within(micro):
                with self.settings.autocast(self.subject.device):
                    terms = self.task.terms(micro) if rows is None else self.task.terms(micro, rows)  # type: ignore[call-arg]
                loss = sum(t.weight * t.rows.sum() / t.num_rows for t in terms.values())
                if isinstance(loss, Tensor) and loss.requires_grad:
                    self._backward(loss if counts else 0.0 * loss, last=number == len(micros))
            if not counts:
                continue
            for name, term in terms.items():
                values[name] = (
                    values.get(name, torch.zeros(())) + (term.rows.detach().sum() / term.num_rows).cpu()
                )
            tokens += self.task.tokens(micro)
        self._sum_gradients()
        found = ranks.total({name: float(v) for name, v in values.items()} | {_TOKENS: tokens})
        self.result.tokens += int(found.pop(_TOKENS))
        return found

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradient; `last`: of this rank's share of the step."""
        loss.backward()

    def _sum_gradients(self) -> None:
        """A parameter no rank has a gradient for keeps none: zeros would let weight decay move it."""
        if ranks.world() == 1 or self._joint:
            return
        reached = torch.tensor([p.grad is not None for p in self.parameters], dtype=torch.int32)
        ranks.all_reduce_([reached])
        chosen = [p for p, count in zip(self.parameters, reached.tolist(), strict=True) if count]
        for parameter in chosen:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.all_reduce_([p.grad for p in chosen if p.grad is not None])

    def _scene(self, number: int, step: int) -> GradientScene:
        own = f"transform{number}."
        state = {k.removeprefix(own): v for k, v in self._kept.items() if k.startswith(own)}
        return GradientScene(self.parameters, step, self.settings.seed, state)

    def _keep(self, scenes: Sequence[GradientScene]) -> None:
        self._kept = {f"transform{i}.{k}": v for i, s in enumerate(scenes) for k, v in s.state.items()}

    def _mask_gradients(self) -> None:
        for parameter, mask, _ in self._masked:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def _update(self) -> None:
        """The optimizer's step; weights outside the masks come back bit for bit, decay and moments or not."""
        self._move()
        with torch.no_grad():
            for parameter, mask, outside in self._masked:
                parameter[~mask] = outside
        for control in self.controls:
            control.after_update(self.subject)
        self.scheduler.step()

    def _move(self) -> None:
        self.optimizer.step()

    def _clip(self) -> float:
        """Clip the gradient; its norm before."""
        limit = self.settings.max_grad_norm or math.inf
        return float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, limit)))

    def _check_gradients(self) -> None:
        check_gradients(self.subject)

    def _step(self, step: int) -> dict[str, Any] | None:
        """One optimizer step; None when it is not finite (then nothing was changed)."""
        own = (ranks.rank(),) if ranks.rank() else ()  # dropout is drawn for other rows on other ranks
        torch.manual_seed(seed_from(self.settings.seed, "step", step, *own) % 2**63)
        terms = self.own_step(self, step) if self.own_step else self.gradients(step)
        self._mask_gradients()
        self.norm = self._clip()
        if not (math.isfinite(self.norm) and all(map(math.isfinite, terms.values()))):
            self.optimizer.zero_grad(set_to_none=True)
            return None
        lr = self.optimizer.param_groups[0]["lr"]
        for control in self.controls:
            control.observe(terms)
        skip = True in [control.skip_step("retain" in terms) for control in self.controls]
        if step == 0 and not skip and not any(control.active == 1 for control in self.controls):
            self._check_gradients()
        if not skip:
            self._update()
        self.optimizer.zero_grad(set_to_none=True)
        active = next((c.active for c in self.controls if c.active is not None), None)
        epoch = (step + 1) / max(1, getattr(self.task, "steps_per_epoch", self.task.num_steps))
        return {
            "step": step + 1,
            "epoch": epoch,
            "terms": terms,
            "lr": lr,
            "grad_norm": self.norm,
            "active": active,
        }

    @contextmanager
    def _mode(self) -> Iterator[None]:
        model: Any = self.subject.model
        recompute = self.settings.gradient_checkpointing
        name = (
            "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        )  # before 5.23
        model.train()
        if recompute:
            getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
        try:
            yield
        finally:
            if recompute:
                getattr(model, f"{name}_checkpointing_disable")()
            model.eval()

    def _check_in_step(self) -> None:
        """All ranks end with the same weights; a method that draws or decides by itself would part them."""
        if ranks.world() > 1 and not self._divided:
            sums = [float(p.detach().double().sum()) for p in self.parameters]
            if any(other != sums for other in ranks.gather(sums)):
                raise ExpungeError(f"{self.name}: the ranks ended with different weights, none is kept")

    # Checkpoint, resume -----------------------------------------------------------------------------

    def _save(self) -> None:
        if self.folder is None or not (ranks.is_first() or self._divided):
            return
        controls, tensors = [], {f"method.{k}": v for k, v in self.state.items()}
        tensors.update(self._kept)
        for i, control in enumerate(self.controls):
            plain, found = control.state()
            controls.append(plain)
            tensors.update({f"control{i}.{k}": v for k, v in found.items()})
        state = {
            "step": self.result.steps,
            "tokens": self.result.tokens,
            "seconds": self.result.seconds,
            "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
            "controls": controls,
        }
        save_checkpoint(self.folder / "checkpoint", self.subject.model, self.optimizer, state, tensors)

    def _resume(self) -> int:
        if self.folder is None:
            return 0
        found = load_checkpoint(self.folder / "checkpoint", self.subject.model, self.optimizer)
        if len(set(ranks.gather(found and found[0]["step"]))) > 1:
            raise ExpungeError(f"{self.folder}: not every process sees it. Put the run on a shared disk")
        if found is None:
            return 0
        state, tensors = found
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        own = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.state.update(own("method."))
        self._kept = {k: v for k, v in tensors.items() if k.startswith("transform")}
        for i, (control, plain) in enumerate(zip(self.controls, state["controls"], strict=True)):
            control.load_state(plain, own(f"control{i}."))
        self.result.steps, self.result.tokens = state["step"], state["tokens"]
        self.result.seconds = state["seconds"]
        say(f"{self.name}: resumed at step {state['step']} of {self.task.num_steps}")
        return int(state["step"])

    def _check_disk(self) -> None:
        if self.folder is None or not ranks.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        need = 2 * 3 * sum(p.numel() * 4 for p in self.parameters)  # weights and two moments, old and new
        free = shutil.disk_usage(self.folder).free
        if free < need:
            sizes = f"checkpoints need {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free"
            raise ExpungeError(f"{self.folder}: {sizes}. Make room and run again")


def check_gradients(subject: Subject) -> None:
    """After the first backward: every adapter, or the model as a whole, received a non-zero gradient."""
    groups: dict[str, list[Tensor | None]] = {}
    for name, parameter in trainable(subject.model).items():
        groups.setdefault(name.split(".lora_")[0] if ".lora_" in name else "model", []).append(parameter.grad)
    heard = lambda g: g is not None and bool(whole(g).any())  # noqa: E731
    deaf = [name for name, grads in groups.items() if not any(map(heard, grads))]
    if deaf and (len(deaf) == len(groups) or "model" not in groups):
        raise ExpungeError(
            f"no gradient arrives at {len(deaf)} of {len(groups)} trained parts ({', '.join(deaf[:3])}). "
            "The loss does not reach them: check adapter, selection and retain loss"
        )
