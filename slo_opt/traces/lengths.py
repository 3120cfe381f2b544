"""Prompt and output lengths drawn through published quantiles."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from slo_opt.domain.errors import InvalidInputError

_ROUNDS = 200
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution of token counts given by quantiles, log-linear between them.

    Parameters
    ----------
    points : tuple of (float, int)
        Probability in [0, 1], rising from 0 to 1, and tokens >= 1, not falling.
    """

    points: tuple[tuple[float, int], ...]

    def __call__(self, uniform: NDArray[np.float64]) -> Ints:
        """Token counts at probabilities `uniform`, any shape."""
        probabilities, tokens = zip(*self.points, strict=True)
        counts: Ints = np.rint(np.exp(np.interp(uniform, probabilities, np.log(tokens)))).astype(np.int64)
        return counts


@dataclass(frozen=True, slots=True)
class Lengths:
    """Joint lengths of a workload.

    Parameters
    ----------
    prompt, output : Quantiles
        Marginal distributions.
    rank_correlation : float
        Spearman's rho between the two, through a Gaussian copula.
    """

    prompt: Quantiles
    output: Quantiles
    rank_correlation: float = 0.0

    def sample(self, count: int, rng: Generator, max_context_tokens: int | None = None) -> tuple[Ints, Ints]:
        """Prompt and output tokens of `count` requests, two (count,) arrays.

        With `max_context_tokens`, pairs whose sum exceeds it are drawn again: the lengths left by dropping them.

        Raises
        ------
        InvalidInputError
            Hardly any pair fits in `max_context_tokens`.
        """
        correlation = 2 * math.sin(math.pi * self.rank_correlation / 6)
        prompts = outputs = np.empty(0, dtype=np.int64)
        for _ in range(_ROUNDS):
            first = rng.standard_normal(max(count, 16))
            second = correlation * first + math.sqrt(1 - correlation**2) * rng.standard_normal(len(first))
            prompt, output = self.prompt(_normal_cdf(first)), self.output(_normal_cdf(second))
            fits = (
                np.ones(len(first), np.bool_) if max_context_tokens is None else prompt + output <= max_context_tokens
            )
            prompts, outputs = np.concatenate([prompts, prompt[fits]]), np.concatenate([outputs, output[fits]])
            if len(prompts) >= count:
                return prompts[:count], outputs[:count]
        raise InvalidInputError(
            f"hardly any request of this profile fits in a context of {max_context_tokens} tokens; "
            "choose an engine with a longer one"
        )


def _normal_cdf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values.tolist()])
