"""What a method may use: settings, controls, the loop, a folder; what it did is kept here for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from expunge import ranks
from expunge.data.request import Request
from expunge.errors import ConfigError, DataError, ExpungeError, Problem
from expunge.progress import say
from expunge.subjects import attach_lora, merge
from expunge.subjects.adapters import merge_onto
from expunge.subjects.architecture import linear_targets, without_dropout
from expunge.subjects.quantized import quantize_base
from expunge.subjects.subject import Subject, quiet
from expunge.training.checkpoint import trainable
from expunge.training.fila import start_fila
from expunge.training.hooks import TrainingControl
from expunge.training.loop import FitResult, Loop
from expunge.training.reference import Mode
from expunge.training.selections import Mask, Selection, intersect, save_mask
from expunge.training.settings import TrainSettings
from expunge.training.sharding import check_axes, check_task, divide, rejoined, whole
from expunge.training.transforms import Transform
from expunge.training.unlearn import UnlearnTask

__all__ = ["LoraSettings", "Workspace"]


class LoraSettings(BaseModel):
    """A LoRA on every linear map of the blocks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0, description="default 2·rank")
    start: Literal["zero", "fila"] = Field(
        "zero", description="zero: B·A = 0; fila: in the directions that matter to forget and not to retain"
    )
    base: Literal["full", "int8", "nf4"] = Field(
        "full", description="int8, nf4: base (and reference) quantized in training; merged onto full weights"
    )


