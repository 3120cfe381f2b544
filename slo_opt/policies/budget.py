"""Token budgets that follow from the tightest TPOT which a policy will meet."""

from slo_opt.policies.registry import PolicyContext

FALLBACK_TOKENS = 512  # where no batch at all keeps the tightest TPOT


def tightest_tpot_s(context: PolicyContext) -> float:
    """Least TPOT, seconds, of the classes under an SLO; of all where every class is best effort."""
    classes = context.slo_classes.values()
    tpots_ms = [slo.tpot_ms for slo in classes if not slo.best_effort] or [slo.tpot_ms for slo in classes]
    return min(tpots_ms) / 1e3


def batch_period_s(context: PolicyContext) -> float:
    """Seconds that batches may last for the sake of decodes: the tightest TPOT; a full batch where nobody decodes."""
    if context.decodes:
        return tightest_tpot_s(context)
    return context.engine.batch_time_s(context.engine.max_num_batched_tokens)


def tightest_budget(context: PolicyContext, factor: float = 1.0) -> int:
    """Most tokens of a batch that ends within `factor` times the tightest TPOT.

    512 where not even an empty batch does.
    """
    tokens = context.engine.max_tokens_within(factor * tightest_tpot_s(context))
    return tokens or min(FALLBACK_TOKENS, context.engine.max_num_batched_tokens)
