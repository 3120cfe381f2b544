"""Built-in engines, each with the source of its figures."""

import difflib

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.errors import InvalidInputError

_VIDUR = "least-squares fit over vidur's profiled kernels (microsoft/vidur, MIT), R2 {r2}, plus 4 ms host time a step"
_AIC = "least-squares fit over NVIDIA AIConfigurator kernel data (Apache-2.0), R2 {r2}, plus 4 ms host time a step"
_HOST_S = 0.004


def _kv_blocks(gpus: int, weights_gib: float, kib_per_token: float) -> int:
    """Blocks of 16 tokens: 80 GiB a GPU at 90 % utilisation, less the weights and 2 GiB of activations a GPU."""
    free_gib = gpus * (80 * 0.9 - 2) - weights_gib
    return int(free_gib * 1024 * 1024 / kib_per_token / 16)


_ENGINES = (
    EngineModel(
        name="opt-6.7b-a100",
        source="coefficients quoted by SLOs-Serve (arXiv 2504.08784) for OPT-6.7B on A100: whole iterations, host time "
        "included",
        pieces=(RooflinePiece(6.878e-5, 2.480e-2), RooflinePiece(7.523e-5, 3.033e-3)),
        kv_blocks=_kv_blocks(1, 12.4, 512),
        max_model_len=2048,
    ),
    EngineModel(
        name="opt-6.7b-a100-draft",
        source="coefficients quoted by SLOs-Serve (arXiv 2504.08784) for OPT-6.7B with an OPT-125M draft on A100; the "
        "KV cache of the draft is not counted",
        pieces=(RooflinePiece(6.878e-5, 2.480e-2, 1.249e-6), RooflinePiece(7.523e-5, 3.033e-3, 3.465e-3)),
        kv_blocks=_kv_blocks(1, 12.4 + 0.25, 512),
        max_model_len=2048,
    ),
    EngineModel(
        name="llama-3-8b-a100",
        source=_VIDUR.format(r2=0.9996),
        pieces=(RooflinePiece(0.0334984e-3, 11.0555e-3), RooflinePiece(0.0684091e-3, 7.15099e-3)),
        decode_context_s=8.20731e-8,
        prefill_pair_s=2.82171e-9,
        host_s=_HOST_S,
        kv_blocks=_kv_blocks(1, 15.0, 128),
    ),
    EngineModel(
        name="llama-3-8b-h100",
        source=_AIC.format(r2=0.9991),
        pieces=(RooflinePiece(0.00924451e-3, 6.4976e-3), RooflinePiece(0.0207472e-3, 2.2937e-3)),
        decode_context_s=4.13893e-8,
        prefill_pair_s=0.798604e-9,
        request_s=0.00166183e-3,
        host_s=_HOST_S,
        kv_blocks=_kv_blocks(1, 15.0, 128),
    ),
    EngineModel(
        name="llama-70b-tp4-a100",
        source=_VIDUR.format(r2=0.9987),
        pieces=(RooflinePiece(0.115816e-3, 30.8289e-3), RooflinePiece(0.185893e-3, 23.0448e-3)),
        decode_context_s=6.0578e-8,
        prefill_pair_s=3.22969e-9,
        host_s=_HOST_S,
        kv_blocks=_kv_blocks(4, 131.4, 320),
    ),
    EngineModel(
        name="llama-70b-tp4-h100",
        source=_AIC.format(r2=0.9988),
        pieces=(RooflinePiece(0.0295234e-3, 16.1951e-3), RooflinePiece(0.0667672e-3, 5.03198e-3)),
        decode_context_s=2.66463e-8,
        prefill_pair_s=0.914274e-9,
        host_s=_HOST_S,
        kv_blocks=_kv_blocks(4, 131.4, 320),
    ),
)
ENGINES = {engine.name: engine for engine in _ENGINES}


def engine_named(name: str) -> EngineModel:
    """The built-in engine of that name.

    Raises
    ------
    InvalidInputError
        No such engine; the message suggests the nearest name.
    """
    try:
        return ENGINES[name]
    except KeyError:
        near = difflib.get_close_matches(name, ENGINES, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InvalidInputError(f"unknown engine {name!r}. {hint}Known: {', '.join(ENGINES)}") from None
