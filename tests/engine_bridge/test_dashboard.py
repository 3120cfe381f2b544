"""The Grafana dashboard fits the metrics: nothing misspelt, nothing left out, nothing on top of something else."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from slo_opt.engine_bridge.metric_specs import METRICS, MetricSpec

PATH = Path(__file__).parents[2] / "engine_bridge/grafana/slo-opt.json"
DASHBOARD = json.loads(PATH.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SAMPLES = {spec.name + suffix: spec for spec in METRICS for suffix in SUFFIXES[spec.kind]}
SCRAPED = {"job", "instance"}  # labels that Prometheus adds
RANGES = {"$__rate_interval", "$__range", "5m"}


def used(query: str) -> dict[str, MetricSpec]:
    return {name: SAMPLES[name] for name in re.findall(r"\bslo_opt_\w+", query)}


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_queries_name_metrics_and_labels_that_exist(title: str, query: str) -> None:
    specs = used(query)
    assert specs, title
    for spec in specs.values():
        allowed = {*spec.labels, *SCRAPED, *({"le"} if spec.kind == "histogram" else set())}
        grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for label in group.split(",")}
        matched = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
        assert grouped | matched <= allowed, title


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_queries_are_well_formed(title: str, query: str) -> None:
    open_ones: list[str] = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for letter in re.sub(r'"[^"]*"', "", query):
        if letter in pairs.values():
            open_ones.append(letter)
        elif letter in pairs:
            assert open_ones, title
            assert open_ones.pop() == pairs[letter], title
    assert not open_ones, title
    assert set(re.findall(r"\[([^\]]*)\]", query)) <= RANGES
    for name, spec in used(query).items():
        # Counters and histograms only ever grow: their rate is what means something, and only theirs.
        ranged = re.findall(rf"(?:rate|increase)\({name}\{{[^}}]*\}}\[", query)
        plain = re.findall(rf"\b{name}\b", query)
        assert len(ranged) == (0 if spec.kind == "gauge" else len(plain)), title
        if name.endswith("_bucket"):
            assert re.search(rf"histogram_quantile\(0\.\d+, sum by \(le\) \(rate\({name}\{{", query), title


def test_every_metric_is_in_some_panel() -> None:
    shown = {spec.name for _, query in QUERIES for spec in used(query).values()}
    assert shown == {spec.name for spec in METRICS}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legends_name_labels_that_are_left(panel: dict[str, Any]) -> None:
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    for target in panel["targets"]:
        grouped = re.search(r"\bby \(([^)]*)\)", re.sub(r"by \(le\)", "", target["expr"]))
        kept = set() if grouped is None else {label.strip() for label in grouped[1].split(",")}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept


def test_no_data_source_is_written_down() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])
    for name in SCRAPED:
        assert variables[name]["datasource"] == wanted
        assert variables[name]["definition"] == f"label_values(slo_opt_running_requests, {name})"
    assert {match for _, query in QUERIES for match in re.findall(r"\$(\w+)", query) if match[0] != "_"} <= set(
        variables
    )
    assert not {"id", "uid", "__inputs"} & set(DASHBOARD)  # Grafana gives its own


def test_panels_lie_side_by_side() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for box in boxes:
        assert box["x"] >= 0
        assert box["x"] + box["w"] <= 24
    for one, other in combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


def test_every_panel_says_what_it_shows() -> None:
    for panel in PANELS:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
