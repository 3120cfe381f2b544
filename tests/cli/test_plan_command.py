"""`slo-opt plan`: what it prints, keeps and refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
from test_exit_codes import assert_refused

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "slo_opt/report/plan.schema.json").read_text())
PAIRS = ("--policies", "edf+join-shortest-queue,vllm-fcfs+round-robin")
QUICK = ("--jobs", "1", "--time-limit", "3")


def document_of(result, code: int = 0) -> dict:
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


@pytest.fixture
def curve_path(tmp_path: Path) -> Path:
    """Two days in windows of an hour; the second has a peak."""
    rates = [1.0] * 24 + [0.5] * 12 + [2.0] * 12
    path = tmp_path / "curve.csv"
    path.write_text("t_s,rate_rps\n" + "".join(f"{3600 * k},{rate}\n" for k, rate in enumerate(rates)))
    return path


def test_a_plan_under_stress(cli, trace_path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    kept, plot = tmp_path / "plan.jsonl", tmp_path / "plan.svg"
    asked = ("plan", trace_path, "--attainment", "0.9", "--stress", *PAIRS, *QUICK, "-o", kept)
    document = document_of(cli(*asked, "--format", "json", "--plot", plot))
    assert document["complete"]
    assert [row["name"] for row in document["stresses"]] == [
        "as it is",
        "lengths +20 %",
        "rate +50 %",
        "batch times +10 %",
    ]
    for row in document["stresses"]:
        assert row["bound"]["needed"] == 54
        for policy in row["policies"]:
            assert policy["count"] is None or policy["count"] >= row["bound"]["counts"][0]
    assert plot.read_text().count("<svg") == 1
    assert len(kept.read_text().splitlines()) == 12
    table = cli(*asked)  # nothing is run again
    assert len(kept.read_text().splitlines()) == 12
    assert "proved to be needed" in table.stdout
    assert "Under stress" in table.stdout
    assert "No scheduler could do with a smaller fleet than" in table.stdout


def test_a_bound_alone(cli, trace_path: Path):
    document = document_of(cli("plan", trace_path, "--attainment", "0.9", "--bound-only", *QUICK, "--format", "json"))
    assert document["pairs"] == []
    assert document["stresses"][0]["policies"] == []
    assert document["stresses"][0]["bound"]["counts"][0] >= 1
    assert document["versions"]["highspy"]


def test_a_day(cli, trace_path: Path, curve_path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "day.svg"
    asked = ("plan", trace_path, "--attainment", "0.8", "--curve", curve_path, "--day", "1", "--day-length", "48")
    asked = (*asked, "--period", "21600", "--policies", "edf+join-shortest-queue", *QUICK)
    document = document_of(cli(*asked, "--format", "json", "--plot", plot))
    over = document["over_time"]
    assert over["hours"] == 24
    assert [period["start_h"] for period in over["periods"]] == [0, 6, 12, 18]
    offered = [period["offered"] for period in over["periods"]]
    assert offered[2] + offered[3] > 2 * (offered[0] + offered[1])
    assert over["gpu_hours"] == sum(period["gpus"] for period in over["periods"]) * 6
    assert plot.read_text().count("<svg") == 1
    table = cli(*asked)
    assert "follows the load" in table.stdout
    assert "never changes" in table.stdout
    again = document_of(cli(*asked, "--format", "json"))
    assert again["requests_hash"] == document["requests_hash"]
    other = document_of(cli(*asked, "--format", "json", "--seed", "1"))
    assert other["requests_hash"] != document["requests_hash"]


def test_engine_types_with_prices(cli, trace_path: Path):
    engines = ("--engine", "opt-6.7b-a100=1.8", "--engine", "llama-3-8b-h100=4.5")
    asked = ("plan", trace_path, "--attainment", "0.9", "--bound-only", *engines, *QUICK)
    document = document_of(cli(*asked, "--format", "json"))
    bound = document["stresses"][0]["bound"]
    assert bound["price"] <= min(1.8 * bound["alone"][0], 4.5 * bound["alone"][1]) + 1e-9
    assert "price an hour" in cli(*asked).stdout


def test_promises_by_class(cli, trace_path: Path):
    name = json.loads(trace_path.read_text())["slo_classes"][0]["name"]
    asked = ("plan", trace_path, "--bound-only", *QUICK, "--format", "json", "--attainment")
    document = document_of(cli(*asked, f"{name}=0.5"))
    assert document["promise"]["classes"] == {name: 0.5}
    assert document["stresses"][0]["bound"]["needed"] == document["stresses"][0]["bound"]["offered"] / 2
    assert_refused(cli(*asked, f"{name}x=0.5"), 3, f"did you mean '{name}'")


def test_no_fleet_reaches_what_nothing_can_serve(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    for request in fields["requests"][:6]:
        request["prompt_tokens"] = 50_000
    trace_path.write_text(json.dumps(fields))
    asked = ("plan", trace_path, "--attainment", "0.95", *PAIRS, *QUICK)
    result = cli(*asked, "--format", "json")
    document = document_of(result, 4)
    assert not document["stresses"][0]["bound"]["attainable"]
    assert document["stresses"][0]["policies"] == []
    assert "54 of 60" in result.stderr
    assert "90.00 %" in result.stderr
    assert "max_model_len" in result.stderr
    assert "No fleet reaches it" in cli(*asked).stdout


def test_no_fleet_within_the_limit(cli, trace_path: Path):
    document = document_of(cli("plan", trace_path, "--attainment", "1", "--bound-only", *QUICK, "--format", "json"))
    least = document["stresses"][0]["bound"]["counts"][0]
    assert least > 1
    asked = ("plan", trace_path, "--attainment", "1", "--max-replicas", least - 1, *PAIRS, *QUICK)
    result = cli(*asked)
    assert result.exit_code == 4
    assert "--max-replicas" in result.stderr
    assert f"at most {least - 1} replicas" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--attainment", "0"), ("(0, 1]",)),
        (("--attainment", "1.5"), ("(0, 1]",)),
        (("--attainment", "nan"), ("(0, 1]",)),
        (("--attainment", "most"), ("--attainment most", "0.99")),
        (("--attainment", "chat=all"), ("--attainment chat=all",)),
        (("--attainment", "0.9", "--engine", "opt-6.7b-a10"), ("did you mean 'opt-6.7b-a100'",)),
        (("--attainment", "0.9", "--engine", "opt-6.7b-a100=free"), ("'free' is no price",)),
        (("--attainment", "0.9", "--engine", "opt-6.7b-a100=0"), ("price is 0.0",)),
        (("--attainment", "0.9", "--engine", "opt-6.7b-a100", "--engine", "opt-6.7b-a100=2"), ("given twice",)),
        (("--attainment", "0.9", "--policies", "edf"), ("names no router", "edf+round-robin")),
        (("--attainment", "0.9", "--policies", "edff+round-robin"), ("did you mean 'edf'",)),
        (("--attainment", "0.9", "--policies", "edf+round-robbin"), ("did you mean 'round-robin'",)),
        (("--attainment", "0.9", "--policies", " , "), ("names none",)),
        (("--attainment", "0.9", "--curve", "nowhere.csv"), ("nowhere.csv",)),
        (("--attainment", "0.9", "--period", "0.1"), ("a period of 0.1 s",)),
        (("--attainment", "0.9", "--time-limit", "0"), ("time limit",)),
        (("--attainment", "0.9", "--plot", "picture.xyz"), (".png",)),
        (("--attainment", "0.9", "--window", "ten"), ("START:END",)),
    ],
)
def test_bad_input(cli, trace_path: Path, options: tuple[str, ...], words: tuple[str, ...]):
    assert_refused(cli("plan", trace_path, *options), 3, *words)


def test_a_day_that_is_not_there(cli, trace_path: Path, curve_path: Path):
    asked = ("plan", trace_path, "--attainment", "0.9", "--curve", curve_path)
    assert_refused(cli(*asked, "--day", "2"), 3, "2 whole days")
    assert_refused(cli(*asked, "--day-length", "100000"), 3, "86400")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("x.json",),
        ("x.json", "--attainment", "0.9", "--max-replicas", "0"),
        ("x.json", "--attainment", "0.9", "--day", "1"),
        ("x.json", "--attainment", "0.9", "--day-length", "60"),
        ("x.json", "--attainment", "0.9", "--bound-only", "--policies", "edf+round-robin"),
        ("x.json", "--attainment", "0.9", "--bound-only", "--all-settings"),
        ("x.json", "--attainment", "0.9", "--resume"),
    ],
)
def test_usage(cli, arguments: tuple[str, ...]):
    assert_refused(cli("plan", *arguments), 2)


def test_files(cli, tmp_path: Path):
    assert_refused(cli("plan", "nowhere.json", "--attainment", "0.9"), 3, "nowhere.json", "no such file")
    assert_refused(cli("plan", "-", "--attainment", "0.9"), 3, "give a file")
    assert_refused(cli("plan", tmp_path, "--attainment", "0.9"), 3, "folder")


def test_best_effort_alone_asks_for_nothing(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    for slo in fields["slo_classes"]:
        slo["best_effort"] = True
    trace_path.write_text(json.dumps(fields))
    assert_refused(cli("plan", trace_path, "--attainment", "0.9", *QUICK), 3, "no request is under an SLO")


def test_an_interrupt_keeps_what_has_finished(cli, trace_path: Path, tmp_path: Path, monkeypatch):
    from slo_opt.analysis import fleet_count

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet_count, "simulate_fleet", interrupt)
    kept = tmp_path / "plan.jsonl"
    result = cli("plan", trace_path, "--attainment", "0.9", *PAIRS, *QUICK, "-o", kept)
    assert result.exit_code == 130
    assert "interrupted; 1 finished runs are kept" in result.stderr
    assert "not complete: interrupted" in result.stdout
    assert len(kept.read_text().splitlines()) == 1
