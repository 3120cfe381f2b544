"""What one more request costs a replica: engine time, KV memory and sequences, priced by how scarce they are there."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from slo_opt.domain.engine import EngineModel, prefill_pairs
from slo_opt.policies.interface import Job
from slo_opt.routing.attainable import Forecast
from slo_opt.routing.interface import ReplicaView, Role
from slo_opt.routing.per_version import PerVersion

_LEAST_SHARE = 0.02  # of engine time that fixed costs leave, where the tightest TPOT leaves next to none
_STEEPEST = 20.0


class _Demand(NamedTuple):
    """What requests ask of a replica, apart from the fixed cost of batches.

    Parameters
    ----------
    requests : int
        How many.
    kv_tokens : int
        Tokens of their contexts.
    decode_tokens_a_s : float
        Decode tokens a second, each at the pace of its own SLO.
    decode_share : float
        Share of time that these take for contexts and requests, tokens left out.
    prompt_tokens : int
        Tokens to prefill.
    pairs_s : float
        Time that these take for query-key pairs, tokens left out.
    """

    requests: int
    kv_tokens: int
    decode_tokens_a_s: float
    decode_share: float
    prompt_tokens: int
    pairs_s: float


class MarginalCost:
    """Rise of a replica's cost by one request, where each resource costs ``exp(steepness * share taken)``.

    Resources are engine time, KV cache and sequences. The share of engine time is what the requests take of what the
    fixed cost of batches leaves, and batches last as long as the tightest TPOT allows: a tight request in a replica of
    loose ones makes all of them dearer, a loose one among tight ones takes more of less. So tiers keep apart where that
    saves something, without a partition. Exponential prices make the scarce dear before it is gone, and are competitive
    against any sequence of arrivals.

    The new request counts with the output that it is expected to produce, those that are there with what they hold.

    Parameters
    ----------
    forecast : Forecast
        For the members of a replica, and the length of the new request.
    steepness : float
        How much dearer the last bit of a resource is than the first, as the logarithm.
    backlog_s : float
        Time over which the prompts that wait are spread.

    References
    ----------
    Awerbuch, Azar and Plotkin, FOCS 1993, doi 10.1109/SFCS.1993.366884 (throughput-competitive on-line routing by
    exponential costs).
    """

    def __init__(self, forecast: Forecast, steepness: float, backlog_s: float) -> None:
        self._forecast = forecast
        self._steepness = steepness
        self._backlog_s = max(backlog_s, 1e-3)
        self._present = PerVersion[tuple[_Demand, float]](self._sum_up)

    def of(self, job: Job, view: ReplicaView) -> float:
        """The rise.

        Parameters
        ----------
        job : Job
            Not yet in the view.
        view : ReplicaView
            The replica.
        """
        present, before = self._present(view)
        more = _demand([job], view)
        left = self._forecast.outlook(view).left_tokens(job)
        after = _Demand(
            present.requests + 1,
            present.kv_tokens + more.kv_tokens + left,
            present.decode_tokens_a_s + more.decode_tokens_a_s,
            present.decode_share + more.decode_share,
            present.prompt_tokens + more.prompt_tokens,
            present.pairs_s + more.pairs_s,
        )
        return self._price(after, view, self._forecast.tightest_s(job, view)) - before

    def _sum_up(self, view: ReplicaView) -> tuple[_Demand, float]:
        """Demand of the members, and what they cost."""
        outlook = self._forecast.outlook(view)
        demand = _demand(outlook.members, view)
        return demand, self._price(demand, view, outlook.tightest_s)

    def _price(self, demand: _Demand, view: ReplicaView, tightest_s: float) -> float:
        engine = view.engine
        shares = (
            self._time_share(demand, view, tightest_s),
            demand.kv_tokens / (engine.kv_blocks * engine.block_size_tokens),
            demand.requests / engine.max_num_seqs,
        )
        return sum([_exponential(self._steepness * share) for share in shares])

    def _time_share(self, demand: _Demand, view: ReplicaView, tightest_s: float) -> float:
        engine = view.engine
        longest_s = _longest_s(engine)
        period_s = longest_s if view.role is Role.PREFILL else min(tightest_s, longest_s)
        most = 0.0
        for piece in engine.pieces:
            left = max(1 - (piece.base_s + engine.host_s) / period_s, _LEAST_SHARE)
            prompts_s = piece.per_token_s * demand.prompt_tokens + demand.pairs_s
            taken = piece.per_token_s * demand.decode_tokens_a_s + demand.decode_share + prompts_s / self._backlog_s
            most = max(most, taken / left)
        return most


def _demand(jobs: Iterable[Job], view: ReplicaView) -> _Demand:
    engine = view.engine
    pair_s, context_s, request_s = engine.prefill_pair_s, engine.decode_context_s, engine.request_s
    decodes = view.role is not Role.PREFILL
    requests = kv_tokens = prompt_tokens = 0
    tokens_a_s = share = pairs_s = 0.0
    for job in jobs:
        known = job.known_tokens
        requests += 1
        kv_tokens += known
        if not job.decoding:
            left = known - job.computed_tokens
            prompt_tokens += left
            pairs_s += pair_s * prefill_pairs(left, job.computed_tokens)
        if decodes:
            pace = 1 / job.tpot_s
            tokens_a_s += pace
            share += pace * (context_s * known + request_s)
    return _Demand(requests, kv_tokens, tokens_a_s, share, prompt_tokens, pairs_s)


def _exponential(power: float) -> float:
    """``exp``, continued as a line where differences would be lost to rounding."""
    return math.exp(power) if power <= _STEEPEST else math.exp(_STEEPEST) * (1 + power - _STEEPEST)


def _longest_s(engine: EngineModel) -> float:
    """A full batch."""
    return engine.batch_time_s(engine.max_num_batched_tokens)
