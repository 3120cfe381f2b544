"""The event loop of a fleet: a router before several replicas, each with a policy of its own.

Every replica decides, starts and finishes its batches as in `simulate`; a fleet of one gives the same batches. Between
them, events in order of time: arrivals and released rounds, which the router places; KV that moves from replicas that
prefill to replicas that decode; faults; replicas that come and go. At each moment all events happen before any policy
is asked.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from slo_opt.domain.fleet import Fleet
from slo_opt.domain.instance import TIME_TOLERANCE_S, Instance
from slo_opt.policies.interface import RoundEnd, Standing
from slo_opt.routing.interface import Role, RoutingPolicy
from slo_opt.simulate.agenda import Agenda, Rank
from slo_opt.simulate.autoscale import FleetState, Served
from slo_opt.simulate.dispatcher import Dispatcher
from slo_opt.simulate.faults import Fault, FaultKind
from slo_opt.simulate.fleet_member import Member
from slo_opt.simulate.fleet_run import FleetRun, Stay
from slo_opt.simulate.fleet_spec import FleetOptions, ReplicaSpec, check_fleet
from slo_opt.simulate.life import Life
from slo_opt.simulate.recorder import PlayedBatch, Recorder

_LOOK_EVERY = 32  # batches between two looks for requests that are late already


def simulate_fleet(
    instance: Instance,
    replicas: Sequence[ReplicaSpec],
    router: RoutingPolicy,
    options: FleetOptions | None = None,
) -> FleetRun:
    """Serve an instance with a fleet.

    Parameters
    ----------
    instance : Instance
        Its requests and SLOs. Its engine sets the TTFT limits that are given as slowdowns; what serves is `replicas`.
    replicas : sequence of ReplicaSpec
        The fleet as it begins, ``r0``, ``r1`` and so on.
    router : RoutingPolicy
        Fresh: routers keep what they have learned.
    options : FleetOptions or None
        None: exact views, no fault, no scaling, engines that are exactly their models.

    Returns
    -------
    FleetRun
        It ends when every request is over, when nobody serves any more, or at `SimulationOptions.max_lost`.

    Raises
    ------
    IllegalAllocationError, IllegalPlacementError
        A policy asked for what its engine cannot do; the router chose what it was not offered.
    InvalidInputError
        No request could ever end on such a fleet, or a fault is on no replica of it.

    Notes
    -----
    Each round of a request is routed anew. A replica that refuses a request, or fails before the first token of its
    round, is followed by the router's next choice; a request is rejected when all that can be reached have refused it.
    Tokens that a trace says are cached at the release of a round are so on every replica.
    """
    options = options or FleetOptions()
    check_fleet(replicas, options)
    return _Simulation(instance, replicas, router, options).run()


class _Simulation:
    def __init__(
        self, instance: Instance, replicas: Sequence[ReplicaSpec], router: RoutingPolicy, options: FleetOptions
    ) -> None:
        self._instance = instance
        self._router = router
        self._options = options
        self._agenda = Agenda()
        self._recorder = Recorder()
        self._members: list[Member] = []
        self._dispatcher = Dispatcher(
            router, self._members, self._agenda, self._recorder, options, self._leave_if_empty
        )
        self._gaps = {name: array("d") for name in instance.slo_classes}
        self._lives = [
            Life(instance, i, self._gaps[instance.slo_of(request).name]) for i, request in enumerate(instance.requests)
        ]
        self._num_starting = 0
        for life in self._lives:
            self._agenda.at(life.release_s, Rank.ARRIVAL, life.index, self._dispatcher.arrive, life)
        self._dispatcher.num_open = len(self._lives)
        for spec in replicas:
            self._new_member(spec, -math.inf).start(-math.inf)
        for fault in options.faults:
            self._agenda.at(fault.at_s, Rank.FAULT, fault.replica, self._begin_fault, fault)
        if options.scaling is not None:
            self._agenda.at(options.scaling.interval_s, Rank.SCALING, 0, self._scale)

    def run(self) -> FleetRun:
        """All of it."""
        agenda = self._agenda
        while self._dispatcher.num_open and not self._cut() and agenda.step():
            for number in agenda.poked():
                self._ask(self._members[number])
        return self._result()

    def _cut(self) -> bool:
        most = self._options.simulation.max_lost
        if most is None:
            return False
        replicas = [member.replica for member in self._members]
        lost = self._dispatcher.num_lost + sum(replica.num_lost for replica in replicas)
        if len(self._recorder) % _LOOK_EVERY == 0:
            now_s = self._agenda.now_s
            lost += sum(replica.num_doomed(now_s) for replica in replicas)
            lost += sum(life.value > 0 and life.due_s < now_s - TIME_TOLERANCE_S for life in self._dispatcher.held)
        return lost > most

    # One replica: decide, start, finish.

    def _ask(self, member: Member) -> None:
        server, now_s = member.server, self._agenda.now_s
        member.wake_s = math.inf
        if not member.up or server.batch is not None or server.replica.idle:
            return
        allocation = server.ask(now_s)
        rejected, dropped = server.replica.take_rejected()
        for life in dropped:
            self._dispatcher.drop(life, member)
        if allocation.tokens:
            end_s = server.start(allocation.tokens, now_s, member.factor)
            self._agenda.at(end_s, Rank.BATCH_END, member.number, self._end_batch, member, server.batch)
        elif allocation.preempted:
            self._agenda.poke(member.number)
        else:
            member.wake_s = allocation.wake_s
            self._agenda.at(allocation.wake_s, Rank.WAKE, member.number, self._wake, member, allocation.wake_s)
        self._changed(member)
        for life in rejected:
            self._reach(member, self._dispatcher.refuse, life, member)
        self._leave_if_empty(member)

    def _wake(self, member: Member, wake_s: float) -> None:
        if member.wake_s == wake_s:
            self._agenda.poke(member.number)

    def _end_batch(self, member: Member, batch: PlayedBatch) -> None:
        server, now_s = member.server, self._agenda.now_s
        if server.batch is not batch:
            return  # a failure came first
        ended = server.finish(member.cut_until_s if member.cut_until_s > now_s else None)
        ends = server.replica.finished[len(server.replica.finished) - len(ended) :]
        handed: list[Life] = []
        if member.spec.role is Role.PREFILL:
            handed = [life for life, _ in batch.entries if life.emitted_tokens and life.kv_blocks]
            for life in handed:
                self._dispatcher.hand_over(life, member)
        if self._options.scaling is not None:
            member.count(sum(tokens for _, tokens in batch.entries), batch.duration_s)
        self._changed(member)
        self._agenda.poke(member.number)
        self._reach(member, self._show, member, batch, ended, ends, handed)
        self._leave_if_empty(member)

    def _reach(self, member: Member, act: Callable[..., None], *args: Any) -> None:
        """Let the router learn from a replica: at once, or when it reaches the replica again."""
        if member.cut_until_s > self._agenda.now_s:
            self._agenda.at(member.cut_until_s, Rank.DELIVERY, member.number, act, *args)
        else:
            act(*args)

    def _show(
        self, member: Member, batch: PlayedBatch, ended: list[Life], ends: list[RoundEnd], handed: list[Life]
    ) -> None:
        """The tokens of a batch pass through the router."""
        member.watcher.produced([life for life, _ in batch.entries], ends)
        for end in ends:
            self._router.observe(end)
        for life in ended:
            if life.done:
                self._dispatcher.num_open -= 1
            else:
                release_s = life.next_round(self._agenda.now_s)
                self._agenda.at(release_s, Rank.ARRIVAL, life.index, self._dispatcher.arrive, life)
        for life in handed:
            self._dispatcher.decode(life, member)

    def _changed(self, member: Member) -> None:
        """The engine of a replica has done something: tell the router, at once or with the next report."""
        member.watcher.changed()
        every_s = self._options.report_every_s
        if every_s and not member.reporting:
            member.reporting = True
            next_s = (math.floor(self._agenda.now_s / every_s + 1e-9) + 1) * every_s
            self._agenda.at(next_s, Rank.REPORT, member.number, self._report, member)

    def _report(self, member: Member) -> None:
        if member.cut_until_s > self._agenda.now_s:
            self._agenda.at(member.cut_until_s, Rank.REPORT, member.number, self._report, member)
            return
        member.reporting = False
        member.watcher.report()

    # Replicas that come, go and fail.

    def _new_member(self, spec: ReplicaSpec, since_s: float) -> Member:
        number = len(self._members)
        self._members.append(Member(number, spec, self._options, self._recorder, since_s))
        return self._members[number]

    def _join(self, member: Member) -> None:
        member.start(self._agenda.now_s)
        self._num_starting -= 1
        self._dispatcher.release_held()

    def _leave_if_empty(self, member: Member) -> None:
        if member.draining and member.up and member.server.batch is None and member.empty:
            member.stop(self._agenda.now_s)
            member.left_s = self._agenda.now_s

    def _begin_fault(self, fault: Fault) -> None:
        member = self._members[fault.replica]
        if not member.up:
            return  # it has left
        if fault.kind is FaultKind.SLOW:
            member.factor = fault.factor
        elif fault.kind is FaultKind.CUT_OFF:
            member.cut_until_s = fault.until_s
        else:
            self._dispatcher.lose_replica(member, *member.crash(self._agenda.now_s))
            if member.draining:
                member.left_s = self._agenda.now_s
        self._agenda.at(fault.until_s, Rank.FAULT, fault.replica, self._end_fault, fault)

    def _end_fault(self, fault: Fault) -> None:
        member = self._members[fault.replica]
        member.factor = 1.0
        if member.left_s < math.inf:
            return
        if fault.kind is FaultKind.FAIL:
            member.start(self._agenda.now_s)
        if fault.kind is not FaultKind.SLOW:
            self._dispatcher.release_held()

    def _scale(self) -> None:
        scaling, now_s = self._options.scaling, self._agenda.now_s
        assert scaling is not None
        there = [member for member in self._members if member.reachable(now_s)]
        state = FleetState(
            now_s,
            [member.view for member in there],
            {member.id: member.served for member in there},
            self._num_starting,
            self._dispatcher.held,
        )
        decision = scaling.autoscaler.scale(state)
        for member in self._members:
            member.served = Served()
        leaving = set(decision.drain)
        kept = [member for member in self._members if member.left_s == math.inf and not member.draining]
        for member in there:
            if member.id in leaving and len(kept) > scaling.least:
                member.draining = True
                kept.remove(member)
                self._leave_if_empty(member)
        for _ in range(min(decision.start, scaling.most - len(kept))):
            self._num_starting += 1
            member = self._new_member(scaling.template, now_s)
            self._agenda.at(now_s + scaling.start_up_s, Rank.JOIN, member.number, self._join, member)
        self._agenda.at(now_s + scaling.interval_s, Rank.SCALING, 0, self._scale)

    def _result(self) -> FleetRun:
        options, recorder, dispatcher = self._options.simulation, self._recorder, self._dispatcher
        replicas = [member.replica for member in self._members]
        slowed = any(fault.kind is FaultKind.SLOW for fault in self._options.faults)
        policies = dict.fromkeys(replica.policy.name for replica in replicas)
        return FleetRun(
            instance=self._instance,
            policy=", ".join(policies),
            seed=options.seed,
            schedule=recorder.schedule(
                tuple(life.index for life in self._lives if life.standing is Standing.ADMITTED),
                measured=bool(options.noise) or options.slowdown != 1.0 or slowed,
            ),
            end_s=recorder.end_s,
            cut=self._cut(),
            num_preemptions=sum(replica.num_preemptions for replica in replicas),
            num_demotions=dispatcher.num_demotions + sum(replica.num_demotions for replica in replicas),
            finished=np.array([life.done for life in self._lives], dtype=np.bool_),
            on_time=np.array(
                [life.done and not life.missed and life.value > 0 for life in self._lives], dtype=np.bool_
            ),
            rejected=tuple(sorted(life.index for life in dispatcher.rejected)),
            num_running=recorder.num_running,
            num_waiting=recorder.num_waiting,
            gaps_s={name: np.array(gaps, dtype=np.float64) for name, gaps in self._gaps.items()},
            decision_s=np.array(recorder.decision_s, dtype=np.float64),
            router=self._router.name,
            fleet=Fleet(tuple(member.facts() for member in self._members), self._options.transfer),
            stays=tuple(
                Stay(member.id, member.spec.engine, member.spec.role, member.since_s, member.left_s)
                for member in self._members
            ),
            num_hops=dispatcher.num_hops,
            num_transfers=dispatcher.num_transfers,
            failed=tuple(sorted(life.index for life in dispatcher.failed)),
        )
