"""Workload profiles: published statistics of real traces, from which generators draw.

Quantiles are facts about the data sets named in each profile; no row of any of them is stored here.
"""

from dataclasses import dataclass

from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.arrivals import CODE_BURSTS, POISSON, Arrivals, Gamma
from slo_opt.traces.lengths import Lengths, Quantiles
from slo_opt.traces.nearest import did_you_mean

_PROBABILITIES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.97, 0.99, 0.995, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Profile:
    """A workload that can be generated.

    Parameters
    ----------
    name, source : str
        What users type, and where its statistics come from.
    lengths : Lengths
        Prompt and output tokens.
    arrivals : Arrivals
        Its own arrival process.
    rate : float
        Requests a second in the source; 1 where it has no arrivals.
    scenario : str
        The scenario whose SLOs suit it.
    """

    name: str
    source: str
    lengths: Lengths
    arrivals: Arrivals
    rate: float
    scenario: str


def _through(*tokens: int) -> Quantiles:
    """Quantiles at the probabilities 0, 1, 5, 10, 25, 50, 75, 90, 95, 97, 99, 99.5, 99.9 and 100 %."""
    return Quantiles(tuple(zip(_PROBABILITIES, tokens, strict=True)))


_AZURE = "Azure LLM inference trace 2023, {} (CC-BY-4.0; Patel et al., Splitwise, ISCA 2024)"
_ALL = (
    Profile(
        "azure-code",
        _AZURE.format("code"),
        Lengths(
            _through(3, 17, 75, 147, 578, 1469, 2744, 5187, 7303, 7435, 7436, 7436, 7437, 7437),
            _through(6, 6, 6, 7, 9, 13, 24, 55, 90, 128, 251, 359, 825, 1899),
        ),
        CODE_BURSTS,
        2.57,
        "coder",
    ),
    Profile(
        "azure-conv",
        _AZURE.format("conversation"),
        Lengths(
            _through(2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4090, 4142, 4831, 6179, 14050),
            _through(7, 16, 41, 54, 85, 129, 395, 424, 451, 509, 601, 643, 954, 1000),
            rank_correlation=0.07,
        ),
        Gamma(1.09),
        5.53,
        "chatbot",
    ),
    Profile(
        "burstgpt",
        "BurstGPT (Wang et al., arXiv 2401.17644): means and 50, 90 and 99 % quantiles, the rest chosen to fit them",
        Lengths(
            Quantiles(((0, 5), (0.25, 25), (0.5, 74), (0.75, 330), (0.9, 1291), (0.99, 3023), (1, 4096))),
            Quantiles(((0, 1), (0.25, 6), (0.5, 14), (0.75, 170), (0.9, 401), (0.99, 757), (1, 1600))),
        ),
        Gamma(3.0),
        1.0,
        "chatbot",
    ),
    Profile(
        "servegen-reasoning",
        "ServeGen, DeepSeek-R1 clients (Alibaba, Apache-2.0; arXiv 2505.09999), one sampled hour",
        Lengths(
            _through(4, 10, 25, 27, 100, 266, 487, 847, 1702, 2691, 12217, 17693, 29505, 42544),
            _through(78, 154, 221, 270, 380, 527, 1125, 1503, 1660, 1798, 6348, 11280, 17721, 24742),
            rank_correlation=-0.35,
        ),
        POISSON,
        1.86,
        "reasoning",
    ),
    Profile(
        "toolbench",
        "synthetic rounds in the manner of ToolBench: contexts at prefill average about 690 tokens over the rounds",
        Lengths(
            Quantiles(((0, 150), (0.1, 260), (0.5, 430), (0.9, 720), (0.99, 1050), (1, 1300))),
            Quantiles(((0, 24), (0.1, 60), (0.5, 120), (0.9, 260), (0.99, 450), (1, 700))),
        ),
        POISSON,
        1.0,
        "toolllm",
    ),
    Profile(
        "arxiv",
        "arXiv summarization lengths as filtered by vidur (microsoft/vidur, MIT)",
        Lengths(
            _through(1, 73, 748, 1242, 1986, 2730, 3370, 3702, 3813, 3863, 3933, 3963, 4011, 4054),
            _through(5, 36, 60, 78, 115, 167, 242, 372, 736, 2199, 3271, 3582, 3844, 4056),
            rank_correlation=-0.11,
        ),
        POISSON,
        1.0,
        "summarizer",
    ),
    Profile(
        "sharegpt",
        "ShareGPT lengths, conversation so far included (microsoft/sarathi-serve, Apache-2.0)",
        Lengths(
            _through(1, 12, 29, 74, 580, 1730, 3734, 5696, 6563, 6950, 7433, 7622, 7853, 8141),
            _through(2, 6, 44, 84, 228, 415, 628, 834, 920, 957, 998, 1009, 1021, 1024),
            rank_correlation=0.05,
        ),
        POISSON,
        1.0,
        "chatbot",
    ),
    Profile(
        "humaneval",
        "HumanEval problems and solutions, tokens estimated as characters / 3.3 (openai/human-eval, MIT)",
        Lengths(
            _through(35, 40, 53, 66, 87, 120, 172, 234, 277, 314, 365, 389, 408, 413),
            _through(5, 6, 10, 13, 24, 45, 73, 112, 132, 149, 199, 221, 253, 262),
            rank_correlation=0.45,
        ),
        POISSON,
        1.0,
        "coder",
    ),
)
PROFILES = {profile.name: profile for profile in _ALL}
# The workload that each scenario is published with; PolyServe and QoServe assign their tiers to any.
OF_SCENARIO = {
    "chatbot": "azure-conv",
    "coder": "azure-code",
    "summarizer": "arxiv",
    "toolllm": "toolbench",
    "reasoning": "servegen-reasoning",
    "polyserve": "azure-conv",
    "qoserve": "azure-conv",
}


def profile_named(name: str) -> Profile:
    """The profile of that name, or the one that a scenario of that name is published with.

    Raises
    ------
    InvalidInputError
        No such profile; the message suggests the nearest name.
    """
    name = OF_SCENARIO.get(name, name)
    if name not in PROFILES:
        known = [*OF_SCENARIO, "mixed", *PROFILES]
        raise InvalidInputError(
            f"unknown profile {name!r}. {did_you_mean(name, known)}Scenarios and profiles: {', '.join(known)}"
        )
    return PROFILES[name]
