"""The picture of a run: what it says of each request, and that odd runs are drawn, too."""

from pathlib import Path

import numpy as np
import pytest

from slo_opt import Instance, Request, SloClass, Stage, engine_named
from slo_opt.domain.slo import ScoreRule
from slo_opt.policies.interface import Allocation
from slo_opt.report.load import FIRST_LATE, LATER_LATE, NOT_SERVED, ON_TIME, draw_load, outcome_of
from slo_opt.simulate.play import play
from slo_opt.simulate.simulator import SimulationOptions, simulate

pytest.importorskip("matplotlib")
CLASSES = {
    "chat": SloClass("chat", tpot_ms=100, ttft_ms=1000),
    "code": SloClass("code", tpot_ms=50, ttft_ms=400),
    "free": SloClass("free", tpot_ms=1000, ttft_ms=60_000, best_effort=True),
}


class Idle:
    """Serves nobody."""

    name = "idle"

    def decide(self, snapshot) -> Allocation:
        """Nothing."""
        return Allocation()


def crowd(count: int, names: tuple[str, ...] = ("chat", "code", "free")) -> Instance:
    """Requests of the classes in turn, 50 a second."""
    requests = tuple(
        Request(f"r{i}", i / 50, (Stage(100 + 37 * i % 900, 1 + i % 40, names[i % len(names)]),)) for i in range(count)
    )
    return Instance("crowd", requests, CLASSES, engine_named("llama-3-8b-a100"))


def single(ttft_ms: float, tpot_ms: float, rule: ScoreRule = ScoreRule.DSLO) -> Instance:
    """A request of 100 tokens and 10 steps: on an idle engine about 19 ms and about 15 ms a step."""
    slo = SloClass("only", tpot_ms=tpot_ms, ttft_ms=ttft_ms)
    request = Request("a", 0.0, (Stage(100, 11, "only"),))
    return Instance("single", (request,), {"only": slo}, engine_named("llama-3-8b-a100"), rule)


@pytest.mark.parametrize(
    ("ttft_ms", "tpot_ms", "outcome"),
    [(100, 100, ON_TIME), (5, 100, FIRST_LATE), (25, 5, LATER_LATE), (5, 5, FIRST_LATE)],
)
@pytest.mark.parametrize("rule", list(ScoreRule))
def test_what_a_request_missed(ttft_ms: float, tpot_ms: float, outcome: int, rule: ScoreRule):
    assert outcome_of(play(single(ttft_ms, tpot_ms, rule), "vllm-fcfs")).tolist() == [outcome]


def test_outcomes_add_up():
    run = play(crowd(400), "scorpio")
    found = outcome_of(run)[run.evaluation.counted]
    assert int((found == ON_TIME).sum()) == run.evaluation.num_attained
    assert int((found == NOT_SERVED).sum()) == int((~run.evaluation.finished & run.evaluation.counted).sum()) > 0
    assert set(np.unique(found)) >= {ON_TIME, NOT_SERVED}


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_equal_runs_give_equal_pictures(tmp_path: Path, ending: str):
    paths = [tmp_path / f"{name}.{ending}" for name in ("first", "second")]
    for path in paths:
        draw_load(play(crowd(60), "edf", options=SimulationOptions(seed=2, noise=0.2)), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size > 3000


@pytest.mark.filterwarnings("error")
def test_odd_runs_are_drawn(tmp_path: Path):
    for run in (simulate(crowd(1), Idle()), simulate(crowd(20), Idle()), play(crowd(20, ("free",)), "vllm-fcfs")):
        draw_load(run, tmp_path / "odd.png")
        assert (tmp_path / "odd.png").stat().st_size > 3000
