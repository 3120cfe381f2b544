"""A plan of a fleet on Ray Serve, and what `slo-opt ray` refuses before it starts."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from slo_opt.cli.main import app
from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.ray_serve.plan import ServePlan


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas 2"),
        ({"routers": 0}, "routers is 0"),
        ({"stats_s": 0.01}, "stats_s is 0.01"),
        ({"stats_s": float("nan")}, "stats_s is nan"),
        ({"max_hold_s": -1.0}, "max_hold_s is -1.0"),
        ({"upscale_s": float("inf")}, "upscale_s is inf"),
        ({"downscale_s": -0.1}, "downscale_s is -0.1"),
    ],
)
def test_figures_out_of_range_are_refused(changed, told):
    with pytest.raises(InvalidInputError, match=told):
        ServePlan("model", **changed)


def test_a_plan_survives_the_journey():
    plan = ServePlan(
        "/m", "chat", 1, 4, "polyserve", {"x": 1}, "llama-3-8b-h100", "/c.toml", {"max_num_seqs": 8}, True, None, 2
    )
    assert ServePlan(**json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_engine_is_the_plans_else_the_configurations(tmp_path, monkeypatch):
    monkeypatch.delenv("SLO_OPT_CONFIG", raising=False)
    config = tmp_path / "c.toml"
    config.write_text('engine = "llama-3-8b-h100"\n')
    assert ServePlan("m").engine_model().name == "generic"
    assert ServePlan("m", config=str(config)).engine_model().name == "llama-3-8b-h100"
    assert ServePlan("m", config=str(config), engine="opt-6.7b-a100").engine_model().name == "opt-6.7b-a100"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--policy", "round-robbin"), 3, "Did you mean 'round-robin'?"),
        (("--policy", "slo-opt"), 3, "--engine"),
        (("--policy", "slo-opt", "--engine", "llama-3-8b-h1000"), 3, "Did you mean 'llama-3-8b-h100'?"),
        (("--policy", "round-robin", "--set", "x=1"), 3, "no setting 'x'"),
        (("--policy", "round-robin", "--config", "nowhere.toml"), 3, "nowhere.toml"),
        (("--policy", "round-robin", "--vllm", "max_num_seqs"), 3, "--vllm max_num_seqs: expected KEY=VALUE"),
        (("--policy", "round-robin", "--stats-interval", "0"), 3, "stats_s is 0.0"),
        (("--replicas", "0"), 2, "--replicas"),
        (("--port", "70000"), 2, "--port"),
    ],
)
def test_refused_at_the_start(arguments, code, words, monkeypatch):
    monkeypatch.delenv("SLO_OPT_CONFIG", raising=False)
    result = CliRunner().invoke(app, ["ray", *arguments], prog_name="slo-opt")
    message = " ".join(result.stderr.split())
    assert (result.exit_code, words in message) == (code, True), message
    assert result.stdout == ""


@pytest.mark.skipif(find_spec("vllm") is not None, reason="everything is installed")
def test_where_ray_or_vllm_is_absent_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delenv("SLO_OPT_CONFIG", raising=False)
    result = CliRunner().invoke(app, ["ray", "--policy", "round-robin"], prog_name="slo-opt")
    assert result.exit_code == 6
    assert "pip install 'slo-opt[ray]'" in result.stderr


def test_all_but_two_modules_load_without_ray_and_vllm():
    code = """
import sys
from slo_opt.engine_bridge.ray_serve import arrival, demand, desk, gauge, launch, plan, stats
import slo_opt.cli.ray
print([name for name in ("ray", "vllm", "torch") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
