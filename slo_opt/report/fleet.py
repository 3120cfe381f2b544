"""Fleet plans as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.report.table import new_table, percent, plural

_MOST_PERIODS = 24  # rows of the table; the plot and the JSON have all


def fleet_tables(document: Mapping[str, Any]) -> RenderableType:
    """Heading, fleets that are needed, the same under stress, the fleet over time, and the verdict.

    Parameters
    ----------
    document : mapping
        See `slo_opt.analysis.fleet_plan.plan_document`.
    """
    rows = document["stresses"]
    parts: list[RenderableType] = [_heading(document), _fleets(document, rows[0])]
    if len(rows) > 1:
        parts.append(_stress_table(document, rows))
    if document["over_time"] is not None:
        parts += _over_time(document)
    parts.append(fleet_verdict(document))
    return Group(*parts)


def fleet_text(document: Mapping[str, Any], counts: Sequence[int] | None) -> str:
    """Replicas by engine type; the type is named where there are several."""
    if counts is None:
        return f"> {document['limit']:,}"
    if len(counts) == 1:
        return f"{counts[0]:,}"
    words = [f"{count:,} {engine['name']}" for count, engine in zip(counts, document["engines"], strict=True) if count]
    return " + ".join(words) or "0"


def _proved(document: Mapping[str, Any], bound: Mapping[str, Any]) -> str:
    """The fleet of a bound or period; a word where no fleet whatever would do."""
    return "none would do" if bound["servable"] < bound["needed"] else fleet_text(document, bound["counts"])


def _heading(document: Mapping[str, Any]) -> Text:
    text = Text(f"Least fleet for {document['promise']['text']} attainment · {document['name']}", style="bold")
    priced = [f"{engine['name']}{_price_note(document, engine)}" for engine in document["engines"]]
    facts = [*priced, f"score rule {document['score_rule']}", f"lengths {document['lengths']}"]
    facts += ["best static settings"] if document["all_settings"] else []
    text.append("\n" + " · ".join(facts), style="not bold dim")
    if not document["complete"]:
        text.append("\nnot complete: interrupted", style="not bold red")
    return text


def _price_note(document: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    return f" at {engine['price']:g} an hour" if len(document["engines"]) > 1 or engine["price"] != 1 else ""


def _priced(document: Mapping[str, Any]) -> bool:
    """Whether prices say more than counts do."""
    return any(engine["price"] != 1 for engine in document["engines"])


def _fleets(document: Mapping[str, Any], row: Mapping[str, Any]) -> Table:
    several = len(document["engines"]) > 1
    columns = ["fleet", *(["engine"] if several else []), ">replicas"]
    columns += [">price an hour"] if _priced(document) else []
    table = new_table(*columns, ">ratio to the bound", ">attained", ">of offered", ">of admitted", ">busy")
    bound = row["bound"]
    if bound is None:
        return table
    proved = ["proved to be needed", *([""] if several else []), _proved(document, bound)]
    proved += [_price(bound["price"])] if _priced(document) else []
    table.add_row(*proved, "", f"≥ {bound['needed']:,}", "", "", "", style="bold")
    table.add_section()
    for policy in row["policies"]:
        cells = [policy["pair"], *([policy["engine"]] if several else []), _count(document, policy)]
        cells += [_price(policy["price"])] if _priced(document) else []
        of_admitted = None if not policy["admitted"] else policy["attained"] / policy["admitted"]
        table.add_row(
            *cells,
            "–" if policy["ratio"] is None else f"{policy['ratio']:.2f}x",
            "–" if policy["attained"] is None else f"{policy['attained']:,}",
            percent(policy["attainment"], 2),
            percent(of_admitted, 2),
            percent(policy["busy"]),
        )
    return table


def _price(price: float | None) -> str:
    return "–" if price is None else f"{price:,.2f}"


def _count(document: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    return f"> {document['limit']:,}" if policy["count"] is None else f"{policy['count']:,}"


def _stress_table(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Bound and counts under each stress; of several engine types each pair's cheapest fleet."""
    table = new_table("fleet", *(f">{row['name']}" for row in rows), title="Under stress")
    bounds = [row["bound"] for row in rows]
    cells = ["–" if bound is None else _of(document, bound) for bound in bounds]
    table.add_row("proved to be needed", *cells, style="bold")
    table.add_section()
    for pair in document["pairs"]:
        cells = []
        for row in rows:
            found = [policy for policy in row["policies"] if policy["pair"] == pair]
            best = min((p for p in found if p["count"] is not None), key=lambda p: p["price"], default=None)
            if best is None:
                cells.append(f"> {document['limit']:,}" if found else "–")
            else:
                ratio = "" if best["ratio"] is None else f"  {best['ratio']:.2f}x"
                cells.append((_price(best["price"]) if _priced(document) else f"{best['count']:,}") + ratio)
        table.add_row(pair, *cells)
    return table


