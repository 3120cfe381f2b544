"""`slo-opt doctor`: whether the installed libraries can be trusted."""

from typing import Any

import typer

from slo_opt.cli.options import Format, Printed


def doctor(output_format: Printed = Format.TABLE) -> None:
    """Show versions and machine; refuse solver versions that give wrong answers or cannot share a process."""
    from dataclasses import asdict

    from slo_opt.cli.exits import ExitCode
    from slo_opt.solvers.versions import check_versions, forbidden

    rows = check_versions()
    # A library that is missing is a choice; a broken base installation or a forbidden version is not.
    bad = dict(forbidden(rows))
    if any(row.installed is None and row.name == "highspy" for row in rows):
        bad["highspy"] = "not installed, and the base installation needs it; reinstall slo-opt"
    machine = _machine()
    if output_format is Format.JSON:
        from slo_opt.cli.console import show_json

        libraries = [asdict(row) for row in rows]
        show_json({"ok": not bad, "machine": machine, "libraries": libraries})
    else:
        from slo_opt.cli.console import show
        from slo_opt.report.doctor import doctor_tables

        show(doctor_tables(machine, rows))
    for name, reason in bad.items():
        typer.echo(f"slo-opt: error: {name}: {reason}", err=True)
    if bad:
        raise typer.Exit(ExitCode.NOT_INSTALLED)


def _machine() -> dict[str, Any]:
    """Facts about machine and base libraries, from metadata: no library is loaded."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "slo-opt": installed("slo-opt"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(affinity(0)) if affinity is not None else os.cpu_count(),
        **{name: installed(name) for name in ("numpy", "numba", "msgspec", "typer", "rich", "matplotlib")},
        "gpu": "not used: planning runs on the CPU",
    }
