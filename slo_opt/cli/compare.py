"""`slo-opt compare`: saved runs of the simulator side by side."""

from pathlib import Path
from typing import Annotated

import typer

from slo_opt.cli.options import Format, Printed


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Files of `slo-opt simulate -o`, plain or gzip; - for stdin.", metavar="RUNS")
    ],
    output_format: Printed = Format.TABLE,
    plot: Annotated[Path | None, typer.Option(help="Draw the attainment of each policy here (png, svg, pdf).")] = None,
) -> None:
    """Show runs side by side, those about the same requests, engine and score rule together.

    Seeds of one policy and setting are averaged. Runs about different requests, engines or score rules are never in one
    table.
    """
    from slo_opt.analysis.compare import compare_runs
    from slo_opt.analysis.runs import read_runs
    from slo_opt.cli.output import check_writable

    if plot is not None:
        from slo_opt.report.figure import require_matplotlib

        require_matplotlib(plot)
        check_writable(plot)
    groups, replaced = compare_runs(record for path in runs for record in read_runs(path))
    rules = sorted({group.score_rule.value for group in groups})
    if len(rules) > 1:
        message = f"runs under {len(rules)} score rules ({', '.join(rules)}): shown apart, their figures do not compare"
        typer.echo(f"slo-opt: {message}", err=True)
    if replaced:
        typer.echo(f"slo-opt: {replaced} runs were made again later; the latest of each counts", err=True)
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        fields = {"replaced": replaced, "score_rules": rules, "groups": [group.to_dict() for group in groups]}
        document = {"schema": "slo-opt-compare", "schema_version": 1, **fields}
        show_json(document)
    else:
        from slo_opt.cli.console import show
        from slo_opt.report.runs import compare_tables

        show(compare_tables(groups))
    if plot is not None:
        from slo_opt.report.attainment import draw_attainment
        from slo_opt.traces.atomic import write_atomic

        write_atomic(plot, lambda temporary: draw_attainment(groups, temporary))
