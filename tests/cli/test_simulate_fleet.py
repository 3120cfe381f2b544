"""`slo-opt simulate --replicas`: fleets on the command line, in the record, and beside one another."""

import json
from pathlib import Path

import jsonschema
import pytest
from test_exit_codes import assert_refused
from test_simulate_command import RUN, compared, simulated, steady

from slo_opt.cli.fleet_options import parse_replicas
from slo_opt.domain.engines import engine_named
from slo_opt.domain.errors import InvalidInputError
from slo_opt.routing.interface import Role

FLEET = ("--replicas", "2", "--router", "round-robin,least-loaded")


def test_each_policy_runs_behind_each_router(cli, trace_path: Path):
    runs = simulated(cli, trace_path, *FLEET, "--policy", "vllm-fcfs,sarathi")
    pairs = [(run["policy"], run["fleet"]["router"]) for run in runs]
    routers = ("round-robin", "least-loaded")
    assert pairs == [(policy, router) for policy in ("vllm-fcfs", "sarathi") for router in routers]
    for run in runs:
        fleet, metrics = run["fleet"], run["metrics"]
        assert [(kind["role"], kind["count"]) for kind in fleet["replicas"]] == [("both", 2)]
        assert fleet["replicas"][0]["hash"] == run["engine"]["hash"]
        assert fleet["replica_s"] == pytest.approx(2 * metrics["span_s"])
        assert metrics["utilisation"] == pytest.approx(metrics["busy_s"] / fleet["replica_s"])
        assert metrics["drained"]


def test_one_replica_is_the_same_with_and_without_a_router(cli, trace_path: Path):
    (alone,) = simulated(cli, trace_path)
    (fleet,) = simulated(cli, trace_path, "--replicas", "1", "--router", "round-robin")
    assert "fleet" not in alone
    facts = fleet.pop("fleet")
    assert steady(fleet) == steady(alone)
    assert facts["num_hops"] == facts["num_transfers"] == facts["num_failed"] == 0


def test_prefill_and_decode_apart(cli, trace_path: Path):
    (run,) = simulated(cli, trace_path, "--replicas", "2:1", "--router", "least-loaded")
    fleet = run["fleet"]
    assert [(kind["role"], kind["count"]) for kind in fleet["replicas"]] == [("prefill", 2), ("decode", 1)]
    assert fleet["num_transfers"] > 0
    assert fleet["kv_latency_s"] == 0.001


def test_reports_and_settings_are_on_record(cli, trace_path: Path):
    options = ("--report-every", "0.5", "--router", "llm-d-best-fit", "--router-set", "buffer=0.8")
    (run,) = simulated(cli, trace_path, "--replicas", "2", *options)
    assert run["fleet"]["report_every_s"] == 0.5
    assert run["fleet"]["setting"]["buffer"] == 0.8


def test_the_table_names_router_replicas_and_seconds(cli, trace_path: Path):
    result = cli("simulate", trace_path, *FLEET, "--policy", "vllm-fcfs")
    assert result.exit_code == 0, result.output
    for words in ("2 replicas", "replica seconds", "vllm-fcfs behind round-robin", "least-loaded"):
        assert words in result.stdout
    mixed = cli("simulate", trace_path, "--replicas", "llama-3-8b-h100=1,llama-3-8b-a100=2", "--policy", "vllm-fcfs")
    assert "1 llama-3-8b-h100 + 2 llama-3-8b-a100" in mixed.stdout


def test_records_of_fleets_are_compared(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    for replicas in ("1", "2", "1:1"):
        result = cli(
            "simulate",
            trace_path,
            "--replicas",
            replicas,
            "--router",
            "round-robin",
            "--policy",
            "vllm-fcfs",
            "-o",
            path,
        )
        assert result.exit_code == 0, result.output
    simulated(cli, trace_path, "--policy", "sarathi", "-o", path)
    for line in path.read_text().splitlines():
        jsonschema.validate(json.loads(line), RUN)
    (group,) = compared(cli, path)["groups"]
    assert len(group["rows"]) == 4
    labels = {row["label"] for row in group["rows"]}
    assert {"replicas=2" in label for label in labels} == {True, False}
    table = cli("compare", path)
    assert table.exit_code == 0, table.output
    assert "1 prefill + 1 decode" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--replicas", "0"), 3, "--replicas 0: expected"),
        (("--replicas", "two"), 3, "--replicas two: expected"),
        (("--replicas", "1:"), 3, "--replicas 1:: expected"),
        (("--replicas", "99999"), 3, "[1, 10000]"),
        (("--replicas", "llama-3-8b-h1000=2"), 3, "Did you mean 'llama-3-8b-h100'"),
        (("--replicas", "2", "--router", "round-robbin"), 3, "unknown router 'round-robbin'"),
        (("--replicas", "2", "--router", ","), 3, "names no router"),
        (("--replicas", "2", "--router", "round-robin", "--router-set", "speed=1"), 3, "no setting 'speed'"),
        (("--replicas", "2", "--router-set", "speed"), 3, "--router-set speed: expected KEY=VALUE"),
        (("--replicas", "2", "--report-every", "-1"), 3, "report_every_s"),
        (("--replicas", "2", "--plan", "p.json"), 2, "--plan is of use"),
        (("--replicas", "2", "--plot", "p.png"), 2, "--plot is of use"),
        (("--replicas", "2", "--prefix-cache"), 2, "--prefix-cache is"),
        (("--router", "round-robin"), 2, "--router is of use"),
        (("--report-every", "1"), 2, "--report-every is"),
        (("--router-set", "a=1"), 2, "--router-set is of use"),
    ],
)
def test_senseless_fleets_are_refused(cli, trace_path: Path, arguments, code, words):
    result = cli("simulate", trace_path, "--policy", "vllm-fcfs", *arguments)
    assert_refused(result, code, words)


def test_replicas_are_read():
    own, other = engine_named("llama-3-8b-a100"), engine_named("llama-3-8b-h100")
    assert parse_replicas("3", own) == [(own, Role.BOTH)] * 3
    assert parse_replicas("1:2", own) == [(own, Role.PREFILL), (own, Role.DECODE), (own, Role.DECODE)]
    assert parse_replicas("llama-3-8b-h100=1, llama-3-8b-a100=2", own) == [
        (other, Role.BOTH),
        (own, Role.BOTH),
        (own, Role.BOTH),
    ]
    for text in ("", "-1", "1:2:3", "=2", "llama-3-8b-h100=", "llama-3-8b-h100=x", "1.5"):
        with pytest.raises(InvalidInputError):
            parse_replicas(text, own)
