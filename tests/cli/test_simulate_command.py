"""`slo-opt simulate` and `slo-opt compare` on a real, small trace."""

import errno
import gzip
import json
import os
from pathlib import Path

import jsonschema
import pytest
from test_exit_codes import assert_refused

from slo_opt.analysis.plan import read_plan
from slo_opt.domain.evaluate import evaluate
from slo_opt.policies import registry
from slo_opt.policies.registry import POLICIES, PolicyEntry, prepare
from slo_opt.simulate import play

REPORT = Path(__file__).parents[2] / "slo_opt/report"
SCHEMA, COMPARE = (json.loads((REPORT / f"{name}.schema.json").read_text()) for name in ("simulate", "compare"))
RUN = {**SCHEMA["$defs"]["run"], "$defs": SCHEMA["$defs"]}


@pytest.fixture
def rogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policies of rogue.py, by name."""
    for name in ("Greedy", "Sleeper", "Interrupted"):
        monkeypatch.setitem(registry.POLICIES, name.lower(), PolicyEntry(name.lower(), "", f"rogue:{name}"))


def simulated(cli, *arguments) -> list[dict]:
    """Runs of `simulate`, by vLLM unless another policy is named."""
    policy = () if "--policy" in arguments else ("--policy", "vllm-fcfs")
    result = cli("simulate", *arguments, *policy, "--format", "json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document = json.loads(result.stdout)
    jsonschema.validate(document, SCHEMA)
    return document["runs"]


def compared(cli, *arguments) -> dict:
    result = cli("compare", *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, COMPARE)
    return document


def steady(run: dict) -> dict:
    """Without what the machine adds."""
    metrics = {key: value for key, value in run["metrics"].items() if key != "decision_ms"}
    return {**run, "wall_s": 0, "metrics": metrics}


def test_every_policy_runs_and_agrees_with_itself(cli, trace_path: Path):
    runs = simulated(cli, trace_path, "--policy", ",".join(POLICIES))
    assert [run["policy"] for run in runs] == list(POLICIES)
    for run in runs:
        metrics, total = run["metrics"], run["metrics"]["total"]
        assert total["offered"] == 60
        assert total["attainment"] == pytest.approx(total["attained"] / 60)
        assert sum(row["attained"] for row in metrics["classes"]) == total["attained"]
        assert metrics["drained"]
    assert len({run["requests"]["hash"] for run in runs}) == 1


def test_the_schema_refuses_what_is_missing(cli, trace_path: Path):
    (run,) = simulated(cli, trace_path)
    for key in RUN["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({name: value for name, value in run.items() if name != key}, RUN)
    for key in RUN["properties"]["metrics"]["required"]:
        metrics = {name: value for name, value in run["metrics"].items() if name != key}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**run, "metrics": metrics}, RUN)


@pytest.mark.parametrize("options", [("--noise", "0.2"), ("--acceptance", "0.6"), ("--best-effort", "0.3")])
def test_the_seed_decides_everything(cli, trace_path: Path, options: tuple[str, ...]):
    options = ("--policy", "adaserve", *options)  # the one that drafts
    first, second, other = (simulated(cli, trace_path, *options, "--seed", seed)[0] for seed in (3, 3, 4))
    assert steady(first) == steady(second)
    drawn = ("requests", "hash") if "--best-effort" in options else ("metrics", "num_tokens")
    if "--noise" in options:
        drawn = ("metrics", "busy_s")
    assert first[drawn[0]][drawn[1]] != other[drawn[0]][drawn[1]]


def test_a_slower_engine_attains_no_more(cli, trace_path: Path):
    fast, slow = (simulated(cli, trace_path, "--slowdown", factor)[0]["metrics"] for factor in (1, 1.5))
    assert slow["busy_s"] > fast["busy_s"]
    assert slow["total"]["attained"] < fast["total"]["attained"]


def test_a_prefix_cache_finds_repeated_prompts(cli, tmp_path: Path):
    rows = [{"timestamp": 5000 * k, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2]} for k in range(4)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = (tmp_path / "m.jsonl", "--scenario", "chatbot", "--engine", "llama-3-8b-a100")
    without, cached = (simulated(cli, *arguments, *option)[0] for option in ((), ("--prefix-cache",)))
    assert (without["metrics"]["num_cached_tokens"], cached["metrics"]["num_cached_tokens"]) == (0, 3 * 1024)
    assert cached["metrics"]["num_tokens"] == without["metrics"]["num_tokens"] - 3 * 1024
    assert cached["simulation"]["prefix_cache"]
    table = cli("simulate", *arguments, "--prefix-cache", "--plot", tmp_path / "run.png").stdout
    assert "3,072 prompt tokens found in the prefix cache" in " ".join(table.split())
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_settings_and_lengths_reach_the_policy(cli, trace_path: Path):
    plain, small = (
        simulated(cli, trace_path, "--set", f"budget_tokens={tokens}", "--lengths", "none")[0] for tokens in (2048, 64)
    )
    assert small["setting"]["budget_tokens"] == 64
    assert small["lengths"] == "none"
    assert small["metrics"]["num_batches"] > plain["metrics"]["num_batches"]
    typed = simulated(cli, trace_path, "--set", "long-prefill-tokens=none")[0]
    assert typed["setting"]["long_prefill_tokens"] is None


def test_best_effort_is_offered_to_nobody(cli, trace_path: Path):
    (run,) = simulated(cli, trace_path, "--best-effort", "0.5", "--seed", "1")
    moved = next(row for row in run["metrics"]["classes"] if row["name"] == "best-effort")
    assert moved["requests"] + run["metrics"]["total"]["offered"] == 60
    assert moved["attained"] == moved["offered"] == 0
    assert moved["ttft_ms"]["count"] == moved["requests"]


def test_table_of_one_and_of_several(cli, trace_path: Path):
    (run,) = simulated(cli, trace_path)
    one = " ".join(cli("simulate", trace_path, "--policy", "vllm-fcfs").stdout.split())
    attained = run["metrics"]["total"]["attained"]
    assert f"{attained} of 60 offered requests attained" in one
    for word in (
        "SLO class",
        "TTFT p50",
        "of admitted",
        "opt-6.7b-a100",
        "score rule dslo",
        "lengths: quantile, seed 0",
    ):
        assert word in one
    several = cli("simulate", trace_path, "--policy", "vllm-fcfs,edf").stdout
    assert [line.split()[0] for line in several.splitlines() if " %" in line].count("edf") == 3
    assert "goodput/s" in several


def test_plan_is_one_that_explain_reads(cli, trace_path: Path, tmp_path: Path):
    plan = tmp_path / "plan.json"
    (run,) = simulated(cli, trace_path, "--plan", plan)
    found = read_plan(plan)
    assert steady(found.report) == steady(run)
    assert evaluate(found.instance, found.schedule).num_attained == run["metrics"]["total"]["attained"]
    report = json.loads(cli("explain", plan, "--format", "json").stdout)
    assert report["declined"] == 60 - run["metrics"]["total"]["attained"]


def test_pictures_one_a_policy(cli, trace_path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    simulated(cli, trace_path, "--plot", tmp_path / "load.png", "--noise", "0.1")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    simulated(cli, trace_path, "--policy", "vllm-fcfs,edf", "--plot", tmp_path / "two.png")
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two-edf.png", "two-vllm-fcfs.png"]


@pytest.fixture
def runs_path(cli, trace_path: Path, tmp_path: Path) -> Path:
    """Five runs: one policy with two seeds, one with two settings."""
    path = tmp_path / "runs.jsonl"
    for seed in (0, 1):
        simulated(cli, trace_path, "--policy", "edf", "--noise", "0.3", "--seed", seed, "-o", path)
    for tokens in (256, 2048):
        simulated(cli, trace_path, "--noise", "0.3", "--set", f"budget_tokens={tokens}", "-o", path)
    return path


def test_runs_are_added_line_by_line(cli, trace_path: Path, runs_path: Path):
    before = runs_path.read_text()
    (run,) = simulated(cli, trace_path, "-o", runs_path)
    assert runs_path.read_text().startswith(before)
    lines = [json.loads(line) for line in runs_path.read_text().splitlines()]
    assert len(lines) == 5
    assert lines[-1] == run
    for line in lines:
        jsonschema.validate(line, RUN)
    packed = runs_path.with_suffix(".jsonl.gz")
    for _ in range(2):
        simulated(cli, trace_path, "-o", packed)
    assert len(gzip.decompress(packed.read_bytes()).splitlines()) == 2
    assert compared(cli, packed)["replaced"] == 1


def test_runs_on_stdout(cli, trace_path: Path):
    result = cli("simulate", trace_path, "--policy", "vllm-fcfs,edf", "-o", "-")
    assert result.exit_code == 0
    assert [json.loads(line)["policy"] for line in result.stdout.splitlines()] == ["vllm-fcfs", "edf"]
    assert json.loads(cli("simulate", trace_path, "--plan", "-").stdout)["format"] == "slo-opt-plan"


def test_compare_averages_seeds_and_names_what_differs(cli, runs_path: Path):
    (group,) = compared(cli, runs_path)["groups"]
    rows = {row["label"]: row for row in group["rows"]}
    assert set(rows) == {"edf", "vllm-fcfs budget_tokens=256", "vllm-fcfs budget_tokens=2048"}
    lines = [json.loads(line) for line in runs_path.read_text().splitlines()]
    attained = [line["metrics"]["total"]["attained"] for line in lines if line["policy"] == "edf"]
    assert rows["edf"]["seeds"] == [0, 1]
    figure = rows["edf"]["figures"]["attained"]
    assert (figure["mean"], figure["least"], figure["most"]) == (sum(attained) / 2, min(attained), max(attained))
    values = [row["figures"]["value"]["mean"] for row in group["rows"]]
    assert values == sorted(values, reverse=True)
    table = cli("compare", runs_path).stdout
    for label in rows:
        assert table.count(f" {label} ") == 3
    assert compared(cli, runs_path, runs_path)["groups"] == [group]
    assert compared(cli, runs_path, runs_path)["replaced"] == 4


@pytest.mark.parametrize("options", [("--scale", "2"), ("--engine", "llama-3-8b-h100"), ("--score-rule", "mean-tpot")])
def test_compare_never_mixes_what_does_not_compare(cli, trace_path: Path, runs_path: Path, options: tuple[str, str]):
    simulated(cli, trace_path, *options, "-o", runs_path)
    result = cli("compare", runs_path, "--format", "json")
    groups = json.loads(result.stdout)["groups"]
    assert [len(group["rows"]) for group in groups] == [3, 1]
    assert ("score rules" in result.stderr) == (options[0] == "--score-rule")


def test_compare_draws(cli, runs_path: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert cli("compare", runs_path, "--plot", tmp_path / "bars.png").exit_code == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda line: line[:-20], ("not json",)),
        (lambda line: "{}", ("not a run", "slo-opt-run")),
        (lambda line: "[1, 2]", ("expected",)),
        (lambda line: line.replace('"schema_version":1', '"schema_version":7'), ("version 7",)),
        (lambda line: line.replace('"utilisation":', '"utilization":'), ("utilisation",)),
        (lambda line: line.replace('"policy":"', '"policy":7,"p":"'), ("$.policy",)),
        (lambda line: line.replace('"attained":', '"attained":99', 1), ("damaged",)),
        (lambda line: line.replace('"slowdown":1.0', '"slowdown":-1.0'), ("slowdown",)),
    ],
)
def test_a_damaged_line_is_named(cli, trace_path: Path, runs_path: Path, damage, words: tuple[str, ...]):
    lines = runs_path.read_text().splitlines()
    lines[2] = damage(lines[2])
    runs_path.write_text("\n".join(lines) + "\n")
    before = runs_path.read_bytes()
    for command in (("compare", runs_path), ("simulate", trace_path, "-o", runs_path)):
        assert_refused(cli(*command), 3, f"{runs_path}: line 3: ", *words)
    assert runs_path.read_bytes() == before


def test_compare_refuses_what_holds_no_run(cli, trace_path: Path, tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert_refused(cli("compare", empty), 3, str(empty), "at least one run")
    assert_refused(cli("compare", tmp_path / "nowhere.jsonl"), 3, "no such file")
    assert_refused(cli("compare", trace_path), 3, f"{trace_path}: line 1: ")
    assert cli("simulate", trace_path, "-o", empty).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "vllm-fcf"), ("unknown policy", "did you mean 'vllm-fcfs'")),
        (("--policy", " , "), ("names no policy", "vllm-fcfs")),
        (("--policy", "edf,nothing"), ("unknown policy 'nothing'",)),
        (("--scenario", "codr"), ("did you mean 'coder'",)),
        (("--engine", "a100"), ("unknown engine",)),
        (("--scale", "0"), ("scale",)),
        (("--window", "5000:6000"), ("no request arrives",)),
        (("--lengths", "oracl"), ("did you mean 'oracle'",)),
        (("--set", "budget_tokens"), ("key=value",)),
        (("--set", "budget_tokens=1", "--set", "budget-tokens=2"), ("twice",)),
        (("--set", "budget_tokens=512"), ("'slo-opt' has no setting", "known: cap_quantile")),
        (("--policy", "vllm-fcfs", "--set", "budget_token=1"), ("did you mean 'budget_tokens'",)),
        (("--policy", "vllm-fcfs", "--set", "budget_tokens=0"), ("at least 1",)),
        (("--policy", "vllm-fcfs", "--set", "budget_tokens=many"), ("expected an integer",)),
        (("--noise", "-1"), ("noise",)),
        (("--noise", "nan"), ("noise",)),
        (("--slowdown", "0"), ("slowdown",)),
        (("--acceptance", "1"), ("acceptance",)),
        (("--best-effort", "2"), ("best-effort",)),
        (("--plot", "picture.xyz"), (".png",)),
        (("-o", "nowhere/runs.jsonl"), ("does not exist",)),
        (("--plan", "plan.json", "--noise", "0.1"), ("--noise",)),
        (("--plan", "plan.json", "--prefix-cache"), ("--prefix-cache",)),
        (("--prefix-cache",), ("no request says what its prompt begins with",)),
    ],
)
def test_bad_values(cli, trace_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]):
    assert_refused(cli("simulate", trace_path, *arguments), 3, *words)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", "-1"),
        ("--noise", "much"),
        ("--plan", "same", "-o", "same"),
        ("--plan", "p", "--policy", "edf,qoserve"),
    ],
)
def test_usage(cli, trace_path: Path, arguments: tuple[str, ...]):
    assert_refused(cli("simulate", trace_path, *arguments), 2)


def test_unservable_requests(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    fields["requests"][3]["prompt_tokens"] = 50_000
    trace_path.write_text(json.dumps(fields))
    assert_refused(cli("simulate", trace_path), 3, f"{trace_path}: ", "max_model_len", "--unservable")
    (lost,) = simulated(cli, trace_path, "--unservable", "lose")
    (dropped,) = simulated(cli, trace_path, "--unservable", "drop")
    assert (lost["metrics"]["total"]["offered"], lost["metrics"]["num_rejected"]) == (60, 1)
    assert (dropped["metrics"]["total"]["offered"], dropped["trace"]["dropped"]) == (59, 1)


@pytest.mark.parametrize("unservable", ["error", "lose", "drop"])
def test_a_trace_that_nothing_can_attain(cli, trace_path: Path, unservable: str):
    fields = json.loads(trace_path.read_text())
    for slo in fields["slo_classes"]:
        slo.pop("ttft_slowdown", None)
        slo["ttft_ms"] = 0.5
    trace_path.write_text(json.dumps(fields))
    words = (f"{trace_path}: ", "TTFT limit of 0.5 ms")
    assert_refused(cli("simulate", trace_path, "--unservable", unservable), 3, *words)


def test_an_engine_without_kv(cli, trace_path: Path):
    fields = json.loads(trace_path.read_text())
    pieces = [{"per_token_s": 1e-5, "base_s": 0.01}]
    fields["engine"] = {"name": "bare", "source": "none", "pieces": pieces, "kv_blocks": 0}
    trace_path.write_text(json.dumps(fields))
    assert_refused(cli("simulate", trace_path), 3, str(trace_path), "kv_blocks", ">= 1")


def test_an_illegal_policy_is_stopped_and_the_others_are_kept(cli, rogues, trace_path: Path, tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    result = cli("simulate", trace_path, "--policy", "edf,greedy,vllm-fcfs", "-o", path, "--format", "json")
    assert result.exit_code == 3
    for word in ("'greedy'", "request 'coder-0'", " s: ", "tokens of prefill"):
        assert word in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [run["policy"] for run in json.loads(result.stdout)["runs"]] == ["edf"]
    assert [json.loads(line)["policy"] for line in path.read_text().splitlines()] == ["edf"]


def test_an_interrupt_keeps_what_ran(cli, rogues, trace_path: Path, tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    result = cli("simulate", trace_path, "--policy", "edf,interrupted", "-o", path)
    assert result.exit_code == 130
    assert result.stderr == "slo-opt: error: interrupted\n"
    assert "60 offered requests attained" in result.stdout
    assert len(path.read_text().splitlines()) == 1
    result = cli("simulate", trace_path, "--policy", "interrupted", "-o", path)
    assert (result.exit_code, result.stdout) == (130, "")
    assert len(path.read_text().splitlines()) == 1


def test_a_policy_that_serves_nobody(cli, rogues, trace_path: Path, tmp_path: Path):
    (run,) = simulated(cli, trace_path, "--policy", "sleeper")
    assert run["metrics"]["num_unfinished"] == 60
    assert not run["metrics"]["drained"]
    assert "60 requests never finished" in cli("simulate", trace_path, "--policy", "sleeper").stdout
    pytest.importorskip("matplotlib")
    assert cli("simulate", trace_path, "--policy", "sleeper", "--plot", tmp_path / "idle.png").exit_code == 0


def test_a_full_disk_leaves_the_file_as_it_was(cli, trace_path: Path, runs_path: Path, monkeypatch):
    before, write = runs_path.read_bytes(), os.write
    room = iter([100])

    def write_until_full(handle: int, data: bytes) -> int:
        left = next(room, 0)
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[:left])

    monkeypatch.setattr(os, "write", write_until_full)
    result = cli("simulate", trace_path, "-o", runs_path)
    monkeypatch.undo()
    assert result.exit_code == 3
    assert result.stderr == f"slo-opt: error: {runs_path}: No space left on device\n"
    assert "60 offered requests attained" in result.stdout
    assert runs_path.read_bytes() == before


def test_a_trace_of_best_effort_alone(cli, trace_path: Path):
    text = cli("simulate", trace_path, "--policy", "vllm-fcfs", "--best-effort", "1").stdout
    assert "No request is under an SLO" in text
    assert "0 of 0" not in text


def test_the_planner_is_compiled_before_anything_is_timed(cli, trace_path: Path, monkeypatch: pytest.MonkeyPatch):
    from slo_opt.policies import admission

    order: list[str] = []
    played = play.play
    monkeypatch.setattr(admission, "compile_planner", lambda: order.append("compiled"))
    monkeypatch.setattr(play, "play", lambda *given: order.append(given[1]) or played(*given))
    simulated(cli, trace_path, "--policy", "vllm-fcfs,slo-opt")
    assert order == ["compiled", "vllm-fcfs", "slo-opt", "compiled"]
    order.clear()
    simulated(cli, trace_path, "--policy", "vllm-fcfs")
    assert order == ["vllm-fcfs"]
    announced: list[str] = []
    prepare(("vllm-fcfs", "slos-serve"), lambda phrase, _: announced.append(phrase))
    assert announced == ["compiling the admission planner, once a machine"]


def test_the_default_is_the_policy_of_this_project(cli, trace_path: Path):
    result = cli("simulate", trace_path, "--format", "json")
    assert [run["policy"] for run in json.loads(result.stdout)["runs"]] == ["slo-opt"]
