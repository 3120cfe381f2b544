"""Policies by name, and the static settings among which a fair comparison takes the best."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slo_opt.domain.engine import EngineModel
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import SloClass
from slo_opt.policies.interface import AllocationPolicy
from slo_opt.policies.lengths import LengthPredictor
from slo_opt.policies.settings import check_setting, defaults_of

Setting = Mapping[str, Any]


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
    """

    engine: EngineModel
    slo_classes: Mapping[str, SloClass]
    lengths: LengthPredictor


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy that can be named.

    Parameters
    ----------
    name, summary : str
        What users type, and one line about it.
    factory : str
        ``module:Class``; the class takes a `PolicyContext` and the keywords of one setting.
    settings : tuple of mapping
        Static settings to try, the default first.
    compiles : bool
        Whether it plans with the DP, whose kernels are compiled once a machine: see `prepare`.
    """

    name: str
    summary: str
    factory: str
    settings: tuple[Setting, ...] = field(default=({},))
    compiles: bool = False


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


def policy_entry(name: str) -> PolicyEntry:
    """The policy of that name, or a class of one's own as ``module:Class``.

    Raises
    ------
    InvalidInputError
        There is none; the message suggests the nearest.
    """
    if ":" in name:
        return PolicyEntry(name, "a policy of one's own", name, compiles=True)
    if name not in POLICIES:
        from slo_opt.traces.nearest import did_you_mean

        raise InvalidInputError(
            f"unknown policy {name!r}. {did_you_mean(name, POLICIES)}Known: {', '.join(POLICIES)}, or module:Class"
        )
    return POLICIES[name]


def _factory(entry: PolicyEntry) -> Any:
    module, _, attribute = entry.factory.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        if entry.name in POLICIES:
            raise
        raise InvalidInputError(
            f"policy {entry.name!r} cannot be loaded: {error}; expected module:Class, with the module on Python's path"
        ) from error


def prepare(names: Iterable[str], announce: Callable[[str, None], None] | None = None) -> None:
    """Compile what these policies need before their decisions are timed; quick where that has been done.

    Parameters
    ----------
    names : iterable of str
        Of policies.
    announce : callable or None
        Told what happens, before it does.

    Raises
    ------
    InvalidInputError
        An unknown name.
    """
    entries = [policy_entry(name) for name in names]
    if not any(entry.compiles for entry in entries):
        return
    if announce is not None:
        announce("compiling the admission planner, once a machine", None)
    from slo_opt.policies.admission import compile_planner

    compile_planner()


def full_setting(name: str, setting: Setting | None = None) -> dict[str, Any]:
    """Every keyword that the policy runs with: its constructor's defaults, its default setting, then `setting`."""
    entry = policy_entry(name)
    return {**defaults_of(_factory(entry)), **entry.settings[0], **(setting or {})}


def make_policy(name: str, context: PolicyContext, setting: Setting | None = None) -> AllocationPolicy:
    """A fresh policy; `setting` overrides its default one.

    Raises
    ------
    InvalidInputError
        Unknown name, or a setting that the policy does not have or refuses.
    """
    factory = _factory(policy_entry(name))
    keywords = {**policy_entry(name).settings[0], **(setting or {})}
    check_setting(name, factory, keywords)
    policy: AllocationPolicy = factory(context, **keywords)
    return policy
