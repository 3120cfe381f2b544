"""`slo-opt explain`: why each declined request was declined."""

from typing import Annotated

import typer

from slo_opt.cli.options import Format, Printed

MAX_ROWS = 20


def explain(
    plan: Annotated[str, typer.Argument(help="Plan file of `slo-opt solve -o`; - for stdin.", metavar="PLAN")],
    request: Annotated[str | None, typer.Option(help="Only the request of this id.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help=f"Every declined request, not the first {MAX_ROWS}.")] = False,
    output_format: Printed = Format.TABLE,
) -> None:
    """Tell for each declined request what stood in its way: its deadline, engine time or KV memory."""
    from slo_opt.analysis.explain import Explainer
    from slo_opt.analysis.plan import read_plan
    from slo_opt.domain.errors import InvalidInputError

    found = read_plan(plan)
    if found.schedule is None:
        raise InvalidInputError(f"{plan}: the plan holds no schedule, only a bound; solve with --method search")
    explainer = Explainer(found.instance, found.schedule)
    declined = explainer.declined
    if request is not None:
        ids = {item.id: index for index, item in enumerate(found.instance.requests)}
        if request not in ids:
            raise InvalidInputError(f"{plan}: no request {request!r}; ids run like {next(iter(ids))!r}")
        declined = tuple(index for index in declined if index == ids[request])
        if not declined and output_format is Format.TABLE:
            best_effort = not explainer.evaluation.counted[ids[request]]
            outcome = "best effort, under no SLO" if best_effort else "attained: every token is on time"
            typer.echo(f"{request}: {outcome}")
            return
    explanations = [explainer.explain(index) for index in declined]
    if output_format is Format.JSON:
        from collections import Counter
        from dataclasses import asdict

        from slo_opt.cli.console import show_json

        counts = Counter(item.reason.value for item in explanations)
        document = {"declined": len(explanations), "reasons": dict(sorted(counts.items()))}
        show_json({**document, "requests": [asdict(item) for item in explanations]})
        return
    from slo_opt.cli.console import show
    from slo_opt.report.table import explain_tables

    limit = None if show_all or request is not None else MAX_ROWS
    show(explain_tables(explanations, limit))
