"""A schedule: which request got how many tokens in which batch. Columnar, since an hour of trace has millions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slo_opt.domain.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on one replica.

    Parameters
    ----------
    start_s : float
        When it starts; how long it takes is the engine model's business.
    requests : sequence of int
        Indices into `Instance.requests`, each at most once.
    tokens : sequence of int
        Scheduled tokens of each: a prefill chunk, 1 for a decode, 1 + draft tokens for a speculated one.
    emitted : sequence of int or None
        Output tokens that each speculated decode yields; None where nothing is speculated.
    preempted : sequence of int
        Requests whose KV is dropped just before the batch; they re-prefill all their tokens.
    replica : int
        Replica it runs on.
    duration_s : float or None
        Measured seconds; None for what the engine model says.
    delivered_s : float or None
        When its tokens reach the client; None for at its end.
    """

    start_s: float
    requests: Sequence[int]
    tokens: Sequence[int]
    emitted: Sequence[int] | None = None
    preempted: Sequence[int] = ()
    replica: int = 0
    duration_s: float | None = None
    delivered_s: float | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """KV of a request that leaves its replica outside a batch: it is copied to another replica, or it is lost.

    Parameters
    ----------
    request : int
        Index into `Instance.requests`.
    source : int
        Replica that holds the KV.
    start_s : float
        When it is lost, or the transfer begins.
    target : int or None
        Replica that gets it; None where it is lost, and all tokens have to be prefilled again, there or elsewhere.
    end_s : float or None
        When it is there, from which moment on the source no longer holds it; None where it is lost.

    Raises
    ------
    InvalidInputError
        Only one of `target` and `end_s` is given, or a time is not finite.
    """

    request: int
    source: int
    start_s: float
    target: int | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and (self.end_s is None or math.isfinite(self.end_s))):
            raise InvalidInputError(f"move of request {self.request}: its times must be finite")
        if (self.target is None) != (self.end_s is None):
            raise InvalidInputError(f"move of request {self.request}: give target and end_s, or neither")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Batches in order of start, as arrays.

    Parameters
    ----------
    start_s : (B,) float array
        Start of each batch.
    replica : (B,) int array
        Its replica.
    offset : (B + 1,) int array
        Entries ``offset[b]:offset[b + 1]`` belong to batch ``b``.
    request, tokens : (E,) int arrays
        Request index and scheduled tokens of each entry.
    emitted : (E,) int array or None
        Output tokens of speculated decodes.
    preempted : mapping of int to tuple of int
        Requests preempted just before a batch.
    admitted : tuple of int
        Requests that the plan promised to serve on time.
    duration_s : (B,) float array or None
        Measured seconds of each batch; None where the engine model gives them.
    cached : mapping of int to int
        By request, tokens of its first prompt that a prefix cache held when it began.
    moves : tuple of Move
        KV that leaves its replica outside a batch, in order of start: transfers, failures, requests that hop.
    delivered_s : mapping of int to float
        By batch, when its tokens reach the client, where that is later than its end.

    Raises
    ------
    InvalidInputError
        The arrays do not fit together.
    """

    start_s: NDArray[np.float64]
    replica: NDArray[np.int64]
    offset: NDArray[np.int64]
    request: NDArray[np.int64]
    tokens: NDArray[np.int64]
    emitted: NDArray[np.int64] | None = None
    preempted: dict[int, tuple[int, ...]] = field(default_factory=dict)
    admitted: tuple[int, ...] = ()
    duration_s: NDArray[np.float64] | None = None
    cached: dict[int, int] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()
    delivered_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batches, entries = len(self.start_s), len(self.request)
        lengths: list[tuple[str, NDArray[Any], int]] = [
            ("replica", self.replica, batches),
            ("tokens", self.tokens, entries),
        ]
        if self.emitted is not None:
            lengths.append(("emitted", self.emitted, entries))
        if self.duration_s is not None:
            lengths.append(("duration_s", self.duration_s, batches))
        for name, array, length in lengths:
            if array.shape != (length,):
                raise InvalidInputError(f"schedule: {name} has shape {array.shape}; expected {(length,)}")
        ends = (int(self.offset[0]), int(self.offset[-1])) if self.offset.shape == (batches + 1,) else None
        if ends != (0, entries) or np.any(np.diff(self.offset) < 0):
            raise InvalidInputError(
                f"schedule: offset must ascend from 0 to {entries} in {batches + 1} values, one a batch and the end"
            )
        if self.duration_s is not None and not np.all(np.isfinite(self.duration_s) & (self.duration_s >= 0)):
            raise InvalidInputError("schedule: duration_s must be finite and not negative")
        for field_name, numbers in (("preempted", self.preempted), ("delivered_s", self.delivered_s)):
            if any(not 0 <= b < batches for b in numbers):
                raise InvalidInputError(f"schedule: {field_name} names a batch outside 0..{batches - 1}")
        if any(move.start_s > later.start_s for move, later in pairwise(self.moves)):
            raise InvalidInputError("schedule: moves must be in order of start")

    @staticmethod
    def from_batches(batches: Iterable[Batch], admitted: Iterable[int] = (), moves: Iterable[Move] = ()) -> "Schedule":
        """Build the arrays from batches and moves in any order."""
        ordered = sorted(batches, key=lambda batch: batch.start_s)
        speculated = any(batch.emitted is not None for batch in ordered)
        measured = sum(batch.duration_s is not None for batch in ordered)
        if 0 < measured < len(ordered):
            raise InvalidInputError("schedule: duration_s is given for some batches only; give all or none")
        emitted: list[int] = []
        for batch in ordered if speculated else ():
            emitted += batch.emitted if batch.emitted is not None else [1] * len(batch.tokens)

        def ints(values: Iterable[int]) -> NDArray[np.int64]:
            return np.fromiter(values, dtype=np.int64)

        return Schedule(
            start_s=np.fromiter((batch.start_s for batch in ordered), dtype=np.float64),
            replica=ints(batch.replica for batch in ordered),
            offset=np.concatenate([[0], np.cumsum([len(batch.requests) for batch in ordered], dtype=np.int64)]),
            request=ints(r for batch in ordered for r in batch.requests),
            tokens=ints(t for batch in ordered for t in batch.tokens),
            emitted=ints(emitted) if speculated else None,
            preempted={b: tuple(batch.preempted) for b, batch in enumerate(ordered) if batch.preempted},
            admitted=tuple(sorted(admitted)),
            duration_s=np.array([batch.duration_s for batch in ordered], dtype=np.float64) if measured else None,
            moves=tuple(sorted(moves, key=lambda move: move.start_s)),
            delivered_s={b: batch.delivered_s for b, batch in enumerate(ordered) if batch.delivered_s is not None},
        )

    def __len__(self) -> int:
        return len(self.start_s)

    def __iter__(self) -> Iterator[Batch]:
        request, tokens, offset = self.request.tolist(), self.tokens.tolist(), self.offset.tolist()
        emitted = None if self.emitted is None else self.emitted.tolist()
        durations = None if self.duration_s is None else self.duration_s.tolist()
        for b, (start_s, replica) in enumerate(zip(self.start_s.tolist(), self.replica.tolist(), strict=True)):
            entries = slice(offset[b], offset[b + 1])
            yield Batch(
                start_s=start_s,
                requests=request[entries],
                tokens=tokens[entries],
                emitted=None if emitted is None else emitted[entries],
                preempted=self.preempted.get(b, ()),
                replica=replica,
                duration_s=None if durations is None else durations[b],
                delivered_s=self.delivered_s.get(b),
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON; `from_dict` reads them back."""
        fields: dict[str, Any] = {
            "start_s": self.start_s.tolist(),
            "replica": self.replica.tolist(),
            "offset": self.offset.tolist(),
            "request": self.request.tolist(),
            "tokens": self.tokens.tolist(),
            "emitted": None if self.emitted is None else self.emitted.tolist(),
            "preempted": {str(b): list(requests) for b, requests in self.preempted.items()},
            "admitted": list(self.admitted),
            "duration_s": None if self.duration_s is None else self.duration_s.tolist(),
            "cached": {str(request): tokens for request, tokens in self.cached.items()},
        }
        if self.moves:
            fields["moves"] = [list(astuple(move)) for move in self.moves]
        if self.delivered_s:
            fields["delivered_s"] = {str(b): time_s for b, time_s in self.delivered_s.items()}
        return fields

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Schedule":
        """Inverse of `to_dict`."""
        measured = data.get("duration_s")
        return Schedule(
            start_s=np.asarray(data["start_s"], dtype=np.float64),
            replica=np.asarray(data["replica"], dtype=np.int64),
            offset=np.asarray(data["offset"], dtype=np.int64),
            request=np.asarray(data["request"], dtype=np.int64),
            tokens=np.asarray(data["tokens"], dtype=np.int64),
            emitted=None if data["emitted"] is None else np.asarray(data["emitted"], dtype=np.int64),
            preempted={int(b): tuple(requests) for b, requests in data["preempted"].items()},
            admitted=tuple(data["admitted"]),
            duration_s=None if measured is None else np.asarray(measured, dtype=np.float64),
            cached={int(request): tokens for request, tokens in data.get("cached", {}).items()},
            moves=tuple(Move(*move) for move in data.get("moves", ())),
            delivered_s={int(b): time_s for b, time_s in data.get("delivered_s", {}).items()},
        )
