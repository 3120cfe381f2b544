"""The page about policies: its table is complete, its example runs and is a sound policy."""

import random
import re
from pathlib import Path

import pytest
from random_runs import random_case

from slo_opt.policies.registry import POLICIES, PolicyContext
from slo_opt.simulate.simulator import simulate

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_policy_has_its_row():
    assert set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)) == set(POLICIES)


def test_the_example_prints_what_both_policies_attain(capsys: pytest.CaptureFixture[str]):
    exec("\n".join(BLOCKS), {"__name__": "example"})
    lines = capsys.readouterr().out.splitlines()
    attained = {line.split()[0]: [int(word) for word in line.split() if word.isdigit()] for line in lines}
    assert list(attained) == ["shortest-prompt-first", "sarathi"]
    assert all(0.5 * offered < number <= offered for number, offered in attained.values())


def test_the_example_is_legal_and_leaves_nobody_behind():
    scope: dict[str, object] = {"__name__": "example"}
    exec(BLOCKS[0], scope)
    for seed in range(60):
        case = random_case(random.Random(seed))
        context = PolicyContext(case.instance.engine, case.instance.slo_classes, case.predictor())
        run = simulate(case.instance, scope["ShortestPromptFirst"](context), case.options)  # type: ignore[operator]
        assert run.evaluation.violations == ()
        assert (run.evaluation.finished.sum() + len(run.rejected)) == len(case.instance.requests)
