"""SLO fields and headers reach vLLM's sampling parameters through its own request models."""

import asyncio
import json

import pytest
from asgi import as_parts, through
from needs_vllm import require_vllm

from slo_opt.engine_bridge.config import BridgeConfig, LiveClass
from slo_opt.engine_bridge.middleware import SloMiddleware
from slo_opt.engine_bridge.slo_fields import RequestSlo, SloFieldError, request_slo

CONFIG = BridgeConfig(classes={"chat": LiveClass("chat", ttft_ms=500, tpot_ms=50)})
MESSAGES = [{"role": "user", "content": "hello"}]
FIELDS = {"slo_class": "chat", "slo_ttft_ms": 300, "slo_tpot_ms": "20.5"}
ASKED = RequestSlo("chat", 0.0205, ttft_s=0.3)


def completions(body):
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest(**body).to_sampling_params(8, {})


def chat(body):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(**body).to_sampling_params(8, {})


def responses(body):
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    return ResponsesRequest(**body).to_sampling_params(8, {})


def tokens(body):
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

    return GenerateRequest(**body).sampling_params


ENDPOINTS = [
    ("/v1/completions", {"prompt": [1, 2]}, completions),
    ("/v1/chat/completions", {"messages": MESSAGES}, chat),
    ("/v1/responses", {"input": "hello"}, responses),
    ("/inference/v1/generate", {"token_ids": [1, 2], "sampling_params": {"max_tokens": 8}}, tokens),
]


def sampling_params(path, body, parse, headers=()):
    require_vllm()
    content = json.dumps({"model": "m", **body}).encode()
    exchange = asyncio.run(
        through(lambda app: SloMiddleware(app, CONFIG), as_parts(content), path=path, headers=headers)
    )
    assert exchange.status == 200
    return parse(json.loads(exchange.body_in))


@pytest.mark.parametrize(("path", "body", "parse"), ENDPOINTS)
def test_headers_reach_the_sampling_parameters(path, body, parse):
    headers = [("x-slo-class", "chat"), ("x-slo-ttft-ms", "300"), ("x-slo-tpot-ms", "20.5")]
    assert request_slo(sampling_params(path, body, parse, headers).extra_args, CONFIG) == ASKED


@pytest.mark.parametrize(("path", "body", "parse"), ENDPOINTS)
def test_fields_reach_the_sampling_parameters(path, body, parse):
    if "sampling_params" in body:
        body = {**body, "sampling_params": {"extra_args": FIELDS}}
    else:
        body = {**body, "vllm_xargs": FIELDS}
    assert request_slo(sampling_params(path, body, parse).extra_args, CONFIG) == ASKED


@pytest.mark.parametrize("parse", [completions, chat, responses])
def test_vllm_turns_true_into_a_number(parse):
    """So best effort is understood as 1, and a limit that is ``true`` must be refused before vLLM reads it."""
    require_vllm()
    body = {"prompt": [1], "messages": MESSAGES, "input": "a"}
    keep = {completions: "prompt", chat: "messages", responses: "input"}[parse]
    params = parse({"model": "m", keep: body[keep], "vllm_xargs": {"slo_best_effort": True, "slo_class": "chat"}})
    assert params.extra_args["slo_best_effort"] in (True, 1)
    assert request_slo(params.extra_args, CONFIG).best_effort
    content = json.dumps({"vllm_xargs": {"slo_class": "chat", "slo_ttft_ms": True}}).encode()
    exchange = asyncio.run(through(lambda app: SloMiddleware(app, CONFIG), as_parts(content)))
    assert (exchange.status, exchange.error["param"]) == (400, "slo_ttft_ms")


def test_offline_parameters():
    require_vllm()
    from vllm import SamplingParams

    assert request_slo(SamplingParams(extra_args=FIELDS).extra_args, CONFIG) == ASKED
    with pytest.raises(SloFieldError, match="slo_ttft_ms"):
        request_slo(SamplingParams(extra_args={"slo_class": "chat", "slo_ttft_ms": -1}).extra_args, CONFIG)
