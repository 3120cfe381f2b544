"""Metrics of the live scheduler: what is counted, how many series there can be, who can read them."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.engine_bridge import metrics, metrics_directory
from slo_opt.engine_bridge.metric_specs import DEVIATIONS, FALLBACKS, METRICS, OTHER, OUTCOMES, REASONS
from slo_opt.engine_bridge.metrics import BridgeMetrics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client() -> Any:
    """prometheus_client, without the collectors of an earlier test."""
    module = pytest.importorskip("prometheus_client")
    forget(module)
    yield module
    forget(module)


def forget(client: Any) -> None:
    for collector in metrics._made.values():
        client.REGISTRY.unregister(collector)
    metrics._made.clear()


def sample(client: Any, name: str, **labels: str) -> float | None:
    found: float | None = client.REGISTRY.get_sample_value(name, labels)
    return found


def series(client: Any) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (item.name, tuple(sorted(item.labels.items())))
        for family in client.REGISTRY.collect()
        for item in family.samples
        if item.name.startswith("slo_opt_") and not item.name.endswith("_created")
    }


def test_requests_are_counted_by_class_outcome_and_reason(client: Any) -> None:
    counted = BridgeMetrics(["chat"])
    counted.decided("chat", "admitted", "on_time")
    counted.decided("chat", "admitted", "on_time")
    counted.decided("default", "best_effort", "no_slo")
    assert sample(client, "slo_opt_requests_total", slo="chat", outcome="admitted", reason="on_time") == 2
    assert sample(client, "slo_opt_requests_total", slo="default", outcome="best_effort", reason="no_slo") == 1


def test_attainment_counts_only_requests_under_an_slo(client: Any) -> None:
    counted = BridgeMetrics(["chat"])
    assert sample(client, "slo_opt_offered_total", slo="chat") == 0
    for attained in (True, False, None):
        counted.ended("chat", attained, "admitted")
    assert sample(client, "slo_opt_offered_total", slo="chat") == 2
    assert sample(client, "slo_opt_attained_total", slo="chat") == 1
    assert sample(client, "slo_opt_ended_total", slo="chat", outcome="admitted") == 3


def test_a_step_fills_the_histograms_it_has_figures_for(client: Any) -> None:
    counted = BridgeMetrics()
    counted.step(1e-4, 0.010, 0.012)
    counted.step(1e-4, None, 0.012)
    counted.step(1e-4, 0.010, None)
    counted.step(1e-4, 0.0, 0.012)
    names = ("planner_seconds", "batch_seconds", "batch_predicted_seconds", "batch_ratio")
    assert [sample(client, f"slo_opt_{name}_count") for name in names] == [4, 3, 3, 1]
    assert sample(client, "slo_opt_batch_ratio_sum") == pytest.approx(1.2)


def test_gauges_of_each_engine(client: Any) -> None:
    for index in (0, 1):
        BridgeMetrics(engine_index=index).state(3 + index, 2, 100, 1.25, best_effort=1)
    BridgeMetrics().state(9, 2, 100, 1.25)
    assert sample(client, "slo_opt_running_requests", engine="0") == 9
    assert sample(client, "slo_opt_running_requests", engine="1") == 4
    assert sample(client, "slo_opt_best_effort_requests", engine="0") == 1  # nothing new was said
    assert sample(client, "slo_opt_margin_ratio", engine="1") == 1.25


def test_deviations_fallbacks_and_lost_lines(client: Any) -> None:
    counted = BridgeMetrics()
    counted.deviation("fewer")
    counted.fallback("overrun")
    counted.lost_lines(7)
    assert sample(client, "slo_opt_plan_deviations_total", kind="fewer") == 1
    assert sample(client, "slo_opt_fallbacks_total", reason="overrun") == 1
    assert sample(client, "slo_opt_decision_log_lost_total") == 7


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.text(max_size=20), min_size=1, max_size=20))
def test_what_users_send_makes_no_new_series(words: list[str]) -> None:
    client = pytest.importorskip("prometheus_client")
    forget(client)
    counted = BridgeMetrics(["chat", "code"])
    for word in words:
        counted.decided(word, word, word)
        counted.ended(word, True, word)
        counted.deviation(word)
        counted.fallback(word)
    allowed = {
        "slo": {"chat", "code", "default", "custom"},
        "outcome": {*OUTCOMES, OTHER},
        "reason": {*REASONS, *FALLBACKS, OTHER},
        "kind": {*DEVIATIONS, OTHER},
        "engine": {"0"},
    }
    for _, labels in series(client):
        assert all(value in allowed[name] for name, value in labels if name != "le")


def test_every_metric_is_shown_under_its_name(client: Any) -> None:
    BridgeMetrics(["chat"])
    text = client.generate_latest().decode()
    for spec in METRICS:
        family = spec.name.removesuffix("_total") if spec.kind == "counter" else spec.name
        assert re.search(rf"^# TYPE {family}(_total)? {spec.kind}$", text, re.MULTILINE), spec.name


def test_nothing_happens_without_prometheus_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setattr(metrics, "_made", {})
    counted = BridgeMetrics(["chat"])
    use_all(counted)
    metrics_directory.serve_metrics()
    assert not metrics._made
    assert not caplog.records


def use_all(counted: BridgeMetrics) -> None:
    counted.decided("chat", "admitted", "on_time")
    counted.ended("chat", True, "admitted")
    counted.step(1e-4, 0.01, 0.01)
    counted.deviation("more")
    counted.fallback("exception")
    counted.lost_lines()
    counted.state(1, 2, 3, 1.0, 0)


def test_a_failing_client_is_told_once_and_never_raises(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted = BridgeMetrics(["chat"])

    def fails(*_: object) -> None:
        raise OSError("no space left")

    for child in counted._children.values():
        for name in ("inc", "observe", "set"):
            if hasattr(child, name):
                monkeypatch.setattr(child, name, fails)
    for _ in range(3):
        use_all(counted)
    assert [record.message for record in caplog.records if "no space left" in record.message] == [
        "slo-opt: no metrics from here on: OSError('no space left')"
    ]


def test_a_second_import_uses_the_collectors_of_the_first(client: Any) -> None:
    admitted = {"slo": "chat", "outcome": "admitted", "reason": "on_time"}
    BridgeMetrics(["chat"]).decided(*admitted.values())
    first, once = dict(metrics._made), sample(client, "slo_opt_requests_total", **admitted)
    again = importlib.reload(metrics)
    again.BridgeMetrics(["chat"]).decided(*admitted.values())
    assert again._made == first
    assert sample(client, "slo_opt_requests_total", **admitted) == once + 1


SERVER = """
import os, subprocess, sys
from slo_opt.engine_bridge import metrics_directory as directory
from slo_opt.engine_bridge.metrics import BridgeMetrics
directory.serve_metrics()
directory.serve_metrics()  # vLLM may call it more than once
folder = os.environ[directory.OWN_DIRECTORY]
from prometheus_client import REGISTRY, generate_latest
assert not os.path.exists(folder) and b"slo_opt" not in generate_latest()
for index in "01":
    subprocess.run([sys.executable, "-c", sys.argv[1], index], check=True)
