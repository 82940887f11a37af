"""Influence by the package kronfluence, where it is installed: the same question, asked of its EK-FAC."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.batching import Batch, collate
from expunge.data.encoding import Encoded
from expunge.data.records import Record
from expunge.errors import ModelError, Problem, Unsupported, require
from expunge.subjects.forward import forward
from expunge.subjects.subject import Subject
from expunge.training.gradients import answer_rows
from expunge.training.views import sum_rows

if TYPE_CHECKING:
    from expunge.explain.attribution.ekfac import Influence

__all__ = ["kronfluence_scores"]

INSTALL = "--no-deps kronfluence einops einconv opt_einsum"
"""Its own requirements would bring another torch."""

ROWS = 8
"""Rows at a time."""


def kronfluence_scores(
    subject: Subject, queries: Sequence[Record], records: Sequence[Record], settings: Influence, seed: int
) -> np.ndarray:
    """[Q, N] on a copy of the model, all records in F, damping relative to each matrix's mean eigenvalue.

    Each record must fit the context. Raises MissingDependency where the package is not there.
    """
    require("einconv", INSTALL, "attribution 'ekfac', engine kronfluence")
    analyzer_of = require("kronfluence.analyzer", INSTALL, "attribution 'ekfac', engine kronfluence")
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    copy, rows = subject.clone(), [answer_rows(subject, [r]) for r in records]
    asked = [answer_rows(subject, [q]) for q in queries]
    if any(len(some) != 1 for some in (*rows, *asked)):
        what, fix = "a document longer than the context has several rows", "Use engine: own"
        raise Unsupported(Problem("engine kronfluence", what, fix))
    names = [n.removesuffix(".weight") for n in settings.names(copy)]
    if not all(isinstance(copy.model.get_submodule(name), nn.Linear) for name in names):
        what = "knows no matrices but those of nn.Linear"
        raise ModelError(Problem("engine kronfluence", what, "Use engine: own"))
    task = _task(names)
    for parameter in copy.model.parameters():
        parameter.requires_grad_(False)
    model = analyzer_of.prepare_model(copy.model.eval(), task)
    pad = subject.encoder.pad_id
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        analyzer = analyzer_of.Analyzer(
            "expunge", model, task, cpu=subject.device.type == "cpu", output_dir=folder,
            disable_tqdm=True, disable_model_save=True,
        )  # fmt: skip
        loading = DataLoaderKwargs(collate_fn=lambda some: _plain(collate(some, pad)))
        analyzer.set_dataloader_kwargs(loading)
        train, query = _Rows([some[0] for some in rows]), _Rows([some[0] for some in asked])
        factors = FactorArguments(strategy=settings.curvature, use_empirical_fisher=settings.labels == "gold")
        analyzer.fit_all_factors(
            "factors", train, per_device_batch_size=ROWS, factor_args=factors, overwrite_output_dir=True
        )
        damped = ScoreArguments(damping_factor=None)
        analyzer.compute_pairwise_scores(
            "scores", "factors", query, train, per_device_query_batch_size=ROWS,
            per_device_train_batch_size=ROWS, score_args=damped, overwrite_output_dir=True,
        )  # fmt: skip
        found: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return found.double().numpy() / len(records)  # its F is a mean over rows, ours the sum


class _Rows(torch.utils.data.Dataset[Encoded]):
    def __init__(self, rows: Sequence[Encoded]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        return self.rows[index]


def _plain(batch: Batch) -> dict[str, Tensor]:
    """A batch in a form that accelerate can count and move: the first tensor has B rows."""
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


def _task(names: list[str]) -> Any:
    """What kronfluence asks of a model: the sum over rows of m_i, with gold or drawn labels."""
    from kronfluence.task import Task

    class Answers(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            batch = Batch(**batch)
            logits = forward(model, batch).logits
            assert logits is not None
            logp = logits.float().log_softmax(-1)
            labels = torch.multinomial(logp.detach().exp(), 1) if sample else batch.targets[:, None]
            return -sum_rows(
                logp.gather(1, labels)[:, 0] / batch.num_tokens[batch.row], batch.row, len(batch)
            ).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

    return Answers()
