"""Capacity tables: intervals, ratios, keys of units."""

import math

import pytest

from slo_opt.analysis.capacity import CapacityRequest, capacity_document, capacity_unit, gpus_of
from slo_opt.analysis.confidence import mean_and_interval, t95
from slo_opt.domain.errors import InvalidInputError
from slo_opt.simulate.capacity import CapacityOptions
from slo_opt.simulate.simulator import SimulationOptions


def test_quantiles_of_student():
    # Printed tables of the t distribution, two-sided 95 %.
    for freedom, value in ((1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (30, 2.042), (60, 2.000), (10**6, 1.960)):
        assert t95(freedom) == pytest.approx(value, abs=6e-4)


def test_interval_by_hand():
    assert mean_and_interval([3.0]) == (3.0, None)
    mean, interval = mean_and_interval([1.0, 2.0, 3.0])  # deviation 1
    assert mean == 2.0
    assert interval == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


def unit(rate: float, budget: int = 2048) -> dict:
    """A finished unit."""
    verdict = {"passed": True, "offered": 100, "attained": 91, "late_attained": 23, "reason": "ok"}
    return {
        "rate": rate,
        "setting": {"budget_tokens": budget},
        "fails_at": rate * 1.02,
        "monotone": True,
        "verdict": verdict if rate else None,
        "settings_tried": 6,
        "probes": [],
        "wall_s": 1.0,
        "source": "generated",
    }


def request(**changes) -> CapacityRequest:
    fields = {"scenarios": ("coder",), "engines": ("llama-70b-tp4-h100",), "policies": ("vllm-fcfs", "sarathi", "edf")}
    return CapacityRequest(**{**fields, "seeds": 2, **changes})


def test_rates_are_a_gpu_and_ratios_to_the_best_baseline():
    asked = request()
    rates = {"vllm-fcfs": (4.0, 8.0), "sarathi": (10.0, 6.0), "edf": (16.0, 16.0)}
    results = {
        asked.task("coder", "llama-70b-tp4-h100", policy, seed).key: unit(rate, 512 * (seed + 1))
        for policy, pair in rates.items()
        for seed, rate in enumerate(pair)
    }
    document = capacity_document(asked, results)
    assert document["complete"]
    (cell,) = document["cells"]
    assert (cell["baseline"], cell["gpus"]) == ("sarathi", 4)
    rows = {row["policy"]: row for row in cell["rows"]}
    assert [rows[name]["rate_per_gpu"] for name in rates] == [1.5, 2.0, 4.0]
    assert [rows[name]["ratio"] for name in rates] == [0.75, 1.0, 2.0]
    assert rows["edf"]["ci95"] == [4.0, 4.0]
    assert rows["vllm-fcfs"]["settings"] == [{"budget_tokens": 512}, {"budget_tokens": 1024}]
    assert rows["vllm-fcfs"]["attainment"] == [0.91, 0.91]
    assert [row["ratio"] for row in document["geometric_means"]] == [0.75, 1.0, 2.0]


def test_geometric_mean_over_cells_and_none_where_a_capacity_is_zero():
    asked = request(scenarios=("coder", "chatbot"), policies=("vllm-fcfs", "edf", "qoserve"), seeds=1)
    rates = {("coder", "edf"): 2.0, ("chatbot", "edf"): 8.0, ("coder", "qoserve"): 0.0, ("chatbot", "qoserve"): 3.0}
    results = {
        task.key: unit(rates.get((task.inputs["scenario"], task.inputs["policy"]), 1.0)) for task in asked.tasks()
    }
    document = capacity_document(asked, results)
    assert [(row["ratio"], row["cells"]) for row in document["geometric_means"]] == [(1.0, 2), (4.0, 2), (None, 2)]
    assert document["cells"][0]["rows"][2]["attainment"] == [None]


def test_what_has_finished_is_shown_and_said_to_be_part():
    asked = request(scenarios=("coder", "chatbot"))
    results = {asked.task("chatbot", "llama-70b-tp4-h100", "edf", 1).key: unit(8.0)}
    document = capacity_document(asked, results)
    assert not document["complete"]
    assert [(cell["scenario"], cell["baseline"]) for cell in document["cells"]] == [("chatbot", None)]
    assert document["cells"][0]["rows"][0]["ratio"] is None


def test_every_input_is_in_the_key():
    base = request()
    others = [
        request(duration_s=200.0),
        request(options=CapacityOptions(target=0.8)),
        request(options=CapacityOptions(tolerance=0.01)),
        request(options=CapacityOptions(lengths="oracle")),
        request(options=CapacityOptions(simulation=SimulationOptions(noise=0.1))),
        request(options=CapacityOptions(simulation=SimulationOptions(acceptance=0.5))),
    ]
    names = ("coder", "llama-70b-tp4-h100", "edf", 0)
    keys = {asked.task(*names).key for asked in (base, *others)}
    keys |= {base.task(*cell).key for cell in (("chatbot", *names[1:]), ("coder", "opt-6.7b-a100", "edf", 0))}
    keys |= {base.task(*names[:2], "sarathi", 0).key, base.task(*names[:3], 1).key}
    assert len(keys) == 11
    assert base.task(*names).key == request(seeds=5).task(*names).key


def test_a_unit_is_what_its_task_says():
    asked = request(
        engines=("opt-6.7b-a100",), duration_s=20.0, options=CapacityOptions(tolerance=0.3, lengths="oracle")
    )
    task = asked.task("coder", "opt-6.7b-a100", "vllm-fcfs", 1)
    result = capacity_unit(task.inputs, **task.where)
    assert result["rate"] > 0
    assert result["source"] == "generated: coder"
    assert result["verdict"]["attained"] >= 0.9 * result["verdict"]["offered"]


def test_gpus():
    assert [gpus_of(name) for name in ("llama-70b-tp4-h100", "llama-3-8b-a100", "mine-tp2", "http4")] == [4, 1, 2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": ("sarathy",)}, "Did you mean 'sarathi'"),
        ({"scenarios": ("codr",)}, "Did you mean 'coder'"),
        ({"engines": ("lama-3-8b-a100",)}, "Did you mean 'llama-3-8b-a100'"),
        ({"seeds": 0}, "at least 1"),
        ({"policies": ()}, "no policy is named"),
        ({"options": CapacityOptions(target=1.5)}, "target"),
        ({"options": CapacityOptions(tolerance=0.0)}, "tolerance"),
        ({"options": CapacityOptions(lengths="orakle")}, "Did you mean 'oracle'"),
        ({"duration_s": 0.0}, "duration"),
    ],
)
def test_refusals(changes: dict, message: str):
    with pytest.raises(InvalidInputError, match=message):
        request(**changes)
