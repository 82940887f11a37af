"""Attribution by influence functions with EK-FAC curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt

from expunge.data.records import Record
from expunge.explain.base import ATTRIBUTIONS, Attributed, Attribution
from expunge.explain.record_gradients import Gradients, matching
from expunge.progress import track
from expunge.subjects.subject import Subject
from expunge.training.curvature import Labels, language_problem, linear_weights, make_solver
from expunge.training.gradients import differentiable

__all__ = ["Influence"]


@ATTRIBUTIONS.register(
    "ekfac",
    uses="gradients",
    scale="rise of the query's loss when the record is left out",
    cost="3 × (1F+1B) per record, one eigendecomposition per matrix",
    source="Grosse et al. 2023, arXiv 2308.03296; Koh and Liang 2017, arXiv 1703.04730",
)
@dataclass(frozen=True, kw_only=True)
class Influence(Attribution):
    """The rise of the query's loss were the record left out, by influence functions: g_qᵀ (F + δI)⁻¹ g_z.

    F: the Fisher of the summed answer NLL of `records`, Kronecker-factored with corrected eigenvalues (or
    `kfac`, `diagonal`), over the linear maps of the blocks whose names `match`; δ = `damping` times F's mean
    eigenvalue. Labels are drawn from the model, `gold` takes the records' own. `max_rows` records, drawn by
    the seed, stand for all of them in F. Grosse et al. 2023 (arXiv 2308.03296), who take δ = 0.1 times the
    mean eigenvalue of each matrix.
    """

    engine: Literal["own", "kronfluence"] = "own"
    curvature: Literal["ekfac", "kfac", "diagonal"] = "ekfac"
    damping: Annotated[float, Gt(0)] = 0.1
    labels: Labels = "sampled"
    max_rows: Annotated[int, Ge(1)] = 512
    match: str = ""

    def attribute(
        self, subject: Subject, queries: Sequence[Record], records: Sequence[Record], *, seed: int = 0
    ) -> Attributed:
        ids = tuple(q.id for q in queries), tuple(r.id for r in records)
        if self.engine == "kronfluence":
            from expunge.explain.kronfluence_engine import kronfluence_scores

            return Attributed(*ids, kronfluence_scores(subject, queries, records, self, seed))
        with differentiable(subject, self.names(subject)) as chosen:
            problem = language_problem(subject, records, chosen, max_rows=self.max_rows, seed=seed)
            delta = self.damping * problem.mean_eigenvalue(self.labels)
            solver = make_solver(self.curvature, problem, delta, labels=self.labels)
            gradients = Gradients(subject, chosen)
            solved = torch.stack([problem.flat(solver.solve(g)) for g in gradients.each(queries)])
            columns = []
            with track("influence", len(records)) as advance:
                for record in records:
                    columns.append((solved @ gradients.flat(record)).cpu().numpy())
                    advance()
        return Attributed(*ids, np.stack(columns, axis=1))

    def names(self, subject: Subject) -> list[str]:
        """The weights that influence is taken through."""
        maps = set(linear_weights(subject.model))
        return [name for name in matching(subject, self.match) if name in maps]
