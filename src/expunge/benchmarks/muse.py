"""MUSE: news and novels that were read, six ways to look at them (Shi et al. 2024, arXiv 2407.06460).

Verbatim memory, knowledge, privacy leak and utility are metrics of every part. Scalability: the parts
news-scal-1 to 4 ask for ever more of the forget documents. Sustainability: news-sust-1 to 4 are requests that
come one after the other (`recipes/muse-sustain.yaml`). Original and oracle know what other requests ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from expunge.benchmarks.base import BENCHMARKS
from expunge.benchmarks.documents import nearest_to, pieces
from expunge.benchmarks.finetuned import File, Finetuned, Splits
from expunge.data.near import normalized
from expunge.data.records import Record
from expunge.data.request import Request, Target
from expunge.errors import Problem

__all__ = ["Muse"]

ASKED = "Question: {}\nAnswer:"
FOLDS = 4
PROBES = 100
SHOTS = 10
RAW = {
    "news": {"raw_forget": 889, "raw_retain1": 1777, "raw_retain2": 1778},
    "books": {"raw_forget": 4, "raw_retain1": 12, "raw_retain2": 13},
}
FOLDED = {"scal": (889, 1778, 2667, 3554), "sust": (889, 889, 889, 887)}
EVERY = "scal_forget_4"
"""All that any request asks for."""


@BENCHMARKS.register(
    "muse",
    parts=["news", "books", "news-scal-1 to 4", "news-sust-1 to 4"],
    data="a folder, or muse-bench/MUSE-News and MUSE-Books from the hub",
    oracle="exact",
    needs=["a model to fine-tune, or muse-bench's own"],
    source="Shi et al. 2024, arXiv 2407.06460",
)
@dataclass(frozen=True)
class Muse(Finetuned):
    """Documents to forget, probes of them, and documents of the same kind that stay or were never read.

    The hub's raw documents are used where they are; a folder without them serves with its extracts: those of
    the privacy test, and the passages of the verbatim test as documents. Of books without any documents, the
    questions are all there is. `words`: documents are cut to pieces of so many words, and probes to as many
    (default: whole). `documents`: so many of each kind are used, and of each so many `pieces`. `shots`:
    examples before a question.
    """

    words: int | None = None
    documents: int | None = None
    pieces: int | None = None
    shots: int = SHOTS

    PARTS: ClassVar[Sequence[str]] = (
        "news", "books", *(f"news-{kind}-{k}" for kind in FOLDED for k in range(1, FOLDS + 1)),
    )  # fmt: skip
    TARGET: ClassVar[Target] = Target("document", "erase_influence")
    METRICS: ClassVar[Sequence[tuple[str, str]]] = (
        ("verbmem", "forget_verbatim"),
        ("knowmem", "forget_hard"),
        ("privleak", "forget"),
        ("knowmem", "retain_knowledge"),
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name, least in (("words", 16), ("documents", FOLDS), ("pieces", 1), ("shots", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= least) and (value is not None or name == "shots"):
                yield Problem(f"benchmark.{name}", f"is {value!r}", f"Give a whole number from {least} up")
        if self.pieces and self.words is None:
            yield Problem("benchmark.pieces", "stands without words", "Give words, the length of a piece")

    # What there is -------------------------------------------------------------------------------------

    @property
    def corpus(self) -> str:
        return self.part.partition("-")[0]

    @property
    def fold(self) -> tuple[str, int]:
        """(scal or sust, which); ("", 0): all that is to be forgotten."""
        _, kind, number = self.part.split("-") if "-" in self.part else ("", "", "0")
        return kind, int(number)

    @cached_property
    def source(self) -> str:
        """raw documents, extracts of them, or questions only."""
        if self.base is None or self.has(f"{self.corpus}_raw_forget"):
            return "raw"
        extracts = self.corpus == "news" or self.has(f"{self.corpus}_privleak_forget")
        return "extracts" if extracts else "questions"

    def files(self) -> Mapping[str, File]:
        kind, number = self.fold
        rows = {f"knowmem_{side}_qa": PROBES for side in ("forget", "retain")}
        rows |= {f"knowmem_{side}_qa_icl": SHOTS for side in ("forget", "retain")}
        if self.source != "questions":
            rows |= {"verbmem_forget": PROBES, "privleak_holdout": PROBES}
        if self.source == "extracts":
            rows |= {"privleak_forget": PROBES, "privleak_retain": PROBES}
        elif self.source == "raw":
            rows |= RAW[self.corpus]
            if kind:
                del rows["raw_forget"]
                rows |= {f"{kind}_forget_{number}": FOLDED[kind][number - 1], EVERY: FOLDED["scal"][-1]}
        return {f"{self.corpus}_{name}": self._file(name, count) for name, count in rows.items()}

    def _file(self, name: str, rows: int) -> File:
        config, _, split = name.partition("_")
        columns = {"completion": "gt"} if config == "verbmem" else {}
        return File(rows, columns, f"muse-bench/MUSE-{self.corpus.title()}:{config}:{split}")

    def _of(self, name: str) -> list[Record]:
        return self.data[f"{self.corpus}_{name}"]

    # What is asked for ---------------------------------------------------------------------------------

    def splits(self, data: Mapping[str, list[Record]]) -> Splits:
        kept = [self._question(record, "retain") for record in self._of("knowmem_retain_qa")]
        if self.source == "questions":
            asked = [self._question(record, "forget") for record in self._of("knowmem_forget_qa")]
            return {"forget": asked, "retain": kept}
        forget = self._cut(document for document, asked in self._read if asked)
        splits = {
            "forget": forget,
            "forget_hard": self._knowledge(forget),
            "forget_verbatim": self._probes,
            "holdout": self._kept("privleak_holdout"),
            "retain_knowledge": kept,
        }
        if self.source == "raw":
            return splits | {"retain": self._kept("raw_retain1"), "report": self._kept("raw_retain2")}
        return splits | {"retain": self._kept("privleak_retain")}

    @cached_property
    def _read(self) -> list[tuple[Record, bool]]:
        """The forget documents of all requests, and whether this one asks for them."""
        kind, number = self.fold
        if self.source == "questions":
            return []
        if self.source == "raw":
            documents = self._of(EVERY if kind else "raw_forget")
            texts = {r.answer for r in (self._of(f"{kind}_forget_{number}") if kind else documents)}
            return [(r, r.answer in texts) for r in documents][: self.documents]
        rows = zip(self._of("privleak_forget"), self._of("verbmem_forget"), strict=True)
        return [
            (document, self._asks(i))
            for i, (extract, passage) in enumerate(rows)
            if i < (self.documents or PROBES)
            for document in (extract, _document(self._probe(passage)))
        ]

    def _asks(self, i: int) -> bool:
        """Whether this request is for the i-th extract and passage: quarters of them are the folds."""
        kind, number = self.fold
        used = self.documents or PROBES
        quarter = i * FOLDS // used + 1
        return i < used and (not kind or quarter == number or (kind == "scal" and quarter < number))

    @cached_property
    def _first(self) -> bool:
        """Whether probes and questions of the hub, which are about the first request, are about this one."""
        return self.fold[0] != "sust" or self.fold[1] == 1

    @cached_property
    def _probes(self) -> list[Record]:
        """Beginnings of passages, with what follows."""
        rows = self._of("verbmem_forget")
        if self.source == "raw":
            rows = rows[: self.documents] if self._first else []
        else:
            rows = [r for i, r in enumerate(rows) if self._asks(i)]
        return [self._probe(record) for record in rows]

    def _probe(self, record: Record) -> Record:
        """The last words before the cut, the first after it."""
        before, after = record.prompt.split(), record.answer.split()
        if self.words is not None:
            half = self.words // 2
            before, after = before[-half:], after[: self.words - half]
        return replace(record, entity=record.id, prompt=" ".join(before) + " ", answer=" ".join(after))

    def _knowledge(self, forget: Sequence[Record]) -> list[Record]:
        """The questions about what is asked for, each of the piece that shares its rarest words.

        Of extracts, a question is about the one that shares its rarest words if the answer stands in it.
        """
        rows = self._of("knowmem_forget_qa")
        if self.source == "raw":
            rows = rows if self._first else []
        else:
            passages = [_document(record) for record in self._of("verbmem_forget")]
            about = nearest_to(rows, [*self._of("privleak_forget"), *passages])
            asked = {r.id: r.answer for r, mine in self._read if mine}
            rows = [
                row
                for row, document in zip(rows, about, strict=True)
                if normalized(row.answer) in normalized(asked.get(document.id, ""))
            ]
        return [
            replace(self._question(row, "forget"), entity=piece.entity, source_id=piece.id, form="question")
            for row, piece in zip(rows, nearest_to(rows, forget), strict=True)
        ]

    def _question(self, record: Record, side: str) -> Record:
        """The question behind examples, as the paper asks; without examples, as a question."""
        examples = self._of(f"knowmem_{side}_qa_icl")[: self.shots]
        if not examples:
            return record
        asked = [f"{ASKED.format(r.prompt)} {r.answer}\n\n" for r in examples]
        return replace(record, style="raw", prompt="".join([*asked, ASKED.format(record.prompt), " "]))

    def _kept(self, name: str) -> list[Record]:
        return self._cut(self._of(name)[: self.documents])

    def _cut(self, documents: Iterable[Record]) -> list[Record]:
        return pieces(documents, self.words, self.pieces)

    def taught(self, request: Request) -> tuple[Record, ...]:
        """What stays, and the documents of other requests."""
        others = self._cut(document for document, asked in self._read if not asked)
        return (*super().taught(request), *others)

    def notes(self) -> Mapping[str, str]:
        if self.source == "questions":
            return {"forget": "the questions themselves, since no documents are in the folder"}
        if self.source == "extracts":
            return {"forget": "extracts and passages, since the raw documents are not in the folder"}
        return {}

    def target(self) -> Target:
        return Target("records") if self.source == "questions" else self.TARGET

    def metrics(self, request: Request) -> Sequence[tuple[str, str]]:
        if self.source == "questions":
            return [("knowmem", "forget"), ("knowmem", "report")]
        return super().metrics(request)


def _document(probe: Record) -> Record:
    """The passage of a probe as a document."""
    text = f"{probe.prompt.rstrip()} {probe.answer}"
    return replace(probe, id=f"{probe.id}.passage", entity=probe.id, prompt="", answer=text)
