"""How a round's SLO is written into its call."""

from enum import StrEnum
from typing import Any

from slo_opt.domain.instance import Instance
from slo_opt.replay.rounds import Round


class SloFields(StrEnum):
    """Where the SLO of a request goes.

    Attributes
    ----------
    XARGS
        Limits and class into ``vllm_xargs`` of the body. The server must know the classes by name.
    LIMITS
        The limits alone: for a server that does not know the classes of the trace.
    HEADERS
        ``x-slo-ttft-ms`` and ``x-slo-tpot-ms``, the names of llm-d.
    NONE
        Nowhere: for servers that refuse what they do not know.
    """

    XARGS = "xargs"
    LIMITS = "limits"
    HEADERS = "headers"
    NONE = "none"


def xargs(instance: Instance, served: Round, *, name_class: bool = True) -> dict[str, Any]:
    """The fields of ``vllm_xargs``.

    Parameters
    ----------
    instance : Instance
        Turns a TTFT slowdown into milliseconds on its engine model.
    served : Round
        The first stage gives the TTFT. Of two stages and more, the first is the thinking phase; the response is under
        the tightest TPOT of the others, since the fields know two phases.
    name_class : bool
        Whether the class is named too: that of the last stage.
    """
    last = instance.slo_classes[served.stages[-1].slo]
    fields: dict[str, Any] = {"slo_class": last.name} if name_class else {}
    if last.best_effort:
        return {**fields, "slo_best_effort": 1}
    first, *others = served.stages
    fields["slo_ttft_ms"] = _ttft_ms(instance, served)
    fields["slo_tpot_ms"] = min(instance.slo_classes[stage.slo].tpot_ms for stage in others or [first])
    if others:
        fields["slo_thinking_tpot_ms"] = instance.slo_classes[first.slo].tpot_ms
        fields["slo_thinking_tokens"] = first.output_tokens
    return fields


def headers(instance: Instance, served: Round) -> dict[str, str]:
    """The headers of llm-d; none for best effort. One TPOT: the tightest of the round."""
    if instance.slo_classes[served.stages[-1].slo].best_effort:
        return {}
    tpot_ms = min(instance.slo_classes[stage.slo].tpot_ms for stage in served.stages)
    return {"x-slo-ttft-ms": f"{_ttft_ms(instance, served):.6g}", "x-slo-tpot-ms": f"{tpot_ms:.6g}"}


def priorities(instance: Instance) -> dict[str, int]:
    """A priority for each SLO class, 0 first: by TPOT, equal ones alike, best effort after all others."""
    ranked = sorted({slo.tpot_ms for slo in instance.slo_classes.values() if not slo.best_effort})
    return {
        slo.name: len(ranked) if slo.best_effort else ranked.index(slo.tpot_ms) for slo in instance.slo_classes.values()
    }


def _ttft_ms(instance: Instance, served: Round) -> float:
    return 1e3 * instance.ttft_limit_s(served.stages[0])
