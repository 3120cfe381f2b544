"""Ray's request router with our policy in it, on replicas that only say who they are. Needs Ray, no cluster."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed; `make ray-env` installs it")
serve_parts = pytest.importorskip("ray.serve.request_router", reason="Ray Serve is not installed")

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata  # noqa: E402
from ray.serve.request_router import PendingRequest  # noqa: E402

from slo_opt.engine_bridge.ray_serve.alpha import ID_FIELD, SloRequestRouter, scale  # noqa: E402
from slo_opt.engine_bridge.ray_serve.arrival import Arrival  # noqa: E402
from slo_opt.engine_bridge.ray_serve.demand import PRESSURE  # noqa: E402
from slo_opt.engine_bridge.ray_serve.desk import desk_of  # noqa: E402
from slo_opt.engine_bridge.ray_serve.plan import ServePlan  # noqa: E402
from slo_opt.engine_bridge.ray_serve.stats import ReplicaStats  # noqa: E402
from slo_opt.engine_bridge.router.reports import EngineReport  # noqa: E402
from slo_opt.engine_bridge.router.shape import Shape  # noqa: E402
from slo_opt.engine_bridge.slo_fields import RequestSlo  # noqa: E402
from slo_opt.routing.interface import Placement  # noqa: E402

DEPLOYMENT = DeploymentID(name="llm", app_name="slo-opt")
SLO = RequestSlo("default", 0.05, ttft_s=1.0)


class Waits:
    """Holds everybody back until there are two replicas, and then promises nothing."""

    name = "waits"

    def __init__(self, context):
        pass

    def route(self, job, replicas, now_s):
        if len(replicas) < 2:
            return Placement(None)
        return Placement(replicas[-1].id, best_effort=True)

    def observe(self, end):
        pass


class Replica:
    """What a router sees of a replica."""

    def __init__(self, name, stats=None):
        self.replica_id = ReplicaID(name, deployment_id=DEPLOYMENT)
        self.routing_stats = stats or {}
        self.max_ongoing_requests = 1_000_000
        self.multiplexed_model_ids = set()

    async def get_queue_len(self, *, deadline_s):
        return 0


def router_of(plan):
    router = SloRequestRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state(plan=plan.to_dict())
    return router


def pending(number, request):
    metadata = RequestMetadata(request_id=f"q{number}", internal_request_id=f"i{number}")
    return PendingRequest(args=[request], kwargs={}, metadata=metadata)


def ids(replicas):
    return [replica.replica_id.unique_id for rank in replicas for replica in rank]


def test_the_policy_chooses_and_the_books_follow():
    async def run():
        plan = ServePlan("books", policy="join-shortest-queue")
        router, desk = router_of(plan), desk_of(plan.to_dict())
        replicas = [Replica("a"), Replica("b")]
        router.update_replicas(replicas)
        chosen = []
        for number in range(4):
            request = SimpleNamespace(**{ID_FIELD: desk.arrive(Arrival(SLO, Shape("m", 10)), 0.0)})
            chosen += ids(await router.choose_replicas(replicas, pending(number, request)))
        assert sorted(chosen) == ["a", "a", "b", "b"]
        assert [view.num_requests for view in desk.views().values()] == [2, 2]

    asyncio.run(run())


def test_a_request_without_an_announcement_is_booked_until_ray_says_that_it_ended():
    async def run():
        plan = ServePlan("unannounced", policy="round-robin")
        router, desk = router_of(plan), desk_of(plan.to_dict())
        replica = Replica("a")
        router.update_replicas([replica])
        for fields in ({"slo_ttft_ms": 500, "slo_tpot_ms": 50}, {"slo_ttft_ms": "soon"}, None):
            waiting = pending(1, SimpleNamespace(vllm_xargs=fields))
            for _ in range(2):  # a second choice is no second request
                assert ids(await router.choose_replicas([replica], waiting)) == ["a"]
            assert desk.views()["a"].num_requests == 1
            router.on_request_completed(replica.replica_id, "i1")
            assert desk.views()["a"].idle

    asyncio.run(run())


def test_who_is_held_back_goes_as_soon_as_a_replica_joins_and_the_engine_is_told_of_no_promise():
    async def run():
        plan = ServePlan("joins", policy=f"{__name__}:Waits")
        router, desk = router_of(plan), desk_of(plan.to_dict())
        replicas = [Replica("a"), Replica("b")]
        router.update_replicas(replicas[:1])
        request = SimpleNamespace(vllm_xargs={"slo_class": "default"}, **{ID_FIELD: "unset"})
        setattr(request, ID_FIELD, desk.arrive(Arrival(SLO, Shape("m", 10)), asyncio.get_running_loop().time()))
        choosing = asyncio.create_task(router.choose_replicas(replicas[:1], pending(1, request)))
        await asyncio.sleep(0.05)
        assert not choosing.done()
        router.update_replicas(replicas)
        assert ids(await asyncio.wait_for(choosing, 30)) == ["b"]
        assert request.vllm_xargs == {"slo_class": "default", "slo_best_effort": "true"}

    asyncio.run(run())


def test_what_replicas_report_reaches_the_books():
    async def run():
        plan = ServePlan("reports", policy="round-robin")
        router, desk = router_of(plan), desk_of(plan.to_dict())
        told = ReplicaStats(1.0, EngineReport(running=3, waiting=0, free_kv_blocks=70, kv_blocks=100)).to_dict()
        router.update_replicas([Replica("a", told)])
        view = desk.views()["a"]
        assert (view.num_requests, view.free_kv_blocks, view.engine.kv_blocks) == (3, 70, 100)
        router.update_replicas([Replica("b")])
        assert set(desk.views()) <= {"a", "b"}

    asyncio.run(run())


def test_ray_chooses_through_us_from_end_to_end():
    """Ray's own loop of choosing, with queue lengths of its cache, gives each request the policy's replica."""

    async def run():
        plan = ServePlan("whole", policy="round-robin")
        router, desk = router_of(plan), desk_of(plan.to_dict())
        router.update_replicas([Replica("a"), Replica("b")])
        waiting = []
        for number in range(6):
            request = SimpleNamespace(**{ID_FIELD: desk.arrive(Arrival(SLO, Shape("m", 10)), 0.0)})
            waiting.append(router._choose_replica_for_request(pending(number, request)))
        chosen = await asyncio.wait_for(asyncio.gather(*waiting), 60)
        assert sorted(replica.replica_id.unique_id for replica in chosen) == ["a"] * 3 + ["b"] * 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("told", "held", "least", "most", "expected"),
    [
        ({"a": 0.2, "b": 0.2}, 0.0, 1, 4, 1),
        ({"a": 0.2, "b": 0.2}, 0.0, 2, 4, 2),
        ({"a": 1.5, "b": 1.5}, 0.0, 1, 4, 4),
        ({"a": 1.5, "b": 1.5}, 0.0, 1, 3, 3),
        ({"a": 0.7, "b": 0.7}, 2.0, 1, 4, 3),
        ({"a": 0.2, "gone": 9.0}, 0.0, 1, 4, 1),
        (None, 0.0, 1, 4, 2),
    ],
)
def test_the_autoscaler_is_told_how_many(told, held, least, most, expected):
    context = SimpleNamespace(
        aggregated_metrics=None if told is None else {PRESSURE: told},
        running_replicas=["a", "b"],
        total_queued_requests=held,
        target_num_replicas=2,
        capacity_adjusted_min_replicas=least,
        capacity_adjusted_max_replicas=most,
    )
    assert scale(context) == (expected, {})
