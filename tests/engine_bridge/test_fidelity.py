"""Random plans are followed to the letter by vLLM's real scheduler, of this release and of older ones; and the check
notices when a hook is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="needs vLLM; `make test-vllm` installs it and runs this")

from fidelity import MODES, planning, run_mode

STEPS, SEED = 200, 1
SOURCES = "SLO_OPT_VLLM_SOURCES"


@pytest.mark.parametrize("mode", MODES)
def test_every_batch_equals_its_plan(mode, tmp_path):
    run = run_mode(tmp_path, mode, STEPS, seed=SEED)
    assert run.planned_steps >= STEPS
    assert (run.deviations, run.leaked_blocks, run.wrong_requests) == ({}, 0, 0)
    assert min(run.prefills, run.decodes, run.preemptions, run.aborts) > 0
    assert bool(run.drafts) == bool(MODES[mode].draft_tokens)


def _without_caps(base):
    class Broken(planning(base)):
        def _mamba_block_aligned_split(self, request, num_new_tokens, *args):
            return num_new_tokens

    return Broken


def _queue_in_vllms_order(base):
    class Broken(planning(base)):
        def _planned_step(self):
            step = super()._planned_step()
            if step is not None:
                self.waiting = step._queues[-1]
            return step

    return Broken


def _long_prefills_clipped(base):
    class Broken(planning(base)):
        def _planned_step(self):
            step = super()._planned_step()
            self.scheduler_config.long_prefill_token_threshold = 16
            return step

    return Broken


def _preempts_nobody(base):
    class Broken(planning(base)):
        def next_plan(self):
            plan = super().next_plan()
            if plan is not None:
                plan.preempt = ()
            return plan

    return Broken


def _small_budget(base):
    class Broken(planning(base)):
        def _planned_step(self):
            step = super()._planned_step()
            if step is not None:
                self.max_num_scheduled_tokens //= 2
            return step

    return Broken


def _padded_drafts(base):
    class Broken(planning(base)):
        def _planned_step(self):
            step = super()._planned_step()
            if step is not None:
                self.dynamic_sd_lookup = None
            return step

    return Broken


BROKEN = {
    "caps ignored": (_without_caps, "sync"),
    "waiting queue not replaced": (_queue_in_vllms_order, "sync"),
    "long prefills clipped": (_long_prefills_clipped, "sync, vLLM's priorities and long-prefill limit"),
    "nobody preempted": (_preempts_nobody, "two in flight"),
    "budget too small": (_small_budget, "sync, speculation"),
    "resumed decodes padded": (_padded_drafts, "sync, speculation, prefix cache"),
}


@pytest.mark.parametrize("hook", BROKEN)
def test_a_broken_hook_is_noticed(hook, tmp_path):
    make, mode = BROKEN[hook]
    try:
        run = run_mode(tmp_path, mode, STEPS, seed=SEED, make=make)
    except AssertionError:  # vLLM's own, or a request that never ends
        return
    assert run.deviations


def _sources():
    root = os.environ.get(SOURCES)
    if not root:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{SOURCES} names no folder of unpacked releases"))]
    return [pytest.param(folder, id=folder.name) for folder in sorted(Path(root).iterdir()) if folder.is_dir()]


@pytest.mark.parametrize("source", _sources())
def test_other_releases_follow_plans_too(source, tmp_path):
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), str(here)]),
        "VLLM_TARGET_DEVICE": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(here / "fidelity.py"), str(tmp_path), str(STEPS), str(SEED)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    result = json.loads(lines[-1].removeprefix("RESULT "))
    assert result["vllm"].startswith(source.name)
    assert [run["mode"] for run in result["runs"]] == list(MODES)
    assert not any(run["deviations"] or run["leaked_blocks"] or run["wrong_requests"] for run in result["runs"])
