"""slo-opt's own policy: the DP behind bid prices, batches as long as token deadlines allow, leads spent in crowds."""

import math

from slo_opt.domain.engine import prefill_pairs
from slo_opt.policies.admission import Admission, draft_lengths, least_prefill_s
from slo_opt.policies.bid_price import BidPrices
from slo_opt.policies.budget import batch_period_s
from slo_opt.policies.edf import due
from slo_opt.policies.interface import Allocation, EngineSnapshot, Job
from slo_opt.policies.margin import Margin
from slo_opt.policies.pace import Pace
from slo_opt.policies.registry import PolicyContext
from slo_opt.policies.reservation import Reservation
from slo_opt.policies.step import Step
from slo_opt.policies.typical_slack import TypicalSlack
from slo_opt.policies.waiting import WaitingQueue

REPLAN_S = 0.05  # declined requests are considered again after this long
SHORTEST_TTFTS = 3  # shorter batches, in zero-load TTFTs of one token, waste too much on their fixed cost
FREE_KV = 0.3  # share of the KV cache below which blocks count as short
SEATS = 0.9  # share of max_num_seqs from which seats count as short


class SloOptPolicy:
    """Serve the set of requests that is worth most, each just in time.

    1. A request that cannot be in time any more becomes best effort.
    2. Bid prices: while more arrives than can be served, a request must bring the value that the engine time or the KV
       blocks it takes would bring elsewhere (`slo_opt.policies.bid_price`).
    3. The DP picks the best set among those that wait and those whose prompts have begun; who is left out waits for the
       next plan, until it is hopeless. A prompt that has begun may be given up for better ones, a later round of a
       request never. Where the DP accepts nobody, the shortest prompt worth its price is tried.
    4. A batch takes the decodes and, in deadline order, as much of the prompts as lets it end before the first deadline
       of a token, and within the slack of typical arrivals, so that whoever comes meanwhile is not late.
    5. Without prompts, decodes run ahead of their pace. Where prompts crowd, decodes with a lead sit out.
    6. Best effort gets what is left once all decodes have a lead.

    Parameters
    ----------
    context : PolicyContext
        Engine, classes, length knowledge.
    cap_quantile : float
        No batch lasts longer than the slack that this share of the arrivals falls short of.
    lead_s : float
        In a crowd, decodes due later than this sit out; best effort is served when all decodes are due later.
    crowd_s : float
        Prompts crowd when one would have less slack than this.
    window_s : float
        Arrivals that set the bid prices; 0 for no prices.
    load : float
        Share of the resources that the prices sell.
    give_up : bool
        Whether the DP may drop a prompt that has begun.
    greedy : bool
        Greedy admission instead of the DP: for ablations.
    best_effort : bool
        Whether declined requests are served at all while others run: for ablations.
    speculate : bool
        Whether decodes are speculated where the engine has a draft model.
    deviations : float
        Margin of batches that end where a token of a decode is due, see `Margin`. A request has many of them, and each
        may be late; a wide margin makes the first ones shorter, and the lead that decodes gain by it stays.

    Raises
    ------
    InvalidInputError
        `cap_quantile` is above 1.

    References
    ----------
    SLOs-Serve, arXiv 2504.08784, section 4 (admission by DP); Talluri and van Ryzin, Management Science 44 (1998),
    doi 10.1287/mnsc.44.11.1577 (bid prices).
    """

    name = "slo-opt"

    def __init__(
        self,
        context: PolicyContext,
        cap_quantile: float = 0.1,
        lead_s: float = 1.5,
        crowd_s: float = 0.1,
        window_s: float = 30.0,
        load: float = 1.0,
        give_up: bool = True,
        greedy: bool = False,
        best_effort: bool = True,
        speculate: bool = True,
        deviations: float = 4.0,
    ) -> None:
        self._admission = Admission(context.lengths, greedy=greedy, decodes=context.decodes)
        self._lengths = context.lengths
        self._least_s = context.engine.zero_load_ttft_s(1)
        self._slack = TypicalSlack(cap_quantile, 5 * self._least_s)
        self._lead_s = lead_s
        self._crowd_s = crowd_s
        self._give_up = give_up
        self._best_effort = best_effort
        self._speculate = speculate
        self._deviations = deviations
        period_s = max(batch_period_s(context), 1.5 * self._least_s)
        self._bids = BidPrices(context.engine, period_s, window_s, load) if window_s else None
        self._margin = Margin()
        self._pace = Pace()
        self._queue = WaitingQueue(due)
        self._accepted: set[Job] = set()
        self._worthy: set[Job] = set()
        self._seen: set[Job] = set()
        self._plan_at_s = -math.inf
        self._next_late_s = -math.inf
        self._num_looked = 0
        self._newest: Job | None = None

    def decide(self, snapshot: EngineSnapshot) -> Allocation:
        """The next batch."""
        for end in snapshot.finished:
            self._lengths.observe(end)
        self._margin.learn(snapshot.last_batch_s)
        self._pace.learn(snapshot.last_batch_s)
        step = Step(snapshot, rank=due)
        self._queue.sync(snapshot.waiting, snapshot.disturbed)
        self._relegate(snapshot, step)
        drafts = draft_lengths(snapshot, step.decodes) if self._speculate else {}
        waiting = self._queue.under_slo()
        if waiting:
            self._admit(snapshot, step, waiting, drafts)
        allocation = self._form(snapshot, step, waiting, drafts)
        self._margin.expect(step.batch.time_s if allocation.tokens else None)
        decodes = set(step.decodes)  # best effort left out
        self._pace.expect(len(decodes), sum([job in decodes for job, _ in allocation.tokens]))
        if waiting and not allocation.tokens:
            allocation.wake_s = snapshot.now_s + REPLAN_S
        return allocation

    def _relegate(self, snapshot: EngineSnapshot, step: Step) -> None:
        """Make best effort of whom no batch could serve in time."""
        now_s, engine, factor = snapshot.now_s, snapshot.engine, self._margin.factor
        for job in [job for job in step.decodes if job.missed or self._too_slow(snapshot, job)]:
            step.demote(job)
        for job in list(step.prefills):
            if job.missed or now_s + factor * least_prefill_s(job, engine) > job.due_s:
                step.demote(job)
        newest = snapshot.waiting[-1] if snapshot.waiting else None
        if now_s < self._next_late_s and len(self._queue) == self._num_looked and newest is self._newest:
            return
        latest_s = now_s + REPLAN_S  # batch times may have been learned anew
        for job in self._queue.under_slo():
            start_s = -math.inf if job.missed else job.due_s - factor * least_prefill_s(job, engine)
            if now_s > start_s or self._too_slow(snapshot, job):
                self._queue.relegate(job)
                step.demoted.append(job)
            elif start_s < latest_s:
                latest_s = start_s
        self._next_late_s = latest_s
        self._num_looked, self._newest = len(self._queue), newest

    def _too_slow(self, snapshot: EngineSnapshot, job: Job) -> bool:
        """Whether the engine cannot keep the pace of a job's tokens, even alone."""
        if job.tpot_s > 2 * self._least_s or snapshot.acceptance > 0:
            return False  # the usual case, at no cost
        engine = snapshot.engine
        step_s = engine.batch_time_s(1, decode_context_tokens=job.known_tokens, num_requests=1)
        steps = self._admission.remaining_tokens(job) - 1
        begins_s = step_s if job.decoding else least_prefill_s(job, engine)
        return snapshot.now_s + begins_s + steps * (step_s - job.tpot_s) > job.due_s

    def _admit(self, snapshot: EngineSnapshot, step: Step, waiting: list[Job], drafts: dict[float, int]) -> None:
        """Have the DP choose anew if somebody came, or if it is time to ask again."""
        new = [job for job in waiting if job not in self._seen]
        if not new and snapshot.now_s < self._plan_at_s:
            return
        self._plan_at_s = snapshot.now_s + REPLAN_S
        self._seen = set(waiting)
        for job in new:
            if not job.emitted_tokens:
                self._slack.arrived(job.first_due_s - job.release_s - least_prefill_s(job, snapshot.engine))
        worthy = self._priced(snapshot, waiting, new)
        kept = [job for job in (*step.prefills, *waiting) if not self._give_up or _committed(job)]
        sure = set(kept)
        free = [job for job in (*step.prefills, *worthy) if job not in sure]
        accepted = self._admission.accept(snapshot, step.decodes, kept, free, drafts, self._pace)
        self._accepted = sure | (accepted or set())
        self._worthy = set(worthy)
        if accepted is not None:
            for job in [job for job in step.prefills if job not in self._accepted]:
                step.demote(job)

    def _priced(self, snapshot: EngineSnapshot, waiting: list[Job], new: list[Job]) -> list[Job]:
        """Those that are worth what they take."""
        if self._bids is None:
            return waiting
        usage = {
            job: self._bids.usage(
                job.left_tokens, job.computed_tokens, self._admission.remaining_tokens(job), self._pace.of(job.tpot_s)
            )
            for job in waiting
        }
        for job in new:
            if not _committed(job):
                self._bids.arrived(job.release_s, job.value, usage[job])
        # The request that sets the price is worth it: without the allowance, rounding may turn its like away.
        prices = self._bids.prices(snapshot.now_s) * (1 - 1e-9)
        return [job for job in waiting if _committed(job) or job.value >= float(prices @ usage[job])]

    def _form(self, snapshot: EngineSnapshot, step: Step, waiting: list[Job], drafts: dict[float, int]) -> Allocation:
        """Decodes, then prompts by deadline, then best effort."""
        now_s, factor, batch = snapshot.now_s, self._margin.factor, step.batch
        queue = [*step.prefills, *(job for job in waiting if job in self._accepted)]
        if not queue:
            # Nothing that the plan believes in: try the least of those that are worth it.
            hopeful = [job for job in waiting if job in self._worthy]
            queue = [min(hopeful, key=lambda job: job.left_tokens)] if hopeful else []
        queue.sort(key=due)
        chosen, limit_s = self._decodes(snapshot, step, queue)
        if limit_s < math.inf:  # a decode: once in hundreds of tokens is too often to be late
            limit_s -= (limit_s - now_s) * (1 - factor / self._margin.beyond(self._deviations))
        if drafts:
            for job in list(chosen):  # whoever gives way to one of them leaves `step.decodes`
                step.speculate(job, drafts.get(job.tpot_s, 1))
        else:
            step.decode(chosen)
        cap_s = max(self._slack.seconds, SHORTEST_TTFTS * self._least_s)
        limit_s = self._prefill(snapshot, step, queue, min(limit_s, now_s + cap_s))
        if not batch.entries:
            step.decode(step.decodes)  # no prompt could begin after all
        lead_s = min((job.due_s for job in step.decodes), default=math.inf) - now_s
        if not batch.entries or (self._best_effort and not queue and lead_s > self._lead_s):
            step.serve_spare(self._queue, min(cap_s, limit_s - now_s) / factor)
        return step.allocation()

    def _prefill(self, snapshot: EngineSnapshot, step: Step, queue: list[Job], limit_s: float) -> float:
        """Chunks of prompts in a batch that ends by `limit_s`; when it has to end for the sake of those it completes.

        A waiting prompt begins only if the KV blocks of its output, too, will be there.
        """
        now_s, factor, batch = snapshot.now_s, self._margin.factor, step.batch
        reserved: Reservation | None = None
        for job in queue:
            if not batch.tokens_left or not batch.seqs_left:
                break
            if job in step.preempted:
                continue
            begun = job.kv_blocks > 0
            if not begun:
                if reserved is None:
                    members = [other for other in (*step.decodes, *step.prefills) if other not in step.preempted]
                    reserved = Reservation(snapshot.engine, members, self._admission.remaining_tokens)
                if not reserved.fits(job) or not step.has_room(job):
                    continue
                reserved.hold(job)
            whole_s = min(limit_s, job.due_s)
            if batch.chunk_within(job, (whole_s - now_s) / factor) == job.left_tokens:
                limit_s = whole_s
            seconds = (limit_s - now_s) / factor
            if not (step.extend(job, seconds) if begun else step.begin(job, seconds)):
                break
            if not begun:
                self._queue.remove(job)
        return limit_s

    def _decodes(self, snapshot: EngineSnapshot, step: Step, queue: list[Job]) -> tuple[list[Job], float]:
        """The decodes of the batch, and when it must end for their sake and for those who sit out."""
        now_s, engine, decodes = snapshot.now_s, snapshot.engine, step.decodes
        limit_s = min([job.due_s for job in decodes], default=math.inf)
        # Where seats or KV blocks are short, who sits out keeps others from beginning.
        room = len(snapshot.running) + len(queue) < SEATS * engine.max_num_seqs
        room = room and snapshot.free_kv_blocks > FREE_KV * engine.kv_blocks
        if not (queue and decodes and room):
            return decodes, limit_s
        count, context = len(decodes), sum([job.computed_tokens for job in decodes])
        whole_s = engine.batch_time_s(count, decode_context_tokens=context, num_requests=count)
        share = max(0.1, 1 - whole_s / max(limit_s - now_s, whole_s))
        if not self._crowded(snapshot, queue, share):
            return decodes, limit_s
        horizon_s = now_s + max(self._lead_s, 3 * whole_s)
        chosen = [job for job in decodes if job.due_s <= horizon_s]
        # Who sits out must still be in time in a batch of all decodes after this one.
        limit_s = min([job.due_s if job.due_s <= horizon_s else job.due_s - whole_s for job in decodes])
        return chosen, limit_s

    def _crowded(self, snapshot: EngineSnapshot, queue: list[Job], share: float) -> bool:
        """Whether a prompt has too little slack if prompts get `share` of the engine's time."""
        engine = snapshot.engine
        slope_s = max([piece.per_token_s for piece in engine.pieces])
        done_s = snapshot.now_s + self._crowd_s
        for job in queue:
            left = job.known_tokens - job.computed_tokens
            work_s = slope_s * left + engine.prefill_pair_s * prefill_pairs(left, job.computed_tokens)
            done_s += work_s / share
            if done_s > job.due_s:
                return True
        return False


def _committed(job: Job) -> bool:
    """Whether earlier work would be lost with it: a later round, or a decode that was preempted."""
    return job.round > 0 or job.emitted_tokens > 0
