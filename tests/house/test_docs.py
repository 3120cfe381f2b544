"""What the documents say is there, is there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from slo_opt.cli.exits import ExitCode
from slo_opt.cli.main import app
from slo_opt.domain.engines import ENGINES
from slo_opt.policies.registry import POLICIES
from slo_opt.traces.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "formulations").glob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def shell_lines() -> list[tuple[str, str]]:
    """Every ``slo-opt`` line in a code block of the documents."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)?\n(.*?)```", page.read_text(), re.DOTALL):
            found = (line.split("  #")[0].rstrip() for line in block.splitlines())  # indented lines are output
            lines += [(page.name, line) for line in found if line.startswith("slo-opt ")]
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_commands_and_options_exist(page: str, line: str):
    words = [word for word in shlex.split(line.replace("[", " ").replace("]", " ")) if word not in ("...", "|")][1:]
    words = [word for word in words if word != "--debug"]
    command = COMMANDS.get(words[0])
    if words[0].startswith("-") or words[0] == "COMMAND":
        return
    assert command is not None, f"{page}: {line}"
    rest = words[1:]
    if hasattr(command, "commands"):
        for name in rest[0].split("|"):
            assert name in command.commands, f"{page}: {line}"
        command, rest = command.commands[rest[0].split("|")[0]], rest[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if word.startswith("-") and word != "-":
            assert word.split("=")[0] in known, f"{page}: {line}"


def test_every_exit_code_is_documented():
    table = (ROOT / "docs/exit-codes.md").read_text()
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert rows == {code.value for code in ExitCode}


def test_every_command_has_its_row_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"| `{name}` |" in readme


def test_help_of_capacity_names_all_that_can_be_named():
    words = {parameter.name: parameter.help for parameter in COMMANDS["capacity"].params}
    for option, known in (("scenario", SCENARIOS), ("engine", ENGINES), ("policies", POLICIES)):
        assert words[option] == f"Comma list of {', '.join(known)}."


def test_no_line_of_the_command_lists_is_cut_off():
    for group in (typer.main.get_command(app), COMMANDS["trace"]):
        for command in group.commands.values():
            assert "..." not in command.get_short_help_str(60)
