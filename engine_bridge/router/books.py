"""What a router believes of one replica: its own accounting, corrected by what the engine reports."""

import math
from collections import deque
from dataclasses import replace

from slo_opt.domain.engine import EngineModel
from slo_opt.engine_bridge.jobs import LiveJob
from slo_opt.engine_bridge.router.reports import EngineReport
from slo_opt.policies.interface import Job, Standing
from slo_opt.routing.interface import ReplicaView, Role

_LINGER_S = 0.5  # an engine lets go of a request a little after its last token, or after its client left
_MOST_ENDED = 4096


class ReplicaBooks:
    """Keeps the view of one replica.

    A request waits from when it is sent until its first token comes, or until the engine reports more running requests
    than are known to run: then the oldest have begun. KV blocks are counted from the tokens that passed; the difference
    to what the engine reported last stays until it reports again. Requests that others sent there are shown as
    best-effort ones that decode.

    Parameters
    ----------
    id : str
        Of the replica.
    engine : EngineModel
        Its batch times and limits, as believed.
    stranger_slo : str
        SLO class that requests of others are shown in.

    Attributes
    ----------
    view : ReplicaView
        For policies.
    """

    def __init__(self, id: str, engine: EngineModel, stranger_slo: str, role: Role = Role.BOTH) -> None:
        self.view = ReplicaView(id, engine, role, free_kv_blocks=engine.kv_blocks)
        self._stranger_slo = stranger_slo
        self._sent_s: dict[LiveJob, float] = {}  # in the order in which they were sent
        self._running: set[LiveJob] = set()
        self._ended_s: deque[float] = deque(maxlen=_MOST_ENDED)
        self._used_blocks = 0
        self._offset_blocks = 0
        self._strangers: list[Job] = []
        self._context_tokens = 0  # of those that decode
        self._decodes = 0
        self._last_token_s = -math.inf

    def __len__(self) -> int:
        return len(self._sent_s)

    def sent(self, job: LiveJob, now_s: float) -> None:
        """A request goes there."""
        self._sent_s[job] = now_s
        self.view.waiting.append(job)
        self._changed()

    def passed(self, job: LiveJob, tokens: int, now_s: float) -> None:
        """So many of its tokens came from there."""
        if tokens <= 0 or job not in self._sent_s:
            return
        job.deliver(tokens, now_s)
        job.advance(job.delivered)
        if job not in self._running:
            self._begin(job)
        if job.decoding:
            self._context_tokens += tokens
        else:
            job.decoding = True
            self._decodes += 1
            self._context_tokens += job.prompt_tokens + job.delivered - 1
        job.known_tokens = job.prompt_tokens + job.delivered
        job.computed_tokens = job.known_tokens - 1
        self._hold(job, job.computed_tokens)
        self._last_token_s = now_s
        self._changed()

    def ended(self, job: LiveJob, now_s: float) -> None:
        """It is not there any more. Ready to be sent elsewhere if no token of it came; again does nothing."""
        if self._sent_s.pop(job, None) is None:
            return
        if job in self._running:
            self._running.remove(job)
            self.view.running.remove(job)
        else:
            self.view.waiting.remove(job)
        if job.decoding:
            self._decodes -= 1
            self._context_tokens -= job.computed_tokens
        self._used_blocks -= job.kv_blocks
        job.kv_blocks = job.computed_tokens = 0
        job.decoding = False
        self._ended_s.append(now_s)
        self._changed()

    def reported(self, report: EngineReport, asked_s: float) -> None:
        """The engine was asked at `asked_s`, and has answered now."""
        self._resize(report.kv_blocks, report.block_size_tokens, None)
        sure = [job for job, sent_s in self._sent_s.items() if sent_s < asked_s]
        if report.running is not None:
            self._catch_up(sure, report.running)
        strangers = self._count_strangers(report, asked_s)
        view = self.view
        used: float = self._used_blocks
        if report.kv_share is not None:
            used = report.kv_share * view.engine.kv_blocks
        elif report.free_kv_blocks is not None:
            used = view.engine.kv_blocks - report.free_kv_blocks
        self._offset_blocks = round(used) - self._used_blocks
        self._show_strangers(strangers)
        self._changed()

    def limits(self, max_model_len: int | None) -> None:
        """The server tells how long a request may be."""
        self._resize(None, None, max_model_len)

    def look(self) -> ReplicaView:
        """The view, with the end of the batch under way as far as tokens tell it."""
        view = self.view
        if self._decodes:
            step_s = view.engine.batch_time_s(
                self._decodes, decode_context_tokens=self._context_tokens, num_requests=self._decodes
            )
            view.batch_ends_s = self._last_token_s + step_s
        return view

    def _begin(self, job: LiveJob) -> None:
        self._running.add(job)
        self.view.waiting.remove(job)
        # Requests of others stay behind: they began before anything that is known of them.
        self.view.running.append(job)

    def _hold(self, job: LiveJob, tokens: int) -> None:
        blocks = self.view.engine.kv_blocks_for(tokens)
        self._used_blocks += blocks - job.kv_blocks
        job.kv_blocks = blocks

    def _catch_up(self, sure: list[LiveJob], reported_running: int) -> None:
        """The engine runs more than are known to run: the oldest have begun, and hold what their prompt takes."""
        begun = reported_running - len(self._running) - len(self._strangers)
        for job in sure:
            if begun <= 0:
                return
            if job not in self._running:
                self._begin(job)
                self._hold(job, job.known_tokens)
                begun -= 1

    def _count_strangers(self, report: EngineReport, asked_s: float) -> int:
        """Requests in the engine that cannot be this router's: more than it had there at any time since the asking."""
        if report.running is None and report.waiting is None:
            return 0
        lately = sum(ended_s >= asked_s - _LINGER_S for ended_s in self._ended_s)
        most = len(self._sent_s) + lately
        return max(0, (report.running or 0) + (report.waiting or 0) - most)

    def _show_strangers(self, count: int) -> None:
        running = self.view.running
        while len(self._strangers) > count:
            running.remove(self._strangers.pop())
        while len(self._strangers) < count:
            name = f"{self.view.id}#{len(self._strangers)}"
            stranger = Job(name, self._stranger_slo, self._stranger_slo, 0.0, standing=Standing.BEST_EFFORT)
            stranger.decoding = True
            self._strangers.append(stranger)
            running.insert(0, stranger)
        share = max(0, self._offset_blocks) // count if count else 0
        for stranger in self._strangers:
            stranger.kv_blocks = share
            stranger.computed_tokens = share * self.view.engine.block_size_tokens
            stranger.known_tokens = stranger.computed_tokens + 1
            stranger.prompt_tokens = stranger.computed_tokens
            stranger.emitted_tokens = 1

    def _resize(self, kv_blocks: int | None, block_size_tokens: int | None, max_model_len: int | None) -> None:
        engine = self.view.engine
        told = {"kv_blocks": kv_blocks, "block_size_tokens": block_size_tokens, "max_model_len": max_model_len}
        new = {key: value for key, value in told.items() if value is not None and value != getattr(engine, key)}
        if new:
            self.view.engine = replace(engine, **new)  # type: ignore[arg-type]
            for job in self._running:
                self._hold(job, job.computed_tokens or job.known_tokens)
            self._changed()

    def _changed(self) -> None:
        view = self.view
        most = view.engine.kv_blocks
        view.free_kv_blocks = most - min(most, max(0, self._used_blocks + self._offset_blocks))
        if not self._decodes:
            view.batch_ends_s = -math.inf
        view.version += 1
