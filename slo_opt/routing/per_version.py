"""What is derived from a replica's view, kept until the view changes."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from slo_opt.routing.interface import ReplicaView

T = TypeVar("T")


class PerVersion(Generic[T]):
    """A function of a view, evaluated once for each ``(id, version)``.

    Parameters
    ----------
    derive : callable
        Of the view, and of what else is given with it. The latter counts only in the call that meets a version first.
    """

    def __init__(self, derive: Callable[..., T]) -> None:
        self._derive = derive
        self._kept: dict[str, tuple[int, T]] = {}

    def __call__(self, view: ReplicaView, *rest: Any) -> T:
        """The value for the view as it is."""
        kept = self._kept.get(view.id)
        if kept is not None and kept[0] == view.version:
            return kept[1]
        value = self._derive(view, *rest)
        self._kept[view.id] = (view.version, value)
        return value
