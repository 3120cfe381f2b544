"""Statistics of a trace as a table for a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from slo_opt.traces.describe import LengthStatistics, TraceStatistics


def trace_tables(statistics: TraceStatistics) -> RenderableType:
    """Load, lengths per SLO class, and provenance."""
    load = Text(f"{statistics.name}: {statistics.requests:,} requests in {statistics.duration_s:,.1f} s")
    load.append(f", {_figure(statistics.rate, 3)} requests/s, inter-arrival CV {_figure(statistics.interarrival_cv)}")
    load.append(f", 10 s peak / mean {_figure(statistics.peak_to_mean)}")
    if statistics.score_rule is not None:
        load.append(f"\nengine {statistics.engine or 'not named'}, score rule {statistics.score_rule}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("SLO class", no_wrap=True)
    for column in ("TTFT", "TPOT", "requests", "stages", "prompt", "p99", "output", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in statistics.classes:
        count = f"{row.requests:,}"
        table.add_row(
            row.slo,
            row.ttft,
            row.tpot,
            count,
            f"{row.stages:.2f}",
            *_lengths(row.prompt_tokens),
            *_lengths(row.output_tokens),
        )
    facts = "\n".join(f"{name}: {value}" for name, value in statistics.provenance.items())
    note = Text("prompt and output: mean tokens a request, and the 99 % quantile\n", style="dim")
    return Group(load, table, note, Text(facts, style="dim"))


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _lengths(lengths: LengthStatistics) -> tuple[str, str]:
    return f"{lengths.mean:,.0f}", f"{lengths.p99:,.0f}"