BridgeMetrics(["chat"]).decided("chat", "admitted", "on_time") if sys.argv[2] == "own" else None
print(generate_latest().decode())
print("FOLDER", folder)
"""
ENGINE = """
import os, sys
import prometheus_client  # as vLLM does, before our metrics
from slo_opt.engine_bridge import metrics_directory as directory
from slo_opt.engine_bridge.metrics import BridgeMetrics
directory.serve_metrics()
counted = BridgeMetrics(["chat"], int(sys.argv[1]))
counted.decided("chat", "admitted", "on_time")
counted.step(1e-4, 0.01, 0.02)
counted.state(5 + int(sys.argv[1]), 0, 7, 1.0)
assert directory.PROMETHEUS_DIRECTORY not in os.environ
if hasattr(os, "fork"):
    child = os.fork()
    if not child:
        counted.decided("chat", "admitted", "on_time")  # counts for itself, breaks nothing
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run_server(own: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in DIRECTORIES}
    command = [sys.executable, "-c", SERVER, ENGINE, own]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**clean, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


DIRECTORIES = (metrics_directory.OWN_DIRECTORY, metrics_directory.PROMETHEUS_DIRECTORY)


def test_the_serving_process_shows_what_its_engines_counted() -> None:
    pytest.importorskip("prometheus_client")
    shown = run_server("none")
    forks = 2 if hasattr(os, "fork") else 1
    assert f'slo_opt_requests_total{{outcome="admitted",reason="on_time",slo="chat"}} {2.0 * forks}' in shown
    assert "slo_opt_planner_seconds_count 2.0" in shown
    assert 'slo_opt_running_requests{engine="0"} 5.0' in shown
    assert 'slo_opt_running_requests{engine="1"} 6.0' in shown
    folder = re.search(r"FOLDER (.*)", shown)
    assert folder is not None
    assert not Path(folder[1]).exists()  # cleared at the end


def test_metrics_of_the_serving_process_are_not_shown_twice() -> None:
    pytest.importorskip("prometheus_client")
    shown = run_server("own")
    own = re.findall(r'slo_opt_requests_total\{outcome="admitted",reason="on_time",slo="chat"\} (\S+)', shown)
    assert sorted(map(float, own)) == [1.0, 4.0 if hasattr(os, "fork") else 2.0]


def test_a_directory_of_prometheus_itself_is_used(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    script = (
        "from slo_opt.engine_bridge.metrics import BridgeMetrics\n"
        "from slo_opt.engine_bridge.metrics_directory import serve_metrics\n"
        "serve_metrics()\nBridgeMetrics(['chat']).decided('chat', 'admitted', 'on_time')"
    )
    clean = {key: value for key, value in os.environ.items() if key not in DIRECTORIES}
    environment = {**clean, metrics_directory.PROMETHEUS_DIRECTORY: str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, env=environment)
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    labels = {"slo": "chat", "outcome": "admitted", "reason": "on_time"}
    assert registry.get_sample_value("slo_opt_requests_total", labels) == 2


def test_a_folder_that_cannot_be_made_costs_the_metrics_and_nothing_else(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv(metrics_directory.PROMETHEUS_DIRECTORY, raising=False)
    monkeypatch.setenv(metrics_directory.OWN_DIRECTORY, str(tmp_path / "file" / "folder"))
    use_all(BridgeMetrics(["chat"]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
