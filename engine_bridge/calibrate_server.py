"""Drives an OpenAI-compatible server through a short sweep and sees when its tokens come."""

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slo_opt.domain.errors import InvalidInputError, SolverNotAvailableError
from slo_opt.engine_bridge.calibrate_probes import Probes, Stream

if TYPE_CHECKING:
    import aiohttp

DEFAULT_BATCHED_TOKENS = 2048  # of vLLM's server on most machines
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Report = Callable[[str, float | None], None]
Complete = Callable[[int, int], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server tells of itself; None where it does not.

    Parameters
    ----------
    model : str
        Its first model.
    max_model_len, kv_blocks, block_size_tokens : int or None
        Limits: from ``/v1/models``, and from ``vllm:cache_config_info`` at ``/metrics``.
    """

    model: str
    max_model_len: int | None = None
    kv_blocks: int | None = None
    block_size_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is sent.

    Parameters
    ----------
    prompt_tokens : tuple of int
        Lengths of lone prompts; also of those that join.
    decodes : tuple of int
        How many decode together.
    context_tokens : tuple of int
        Prompt lengths of those.
    output_tokens : int
        Tokens of each decode.
    repeats : int
        Of each lone prompt.
    """

    prompt_tokens: tuple[int, ...]
    decodes: tuple[int, ...]
    context_tokens: tuple[int, ...]
    output_tokens: int
    repeats: int

    @property
    def steps(self) -> int:
        """Parts of the sweep, for progress."""
        groups = len(self.decodes) * len(self.context_tokens)
        return len(self.prompt_tokens) * self.repeats + groups + len(self.decodes) * (len(self.prompt_tokens) - 1)


def sweep_for(
    max_num_batched_tokens: int, max_model_len: int, max_num_seqs: int, kv_tokens: int | None, *, repeats: int = 3
) -> Sweep:
    """A sweep within the limits of the engine: every prompt fits in one batch, every group into the KV cache.

    Raises
    ------
    InvalidInputError
        The engine is too small for any.
    """
    output = max(8, min(48, max_model_len // 4))
    room = min(max_num_batched_tokens, max_model_len - output)
    if room < 8:
        raise InvalidInputError(
            f"an engine of {max_model_len} tokens a request and {max_num_batched_tokens} a batch leaves no room to "
            "measure; expected at least 16 and 8"
        )
    most = min(32, max_num_seqs)
    decodes = tuple(sorted({min(most, count) for count in (1, 4, 12, 32)}))
    longest = room - most if room > 2 * most else room // 2
    prompts = tuple(sorted({1, *(max(2, int(longest * share)) for share in (0.02, 0.06, 0.15, 0.3, 0.6, 1.0))}))
    held = room if kv_tokens is None else min(room, kv_tokens // most - output)
    contexts = tuple(sorted({max(2, int(held * share)) for share in (0.02, 0.3, 0.9)}))
    return Sweep(prompts, decodes, contexts, output, repeats)


async def run_sweep(complete: Complete, sweep: Sweep, report: Report | None = None) -> Probes:
    """Send everything, one part after the other.

    Parameters
    ----------
    complete : callable
        Sends a fresh prompt of so many tokens, asks for so many, and answers with the `Stream`.
    sweep : Sweep
        What to send.
    report : callable, optional
        Takes a phrase and the share done.
    """
    done = 0

    def tell(phrase: str) -> None:
        nonlocal done
        if report is not None:
            report(phrase, done / sweep.steps)
        done += 1

    await complete(sweep.context_tokens[0], sweep.output_tokens)  # whatever is compiled on first use
    alone = []
    for tokens in sweep.prompt_tokens:
        for _ in range(sweep.repeats):
            tell(f"a prompt of {tokens:,} tokens")
            alone.append(await complete(tokens, 1))
    together, joined = [], []
    for count in sweep.decodes:
        for context in sweep.context_tokens:
            tell(f"{count} decodes at {context:,} tokens of context")
            group = await asyncio.gather(*(complete(context, sweep.output_tokens) for _ in range(count)))
            together.append(tuple(group))
        for tokens in sweep.prompt_tokens[1:]:
            tell(f"{count} decodes and a prompt of {tokens:,} tokens")
            joined.append(await _join(complete, count, sweep, tokens))
    return Probes(tuple(alone), tuple(together), tuple(joined))


async def _join(complete: Complete, count: int, sweep: Sweep, tokens: int) -> tuple[tuple[Stream, ...], Stream]:
    """Let some decode, and send a prompt once they have had time to begin."""
    began_s = time.perf_counter()
    await complete(sweep.context_tokens[0], max(2, sweep.output_tokens // 8))
    pause_s = time.perf_counter() - began_s
    decodes = [asyncio.ensure_future(complete(sweep.context_tokens[0], sweep.output_tokens)) for _ in range(count)]
    await asyncio.sleep(pause_s)
    joiner = await complete(tokens, 1)
    return tuple(await asyncio.gather(*decodes)), joiner


async def probe_server(
    url: str, make_sweep: Callable[[ServerFacts], Sweep], *, report: Report | None = None
) -> tuple[ServerFacts, Probes]:
    """Ask a server what it is, and sweep it.

    Parameters
    ----------
    url : str
        Without the ``/v1``.
    make_sweep : callable
        From what the server tells.
    report : callable, optional
        See `run_sweep`.

    Raises
    ------
    SolverNotAvailableError
        aiohttp is not installed.
    InvalidInputError
        Nobody answers, or with something else than streamed tokens.
    """
    try:
        import aiohttp
    except ImportError:
        raise SolverNotAvailableError("calibrate --url needs aiohttp; pip install 'slo-opt[live]'") from None
    base = url.rstrip("/").removesuffix("/v1")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=600)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            facts = await read_facts(session, base)
            complete = _completer(
                session, base, facts.model, random.Random()
            )  # a prompt of an earlier sweep would be in the prefix cache
            return facts, await run_sweep(complete, make_sweep(facts), report)
    except aiohttp.InvalidURL:
        raise InvalidInputError(f"--url {url}: is no URL; expected something like http://localhost:8000") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise InvalidInputError(f"--url {url}: {error or type(error).__name__}; is the server running?") from None


async def read_facts(session: "aiohttp.ClientSession", base: str) -> ServerFacts:
    """What the server tells of itself."""
    async with session.get(f"{base}/v1/models") as answer:
        text = await answer.text()
        if answer.status != 200:
            raise InvalidInputError(f"{base}/v1/models answers {answer.status}; expected an OpenAI-compatible server")
    try:
        model = json.loads(text)["data"][0]
        name, longest = str(model["id"]), model.get("max_model_len")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InvalidInputError(f"{base}/v1/models lists no model; expected an OpenAI-compatible server") from None
    async with session.get(f"{base}/metrics") as answer:
        labels = cache_labels(await answer.text()) if answer.status == 200 else {}
    return ServerFacts(
        name,
        longest if isinstance(longest, int) and longest > 0 else None,
        _count(labels.get("num_gpu_blocks")),
        _count(labels.get("block_size")),
    )


def cache_labels(metrics: str) -> dict[str, str]:
    """Labels of ``vllm:cache_config_info`` in Prometheus' text format; empty if it is not there."""
    for line in metrics.splitlines():
        if line.startswith("vllm:cache_config_info{"):
            return dict(_LABEL.findall(line))
    return {}


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and 0 < int(text) <= 1 << 40 else None


def _completer(session: "aiohttp.ClientSession", base: str, model: str, rng: random.Random) -> Complete:
    async def complete(prompt_tokens: int, output_tokens: int) -> Stream:
        body = {
            "model": model,
            "prompt": [rng.randint(10, 200) for _ in range(prompt_tokens)],
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,  # a busy API process sends several tokens as one piece
        }
        sent_s = time.perf_counter()
        times: list[float] = []
        async with session.post(f"{base}/v1/completions", json=body) as answer:
            if answer.status != 200:
                said = (await answer.text())[:200]
                raise InvalidInputError(f"{base}/v1/completions answers {answer.status}: {said}")
            async for line in answer.content:
                if count := tokens_in(line):
                    times += [time.perf_counter()] * count
        if len(times) < output_tokens:
            raise InvalidInputError(
                f"{base}/v1/completions sent {len(times)} pieces for {output_tokens} tokens; expected one a token, "
                "or their token_ids"
            )
        return Stream(prompt_tokens, sent_s, tuple(times[:output_tokens]))

    return complete


def tokens_in(line: bytes) -> int:
    """Tokens that a line of a server-sent stream carries: its ``token_ids`` where it has them, else one a piece.

    Raises
    ------
    InvalidInputError
        It carries an error.
    """
    if not line.startswith(b"data:"):
        return 0
    text = line[5:].strip()
    if text == b"[DONE]":
        return 0
    try:
        piece = json.loads(text)
    except ValueError:
        raise InvalidInputError(f"the server streams {text[:80]!r}; expected JSON") from None
    if not isinstance(piece, dict) or "error" in piece:
        raise InvalidInputError(f"the server streams an error: {text[:200]!r}")
    choices = piece.get("choices")
    if not isinstance(choices, list) or not choices:
        return 0
    ids = choices[0].get("token_ids") if isinstance(choices[0], dict) else None
    return len(ids) if isinstance(ids, list) else 1
