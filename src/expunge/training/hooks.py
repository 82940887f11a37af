"""What a control may do during training. Every hook is optional; state is checkpointed with the run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from expunge.subjects.subject import Subject
from expunge.training.views import View

__all__ = ["TrainingControl"]


class TrainingControl:
    """Base of the controls during training.

    Over several ranks the rows and views are this rank's share, all else is the same everywhere: what is
    counted in rows goes through `ranks.total` before anything is decided by it.

    A zero gradient is not a zero step (momentum, weight decay and Adam moments still move the weights), so a
    control that promises that nothing more happens says so through `skip_step`.
    """

    active: float | None = None
    """Share of forget rows or tokens of the last step where the control binds; logged."""

    calibration: float | None = None
    """The last value measured on calibration, for the log."""

    drops_retain: bool = False
    """Whether this control leaves no retain term: then no retain row runs."""

    whole_weights: bool = False
    """Whether this control looks at whole tensors: then it cannot bind weights divided over the ranks."""

    transform: Any = None
    """A gradient transform this control brings along, see expunge.training.transforms."""

    def check(self, method: Any, accumulate: int) -> None:
        """Raise ConfigError when this control cannot bind this method."""

    def prepare(self, task: Any) -> None:
        """Called once with the task while the weights are still θ_o, also when resuming."""

    def begin(self, subject: Subject) -> None:
        """Called once before the first step, also when resuming."""

    def forget_view(self, view: View) -> View:
        """The view the forget loss sees."""
        return view

    def forget_rows(self, rows: Tensor, view: View) -> Tensor:
        """The forget loss per row, [B]."""
        return rows

    def retain_rows(self, rows: Tensor, view: View) -> Tensor:
        """The retain loss per row, [B]."""
        return rows

    def weights(self, forget: float, retain: float) -> tuple[float, float]:
        """γ and λ of the next step."""
        return forget, retain

    def observe(self, terms: dict[str, float]) -> None:
        """The means of all terms over the optimizer step, before it is taken."""

    def skip_step(self, has_retain: bool) -> bool:
        """Whether this optimizer step is left out altogether, moments and schedule of lr included."""
        return False

    def after_update(self, subject: Subject) -> None:
        """Called right after the optimizer moved the weights; may move them back, as a ball does."""

    def after_step(self, step: int, subject: Subject) -> bool:
        """Called after optimizer step `step` (from 1); True stops the training."""
        return False

    def finish(self, subject: Subject) -> str | None:
        """Called once at the end; may restore weights. Returns a sentence for the report."""
        return None

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON, tensors) that a resumed run needs."""
        return {}, {}

    def load_state(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
