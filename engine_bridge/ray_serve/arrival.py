"""From a request on the wire to what routing needs of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from slo_opt.engine_bridge.config import BEST_EFFORT_TPOT_MS, BEST_EFFORT_TTFT_MS, BridgeConfig
from slo_opt.engine_bridge.router.shape import Shape, shape_of
from slo_opt.engine_bridge.slo_body import header_fields, place_of, read_body
from slo_opt.engine_bridge.slo_fields import RequestSlo, request_slo


class _Written(msgspec.Struct, frozen=True):
    vllm_xargs: dict[str, Any] | None = None


_written = msgspec.json.Decoder(_Written)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that has come.

    Parameters
    ----------
    slo : RequestSlo
        What it asks for. What generates nothing is best effort.
    shape : Shape
        Its size.
    arguments : dict or None
        Its ``vllm_xargs`` with the fields of its headers; None where they are as they came.
    """

    slo: RequestSlo
    shape: Shape
    arguments: dict[str, Any] | None = None


def read_arrival(path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes, config: BridgeConfig) -> Arrival:
    """Read a request as slo-opt's own router and middleware read it.

    Parameters
    ----------
    path : str
        The endpoint.
    headers : iterable of (bytes, bytes)
        All of them.
    body : bytes
        As it came.
    config : BridgeConfig
        Names the SLO classes.

    Raises
    ------
    SloFieldError
        An SLO field means nothing.
    """
    place = place_of(path)
    if place is None:
        plain = RequestSlo(
            config.default_class, BEST_EFFORT_TPOT_MS / 1e3, ttft_s=BEST_EFFORT_TTFT_MS / 1e3, best_effort=True
        )
        return Arrival(plain, shape_of(body))
    read = read_body(body, place, header_fields(headers), config)
    slo = request_slo(None, config) if read.slo is None else read.slo
    arguments = None if read.body is None else _written.decode(read.body).vllm_xargs
    return Arrival(slo, shape_of(body), arguments)
