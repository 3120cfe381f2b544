"""`slo-opt calibrate`: from step logs and from a server to a file that every --engine takes."""

import asyncio
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slo_opt.cli.exits import ExitCode
from slo_opt.domain.engine import prefill_pairs
from slo_opt.domain.engines import engine_named
from slo_opt.engine_bridge.batch_sample import BatchSample
from slo_opt.engine_bridge.step_log import StepLog
from slo_opt.traces.engine_file import encode_engine, read_engine

TRUE = engine_named("llama-3-8b-h100")


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """A log of 400 batches of a known engine."""
    rng = random.Random(1)
    path = tmp_path / "steps.jsonl"
    log = StepLog(path, {"engine": TRUE, "vllm": "vllm 0.32.0"})
    for _ in range(400):
        decodes, chunk = rng.randint(0, 60), rng.choice((0, rng.randint(1, 4000)))
        if decodes + chunk == 0:
            continue
        context, pairs = decodes * rng.randint(10, 3000), prefill_pairs(chunk, 0)
        batch = BatchSample(decodes + chunk, float(context), pairs, decodes + (chunk > 0))
        seconds = TRUE.batch_time_s(
            batch.num_tokens,
            decode_context_tokens=context,
            prefill_pairs=pairs,
            num_requests=batch.num_requests,
        )
        log.write(batch.timed(seconds * rng.uniform(0.98, 1.02)))
    log.close()
    return path


def test_a_log_becomes_an_engine_that_every_command_takes(cli, steps: Path, trace_path: Path, tmp_path: Path):
    engine_path = tmp_path / "mine.json"
    options = ("--name", "mine", "--engine", "opt-6.7b-a100", "--plot", tmp_path / "fit.png")
    result = cli("calibrate", steps, "-o", engine_path, *options)
    assert result.exit_code == 0, result.stderr
    for words in ("mine", "two pieces", "decode", "prefill", "mixed", "told by the batches", "served by vllm 0.32.0"):
        assert words in result.stdout
    assert (tmp_path / "fit.png").stat().st_size > 3000
    engine = read_engine(engine_path)
    assert engine.name == "mine"
    assert (engine.kv_blocks, engine.max_model_len) == (TRUE.kv_blocks, TRUE.max_model_len)
    assert engine.batch_time_s(64, decode_context_tokens=64_000, num_requests=64) == pytest.approx(
        TRUE.batch_time_s(64, decode_context_tokens=64_000, num_requests=64), rel=0.05
    )
    solved = cli("solve", trace_path, "--engine", engine_path, "--method", "search", "--format", "json")
    assert solved.exit_code == 0, solved.stderr
    assert json.loads(solved.stdout)["engine"]["name"] == "mine"
    played = cli("simulate", trace_path, "--engine", engine_path, "--policy", "vllm-fcfs", "--format", "json")
    assert played.exit_code == 0, played.stderr
    drawn = cli("trace", "generate", "coder", "--duration", 20, "--engine", engine_path, "-o", tmp_path / "t.json")
    assert drawn.exit_code == 0, drawn.stderr
    assert json.loads((tmp_path / "t.json").read_text())["engine"]["name"] == "mine"


def test_the_document_holds_the_fit(cli, steps: Path):
    result = cli("calibrate", steps, "--format", "json")
    document = json.loads(result.stdout)
    assert document["fit"]["num_samples"] == sum(row["batches"] for row in document["kinds"])
    assert document["fit"]["median_error"] < 0.02
    assert document["engine"]["kv_blocks"] == TRUE.kv_blocks
    assert document["notes"] == []
    assert document["server"] is None


def test_the_engine_alone_on_stdout(cli, steps: Path):
    result = cli("calibrate", steps, "-o", "-")
    assert result.stdout == encode_engine(read_engine_text(result.stdout)).decode()


def read_engine_text(text: str) -> Any:
    import msgspec

    from slo_opt.traces.engine_file import EngineFields, engine_of

    return engine_of(msgspec.json.decode(text, type=EngineFields))


def test_limits_on_the_command_line_win(cli, steps: Path, tmp_path: Path):
    path = tmp_path / "engine.json"
    arguments = ("--kv-blocks", 77, "--max-num-seqs", 5, "--engine", "opt-6.7b-a100")
    assert cli("calibrate", steps, steps, "-o", path, *arguments).exit_code == 0
    engine = read_engine(path)
    assert (engine.kv_blocks, engine.max_num_seqs, engine.max_model_len) == (77, 5, TRUE.max_model_len)


