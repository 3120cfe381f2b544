"""What becomes of requests: counted for the metrics, written to the decision log."""

from collections.abc import Callable

from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.decision_log import DecisionLog, ServedRequest
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.metrics import BridgeMetrics
from slo_opt.engine_bridge.slo_fields import request_slo
from slo_opt.policies.interface import Standing


class Outcomes:
    """Counts and records requests as they are decided on and as they leave.

    Parameters
    ----------
    config : BridgeConfig
        Its default class, for requests whose own makes no sense.
    metrics : BridgeMetrics
        Where they are counted.
    log : DecisionLog or None
        Where they are written.
    clock, wall_clock : callable
        Seconds: monotonic, and since 1970.
    """

    def __init__(
        self,
        config: BridgeConfig,
        metrics: BridgeMetrics,
        log: DecisionLog | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._log = log
        self._clock = clock
        self._wall_clock = wall_clock

    def admitted(self, job: LiveJob) -> None:
        """It is promised to be on time."""
        job.standing = Standing.ADMITTED
        self._metrics.decided(job.round_slo, "admitted", "on_time")

    def best_effort(self, job: LiveJob, reason: str) -> None:
        """It is served with what is left over."""
        job.reason = reason
        self._metrics.decided(job.round_slo, "best_effort", reason)

    def refused(self, job: LiveJob, reason: str) -> None:
        """It is sent away."""
        job.reason = f"refused: {reason}"
        self._metrics.decided(job.round_slo, "refused", reason)

    def malformed(self, id: str, arrival_s: float, prompt_tokens: int) -> None:
        """Its SLO fields make no sense, and it is sent away."""
        job = LiveJob(id, request_slo(None, self._config), arrival_s, 0.0, prompt_tokens)
        self._metrics.decided(job.round_slo, "malformed", "malformed")
        self._write(job, "malformed", None)

    def finished(self, job: LiveJob) -> None:
        """It got all its tokens."""
        self._left(job, "best_effort" if job.standing is Standing.BEST_EFFORT else "admitted", not job.missed)

    def gone(self, job: LiveJob) -> None:
        """It left without: aborted by its client, failed, or sent away."""
        self._left(job, "refused" if job.reason.startswith("refused") else "aborted", False)

    def _left(self, job: LiveJob, outcome: str, on_time: bool) -> None:
        attained = None if job.promise.best_effort else on_time
        self._metrics.ended(job.round_slo, attained, outcome)
        self._write(job, outcome, attained)

    def _write(self, job: LiveJob, outcome: str, attained: bool | None) -> None:
        if self._log is None:
            return
        slo, began = job.promise, job.delivered > 0
        limit_s = job.first_due_s + job.cushion_s + self._config.headroom_ms / 1e3 - job.release_s
        self._log.write(
            ServedRequest(
                id=job.id,
                arrival_unix_s=self._wall_clock() - (self._clock() - job.release_s),
                prompt_tokens=job.prompt_tokens + job.cached_tokens,
                cached_tokens=job.cached_tokens,
                output_tokens=job.delivered,
                slo=job.round_slo,
                ttft_limit_ms=limit_s * 1e3,
                ttft_slowdown=slo.ttft_slowdown,
                tpot_ms=slo.tpot_s * 1e3,
                thinking_tpot_ms=None if slo.thinking_tpot_s is None else slo.thinking_tpot_s * 1e3,
                thinking_tokens=job.thinking_tokens,
                weight=slo.weight,
                best_effort=slo.best_effort,
                outcome=outcome,
                reason=job.reason,
                first_token_s=job.first_token_s - job.release_s if began else None,
                last_token_s=job.last_token_s - job.release_s if began else None,
                lateness_s=job.lateness_s if began and not slo.best_effort else None,
                attained=attained,
                preemptions=job.preemptions,
            )
        )

    def close(self) -> None:
        """Write what is buffered."""
        if self._log is not None:
            self._log.close()