@dataclass
class Workspace:
    """Axes of a run that are not the method's own, and the services a method may call."""

    settings: TrainSettings
    folder: Path | None = None
    controls: Sequence[TrainingControl] = ()
    lora: LoraSettings | None = None
    reference: Mode = "auto"
    reference_budget: int = 2 * 2**30
    reference_subject: Subject | None = None  # θ_o where it is not the subject given (continual requests)
    transforms: Sequence[Transform] = ()
    selections: Sequence[Selection] = ()
    divide: str | None = None  # device type over whose processes the weights are divided (FSDP2)
    deepspeed: dict[str, Any] | None = None  # its configuration, see training.zero
    result: FitResult | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def train(self, method: Any, subject: Subject, request: Request, *, rank: int | None = None) -> Subject:
        """Run an objective in the one loop; the subject given is not changed.

        `rank`: of the LoRA the method wants where the run has set none.

        Raises ExpungeError when training ran and no weight moved (bf16 weights without fp32 masters do that).
        """
        if not request.forget:
            raise DataError(Problem("forget", f"{method.name} needs forget records", "Bring a forget set"))
        settings = method.settings_for(self.settings, request)
        controls = [*self.controls, *method.hooks(request)]
        for control in controls:
            control.check(method, settings.accumulate * ranks.world())  # both compute a step in parts
        if not getattr(method, "transformable", True) and (
            self.transforms or any(control.transform for control in controls)
        ):
            what = f"{method.name} brings a step of its own, no gradient transform can act on it"
            raise ConfigError(Problem("transform", what, "Remove the transform"))
        work = subject.clone()
        without_dropout(work.model)
        lora = self.lora or (LoraSettings(rank=rank) if rank else None)
        work, masks = self._select(method, work, request, lora)
        whole_again = None
        if self.divide or self.deepspeed is not None:
            self._check_divisible(method, controls, lora, settings)
        if self.divide:
            whole_again = work.clone()
            divide(work, self.divide)
        task = UnlearnTask(
            method, work, request, settings, controls=controls, reference=self.reference,
            reference_budget=self.reference_budget, reference_subject=self.reference_subject,
            teacher=method.teacher(subject, request, self),
        )  # fmt: skip
        if self.divide:
            check_task(task)
        for control in controls:
            control.prepare(task)
        if hasattr(method, "begin"):
            method.begin(work, settings.seed)
        before = _samples(work, masks)
        if rough := {str(p.dtype) for p in trainable(work.model).values()} - {"torch.float32"}:
            what = f"{' and '.join(sorted(rough))} weights are trained, small steps round away"
            say(f"{method.name}: {what}. Set dtype: float32")
        kind: Any = Loop if self.deepspeed is None else partial(_zero_loop, config=self.deepspeed)
        loop = kind(
            work, task, settings, folder=self.folder, controls=controls,
            name=f"unlearning ({method.name})", state=task.state, own_step=getattr(method, "step", None),
            transforms=self.transforms, masks=masks,
        )  # fmt: skip
        self.result = loop.run()
        if whole_again is not None:
            work = rejoined(work, whole_again)
        self._check_moved(_samples(work, masks), before)
        self.facts["reference"] = task.reference.mode
        self.facts["trained_parameters"] = sum(
            int(masks[name].sum()) if name in masks else p.numel()
            for name, p in trainable(work.model).items()
        )
        for parameter in work.model.parameters():
            parameter.requires_grad_(True)
        if lora is not None and lora.start == "zero" and self.folder is not None and ranks.is_first():
            with quiet():  # a control can turn its scale; after fila it does not stand on θ_o
                work.model.save_pretrained(self.folder / "adapter")  # type: ignore[operator]
        if lora is not None and lora.base != "full":
            return merge_onto(work, subject.clone())
        return merge(work)

    def _check_divisible(
        self,
        method: Any,
        controls: Sequence[TrainingControl],
        lora: LoraSettings | None,
        settings: TrainSettings,
    ) -> None:
        ranks.check_scale(method.card, divided=True)
        bound = [type(c).__name__ for c in controls if c.whole_weights or c.transform is not None]
        check_axes(
            quantized=lora is not None and lora.base != "full", transforms=bool(self.transforms),
            selections=bool(self.selections), optimizer=settings.optimizer, reference=self.reference,
            controls=bound,
        )  # fmt: skip

    def _select(
        self, method: Any, work: Subject, request: Request, lora: LoraSettings | None
    ) -> tuple[Subject, dict[str, torch.Tensor]]:
        """What is trained: the method's parameters within every selection, through a LoRA where asked for.

        Returns the masks of tensors that are trained in part.
        """
        every = dict(work.model.named_parameters())
        names = method.selects(work)
        mask: dict[str, Any] = dict.fromkeys(every if names is None else names, True)
        for selection in self.selections:
            mask = intersect(mask, selection.select(work, request, list(mask), self.settings.seed))
        parts = {name: m.to(work.device) for name, m in mask.items() if m is not True}
        if not mask or (len(parts) == len(mask) and not any(bool(m.any()) for m in parts.values())):
            raise ConfigError(Problem("selection", "nothing is left to train", "Select more"))
        if self.selections and self.folder is not None and ranks.is_first():
            self._keep_mask(self.folder, work, mask)
        if lora is not None:
            if parts:
                what = "masks single weights, and a LoRA trains whole matrices"
                raise ConfigError(Problem("selection", what, "Use adapter: full, or select tensors"))
            whole = names is None and not self.selections
            maps = tuple(linear_targets(work.model))
            targets = (
                None if whole else sorted(n for m in mask if (n := m.removesuffix(".weight")).endswith(maps))
            )
            if targets == []:
                raise ConfigError(Problem("selection", "holds no linear map for a LoRA", "Select more"))
            if lora.base != "full":
                quantize_base(work.model, lora.base)
            rank, alpha, seed = lora.rank, lora.alpha, self.settings.seed
            adapted = attach_lora(work, rank=rank, alpha=alpha, seed=seed, targets=targets)
            if lora.start == "fila":
                start_fila(adapted, request)
            return adapted, {}
        for name, parameter in every.items():
            parameter.requires_grad_(name in mask)
        return work, parts

    def _keep_mask(self, folder: Path, work: Subject, mask: Mask) -> None:
        """Beside the training's log, for other runs to use."""
        folder.mkdir(parents=True, exist_ok=True)
        used = [{"name": s.name, **vars(s)} for s in self.selections]
        meta = {"fingerprint": work.fingerprint(), "seed": self.settings.seed, "selections": used}
        save_mask(folder / "mask.safetensors", mask, meta)

    def _check_moved(self, after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
        moved = sum(int((sample != before[name]).sum()) for name, sample in after.items())
        self.facts["moved_fraction"] = moved / max(1, sum(sample.numel() for sample in before.values()))
        assert self.result is not None
        if moved == 0 and self.result.status == "finished" and not self.controls:
            raise ExpungeError(
                "training ran, but no weight moved. Raise lr, or keep fp32 master weights (dtype: float32)"
            )


def _zero_loop(*args: Any, **more: Any) -> Loop:
    from expunge.training.zero import ZeroLoop

    return ZeroLoop(*args, **more)


def _samples(
    work: Subject, masks: Mapping[str, torch.Tensor], limit: int = 65_536
) -> dict[str, torch.Tensor]:
    """About `limit` trained weights of each tensor, evenly spread: enough to see whether it moved."""

    def sample(name: str, parameter: torch.Tensor) -> torch.Tensor:
        flat = whole(parameter.detach()).reshape(-1)
        if name in masks:
            flat = flat[masks[name].reshape(-1)]
        return flat[:: max(1, flat.numel() // limit)].cpu().clone()

    return {name: sample(name, p) for name, p in trainable(work.model).items()}
