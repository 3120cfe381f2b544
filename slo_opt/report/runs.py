"""Runs of the simulator as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.analysis import compare
from slo_opt.analysis.compare import Row, Spread
from slo_opt.analysis.runs import RunRecord
from slo_opt.report.table import heading, new_table, percent, plural


def _header(record: RunRecord) -> Text:
    """One line: trace, engine, score rule, and how the engine differs from its model."""
    trace = {
        "name": record.requests.name,
        "scenario": record.trace.scenario,
        "window": record.trace.window,
        "scale": record.trace.scale,
        "dropped": record.trace.dropped,
    }
    document: dict[str, Any] = {
        "trace": trace,
        "num_replicas": 1 if record.fleet is None else record.fleet.num_replicas,
        "engine": {"name": record.engine.name},
        "score_rule": record.score_rule.value,
    }
    return heading(document)


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _count(spread: Spread) -> str:
    if spread.mean is None:
        return "–"
    return f"{spread.mean:,.0f}" if spread.least == spread.most else f"{spread.mean:,.1f}"


def _share(spread: Spread) -> str:
    """A mean share, with least and most where seeds differ."""
    if spread.least is None or spread.most is None or round(spread.least, 3) == round(spread.most, 3):
        return percent(spread.mean)
    return f"{percent(spread.mean)} ({100 * spread.least:.1f}–{100 * spread.most:.1f})"


def _kept_table(rows: Sequence[Row]) -> Table:
    """One row a policy: promises made and kept. The best by value is bold."""
    seeds = any(len(row.runs) > 1 for row in rows)
    counts = (">attained", ">of offered", ">of admitted", ">goodput/s", ">declined", ">rejected", ">best effort")
    table = new_table("policy", *([">runs"] if seeds else []), *counts)
    best = max(row.figure("value").mean or 0.0 for row in rows)
    for row in rows:
        goodput, value = row.figure("goodput_rps").mean, row.figure("value").mean
        table.add_row(
            row.label,
            *([f"{len(row.runs)}"] if seeds else []),
            _count(row.figure("attained")),
            _share(row.figure("attainment")),
            percent(row.figure("attainment_admitted").mean),
            "–" if goodput is None else f"{goodput:.3g}",
            *(_count(row.figure(name)) for name in ("declined", "num_rejected", "num_demoted")),
            style="bold" if len(rows) > 1 and value == best else None,
        )
    return table


def _engine_table(rows: Sequence[Row]) -> Table:
    """One row a policy: how long requests waited, and what the engine did."""
    columns = (">TTFT p50", ">p99", ">TPOT p99", ">ITL p99", ">busy", ">KV peak", ">preempted", ">decision p99")
    table = new_table("policy", *columns)
    for row in rows:
        table.add_row(
            row.label,
            *(_ms(row.figure(f"{name}_ms").mean) for name in ("ttft_p50", "ttft_p99", "tpot_p99", "itl_p99")),
            percent(row.figure("utilisation").mean),
            percent(row.figure("peak_kv_share").mean),
            _count(row.figure("num_preemptions")),
            _ms(row.figure("decision_p99_ms").mean),
        )
    return table


def _label(record: RunRecord) -> str:
    """The policy; of a fleet, with its router."""
    return record.policy if record.fleet is None else f"{record.policy} behind {record.fleet.router}"


def _fleet_tables(rows: Sequence[Row]) -> list[Table]:
    """One row a policy: its router and what the fleet took; none where no run has a fleet."""
    if all(run.fleet is None for row in rows for run in row.runs):
        return []
    columns = (">replica seconds", ">goodput per replica", ">hops", ">KV moved", ">lost in failures")
    table = new_table("policy", "router", "replicas", *columns)
    for row in rows:
        fleets = [run.fleet for run in row.runs if run.fleet is not None]
        if not fleets:
            continue
        seconds = Spread.of(fleet.replica_s for fleet in fleets).mean
        attained = row.figure("attained").mean
        table.add_row(
            row.runs[0].policy,
            fleets[0].router,
            fleets[0].label,
            f"{seconds:,.0f}",
            "–" if not seconds or attained is None else f"{attained / seconds:.3g}",
            *(
                _count(Spread.of(getattr(fleet, name) for fleet in fleets))
                for name in ("num_hops", "num_transfers", "num_failed")
            ),
        )
    return [table]


def _limits(limits: dict[str, float]) -> tuple[str, str]:
    ttft = f"{limits['ttft_ms']:g} ms" if "ttft_ms" in limits else f"{limits['ttft_slowdown']:g}x"
    return ttft, f"{limits['tpot_ms']:g} ms"


def _class_table(record: RunRecord) -> Table:
    """One run by SLO class: how many were on time."""
    columns = (">offered", ">admitted", ">attained", ">of offered", ">of admitted", ">goodput/s", ">finished")
    table = new_table("SLO class", "TTFT", "TPOT", *columns)
    for row in record.metrics.classes:
        counts = (f"{row.offered:,}", f"{row.admitted:,}", f"{row.attained:,}") if row.offered else ("–", "–", "–")
        shares = (percent(row.attainment), percent(row.attainment_admitted))
        limits = _limits(record.limits[row.name]) if row.offered else ("–", "–")
        goodput = "–" if row.goodput_rps is None or not row.offered else f"{row.goodput_rps:.3g}"
        table.add_row(row.name, *limits, *counts, *shares, goodput, f"{row.finished:,} of {row.requests:,}")
    return table


def _latency_table(record: RunRecord) -> Table:
    """One run by SLO class: percentiles of what requests waited for."""
    names = ("TTFT", "TPOT", "ITL")
    columns = [f">{name} {p}" if p == "p50" else f">{p}" for name in names for p in ("p50", "p90", "p99")]
    table = new_table("SLO class", *columns)
    for row in record.metrics.classes:
        times = (row.ttft_ms, row.tpot_ms, row.itl_ms)
        table.add_row(row.name, *(_ms(value) for found in times for value in (found.p50, found.p90, found.p99)))
    return table


def _attainment_table(rows: Sequence[Row]) -> Table:
    """Attainment of offered: a row a policy, a column an SLO class."""
    first = rows[0].runs[0]
    classes = [item for item in first.metrics.classes if item.offered]
    heads = [f">{item.name}\n{', '.join(_limits(first.limits[item.name]))}\n{item.offered:,}" for item in classes]
    table = new_table("policy\nTTFT, TPOT\noffered", *heads)
    for row in rows:
        table.add_row(row.label, *(percent(row.attainment_of(item.name).mean) for item in classes))
    return table


def _verdict(record: RunRecord) -> Text:
    """The outcome of one run in sentences, with both denominators."""
    metrics, total = record.metrics, record.metrics.total
    text = Text()
    if not total.offered:
        text.append("No request is under an SLO: there is nothing to attain.", style="bold")
    else:
        text.append(f"{total.attained:,} of {total.offered:,} offered requests attained", style="bold green")
        text.append(f" ({percent(total.attainment)} of offered, {percent(total.attainment_admitted)} of ")
        text.append(f"{total.admitted:,} admitted)")
        if total.goodput_rps is not None and total.goodput_tokens_per_s is not None:
            text.append(f": {total.goodput_rps:.3g} requests and {total.goodput_tokens_per_s:,.0f} tokens a second")
            text.append(" on time")
        text.append(".")
    text.append(f"\n{plural(metrics.num_rejected, 'request')} rejected, {metrics.num_demoted:,} made best effort, ")
    text.append(f"{plural(metrics.num_preemptions, 'preemption')}; ")
    if record.simulation.prefix_cache:
        text.append(f"{plural(metrics.num_cached_tokens, 'prompt token')} found in the prefix cache; ")
    if metrics.cut:
        text.append("stopped early.", style="bold red")
    elif metrics.drained:
        text.append(f"the queue was empty {metrics.drain_s:.1f} s after the last arrival.")
    else:
        text.append(f"{plural(metrics.num_unfinished, 'request')} never finished.", style="bold red")
    return text


def simulate_tables(records: Sequence[RunRecord]) -> RenderableType:
    """Runs of several policies on one instance, or one run in detail.

    Parameters
    ----------
    records : sequence of RunRecord
        At least one, all about the same requests and engine.
    """
    rows = [Row(_label(record), (record,)) for record in records]
    first = records[0]
    parts: list[RenderableType] = [_header(first)]
    if len(records) == 1:
        parts += [_class_table(first), _latency_table(first)]
    else:
        parts += [_kept_table(rows), _attainment_table(rows)]
    parts += [_engine_table(rows), *_fleet_tables(rows), _note(first)]
    if len(records) == 1:
        parts.append(_verdict(first))
    return Group(*parts)


def _note(record: RunRecord) -> Text:
    options = record.simulation
    facts = [f"lengths: {record.lengths}", f"seed {options.seed}"]
    facts += [f"noise {options.noise:g}"] if options.noise else []
    facts += [f"slowdown {options.slowdown:g}"] if options.slowdown != 1 else []
    facts += [f"acceptance {options.acceptance:g}"] if options.acceptance else []
    facts += ["prefix cache"] if options.prefix_cache else []
    if record.fleet is not None and record.fleet.report_every_s:
        facts.append(f"reports every {record.fleet.report_every_s:g} s")
    text = "times in ms; decisions in wall-clock time on the machine of the run; "
    return Text(text + ", ".join(facts) + "\n", style="dim")


def compare_tables(groups: Sequence[compare.Group]) -> RenderableType:
    """Each group with its policies, and their attainment by SLO class.

    Parameters
    ----------
    groups : sequence of Group
        See `compare_runs`.
    """
    parts: list[RenderableType] = []
    for group in groups:
        served = Text(f"{plural(group.offered, 'request')} offered, their hash {group.requests.hash}", style="dim")
        tables = [_kept_table(group.rows), _attainment_table(group.rows), _engine_table(group.rows)]
        tables += _fleet_tables(group.rows)
        parts += [_header(group.first), served, *tables]
    return Group(*parts)
