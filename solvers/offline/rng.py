"""Random numbers for compiled code: each search owns its state, so that a seed fixes it."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

_SCALE = 2.0**-53


def new_rng(seed: int) -> NDArray[np.uint64]:
    """State for a seed."""
    return np.random.SeedSequence(seed).generate_state(1, np.uint64) | np.uint64(1)


@njit(cache=True, nogil=True)
def uniform(rng: NDArray[np.uint64]) -> float:
    """Uniform in [0, 1): Marsaglia's xorshift64 (Journal of Statistical Software 8(14), 2003)."""
    x = rng[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    rng[0] = x
    return (x >> np.uint64(11)) * _SCALE


@njit(cache=True, nogil=True)
def below(rng: NDArray[np.uint64], count: int) -> int:
    """Uniform in ``0..count - 1``."""
    return int(uniform(rng) * count)
