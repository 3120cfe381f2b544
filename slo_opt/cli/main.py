"""The `slo-opt` command. Commands import what they need when they run, so that `--help` is quick."""

import io
import sys
from typing import Annotated

import typer

from slo_opt.cli import (
    calibrate,
    capacity,
    compare,
    doctor,
    explain,
    gap,
    plan,
    ray,
    replay,
    route,
    simulate,
    solve,
    trace,
)
from slo_opt.cli.exits import Root

app = typer.Typer(
    name="slo-opt",
    cls=Root,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Exact, certified and fast optimization of multi-SLO token scheduling for LLM serving.",
    epilog="Exit codes: 0 solved as asked, 1 unexpected, 2 usage, 3 bad input, 4 infeasible, "
    "5 limit reached without a solution, 6 a needed solver is not installed, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from slo_opt import __version__

        typer.echo(f"slo-opt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command; `debug` is read by `Root`."""


app.command("solve", short_help="Best schedule of a trace, a proved bound, and the gap.")(solve.solve)
app.command("simulate", short_help="What online policies reach on a trace.")(simulate.simulate)
app.command("compare", short_help="Saved runs of policies side by side.")(compare.compare)
app.command("capacity", short_help="Requests a second that each policy serves on time.")(capacity.capacity)
app.command("gap", short_help="How far policies are from the proved bound, load by load.")(gap.gap)
app.command("plan", short_help="Replicas that the traffic needs, at least and per policy.")(plan.plan)
app.command("explain", short_help="Why each declined request was declined.")(explain.explain)
app.command("replay", short_help="Drive a live server with a trace, and score it.")(replay.replay)
app.command("route", short_help="Send requests on to the replica that is on time.")(route.route)
app.command("ray", short_help="Serve with several replicas on a Ray cluster.")(ray.ray)
app.command("calibrate", short_help="Engine model from measured batches.")(calibrate.calibrate)
app.command("doctor", short_help="Whether the installed solvers can be trusted.")(doctor.doctor)
app.add_typer(trace.app, name="trace")


def main() -> None:
    """Entry point of the `slo-opt` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a dash that a terminal cannot show must not cost the result
    app(prog_name="slo-opt")


if __name__ == "__main__":
    main()
