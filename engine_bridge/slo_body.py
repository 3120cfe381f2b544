"""SLO fields in an HTTP request: headers and JSON body, told apart by endpoint. No server, no clock."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from slo_opt.engine_bridge.config import BridgeConfig
from slo_opt.engine_bridge.slo_fields import FIELDS, PREFIX, RequestSlo, SloFieldError, request_slo
from slo_opt.traces.nearest import did_you_mean

# Where the extra arguments of sampling lie in the bodies of vLLM's endpoints.
ENDPOINTS: Mapping[str, tuple[str, ...]] = {
    "/v1/completions": ("vllm_xargs",),
    "/v1/chat/completions": ("vllm_xargs",),
    "/v1/responses": ("vllm_xargs",),
    "/inference/v1/generate": ("sampling_params", "extra_args"),
}
HEADERS: Mapping[str, str] = {"x-" + field.replace("_", "-"): field for field in FIELDS}
_HEADER_PREFIX = b"x-slo-"
_mentioned = re.compile(PREFIX.encode()).search  # four times as fast as `in` on a long prompt
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class ReadBody:
    """What the SLO fields of an HTTP request say.

    Parameters
    ----------
    slo : RequestSlo or None
        None where the body is nothing that a request can be read from; the server says so.
    body : bytes or None
        The body with the headers' fields written in; None: as it came.
    """

    slo: RequestSlo | None
    body: bytes | None = None


def place_of(path: str) -> tuple[str, ...] | None:
    """Keys under which an endpoint takes SLO fields; None for a path that is not one, whatever it is mounted under."""
    for endpoint, place in ENDPOINTS.items():
        if path.endswith(endpoint):
            return place
    return None


def header_fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """SLO fields among the headers of a request, with the text that they hold.

    Raises
    ------
    SloFieldError
        A header that begins like ours and is none of them, or that is there twice.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        if name[:6].lower() != _HEADER_PREFIX:
            continue
        header = name.decode("latin-1").lower()
        if header not in HEADERS:
            raise SloFieldError(header, f"is no SLO header. {did_you_mean(header, HEADERS)}Known: {', '.join(HEADERS)}")
        field = HEADERS[header]
        if field in found:
            raise SloFieldError(field, f"is given by two headers {header}; send one")
        found[field] = value.decode("latin-1").strip()
    return found


def read_body(body: bytes, place: tuple[str, ...], headers: Mapping[str, str], config: BridgeConfig) -> ReadBody:
    """Check the SLO fields of a request, and write those of its headers into its body.

    A field of the body goes before the header of the same name. A body that no field is looked for in is not parsed.

    Parameters
    ----------
    body : bytes
        As it came.
    place : tuple of str
        See `place_of`.
    headers : mapping
        See `header_fields`.
    config : BridgeConfig
        Names the classes.

    Raises
    ------
    SloFieldError
        See `request_slo`; also for a field outside the place where the engine reads it.
    """
    if not headers and _mentioned(body) is None:
        return ReadBody(request_slo(None, config))
    layers: list[dict[str, msgspec.Raw]] = []
    content = body
    for key in place:
        members = _members(content)
        if members is None:
            return ReadBody(None)
        _refuse_astray(members, place)
        layers.append(members)
        content = bytes(members.get(key, b"null"))
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):  # an integer of thousands of digits, text in no encoding
        return ReadBody(None)
    if not isinstance(fields, dict | None):
        return ReadBody(None)
    merged = {**headers, **(fields or {})}
    slo = request_slo(merged, config)
    if merged == (fields or {}):
        return ReadBody(slo)
    written = json.dumps(merged, separators=(",", ":")).encode()
    for key, members in zip(reversed(place), reversed(layers), strict=True):
        members[key] = msgspec.Raw(written)
        written = b"{%s}" % b",".join(b"%s:%s" % (json.dumps(name).encode(), raw) for name, raw in members.items())
    return ReadBody(slo, written)


def _members(content: bytes) -> dict[str, msgspec.Raw] | None:
    """Members of a JSON object, their values left as they are written; None for anything else.

    Thirty times as fast as `json.loads` on a long prompt, and nothing of the prompt changes.
    """
    try:
        return _decoder.decode(content)
    except (ValueError, RecursionError):
        pass  # servers read with Python's json, which takes more: NaN, lone surrogates, other encodings
    try:
        members = json.loads(content)
        if not isinstance(members, dict):
            return None
        return {key: msgspec.Raw(json.dumps(value).encode()) for key, value in members.items()}
    except (ValueError, RecursionError):
        return None


def _refuse_astray(members: Mapping[str, object], place: tuple[str, ...]) -> None:
    """Refuse SLO fields beside the object that the engine reads them from."""
    for key in members:
        if key.startswith(PREFIX):
            raise SloFieldError(key[:64], f"is out of place: the engine reads it in {'.'.join(place)}; put it there")
