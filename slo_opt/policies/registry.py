"""Policies by name, and the static settings among which a fair comparison takes the best."""

from collections.abc import Mapping
from dataclasses import dataclass

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.slo import SloClass
from slo_opt.policies.catalogue import Catalogue, Entry, Setting
from slo_opt.policies.interface import AllocationPolicy
from slo_opt.policies.lengths import LengthPredictor


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What a policy may know before the first request.

    Parameters
    ----------
    engine : EngineModel
        The engine it will run on.
    slo_classes : mapping of str to SloClass
        The classes that it will meet.
    lengths : LengthPredictor
        What it may know of output lengths; not shared between policies, since it learns.
    decodes : bool
        Whether requests stay for their decodes. Otherwise they leave with their first token, for another replica.
    """

    engine: EngineModel
    slo_classes: Mapping[str, SloClass]
    lengths: LengthPredictor
    decodes: bool = True


PolicyEntry = Entry
_ALL = (
    PolicyEntry(
        "vllm-fcfs",
        "vLLM: running first, then first come first served, one token budget, chunked prefill",
        "slo_opt.policies.vllm:VllmPolicy",
        tuple({"budget_tokens": budget} for budget in (2048, 256, 512, 1024, 4096, 8192)),
    ),
    PolicyEntry(
        "vllm-priority",
        "vLLM with priorities: tightest TPOT first, then arrival",
        "slo_opt.policies.vllm:VllmPriorityPolicy",
        tuple({"budget_tokens": budget} for budget in (2048, 256, 512, 1024, 4096, 8192)),
    ),
    PolicyEntry(
        "prefill-first",
        "vLLM without chunked prefill: whole prompts before any decode",
        "slo_opt.policies.prefill_first:PrefillFirstPolicy",
        tuple({"budget_tokens": budget} for budget in (8192, 2048, 4096)),
    ),
    PolicyEntry(
        "sarathi",
        "Sarathi-Serve: decodes first, then chunked prompts up to the tokens that keep the tightest TPOT",
        "slo_opt.policies.sarathi:SarathiPolicy",
        (
            {"cap_factor": 1.0},
            {"cap_factor": 0.8},
            {"cap_factor": 1.5},
            {"cap_tokens": 512},
            {"cap_tokens": 1024},
            {"cap_tokens": 2048},
        ),
    ),
    PolicyEntry(
        "edf",
        "earliest next-token deadline first, chunks that end before a decode is late",
        "slo_opt.policies.edf:EdfPolicy",
    ),
    PolicyEntry(
        "qoserve",
        "QoServe (Niyama): deadline plus size as the key, slack-sized chunks, relegation of the late",
        "slo_opt.policies.qoserve:QoServePolicy",
        (
            {"alpha_ms": 8.0, "margin": 1.2},
            {"alpha_ms": 1.0, "margin": 1.2},
            {"alpha_ms": 8.0, "margin": 1.0},
            {"alpha_ms": 1.0, "margin": 1.0},
        ),
    ),
    PolicyEntry(
        "jitserve",
        "JITServe (Tempo): most value for the time still needed, preemption by that density",
        "slo_opt.policies.jitserve:JitServePolicy",
        ({"frame_batches": 20}, {"frame_batches": 5}),
    ),
    PolicyEntry(
        "scorpio",
        "Scorpio: least deadline first, hopeless requests rejected, decodes by credit",
        "slo_opt.policies.scorpio:ScorpioPolicy",
        ({"guard": 1.0}, {"guard": 0.9}, {"guard": 0.8}),
    ),
    PolicyEntry(
        "adaserve",
        "AdaServe: drafted tokens by need, the rest of the budget to the likeliest",
        "slo_opt.policies.adaserve:AdaServePolicy",
        (
            {"budget_factor": 1.0, "idle_factor": 0.5},
            {"budget_factor": 1.0, "idle_factor": 0.35},
            {"budget_factor": 1.0, "idle_factor": 1.0},
            {"budget_factor": 0.8, "idle_factor": 0.5},
            {"budget_factor": 1.5, "idle_factor": 0.5},
        ),
    ),
    PolicyEntry(
        "slos-serve",
        "SLOs-Serve: admission by the DP, batches of one period, a best-effort tier for bursts",
        "slo_opt.policies.slos_serve:SlosServePolicy",
        (
            {"replan_s": 0.1, "growth": False},
            {"replan_s": 0.0, "growth": False},
            {"replan_s": 0.1, "growth": True},
            {"replan_s": 0.0, "growth": True},
        ),
        compiles=True,
    ),
    PolicyEntry(
        "polyserve",
        "PolyServe: all decodes, then the largest chunk of prompts within the tightest remaining budget",
        "slo_opt.policies.polyserve:PolyServePolicy",
        ({"dynamic": True}, {"dynamic": False, "fixed_tokens": 512}, {"dynamic": False, "fixed_tokens": 1024}),
    ),
    PolicyEntry(
        "slo-opt",
        "this project's own: the DP behind bid prices, deadline-sized batches, leads spent where prompts crowd",
        "slo_opt.policies.slo_opt:SloOptPolicy",
        compiles=True,
    ),
)
POLICIES = {entry.name: entry for entry in _ALL}
CATALOGUE = Catalogue("policy", POLICIES)
policy_entry = CATALOGUE.entry
prepare = CATALOGUE.prepare
full_setting = CATALOGUE.full_setting


def make_policy(name: str, context: PolicyContext, setting: Setting | None = None) -> AllocationPolicy:
    """A fresh policy; `setting` overrides its default one.

    Raises
    ------
    InvalidInputError
        Unknown name, or a setting that the policy does not have or refuses.
    """
    made: AllocationPolicy = CATALOGUE.make(name, context, setting)
    return made
