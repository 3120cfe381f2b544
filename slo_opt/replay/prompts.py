"""Prompts of the wanted lengths, as token ids: random, but the same for the same seed."""

from collections.abc import Sequence

import numpy as np

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Prefix, Request
from slo_opt.replay.rounds import Round

FIRST_ID = 10  # tokenizers put begin, end and padding below
MIN_VOCAB_SIZE = 2 * FIRST_ID
_BLOCK, _OWN, _WARM_UP = range(3)


class PromptMaker:
    """Makes the prompts of an instance.

    Parameters
    ----------
    seed : int
        Of all token ids.
    vocab_size : int
        Ids are drawn from ``10 .. vocab_size - 1``: every tokenizer has them, and its special tokens are hardly among
        them.

    Raises
    ------
    InvalidInputError
        The vocabulary is smaller than 20.
    """

    def __init__(self, seed: int, vocab_size: int) -> None:
        if vocab_size < MIN_VOCAB_SIZE:
            raise InvalidInputError(f"vocab_size is {vocab_size}; expected at least {MIN_VOCAB_SIZE}")
        self._seed, self._vocab_size = seed, vocab_size

    def first(self, index: int, request: Request, first: Round, *, warm_up: bool = False) -> list[int]:
        """The prompt of a request's first round: the blocks of its prefix, then tokens of its own.

        Parameters
        ----------
        index : int
            Of the request: no two share their own tokens.
        request : Request
            Its prefix is shared with every prompt that names the same blocks.
        first : Round
            Gives the length.
        warm_up : bool
            Tokens that no scored request will have.
        """
        shared = [] if request.prefix is None or warm_up else self._shared(request.prefix)
        own = first.context_tokens - len(shared)
        return shared + self._ids(own, _WARM_UP if warm_up else _OWN, index, 0)

    def later(self, index: int, number: int, said: Sequence[int], later: Round) -> list[int]:
        """The prompt of round `number` (>= 1): as much as it may repeat of what was said before, then new tokens.

        Parameters
        ----------
        index, number : int
            Of the request, and of its round.
        said : sequence of int
            Prompt and output of the round before.
        later : Round
            Gives the length, and how much of it is known to the server.
        """
        kept = list(said[: later.cached_tokens])
        return kept + self._ids(later.context_tokens - len(kept), _OWN, index, number)

    def _shared(self, prefix: Prefix) -> list[int]:
        return [token for block in prefix.blocks for token in self._ids(prefix.block_tokens, _BLOCK, block, 0)]

    def _ids(self, count: int, *key: int) -> list[int]:
        ids: list[int] = np.random.default_rng((self._seed, *key)).integers(FIRST_ID, self._vocab_size, count).tolist()
        return ids
