"""Training in isolated shards, so that a record can be taken out again exactly.

The shards never see each other. Each learns R slices one after the other, slice r together with those before
it, and its weights are kept after every slice. Such a *stage* is a function of the base, the settings and the
records it has seen; it is kept under a hash of just these. So deleting is: note the id, drop every stage that
has seen it, train what is missing. A killed run goes on where it was, and the result is that of a training
which never saw the record, bit for bit (Bourtoule et al. 2019, arXiv 1912.03817).

The folder holds `manifest.json`, the weights of each stage, the base, and the key of its hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.data.records import Record
from expunge.data.request import fingerprint_records
from expunge.errors import ConfigError, DataError, ExpungeError, Problem
from expunge.stats import seed_from
from expunge.subjects.adapters import attach_lora, lora_modules, merge
from expunge.subjects.architecture import without_dropout
from expunge.subjects.subject import Subject, load_subject
from expunge.subjects.weights import WeightFile, dump_weights, fingerprint, load_weights, save_subject
from expunge.training.finetune import FinetuneTask
from expunge.training.loop import Loop
from expunge.training.settings import TrainSettings
from expunge.training.shard_plan import KeyedOrder, ShardPlan
from expunge.training.workspace import LoraSettings

__all__ = ["Shards", "Spent", "open_shards", "replay", "train_shards"]

CODE_VERSION = 1
"""Rises when the same stage would get other weights."""

PASSING = {"checkpoint_seconds", "report_to", "log_every"}
"""Settings that change no weight."""


class Spent(NamedTuple):
    """What was trained: optimizer steps, padded tokens, seconds."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def plus(self, other: Spent) -> Spent:
        return Spent(self.steps + other.steps, self.tokens + other.tokens, self.seconds + other.seconds)


