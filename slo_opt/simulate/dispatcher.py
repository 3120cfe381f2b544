"""Where the requests of a fleet go: the router is asked, and what it says is carried out."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.schedule import Move
from slo_opt.policies.interface import Standing
from slo_opt.routing.interface import Placement, RoutingPolicy
from slo_opt.simulate.agenda import Agenda, Rank
from slo_opt.simulate.fleet_member import Member, suits
from slo_opt.simulate.fleet_spec import FleetOptions
from slo_opt.simulate.life import Life
from slo_opt.simulate.recorder import Recorder
from slo_opt.simulate.replica import Replica


class IllegalPlacementError(InvalidInputError):
    """A router answered with what it was not offered: a defect of the router."""


@dataclass(slots=True, eq=False)
class Lent:
    """KV of a request that has left the replica that prefilled it, and which still holds it.

    Parameters
    ----------
    life : Life
        The request.
    source : Member
        The replica.
    replica : Replica
        Its state; another one after a failure.
    blocks : int
        KV blocks held.
    target : Member or None
        Where it is on its way to.
    """

    life: Life
    source: Member
    replica: Replica
    blocks: int
    target: Member | None = None


class Dispatcher:
    """Asks the router for each request, again where a replica refuses it or fails, and keeps those that it holds back.

    Parameters
    ----------
    router : RoutingPolicy
        Who chooses.
    members : list of Member
        The fleet; it may grow.
    agenda : Agenda
        What happens when.
    recorder : Recorder
        Where moves of KV are kept.
    options : FleetOptions
        Of the fleet.
    empty : callable
        Told of a replica that may have become empty.

    Attributes
    ----------
    num_open : int
        Requests that are not over.
    num_lost : int
        Requests under an SLO that were sent away or lost.
    num_hops, num_transfers, num_demotions : int
        Requests handed on from a replica that refused them or failed; KV caches moved; requests that the router made
        best effort.
    rejected, failed : list of Life
        Sent away by every replica that could take them; lost with a replica after their first token.
    """

    def __init__(
        self,
        router: RoutingPolicy,
        members: list[Member],
        agenda: Agenda,
        recorder: Recorder,
        options: FleetOptions,
        empty: Callable[[Member], None],
    ) -> None:
        self._router = router
        self._members = members
        self._agenda = agenda
        self._recorder = recorder
        self._options = options
        self._empty = empty
        self._held: dict[int, tuple[Life, float]] = {}
        self._lent: dict[int, Lent] = {}
        self._refused: defaultdict[int, set[str]] = defaultdict(set)
        self.num_open = 0
        self.num_lost = 0
        self.num_hops = 0
        self.num_transfers = 0
        self.num_demotions = 0
        self.rejected: list[Life] = []
        self.failed: list[Life] = []

    @property
    def held(self) -> list[Life]:
        """Requests that are held back, the longest first."""
        return [life for life, _ in self._held.values()]

    def arrive(self, life: Life) -> None:
        """A request arrives, or a round of it is released."""
        self._refused.pop(life.index, None)
        self._route(life)

    def _route(self, life: Life) -> None:
        now_s, index = self._agenda.now_s, life.index
        decoding = index in self._lent
        staying = [member for member in self._members if member.left_s == math.inf and not member.draining]
        able = [member for member in staying if suits(member.spec, life, decoding)]
        reached = [member for member in able if member.reachable(now_s)]
        refused = self._refused.get(index, set())
        offered = {member.id: member for member in reached if member.id not in refused}
        if not offered:
            if reached or not (able or self._may_start(life, decoding)):
                self._turn_away(life)
            else:
                self._hold(life, math.inf)
            return
        placement = self._router.route(life, [member.view for member in offered.values()], now_s)
        if placement.replica is None:
            if not placement.wake_s > now_s:  # NaN too
                raise self._illegal(life, f"it is to be asked again at {placement.wake_s:.6f} s, which is not later")
            self._hold(life, placement.wake_s)
            return
        if placement.replica not in offered:
            raise self._illegal(life, f"{placement.replica!r} is not one of {', '.join(offered)}")
        self._send(life, offered[placement.replica], placement)

    def _illegal(self, life: Life, rule: str) -> IllegalPlacementError:
        return IllegalPlacementError(
            f"router {self._router.name!r} made an illegal placement for request {life.id!r} at "
            f"{self._agenda.now_s:.6f} s: {rule}"
        )

    def _may_start(self, life: Life, decoding: bool) -> bool:
        scaling = self._options.scaling
        return scaling is not None and suits(scaling.template, life, decoding)

    def _hold(self, life: Life, wake_s: float) -> None:
        self._held[life.index] = (life, wake_s)
        self._agenda.at(wake_s, Rank.HELD, life.index, self._look_again, life, wake_s)

    def _look_again(self, life: Life, wake_s: float) -> None:
        if self._held.get(life.index) == (life, wake_s):
            del self._held[life.index]
            self._route(life)

    def release_held(self) -> None:
        """A replica has joined: look at all who are held back."""
        waiting, self._held = self.held, {}
        for life in waiting:
            self._route(life)

    def _send(self, life: Life, member: Member, placement: Placement) -> None:
        now_s = self._agenda.now_s
        if placement.best_effort and life.standing is not Standing.BEST_EFFORT:
            life.standing = Standing.BEST_EFFORT
            self.num_demotions += 1
        lent = self._lent.get(life.index)
        if lent is None:
            member.replica.add(life)
            self._agenda.poke(member.number)
        else:
            lent.target = member
            member.coming[life.index] = life
            there_s = now_s + self._options.transfer.seconds(life.computed_tokens)
            self._agenda.at(there_s, Rank.TRANSFER, life.index, self._arrived, life, lent, member, now_s)
        member.watcher.sent(life)

    def hand_over(self, life: Life, member: Member) -> None:
        """A request has its first token from a replica that only prefills: its KV is lent until it has been moved."""
        self._lent[life.index] = Lent(life, member, member.replica, member.replica.hand_over(life))
        member.num_lent += 1

    def decode(self, life: Life, member: Member) -> None:
        """The router sees the first token of a request that was handed over, if its KV is still there."""
        member.watcher.gone(life)
        if life.index in self._lent:
            self._route(life)

    def _arrived(self, life: Life, lent: Lent, target: Member, start_s: float) -> None:
        """KV has reached its replica, unless its source has failed meanwhile."""
        if self._lent.get(life.index) is not lent:
            return
        del target.coming[life.index]
        lent.target = None
        if not target.up:  # the source still holds it
            target.watcher.gone(life)
            self._route(life)
            return
        move = Move(life.index, lent.source.number, start_s, target.number, self._agenda.now_s)
        self._recorder.moves.append(move)
        self.num_transfers += 1
        self._take_back(life)
        target.replica.add(life)
        target.watcher.changed()
        self._agenda.poke(target.number)

    def _take_back(self, life: Life) -> None:
        """The source of a request's KV no longer holds it."""
        lent = self._lent.pop(life.index)
        lent.source.num_lent -= 1
        if lent.replica is lent.source.replica:
            lent.replica.give_back(lent.blocks)
            lent.source.watcher.changed()
            self._agenda.poke(lent.source.number)
            self._empty(lent.source)

    def refuse(self, life: Life, member: Member) -> None:
        """A replica refuses a request: another may take it, unless tokens of the round have been delivered."""
        member.watcher.gone(life)
        if life.emitted_tokens:
            self._turn_away(life)
            return
        self._refused[life.index].add(member.id)
        self._hop(life)

    def _hop(self, life: Life) -> None:
        life.standing = Standing.UNDECIDED if life.value > 0 else Standing.BEST_EFFORT
        rejected = len(self.rejected)
        self._route(life)
        self.num_hops += len(self.rejected) == rejected

    def lose_replica(self, member: Member, lives: list[Life], dropped: list[Life]) -> None:
        """A replica has failed: requests without a token of their round hop, the others are lost.

        Parameters
        ----------
        member : Member
            The replica.
        lives : list of Life
            Who was in it.
        dropped : list of Life
            Whose KV is lost.
        """
        for life in dropped:
            self.drop(life, member)
        for lent in list(self._lent.values()):
            if lent.source is member:
                life = lent.life
                self.drop(life, member)
                self._take_back(life)
                lives = [*lives, life]
                if lent.target is not None:
                    del lent.target.coming[life.index]
                    lent.target.watcher.gone(life)
        for life in lives:
            if life.emitted_tokens:
                self.failed.append(life)
                self._over(life)
            else:
                self._hop(life)

    def drop(self, life: Life, member: Member) -> None:
        """Note that a replica has lost KV of a request."""
        self._recorder.moves.append(Move(life.index, member.number, self._agenda.now_s))

    def _turn_away(self, life: Life) -> None:
        lent = self._lent.get(life.index)
        if lent is not None:
            self.drop(life, lent.source)
            self._take_back(life)
        self.rejected.append(life)
        self._over(life)

    def _over(self, life: Life) -> None:
        self._held.pop(life.index, None)
        self.num_open -= 1
        self.num_lost += life.value > 0
