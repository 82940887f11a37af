"""The processes of one job, as torchrun starts them: one program, a rank each.

Every rank runs the same calls in the same order on the same data; where rows or records can be divided, each
takes its share, and what comes back is the same everywhere. Rank 0 alone writes files and speaks. In one
process all of this does nothing. No other module talks to torch.distributed about ranks.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from expunge.errors import ConfigError, ExpungeError, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.registry import Card

__all__ = [
    "all_reduce_", "alone", "barrier", "broadcast", "check_scale", "first_to_fail", "gather", "is_first",
    "join", "launched", "leave", "mine", "on_first", "one_process_only", "rank", "shard", "total", "turns",
    "world",
]  # fmt: skip

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""A rank that does not answer for so long counts as lost. Waiting for work of rank 0 alone has no limit."""

BUCKET = 2**24
"""Elements that are summed over the ranks at once."""

TOGETHER = (0, 130)
"""Exit codes of a job that all ranks end at one time: it went well, or Ctrl-C stopped it."""

SCALES = ("single", "ddp", "fsdp")
"""What a method's card says: one process, a copy of the weights in each, weights divided over them."""

_store: Any = None  # what rank 0 leaves for the others; None: one process
_alone = 0
_turn = 0


def launched() -> int:
    """How many processes torchrun (or whoever sets its variables) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Become one rank of the job that torchrun started; nothing to do in one process, or twice."""
    global _store
    if launched() == 1 or _store is not None:
        return
    import torch
    import torch.distributed as dist

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local < gpus:
        torch.cuda.set_device(local)
    try:
        store, number, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:  # ValueError: a variable is missing
        fix = "Start it with: torchrun --nproc-per-node N -m expunge run RECIPE"
        raise ConfigError(
            Problem("torchrun", f"the processes do not find one another ({error})", fix)
        ) from error
    _store = dist.PrefixStore("expunge", store)


def leave(code: int = 0) -> NoReturn:
    """End this process with an exit code; with one of `TOGETHER` when every rank has come here."""
    global _store
    if launched() == 1:
        sys.exit(code)
    if code in TOGETHER and _store is not None:
        import torch.distributed as dist

        barrier()
        dist.destroy_process_group()
        _store = None
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of gloo's that still holds a tensor would abort a normal exit


def world() -> int:
    """How many ranks work together here."""
    if _store is None or _alone:
        return 1
    import torch.distributed as dist

    return int(dist.get_world_size())


def rank() -> int:
    """Which of them this is; 0 in one process."""
    if world() == 1:
        return 0
    import torch.distributed as dist

    return int(dist.get_rank())


def is_first() -> bool:
    """Whether this is the rank that writes and speaks."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this rank is one process by itself: nothing is divided, nobody is waited for."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def one_process_only(what: str, fix: str = "Start it without torchrun") -> None:
    """Raise ConfigError where several processes were started."""
    if launched() > 1:
        raise ConfigError(Problem(what, f"works in one process, torchrun has started {launched()}", fix))


def check_scale(card: Card, *, divided: bool = False) -> None:
    """Raise ConfigError where a method cannot train in so many processes, or with its weights divided."""
    allowed = SCALES.index(card.fields["scale"])
    if allowed >= (2 if divided else 1 if world() > 1 else 0):
        return
    if allowed:
        fix = "Use strategy: ddp, or one of `expunge list methods` whose scale is fsdp"
        raise ConfigError(Problem("strategy", f"{card.name} cannot train with its weights divided", fix))
    fix = "Use expunge run, or one of `expunge list methods` whose scale is ddp or fsdp"
    raise ConfigError(Problem("strategy", f"{card.name} works in one process, this job has {world()}", fix))


# Together ---------------------------------------------------------------------------------------------


def shard(items: Sequence[T]) -> Sequence[T]:
    """This rank's share: every world-th item, from its own number on. The shares of all are all items."""
    return items[rank() :: world()]


def turns(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Groups of as many items as there are ranks; the last may have fewer. See `mine`."""
    size = world()
    for start in range(0, len(items), size):
        yield items[start : start + size]


def mine(turn: Sequence[T]) -> T:
    """This rank's item of a turn; one rank too many does the first one again.

    So all ranks have as many turns: a forward pass of divided weights is a joint act.
    """
    return turn[rank()] if rank() < len(turn) else turn[0]


def gather(value: T) -> list[T]:
    """The value of every rank, in order, on every rank."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    with _joint():
        dist.all_gather_object(found, value)
    return found


def total(counts: Mapping[str, float]) -> dict[str, float]:
    """Sums over the ranks by name; a rank may lack names. The same bits on every rank."""
    found: dict[str, float] = {}
    for part in gather(dict(counts)):
        for name, value in part.items():
            found[name] = found[name] + value if name in found else value
    return found


def broadcast(value: T) -> T:
    """Rank 0's value."""
    if world() == 1:
        return value
    import torch.distributed as dist

    box = [value if is_first() else None]
    with _joint():
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def all_reduce_(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over the ranks, in place; the same bits on every rank. All hold the same shapes."""
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        with _joint():
            dist.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def barrier() -> None:
    """Wait until every rank is here."""
    gather(None)


def on_first(work: Callable[[], T]) -> T:
    """Rank 0 does it, alone; every rank gets what it returned, or raises what it raised."""
    global _turn
    if world() == 1:
        return work()
    _turn += 1
    key, first, result = f"turn{_turn}", is_first(), None
    if first:
        failure = None
        with alone():
            try:
                result = work()
            except ExpungeError as error:
                failure = error
        _store.set(key, pickle.dumps((result, failure)))
    else:
        with _joint():
            _store.wait([key], timedelta(days=30))  # not TIMEOUT: a training may be going on
            result, failure = pickle.loads(_store.get(key))
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def first_to_fail() -> bool:
    """Whether no other rank has failed before: then this one says why."""
    if _store is None or _store.add("failed", 1) == 1:
        return True
    time.sleep(1)  # whoever ends first has the others ended: the one that speaks must come to it
    return False


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and device in a row, up to BUCKET elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _joint() -> Iterator[None]:
    """A call that needs every rank: one that is gone is no fault of this one."""
    try:
        yield
    except RuntimeError as error:
        what = "another process of this job ended or did not answer"
        raise ExpungeError(
            f"{what} ({str(error).splitlines()[0][:200]}). Its own message says why"
        ) from error