class Shards:
    """The sharded training that lies in `folder`; `train` and `delete` bring it up to date."""

    def __init__(
        self,
        folder: Path,
        base: Subject,
        plan: ShardPlan,
        settings: TrainSettings,
        *,
        lora: LoraSettings | None = None,
        clean: bool = False,
        origin: str = "",
    ):
        self.folder, self.base, self.plan, self.settings, self.lora = folder, base, plan, settings, lora
        self.clean, self.origin = clean, origin
        self.spent = Spent()  # by this object, so far
        self.deleted: set[str] = set()
        self.touched: set[int] = set()  # shards that had to forget something
        self.stages: dict[tuple[int, int], dict[str, Any]] = {}
        self.about = {
            "version": CODE_VERSION,
            "plan": asdict(plan),
            "settings": settings.model_dump(mode="json", exclude=PASSING),
            "lora": lora.model_dump(mode="json") if lora else None,
            "base": fingerprint(base.model),
            "encoder": base.encoder.fingerprint(),
            "max_length": base.encoder.max_length,
            "dtype": str(next(base.model.parameters()).dtype).removeprefix("torch."),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._secret = _secret(folder)
        self._restore()

    # Training and deleting ----------------------------------------------------------------------------

    def train(self, records: Iterable[Record], *, only: Collection[int] | None = None) -> None:
        """Train every stage that is missing or saw other records; deleted records are passed over.

        Raises DataError when records of an earlier training are neither given nor deleted: what is to go is
        said with `delete`, never by leaving it out.
        """
        parts = self.plan.assign(r for r in records if self._mark(r.id) not in self.deleted)
        chosen = sorted(range(self.plan.shards) if only is None else only)
        self._check_given(parts, chosen)
        wanted = {shard: self._keys(shard, parts[shard]) for shard in chosen}
        self._drop_stale(wanted)
        for shard in chosen:
            self._train_shard(shard, parts[shard], wanted[shard])

    def delete(self, ids: Collection[str], records: Iterable[Record]) -> None:
        """Take out records by id, for good. `records` are those that stay, of the affected shards at least.

        Twice the same is once; a killed deletion is finished by asking again. Raises DataError on ids that
        were never trained on.
        """
        marks = {self._mark(name): name for name in ids}
        trained = {mark for stage in self.stages.values() for mark in stage["records"]}
        unknown = sorted(name for mark, name in marks.items() if mark not in trained | self.deleted)
        if unknown:
            what = f"{len(unknown)} of {len(marks)} ids were not trained on: {', '.join(unknown[:3])}"
            raise DataError(Problem(str(self.folder), what, "Give the ids that the training records had"))
        hit = {s for (s, _), stage in self.stages.items() if marks.keys() & set(stage["records"])}
        open_ends = {s for s in range(self.plan.shards) if (s, self.plan.slices - 1) not in self.stages}
        self.deleted |= marks.keys()
        self.touched |= hit
        self._save()  # from here on nothing trains on them, whatever happens
        self.train(records, only=hit | open_ends)

    def _train_shard(self, shard: int, parts: Sequence[Sequence[Record]], keys: Sequence[str]) -> None:
        first = next((r for r, key in enumerate(keys) if not self._holds(shard, r, key)), len(keys))
        work = self._after(shard, first) if first < len(keys) else None
        for part in range(first, len(keys)):
            assert work is not None
            seen = [record for slice_ in parts[: part + 1] for record in slice_]
            spent = self._fit(work, seen, shard, part, keys[part]) if seen else Spent()
            path = self._file(shard, part)
            dump_weights(work.model, path, trainable_only=self.lora is not None)
            self.stages[shard, part] = {
                "key": keys[part],
                "weights": _hash_file(path),
                "records": sorted(self._mark(r.id) for r in parts[part]),
                **spent._asdict(),
            }
            self._save()
            self.spent = self.spent.plus(spent)
            shutil.rmtree(self._scratch(keys[part]), ignore_errors=True)

    def _fit(self, work: Subject, records: Sequence[Record], shard: int, part: int, key: str) -> Spent:
        settings = self.plan.stage(self.settings, shard, part)
        without_dropout(work.model)
        task = FinetuneTask(work, records, settings)
        task.schedule = KeyedOrder(task.ids, batch=settings.batch, seed=settings.seed)  # type: ignore[assignment]
        name = f"shard {shard + 1}/{self.plan.shards}" + f", slice {part + 1}" * (self.plan.slices > 1)
        result = Loop(work, task, settings, folder=self._scratch(key), name=name).run()
        if result.status == "diverged":
            raise ExpungeError(f"{name}: {result.notes[-1]}. Lower the learning rate ({settings.lr:g})")
        return Spent(result.steps, result.tokens, result.seconds)

    def _after(self, shard: int, slices: int) -> Subject:
        """The shard's model as it stood after this many slices, ready to be trained on."""
        work = self.base.clone()
        if self.lora is not None:
            seed = seed_from(self.settings.seed, "shard", shard, "adapter")
            work = attach_lora(work, rank=self.lora.rank, alpha=self.lora.alpha, seed=seed)
        if slices:
            load_weights(work.model, WeightFile(self._file(shard, slices - 1)))
        return work

    # What was trained ---------------------------------------------------------------------------------

    @property
    def filled(self) -> list[int]:
        """The shards that have learned anything."""
        return sorted({s for (s, _), stage in self.stages.items() if stage["records"]})

    @property
    def trained_parameters(self) -> int:
        """Of one shard."""
        files = [self._file(shard, self.plan.slices - 1) for shard in self.filled[:1]]
        return sum(tensor.numel() for file in files for _, tensor in WeightFile(file).items())

    def members(self) -> Iterator[Subject]:
        """The finished model of each shard that has learned anything, adapters folded in."""
        for shard in self.filled:
            yield merge(self._after(shard, self.plan.slices))

    def merged(self, rule: Literal["mean", "sum"] = "mean") -> Subject:
        """The base with the mean (or the sum) of the adapters' deltas, θ = θ_base + Σ_s (α/r)·B_s A_s / S."""
        assert self.lora is not None, "only adapters can be merged"
        total: dict[str, Tensor] = {}
        for shard in self.filled:
            for name, module in lora_modules(self._after(shard, self.plan.slices).model):
                delta = module.get_delta_weight("default").detach()
                total[name] = total[name] + delta if name in total else delta
        result = self.base.clone()
        with torch.no_grad():
            for name, delta in total.items():
                weight = result.model.get_submodule(name.removeprefix("base_model.model.")).weight
                scale = 1 / len(self.filled) if rule == "mean" else 1
                weight.add_((scale * delta).to(weight.dtype))  # type: ignore[operator, arg-type]
        return result

    @property
    def weights(self) -> list[list[str]]:
        """The hash of the weights after each slice of each shard."""
        return [
            [self._stage(s, r, "weights") for r in range(self.plan.slices)] for s in range(self.plan.shards)
        ]

    def certificate(self) -> dict[str, Any]:
        """What another needs to train this again, and to see that it is this: see `replay`.

        What each stage saw and what was deleted stand in it as keyed hashes; the key stays in the folder.
        """
        return {
            **self.about,
            "weights": self.weights,
            "data": self._all("key"),
            "deleted": sorted(self.deleted),
            "affected": sorted(self.touched),
            "order": "by a hash of seed, epoch and record id",
            "steps": sum(stage["steps"] for stage in self.stages.values()),
            "replay": "expunge.training.shards.replay(certificate, base, records without the deleted ones)",
        }

    # The folder ---------------------------------------------------------------------------------------

    def _stage(self, shard: int, part: int, what: str) -> Any:
        return self.stages.get((shard, part), {}).get(what)

    def _all(self, what: str) -> list[list[Any]]:
        size = range(self.plan.slices)
        return [[self._stage(shard, part, what) for part in size] for shard in range(self.plan.shards)]

    def _file(self, shard: int, part: int) -> Path:
        return self.folder / f"shard-{shard}-slice-{part}.safetensors"

    def _scratch(self, key: str) -> Path:
        """Checkpoints of a stage under way, by its key: those of other records are never resumed."""
        return self.folder / f".stage-{key}"

    def _mark(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()[:16]

    def _keys(self, shard: int, parts: Sequence[Sequence[Record]]) -> list[str]:
        """Each stage's hash of all that its weights depend on."""
        key = self._mark(json.dumps([shard, self.about], sort_keys=True))
        keys = []
        for records in parts:
            key = self._mark(f"{key} {fingerprint_records(records)}")
            keys.append(key)
        return keys

    def _holds(self, shard: int, part: int, key: str) -> bool:
        path = self._file(shard, part)
        known = self._stage(shard, part, "key") == key and path.is_file()
        return known and _hash_file(path) == self._stage(shard, part, "weights")

    def _check_given(self, parts: Sequence[Sequence[Sequence[Record]]], chosen: Collection[int]) -> None:
        stored = {m for (s, _), stage in self.stages.items() if s in chosen for m in stage["records"]}
        given = {self._mark(r.id) for s in chosen for records in parts[s] for r in records}
        lacking = len(stored - given - self.deleted)
        if lacking:
            what = f"{lacking} records it was trained on are missing here"
            fix = "Bring all training records of the affected shards, those to be deleted apart"
            raise DataError(Problem(str(self.folder), what, fix))

    def _drop_stale(self, wanted: Mapping[int, Sequence[str]]) -> None:
        """Remove stages that saw other records, and checkpoints of stages that nobody wants any more."""
        stale = [(s, r) for s, r in self.stages if s in wanted and not self._holds(s, r, wanted[s][r])]
        for place in stale:
            del self.stages[place]
        self._save()
        for path in self.folder.glob("shard-*-slice-*.safetensors"):
            if path not in {self._file(*place) for place in self.stages}:
                path.unlink()
        useful = {self._scratch(key) for keys in wanted.values() for key in keys}
        for scratch in self.folder.glob(".stage-*"):
            if scratch not in useful:
                shutil.rmtree(scratch)

    def _save(self) -> None:
        listed = [{"shard": s, "slice": r, **stage} for (s, r), stage in sorted(self.stages.items())]
        more = {"clean": self.clean, "origin": self.origin, "affected": sorted(self.touched)}
        manifest = {**self.about, **more, "deleted": sorted(self.deleted), "stages": listed}
        _write(self.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")

    def _restore(self) -> None:
        path = self.folder / "manifest.json"
        if not path.is_file():
            return
        manifest = _read_manifest(self.folder)
        changed = sorted(k for k, value in self.about.items() if manifest.get(k) != value)
        if changed:
            what = f"holds a training with other {', '.join(changed)}"
            raise ConfigError(
                Problem(str(self.folder), what, "Choose another folder, or the settings it had")
            )
        self.clean, self.origin = manifest["clean"], manifest["origin"]
        self.deleted, self.touched = set(manifest["deleted"]), set(manifest["affected"])
        for stage in manifest["stages"]:
            self.stages[stage.pop("shard"), stage.pop("slice")] = stage


def train_shards(
    base: Subject,
    records: Iterable[Record],
    plan: ShardPlan,
    settings: TrainSettings,
    folder: Path,
    *,
    lora: LoraSettings | None = None,
    clean: bool = False,
    origin: str = "nobody has said what the base was trained on",
) -> Shards:
    """The set-up, before anybody asks for a deletion: isolated shards of `records`, each from `base`.

    `lora`: an adapter per shard over the frozen base; else every shard is a whole model. `clean`: the base
    has never seen what may have to go; `origin` says how that is known. Raises ConfigError when the folder
    holds another training, DataError when it was trained on records that are missing here.
    """
    shards = Shards(Path(folder), base, plan, settings, lora=lora, clean=clean, origin=origin)
    if not (shards.folder / "base").is_dir():
        save_subject(base, shards.folder / "base")
    shards.train(records)
    return shards


def open_shards(folder: str | Path, *, device: str = "auto") -> Shards:
    """A sharded training as it lies on disk. Raises ConfigError when there is none."""
    folder = Path(folder).expanduser()
    about = _read_manifest(folder)
    base = load_subject(folder / "base", dtype=about["dtype"], device=device, max_length=about["max_length"])
    lora = LoraSettings(**about["lora"]) if about["lora"] else None
    return Shards(folder, base, ShardPlan(**about["plan"]), TrainSettings(**about["settings"]), lora=lora)


def replay(
    certificate: Mapping[str, Any],
    base: Subject,
    records: Iterable[Record],
    *,
    shards: Collection[int] | None = None,
) -> list[str]:
    """Train the shards (all, or some) again as the certificate says; what came out otherwise, [] if nothing.

    The same bits can be expected on the same kind of device with the same versions only.
    """
    if fingerprint(base.model) != certificate["base"]:
        return ["the base is another model"]
    settings = TrainSettings(**certificate["settings"])
    lora = LoraSettings(**certificate["lora"]) if certificate["lora"] else None
    with tempfile.TemporaryDirectory() as folder:
        again = Shards(Path(folder), base, ShardPlan(**certificate["plan"]), settings, lora=lora)
        again.train(records, only=shards)
        pairs = zip(certificate["weights"], again.weights, strict=True)
        return [
            f"shard {s}, slice {r}"
            for s, (before, now) in enumerate(pairs)
            for r, (one, other) in enumerate(zip(before, now, strict=True))
            if one != other and (shards is None or s in shards)
        ]


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what, fix = "holds no sharded training", "Train it first: leave out `folder`, or see train_shards"
        raise ConfigError(Problem(str(folder), what, fix)) from error


def _secret(folder: Path) -> bytes:
    """The key of the hashes, drawn once: a plain hash of a name can be guessed."""
    path = folder / "key"
    if not path.is_file():
        _write(path, secrets.token_hex(32), mode=0o600)
    return path.read_bytes()


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch(mode=mode)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
