"""The waiting queue as vLLM sees it during one planned step."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_MANY = 8  # from here on one pass over the queue is cheaper than a search for each


class PlannedQueue:
    """Stands before one of vLLM's waiting queues: shows the planned requests only, in the plan's order.

    Truth, `peek_request` and `pop_request` follow the plan; length, iteration, additions and removals reach the queue
    behind. A popped request stays in the queue behind until `settle`, so that a request that vLLM skips and puts back
    has not moved.

    Parameters
    ----------
    behind : vLLM's RequestQueue
        The true queue.
    planned : iterable of requests
        Those of the plan, from whichever queue.
    popped : set
        Ids of the requests popped in this step, shared by the stand-ins of one step.
    """

    def __init__(self, behind: Any, planned: Iterable[Any], popped: set[str]) -> None:
        self.behind = behind
        self._planned = deque(planned)
        self._shown = bool(self._planned)
        self._popped = popped

    def __bool__(self) -> bool:
        return bool(self._planned)

    def __len__(self) -> int:
        gone = len(self._popped) if self._shown else 0
        return max(len(self.behind) - gone, 0)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.behind)

    def peek_request(self) -> Any:
        """The next planned request."""
        return self._planned[0]

    def pop_request(self) -> Any:
        """Take the next planned request."""
        request = self._planned.popleft()
        self._popped.add(request.request_id)
        return request

    def add_request(self, request: Any) -> None:
        """Add to the queue behind."""
        self.behind.add_request(request)

    def prepend_request(self, request: Any) -> None:
        """Add to the front of the queue behind, unless it was popped in this step and so never left."""
        self.prepend_requests([request])

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """As `prepend_request`, one after the other."""
        for request in requests:
            if request.request_id in self._popped:
                self._popped.discard(request.request_id)
            else:
                self.behind.prepend_request(request)

    def remove_request(self, request: Any) -> None:
        """Remove from the queue behind."""
        self.behind.remove_request(request)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Remove from the queue behind."""
        self.behind.remove_requests(requests)


def settle(queues: Sequence[Any], started: Sequence[Any]) -> None:
    """Remove the requests that began to run from the true queues, each of which is in one of them."""
    if len(started) > _MANY:
        for queue in queues:
            queue.remove_requests(set(started))
        return
    for request in started:
        for queue in queues:
            try:
                queue.remove_request(request)
            except ValueError:  # not in this one
                continue
            break
