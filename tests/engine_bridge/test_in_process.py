"""The real CPU engine answers under our scheduler what it answers under its own, token for token."""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from greedy_outputs import BATCH_TOKENS, REQUESTS, drawn_requests

HERE = Path(__file__).parent
TIE = 0.04  # in log-probability: the logits come in steps of 1/64, and one may be rounded either way


@lru_cache(maxsize=8)
def greedy(model: Path, seed: int, *options: str) -> dict:
    """Run the engine in a process of its own: vLLM keeps its state in globals."""
    command = [sys.executable, str(HERE / "greedy_outputs.py"), str(model), str(seed), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def test_greedy_output_equals_that_of_the_default_scheduler(telling_model):
    """Batches of other shapes round differently: where two tokens tie but for rounding, either may come."""
    theirs, ours = greedy(telling_model, 1), greedy(telling_model, 1, "--ours")
    assert ours["tokens"].keys() == theirs["tokens"].keys()
    ties = 0
    for name, tokens in theirs["tokens"].items():
        pairs = enumerate(zip(tokens, ours["tokens"][name], strict=True))
        apart = next((k for k, (one, other) in pairs if one != other), None)
        if apart is not None:
            ties += 1
            assert theirs["leads"][name][apart] < TIE, name
            assert ours["leads"][name][apart] < TIE, name
    assert ties <= REQUESTS // 10
    assert {name: len(tokens) for name, tokens in ours["tokens"].items()} == {
        request["id"]: request["output"] for request in drawn_requests(1)
    }


def test_the_two_schedulers_form_different_batches(telling_model):
    """Guard against a comparison that agrees because our scheduler decides nothing."""
    theirs, ours = greedy(telling_model, 1), greedy(telling_model, 1, "--ours")
    assert "slo_opt.engine_bridge.scheduler" in ours["scheduler"]
    assert not any(name.startswith("slo_opt") for name in theirs["scheduler"])
    assert ours["batches"] != theirs["batches"]
    assert max(map(sum, ours["batches"])) <= BATCH_TOKENS
    assert len(ours["tokens"]) == REQUESTS


def test_no_block_is_held_when_all_is_done(telling_model):
    assert greedy(telling_model, 1, "--ours")["used_blocks"] == 0


def test_the_outputs_depend_on_the_whole_context(telling_model):
    """Guard against a model that would answer the same whatever the scheduler mixed up."""
    tokens = greedy(telling_model, 1)["tokens"]
    last = {}
    for request in drawn_requests(1):
        last.setdefault(tokens[request["id"]][0], []).append(request["id"])
    assert len(last) > REQUESTS / 2, "first tokens hardly differ between prompts"
