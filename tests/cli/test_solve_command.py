"""`slo-opt solve` and `slo-opt explain` on a real, small trace."""

import gzip
import json
from pathlib import Path

import jsonschema
import pytest

from slo_opt.analysis.plan import read_plan
from slo_opt.domain.evaluate import evaluate

SCHEMA = json.loads((Path(__file__).parents[2] / "slo_opt/report/solve.schema.json").read_text())
pytestmark = pytest.mark.usefixtures("small_solvers")


def solved(cli, *arguments) -> dict:
    result = cli("solve", *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    return document


def test_the_schema_refuses_what_is_missing(cli, trace_path: Path):
    document = solved(cli, trace_path)
    for key in SCHEMA["required"]:
        broken = {name: value for name, value in document.items() if name != key}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_figures_agree_with_each_other(cli, trace_path: Path):
    document = solved(cli, trace_path)
    assert document["offered"] == 60
    assert 0 < document["attained"] <= document["admitted"] <= 60
    assert document["attained"] <= document["bound"]
    assert document["gap"] == pytest.approx((document["bound"] - document["value"]) / document["bound"])
    assert document["attainment"] == pytest.approx(document["attained"] / 60)
    assert document["attainment_admitted"] == pytest.approx(document["attained"] / document["admitted"])
    assert sum(row["offered"] for row in document["classes"]) == 60
    assert [row["method"] for row in document["methods"]] == ["search", "highs"]
    assert document["methods"][0]["bound"] is None
    assert document["methods"][1]["attained"] is None
    assert document["bound"] <= document["methods"][1]["bound"] + 1e-6


def test_plan_file_replays_to_the_reported_figures(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    document = solved(cli, trace_path, "-o", path)
    plan = read_plan(path)
    assert plan.report == document
    evaluation = evaluate(plan.instance, plan.schedule)
    assert evaluation.legal
    assert evaluation.num_attained == document["attained"]


def test_same_seed_same_answer(cli, trace_path: Path):
    first, second = solved(cli, trace_path, "--seed", "3"), solved(cli, trace_path, "--seed", "3")
    timed = ("wall_s", "methods")
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def test_window_and_scale_are_reported(cli, trace_path: Path):
    document = solved(cli, trace_path, "--window", "0:5", "--scale", "2")
    assert document["trace"]["window"] == [0, 5]
    assert document["trace"]["scale"] == 2
    assert document["offered"] < 60


def test_more_load_is_never_easier_for_the_bound(cli, trace_path: Path):
    assert solved(cli, trace_path, "--scale", "8")["bound"] <= solved(cli, trace_path)["bound"]


def test_other_engine_has_another_hash(cli, trace_path: Path):
    first, second = solved(cli, trace_path), solved(cli, trace_path, "--engine", "llama-3-8b-h100")
    assert first["engine"] != second["engine"]
    assert second["engine"]["name"] == "llama-3-8b-h100"
    assert second["attained"] >= first["attained"]


def test_score_rule_and_replicas(cli, trace_path: Path):
    document = solved(cli, trace_path, "--score-rule", "mean-tpot", "--replicas", "2")
    assert (document["score_rule"], document["num_replicas"]) == ("mean-tpot", 2)


def test_standard_input_and_gzip(cli, trace_path: Path):
    from typer.testing import CliRunner

    from slo_opt.cli.main import app

    data = gzip.compress(trace_path.read_bytes())
    result = CliRunner().invoke(app, ["solve", "-", "--format", "json"], input=data)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["offered"] == 60


def test_table_shows_both_denominators_and_every_method(cli, trace_path: Path):
    document = solved(cli, trace_path)
    text = " ".join(cli("solve", trace_path).stdout.split())
    for word in ("search", "highs", "SLO class", "of offered", "of admitted", "dslo", "opt-6.7b-a100"):
        assert word in text
    assert f"{document['attained']} of 60 offered requests attained" in text


def test_weighted_values_are_shown_with_their_digits(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    for slo in fields["slo_classes"]:
        slo["weight"] = 0.11
    trace_path.write_text(json.dumps(fields))
    document = solved(cli, trace_path)
    text = cli("solve", trace_path).stdout
    for key in ("value", "bound"):
        assert not float(document[key]).is_integer()
        assert f" {document[key]:.6g} " in text


def test_nothing_but_the_result_on_stdout(cli, trace_path: Path):
    result = cli("solve", trace_path, "--format", "json")
    assert result.stderr == ""
    assert result.stdout.startswith("{")


def test_plots_are_written_beside_each_other(cli, trace_path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert cli("solve", trace_path, "--plot", tmp_path / "burst.png").exit_code == 0
    for name in ("burst.png", "burst-bounds.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_explain_tells_every_declined_request(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    document = solved(cli, trace_path, "-o", path)
    result = cli("explain", path, "--format", "json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["declined"] == document["offered"] - document["attained"] == len(report["requests"])
    assert sum(report["reasons"].values()) == report["declined"]
    one = report["requests"][0]
    alone = json.loads(cli("explain", path, "--request", one["request_id"], "--format", "json").stdout)
    assert alone["requests"] == [one]
    assert one["reason"] in cli("explain", path).stdout


def test_explain_of_an_attained_request(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    solved(cli, trace_path, "-o", path)
    plan = read_plan(path)
    attained = evaluate(plan.instance, plan.schedule).attained
    name = next(request.id for request, yes in zip(plan.instance.requests, attained, strict=True) if yes)
    result = cli("explain", path, "--request", name)
    assert result.exit_code == 0
    assert "attained" in result.stdout


def test_explain_refuses_what_is_no_plan(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    solved(cli, trace_path, "-o", path)
    assert cli("explain", trace_path).exit_code == 3
    assert cli("explain", tmp_path / "nowhere.json").exit_code == 3
    assert cli("explain", path, "--request", "nobody").exit_code == 3
    for place, value in (("schedule", {"start_s": "x"}), ("trace", {}), ("num_replicas", "two"), ("version", 9)):
        fields = json.loads(path.read_text())
        fields[place] = value
        broken = tmp_path / "broken.json"
        broken.write_text(json.dumps(fields))
        result = cli("explain", broken)
        assert result.exit_code == 3, (place, result.output)
        assert len(result.stderr.strip().splitlines()) == 1
    path.write_text(path.read_text()[:-100])
    assert cli("explain", path).exit_code == 3


def test_explain_refuses_a_plan_that_breaks_a_rule(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    solved(cli, trace_path, "-o", path)
    fields = json.loads(path.read_text())
    fields["schedule"]["start_s"][5] = fields["schedule"]["start_s"][4]
    path.write_text(json.dumps(fields))
    result = cli("explain", path)
    assert result.exit_code == 3
    assert "overlap" in result.stderr


def test_explain_of_a_bound_only(cli, trace_path: Path, tmp_path: Path):
    path = tmp_path / "plan.json"
    solved(cli, trace_path, "--method", "highs", "-o", path)
    result = cli("explain", path)
    assert result.exit_code == 3
    assert "only a bound" in result.stderr
