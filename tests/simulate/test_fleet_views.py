"""What a router is shown: replicas as they are, or the latest report and what has passed through the router since."""

from test_fleet import PLAIN, Script, asked, instance_of, specs

from slo_opt.domain.request import Stage
from slo_opt.policies.interface import Job
from slo_opt.simulate.faults import Fault, FaultKind
from slo_opt.simulate.fleet import simulate_fleet
from slo_opt.simulate.fleet_spec import FleetOptions

# Request a: batches of r0 from 0 to 16, 27 and 38 s; others come to look, and go to r1.
TIMES_S = (5.0, 17.0, 25.0, 39.0, 50.0)


class Looking(Script):
    """Notes what it is shown of r0."""

    def __init__(self, *answers):
        super().__init__(*answers)
        self.seen = {}
        self.versions = []

    def route(self, job, replicas, now_s):
        view = next((view for view in replicas if view.id == "r0"), None)
        if view is not None:
            jobs = [*view.running, *view.waiting]
            self.versions.append(view.version)
            self.seen[now_s] = (
                [other.id for other in view.running],
                [other.id for other in view.waiting],
                view.free_kv_blocks,
                [(other.emitted_tokens, other.computed_tokens) for other in jobs],
                view.batch_ends_s,
            )
            self.kinds = {type(other) for other in jobs} or getattr(self, "kinds", set())
        return super().route(job, replicas, now_s)


def looked(times_s=TIMES_S, **options):
    requests = [asked("a", 0.0), *(asked(f"look-{t:g}", t, Stage(1, 1, "chat")) for t in times_s)]
    instance = instance_of(*requests)
    router = Looking("r0", *["r1"] * len(times_s))
    run = simulate_fleet(instance, specs(instance, PLAIN, PLAIN), router, FleetOptions(**options))
    assert run.evaluation.legal
    assert run.finished.all()
    return router


def test_an_exact_view_is_the_replica_as_it_is():
    router = looked()
    never = float("-inf")
    assert router.seen == {
        0.0: ([], [], 100, [], never),
        5.0: (["a"], [], 98, [(0, 0)], 16.0),
        17.0: (["a"], [], 98, [(1, 6)], 27.0),
        25.0: (["a"], [], 98, [(1, 6)], 27.0),
        39.0: ([], [], 100, [], never),
        50.0: ([], [], 100, [], never),
    }
    assert router.versions == sorted(router.versions)
    assert len(set(router.versions)) == 4  # nothing changes from 17 to 25 s, nor after 39 s


def test_between_reports_the_router_knows_what_passes_through_it():
    router = looked(report_every_s=20.0)
    never = float("-inf")
    assert router.seen == {
        0.0: ([], [], 100, [], never),
        5.0: ([], ["a"], 100, [(0, 0)], never),  # sent, and no more
        17.0: (["a"], [], 100, [(1, 6)], never),  # a token came: its prompt has been computed
        25.0: (["a"], [], 98, [(1, 6)], 27.0),  # the report of 20 s
        39.0: ([], [], 98, [], 27.0),  # its end came
        50.0: ([], [], 100, [], never),  # the report of 40 s
    }
    assert router.kinds == {Job}
    assert router.versions == sorted(router.versions)


def test_a_replica_that_was_cut_off_reports_when_it_is_found_again():
    cut = Fault(FaultKind.CUT_OFF, 0, 10.0, 95.0)
    for report_every_s in (0.0, 20.0):
        router = looked((5.0, 17.0, 104.0, 105.5), report_every_s=report_every_s, faults=(cut,))
        assert set(router.seen) == {0.0, 5.0, 105.5}
        assert router.seen[105.5] == ([], [], 100, [], float("-inf"))


def test_slowness_shows_in_no_view():
    slow = Fault(FaultKind.SLOW, 0, 0.0, 10.0, factor=2.0)
    router = looked((5.0, 20.0), faults=(slow,))
    assert router.seen[5.0][-1] == router.seen[20.0][-1] == 16.0  # as expected; it lasts until 32 s
