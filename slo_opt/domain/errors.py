"""Errors that a user can mend; each message says what, where and how."""


class SloOptError(Exception):
    """Root of all errors that slo-opt raises on purpose."""


class InvalidInputError(SloOptError, ValueError):
    """A value that no model can mean: negative tokens, an unknown SLO class, a prompt larger than the KV cache."""


class TraceFormatError(InvalidInputError):
    """A trace file that cannot be read.

    Parameters
    ----------
    path : str
        The file, or ``<stdin>``.
    place : str
        Line (``line 12``) or JSON pointer (``$.requests[3].arrival_s``).
    problem : str
        What was found and what was expected.
    remedy : str
        How to mend it.
    """

    def __init__(self, path: str, place: str, problem: str, remedy: str) -> None:
        self.path = path
        self.place = place
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{path}: {place}: {problem}. {remedy}")


class SolverNotAvailableError(SloOptError, ImportError):
    """A solver that is not installed, or whose installed version gives wrong answers."""