def test_doubts_are_said(cli, tmp_path: Path):
    path = tmp_path / "steps.jsonl"
    log = StepLog(path)
    for _ in range(40):
        log.write(BatchSample(8, 800.0, 0.0, 8, seconds=0.02))
    log.close()
    result = cli("calibrate", path)
    assert result.exit_code == 0
    assert "only how fast the engine is" in " ".join(result.stdout.split())
    assert "prefill, mixed" in result.stdout
    assert "limits of the engine" in result.stdout
    noisy = tmp_path / "noisy.jsonl"
    rng = random.Random(2)
    log = StepLog(noisy, {"engine": TRUE})
    for _ in range(300):
        tokens = rng.randint(1, 4000)
        log.write(BatchSample(tokens, 0.0, prefill_pairs(tokens, 0), 1, seconds=rng.uniform(0.001, 1.0)))
    log.close()
    assert "the machine was not alone" in " ".join(cli("calibrate", noisy).stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), ExitCode.USAGE, "one of the two"),
        (("STEPS", "--url", "http://127.0.0.1:9"), ExitCode.USAGE, "one of the two"),
        (("STEPS", "--repeats", "2"), ExitCode.USAGE, "only with --url"),
        (("nowhere.jsonl",), ExitCode.BAD_INPUT, "no such file"),
        (("STEPS", "--engine", "llama"), ExitCode.BAD_INPUT, "unknown engine"),
        (("STEPS", "-o", "/nowhere/engine.json"), ExitCode.BAD_INPUT, "does not exist"),
        (("STEPS", "--plot", "fit.txt"), ExitCode.BAD_INPUT, "plots end in"),
        (("--url", "http://127.0.0.1:9"), ExitCode.BAD_INPUT, "is the server running?"),
        (("--url", "no url"), ExitCode.BAD_INPUT, "is no URL"),
    ],
)
def test_what_cannot_be_is_refused(cli, steps: Path, arguments: tuple[str, ...], code: ExitCode, words: str):
    if "--url" in arguments and len(arguments) == 2:
        pytest.importorskip("aiohttp")
    result = cli("calibrate", *(steps if word == "STEPS" else word for word in arguments))
    assert result.exit_code == code
    assert words in result.stderr


def test_without_the_library_the_extra_is_named(cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    result = cli("calibrate", "--url", "http://127.0.0.1:9")
    assert result.exit_code == ExitCode.NOT_INSTALLED
    assert "slo-opt[live]" in result.stderr


class StubServer:
    """An OpenAI-compatible server on a loopback port: tokens come when they come.

    Parameters
    ----------
    answers : dict
        What to answer in place of the usual: a status for a path, or ``pieces`` a token.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.prompts: list[list[int]] = []
        self.most_at_once = self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self.url = ""

    async def _run(self) -> None:
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request: Any) -> Any:
        from aiohttp import web

        if "models" in self.answers:
            return web.Response(text=self.answers["models"])
        return web.json_response({"data": [{"id": "/models/small", "max_model_len": 600}]})

    async def _metrics(self, request: Any) -> Any:
        from aiohttp import web

        if "metrics" in self.answers:
            return web.Response(status=404)
        return web.Response(text='vllm:cache_config_info{block_size="32",num_gpu_blocks="999"} 1.0\n')

    async def _complete(self, request: Any) -> Any:
        from aiohttp import web

        body = await request.json()
        if "status" in self.answers:
            return web.Response(status=self.answers["status"], text="busy")
        self.prompts.append(body["prompt"])
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(int(body["max_tokens"] * self.answers.get("pieces", 1))):
            await asyncio.sleep(0.0002)
            await response.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        self._at_once -= 1
        return response

    def __enter__(self) -> "StubServer":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@pytest.fixture
def stub() -> Iterator[Callable[..., StubServer]]:
    """Start a stub; it ends with the test."""
    pytest.importorskip("aiohttp")
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **answers: stack.enter_context(StubServer(**answers))


def test_a_server_is_swept_and_its_limits_are_read(cli, stub, tmp_path: Path):
    server = stub()
    path = tmp_path / "engine.json"
    result = cli("calibrate", "--url", f"{server.url}/v1/", "-o", path, "--repeats", 1, "--format", "json", "-q")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["server"] == {
        "model": "/models/small",
        "max_model_len": 600,
        "kv_blocks": 999,
        "block_size_tokens": 32,
    }
    assert document["overhead_s"] >= 0
    assert "2048 is assumed" in document["notes"][0]
    engine = read_engine(path)
    assert engine.name == "small"
    assert (engine.kv_blocks, engine.block_size_tokens, engine.max_model_len) == (999, 32, 600)
    assert engine.max_num_batched_tokens == 2048
    lengths = {len(prompt) for prompt in server.prompts}
    assert 1 in lengths
    assert max(lengths) <= 600
    assert server.most_at_once > 4
    long = [tuple(prompt[:32]) for prompt in server.prompts if len(prompt) >= 32]
    assert len(set(long)) == len(long)  # no prefix cache helps


def test_a_server_that_tells_little_is_named(cli, stub):
    server = stub(metrics=404)
    result = cli("calibrate", "--url", server.url, "--repeats", 1, "--max-num-batched-tokens", 100)
    assert result.exit_code == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert "does not tell its KV blocks" in words
    assert "is assumed" not in words
    assert max(map(len, server.prompts)) <= 100


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"status": 503}, "answers 503: busy"),
        ({"models": "[]"}, "lists no model"),
        ({"models": '{"data": []}'}, "lists no model"),
        ({"pieces": 0.5}, "expected one a token"),
    ],
)
def test_a_server_that_is_something_else_is_refused(cli, stub, answers: dict[str, Any], words: str):
    result = cli("calibrate", "--url", stub(**answers).url)
    assert result.exit_code == ExitCode.BAD_INPUT
    assert words in result.stderr
