"""KV blocks promised to requests until they depart, so that what has begun can also end."""

from collections.abc import Callable, Iterable

import numpy as np

from slo_opt.domain.engine import EngineModel
from slo_opt.policies.interface import Job


class Reservation:
    """What the cache will hold if every member decodes in step until it departs.

    All members produce a token a step; a member departs after its remaining tokens and frees its blocks. The fullest
    moments are the departures.

    Parameters
    ----------
    engine : EngineModel
        Size of the cache.
    members : iterable of Job
        Those that hold blocks and keep them.
    remaining : callable
        Output tokens that a job has yet to produce.
    """

    def __init__(self, engine: EngineModel, members: Iterable[Job], remaining: Callable[[Job], int]) -> None:
        self._block = engine.block_size_tokens
        self._capacity = engine.kv_blocks
        self._remaining = remaining
        self._size: list[int] = []
        self._left: list[int] = []
        self._peak_blocks = 0
        for job in members:
            self.hold(job)

    def hold(self, job: Job) -> None:
        """Count a job in."""
        left = self._remaining(job)
        self._size.append(job.known_tokens)
        self._left.append(left)
        self._peak_blocks += -(-(job.known_tokens + left) // self._block)

    def fits(self, job: Job) -> bool:
        """Whether one more job can stay until it departs."""
        left = self._remaining(job)
        if self._peak_blocks + -(-(job.known_tokens + left) // self._block) <= self._capacity:
            return True
        size, lefts = np.array([*self._size, job.known_tokens]), np.array([*self._left, left])
        moments = np.unique(lefts)
        held = np.where(lefts >= moments[:, None], -(-(size + moments[:, None]) // self._block), 0)
        return bool(held.sum(axis=1).max() <= self._capacity)
