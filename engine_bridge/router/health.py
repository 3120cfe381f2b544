"""Whether a replica is there: told by looking, and by requests that fail on the way to it. No clock of its own."""

import math

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 5.0
_MOST_STRIKES = 8


class Health:
    """Up or down, and when to look next.

    Down until a look is answered. While down, the wait between looks doubles with each failure since a request was last
    served, up to 5 s: a replica that answers looks and fails requests is let back ever more slowly.

    Parameters
    ----------
    interval_s : float
        Between looks while up.
    failures : int
        Looks without an answer in a row after which it counts as cut off.

    Attributes
    ----------
    up : bool
        Whether requests may go there.
    cause : str
        Why it is down; empty while up.
    failing_since_s : float or None
        When the first of the looks began that have failed since one was answered.
    down_since_s : float or None
        When it last went down.
    next_look_s : float
        When to look again.
    """

    def __init__(self, interval_s: float, failures: int) -> None:
        self._interval_s = interval_s
        self._failures = failures
        self._missed = 0
        self._strikes = 0
        self._answered_s = -math.inf
        self.up = False
        self.cause = "not asked yet"
        self.failing_since_s: float | None = None
        self.down_since_s: float | None = None
        self.next_look_s = 0.0

    def answered(self, now_s: float) -> bool:
        """A look was answered as it should be; returns whether it came up."""
        came_up = not self.up
        self._missed = 0
        self._answered_s = now_s
        self.failing_since_s = None
        self.up, self.cause = True, ""
        self.next_look_s = now_s + self._interval_s
        return came_up

    def missed(self, began_s: float, now_s: float, cause: str, *, sure: bool) -> bool:
        """A look failed, or a request got no answer in time; returns whether it went down.

        Parameters
        ----------
        began_s, now_s : float
            When it began, and the moment.
        cause : str
            In a few words.
        sure : bool
            The replica refused the connection or says that it is not well; otherwise it just gave no answer in time,
            which a busy one does as well.
        """
        self._missed += 1
        if self.failing_since_s is None:
            self.failing_since_s = began_s
        if sure or self._missed >= self._failures:
            return self._go_down(now_s, cause)
        self.next_look_s = now_s
        return False

    def failed(self, now_s: float, cause: str) -> bool:
        """A request failed on the way to it; returns whether it went down."""
        return self.up and self._go_down(now_s, cause)

    def doubted(self, now_s: float) -> None:
        """It answered a request with an error of its own: look at once, but not again and again."""
        self.next_look_s = min(self.next_look_s, max(now_s, self._answered_s + _FIRST_WAIT_S))

    def served(self) -> None:
        """A request was served: what failed before is forgotten."""
        self._strikes = self._missed = 0
        if self.up:
            self.failing_since_s = None

    def _go_down(self, now_s: float, cause: str) -> bool:
        went_down = self.up
        if went_down:
            self.down_since_s = now_s
        self.up, self.cause = False, cause
        self.next_look_s = now_s + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**self._strikes)
        self._strikes = min(_MOST_STRIKES, self._strikes + 1)
        return went_down
