"""A replay as tables for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.report.table import heading, new_table, percent, plural


def replay_tables(document: Mapping[str, Any]) -> RenderableType:
    """Heading, SLO classes, latencies, how faithful the load was, and the outcome in sentences.

    Parameters
    ----------
    document : mapping
        See `slo_opt.report.replay_document.replay_document`.
    """
    return Group(_header(document), _classes(document), _latencies(document), _load(document), _verdict(document))


def _header(document: Mapping[str, Any]) -> Text:
    trace = {**document["trace"], "name": document["requests"]["name"]}
    engine = {"name": f"TTFT slowdowns on {document['engine']['name']}"}
    text = heading({**document, "trace": trace, "engine": engine, "num_replicas": 1})
    server = document["server"]
    text.append(f"\n{document['policy']} · {server['model']} at {server['url']}", style="not bold dim")
    return text


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _classes(document: Mapping[str, Any]) -> Table:
    """What each class was promised and got."""
    columns = (">offered", ">attained", ">of offered", ">of admitted", ">goodput/s", ">tokens/s", ">finished")
    table = new_table("SLO class", "TTFT", "TPOT", *columns)
    for row in document["metrics"]["classes"]:
        offered, limits = row["offered"], document["limits"][row["name"]]
        ttft = f"{limits['ttft_ms']:g} ms" if "ttft_ms" in limits else f"{limits['ttft_slowdown']:g}x"
        table.add_row(
            row["name"],
            *((ttft, f"{limits['tpot_ms']:g} ms") if offered else ("–", "–")),
            *((f"{offered:,}", f"{row['attained']:,}") if offered else ("–", "–")),
            percent(row["attainment"]),
            percent(row["attainment_admitted"]),
            _rate(row["goodput_rps"]) if offered else "–",
            _rate(row["output_tokens_per_s"]),
            f"{row['finished']:,} of {row['requests']:,}",
        )
    return table


def _latencies(document: Mapping[str, Any]) -> Table:
    """What each class waited for."""
    shares = ("p50", "p90", "p99")
    columns = [f">{name} {p}" if p == "p50" else f">{p}" for name in ("TTFT", "TPOT", "ITL") for p in shares]
    table = new_table("SLO class", *columns)
    for row in document["metrics"]["classes"]:
        table.add_row(row["name"], *(_ms(row[name][p]) for name in ("ttft_ms", "tpot_ms", "itl_ms") for p in shares))
    return table


def _load(document: Mapping[str, Any]) -> Table:
    """What went over the wire, and how close to its time."""
    metrics, lateness = document["metrics"], document["metrics"]["lateness_ms"]
    columns = (
        ">calls",
        ">prompt tokens",
        ">cached",
        ">output tokens",
        ">output/s",
        ">all/s",
        ">sent late p50",
        ">p99",
        ">max",
    )
    table = new_table(*columns)
    cached = metrics["num_cached_tokens"]
    table.add_row(
        f"{metrics['num_calls']:,}",
        f"{metrics['num_prompt_tokens']:,}",
        "–" if cached is None else f"{cached:,}",
        f"{metrics['num_output_tokens']:,}",
        _rate(metrics["output_tokens_per_s"]),
        _rate(metrics["tokens_per_s"]),
        *(_ms(value) for value in (lateness["p50"], lateness["p99"], metrics["max_lateness_ms"])),
    )
    return table


def _verdict(document: Mapping[str, Any]) -> Text:
    metrics, total = document["metrics"], document["metrics"]["total"]
    text = Text("times in ms\n\n", style="dim")
    if total["offered"]:
        text.append(
            f"{total['attained']:,} of {total['offered']:,} offered requests attained", style="not dim bold green"
        )
        text.append(f" ({percent(total['attainment'])} of offered, {percent(total['attainment_admitted'])} of ")
        text.append(f"{total['admitted']:,} not refused).", style="not dim")
    else:
        text.append("No request is under an SLO: there is nothing to attain.", style="not dim bold")
    cut = metrics["num_unfinished"] - metrics["num_failed"]
    text.append(f"\n{metrics['num_rejected']:,} refused, {metrics['num_failed']:,} failed", style="not dim")
    text.append(f", {cut:,} cut off.\n" if cut else ".\n", style="not dim")
    for name in ("refused", "failed"):
        for row in document[name]:
            text.append(f"  {name}: {row['cause']} ({plural(row['requests'], 'request')})\n", style="not dim")
    for line in warnings(document):
        text.append(f"{line}\n", style="not dim bold red")
    return text


def warnings(document: Mapping[str, Any]) -> list[str]:
    """What makes the figures less than they seem, in sentences; empty for a sound run."""
    metrics, found = document["metrics"], []
    if metrics["cut"]:
        found.append("Stopped early: what had not been sent is left out, what was under way counts as not attained.")
    if metrics["late"]:
        limit_ms = 1e3 * document["replay"]["max_lateness_s"]
        found.append(
            f"1 % of the calls were sent more than {limit_ms:g} ms late: the load was not that of the trace. Give the "
            "generator a machine of its own, or less load."
        )
    if metrics["num_throttled"]:
        found.append(
            f"{plural(metrics['num_throttled'], 'call')} had to wait for --max-concurrency: the load was not that of "
            "the trace."
        )
    if metrics["num_estimated"]:
        found.append(
            f"Tokens of {plural(metrics['num_estimated'], 'call')} were counted by events: the server does not say how "
            "many each held."
        )
    return found