def _of(document: Mapping[str, Any], bound: Mapping[str, Any]) -> str:
    return _price(bound["price"]) if _priced(document) and bound["price"] is not None else _proved(document, bound)


def _over_time(document: Mapping[str, Any]) -> list[RenderableType]:
    over = document["over_time"]
    periods = over["periods"]
    shown = periods if len(periods) <= _MOST_PERIODS else []
    parts: list[RenderableType] = []
    if shown:
        table = new_table("from, h", ">offered", ">fleet proved to be needed", title="Period by period")
        for period in shown:
            table.add_row(f"{period['start_h']:.2f}", f"{period['offered']:,}", _proved(document, period))
        parts.append(table)
    table = new_table("fleet", ">at the peak", ">mean price an hour", ">GPU·hours", ">cost", title="Over time")
    table.add_row(
        "follows the load",
        fleet_text(document, over["peak"]["counts"]),
        _price(over["mean_price"]),
        _price(over["gpu_hours"]),
        _price(over["cost"]),
    )
    bound = document["stresses"][0]["bound"]
    table.add_row(
        "never changes",
        "–" if bound is None else _proved(document, bound),
        _price(None if bound is None else bound["price"]),
        _price(over["static_gpu_hours"]),
        _price(over["static_cost"]),
    )
    parts.append(table)
    note = f"{plural(len(periods), 'period')} of {document['period_s']:g} s with requests, {over['hours']:g} h in all. "
    note += (
        "A fleet that follows the load keeps the promise in every period, one that never changes over all of them.\n"
    )
    parts.append(Text(note, style="dim"))
    return parts


def fleet_verdict(document: Mapping[str, Any]) -> Text:
    """The result in sentences."""
    bound = document["stresses"][0]["bound"]
    if bound is None:
        return Text("No bound yet.", style="bold red")
    if not bound["attainable"]:
        text = Text("No fleet reaches it. ", style="bold red")
        text.append(f"Only {bound['servable']:,} of {bound['offered']:,} requests ", style="not bold")
        text.append(f"({percent(bound['servable'] / bound['offered'], 2)}) can be attained by an idle replica; ")
        text.append(f"{bound['needed']:,} are promised. ")
        return text if bound["unservable"] is None else text.append(f"First: {bound['unservable']}.")
    if bound["counts"] is None:
        text = Text(
            f"No fleet of at most {document['limit']:,} replicas of each type reaches it, proved.", style="bold red"
        )
        return text.append(" Raise --max-replicas.", style="not bold")
    fleet = fleet_text(document, bound["counts"])
    cheaper = "cheaper" if len(document["engines"]) > 1 else "smaller"
    text = Text(f"No scheduler could do with a {cheaper} fleet than {fleet}", style="bold")
    text.append(f": proved for every schedule that attains {bound['needed']:,} of {bound['offered']:,} requests.")
    if bound["status"] != "optimal":
        text.append(" More time may prove more.", style="not bold")
    best = min(
        (policy for policy in document["stresses"][0]["policies"] if policy["price"] is not None),
        key=lambda policy: policy["price"],
        default=None,
    )
    if best is not None and best["ratio"] is not None:
        text.append(f"\n{best['pair']} keeps the promise with {best['count']:,}", style="bold green")
        text.append(f" ({best['engine']}): {best['ratio']:.2f}x the bound.", style="not bold")
    return text
