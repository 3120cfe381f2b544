"""What the router counts."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.engine_bridge.router.metrics import ANSWERS, METRICS, REASONS, RouterMetrics


def use_all(metrics: RouterMetrics, slo: str, word: str) -> None:
    metrics.answered(slo, word)
    metrics.scored(slo, attained=True)
    metrics.failed("http://a", word)
    metrics.hopped(word)
    metrics.policy_failed()
    metrics.decided(0.001)
    metrics.sent(0.002)
    metrics.began(slo, 0.5)
    metrics.state([("http://a", 3, True)], 2)


@given(st.lists(st.tuples(st.text(max_size=10), st.sampled_from([*ANSWERS, *REASONS, "nonsense", ""])), max_size=10))
def test_what_users_send_makes_no_new_series(sent: list[tuple[str, str]]):
    pytest.importorskip("prometheus_client")
    metrics = RouterMetrics(["chat"], ["http://a"])
    for slo, word in sent:
        use_all(metrics, slo, word)
    text = metrics.text().decode()
    labels = {part for line in text.splitlines() if 'slo="' in line for part in [line.split('slo="')[1].split('"')[0]]}
    assert labels <= {"chat", "custom"}
    assert 'answer="nonsense"' not in text
    assert 'reason="nonsense"' not in text


def test_every_metric_is_shown():
    pytest.importorskip("prometheus_client")
    metrics = RouterMetrics(["chat"], ["http://a"])
    use_all(metrics, "chat", "finished")
    text = metrics.text().decode()
    for spec in METRICS:
        assert f"# TYPE {spec.name.removesuffix('_total')}" in text
    assert 'slo_opt_router_attained_total{slo="chat"} 1.0' in text
    assert 'slo_opt_router_in_flight{replica="http://a"} 3.0' in text
    assert "slo_opt_router_held 2.0" in text


def test_without_prometheus_client_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    metrics = RouterMetrics(["chat"], ["http://a"])
    assert not metrics.available
    use_all(metrics, "chat", "finished")
