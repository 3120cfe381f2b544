"""The configuration of the live scheduler: one TOML file, read strictly. See docs/slo-fields.md."""

import os
import pkgutil
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from slo_opt.domain.engines import ENGINES
from slo_opt.domain.errors import InvalidInputError
from slo_opt.domain.slo import MAX_LIMIT_MS, SloClass
from slo_opt.engine_bridge.config_checks import ConfigError, check_keys, check_kinds, check_range, joined, refuse
from slo_opt.engine_bridge.shown import shown
from slo_opt.policies.registry import policy_entry
from slo_opt.policies.settings import check_setting
from slo_opt.traces.nearest import did_you_mean

ENVIRONMENT_VARIABLE = "SLO_OPT_CONFIG"
LEARN = "learn"
DEFAULT_CLASS = "default"
MAX_THINKING_TOKENS = 10_000_000
BEST_EFFORT_TPOT_MS = 1_000.0  # a best-effort request is scored by nothing; these order it among its like
BEST_EFFORT_TTFT_MS = 60_000.0

OnUnattainable = Literal["best-effort", "refuse"]
_ANSWERS = ("best-effort", "refuse")
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class LiveClass:
    """A class of requests that clients may name in ``slo_class``.

    Either best effort and without limits, or with a TTFT limit (absolute or as a slowdown) and a TPOT limit.

    Parameters
    ----------
    name : str
        Letters, digits, ``.``, ``_`` and ``-``; at most 64 of them.
    ttft_ms : float or None
        Time to first token.
    ttft_slowdown : float or None
        Instead of `ttft_ms`: a multiple (>= 1) of the time that the request's prompt takes on an idle engine.
    tpot_ms : float or None
        Time per output token; of the response alone where a thinking limit is given.
    thinking_tpot_ms : float or None
        Time per token until thinking ends.
    thinking_tokens : int or None
        Thinking ends after so many tokens at the latest; None: at the end-of-thinking token.
    weight : float
        Value of attaining one request, in (0, 1e6].
    best_effort : bool
        Served with what is left over, under no limit.
    """

    name: str
    ttft_ms: float | None = None
    ttft_slowdown: float | None = None
    tpot_ms: float | None = None
    thinking_tpot_ms: float | None = None
    thinking_tokens: int | None = None
    weight: float = 1.0
    best_effort: bool = False

    def __post_init__(self) -> None:
        where = joined("classes", self.name)
        if not isinstance(self.name, str) or not _CLASS_NAME.fullmatch(self.name):
            refuse(
                where,
                f"{shown(self.name)} is no name for a class",
                "Name it with 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first: it travels in "
                "headers and labels.",
            )
        check_kinds(self, where)
        for key in ("ttft_ms", "tpot_ms", "thinking_tpot_ms"):
            check_range(where, key, getattr(self, key), 0, MAX_LIMIT_MS, "milliseconds")
        check_range(where, "weight", self.weight, 0, 1e6, "a number")
        if self.ttft_slowdown is not None and not 1 <= self.ttft_slowdown <= 1e6:
            refuse(
                f"{where}.ttft_slowdown",
                f"is {shown(self.ttft_slowdown)}; expected a number in [1, 1e6]",
                "It multiplies the time to first token on an idle engine: below 1 nothing can be on time.",
            )
        if self.thinking_tokens is not None and not 1 <= self.thinking_tokens <= MAX_THINKING_TOKENS:
            refuse(
                f"{where}.thinking_tokens",
                f"is {shown(self.thinking_tokens)}; expected an integer in [1, {MAX_THINKING_TOKENS}]",
                "Leave it out where nothing is thought.",
            )
        self._check_together(where)

    def _check_together(self, where: str) -> None:
        if self.best_effort:
            given = [key for key in _LIMITS if getattr(self, key) is not None]
            if given:
                refuse(
                    f"{where}.{given[0]}",
                    "is a limit of a best-effort class, which has none",
                    "Leave out the limit, or best_effort.",
                )
            return
        if self.ttft_ms is not None and self.ttft_slowdown is not None:
            refuse(f"{where}.ttft_slowdown", "is given beside ttft_ms; expected one of them", "Leave out one.")
        if self.ttft_ms is None and self.ttft_slowdown is None:
            refuse(f"{where}.ttft_ms", "is missing, and so is ttft_slowdown", "Give one, or best_effort = true.")
        if self.tpot_ms is None:
            refuse(f"{where}.tpot_ms", "is missing", "Give it, or best_effort = true.")
        if self.thinking_tokens is not None and self.thinking_tpot_ms is None:
            refuse(
                f"{where}.thinking_tokens",
                "is given without thinking_tpot_ms",
                "Give thinking_tpot_ms, or leave out thinking_tokens.",
            )

    def slo_class(self) -> SloClass:
        """The class as policies know it. A best-effort one gets limits that order it among its like."""
        if self.best_effort:
            return SloClass(
                self.name, BEST_EFFORT_TPOT_MS, ttft_ms=BEST_EFFORT_TTFT_MS, weight=self.weight, best_effort=True
            )
        assert self.tpot_ms is not None
        return SloClass(self.name, self.tpot_ms, self.ttft_ms, self.ttft_slowdown, self.weight)


_LIMITS = ("ttft_ms", "ttft_slowdown", "tpot_ms", "thinking_tpot_ms", "thinking_tokens")


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """What an operator chooses; every field has a default.

    Parameters
    ----------
    policy : str
        Name of a policy of ``slo_opt.policies.registry``.
    setting : mapping
        Keywords of that policy.
    engine : str
        ``"learn"``: batch times are learned from nothing; the name of a built-in engine; or the path of an engine file
        that ``slo-opt calibrate`` wrote.
    classes : mapping of str to LiveClass
        What clients may name. The default class is always among them.
    default_class : str
        Class of a request that names none. If it is ``"default"`` and not configured, it is best effort.
    on_unattainable : {"best-effort", "refuse"}
        What happens to a request that cannot be on time.
    retry_after_s : int
        Seconds in the Retry-After header of a refusal whose reason names none.
    margin_quantile : float
        In (0, 1): batches are taken to last as long as this quantile of actual / predicted says.
    recalibrate : bool
        Whether the engine model follows what batches really take.
    headroom_ms : float
        Deadlines are brought forward by so much: the time that a token takes from the engine to its client.
    cushion_ms : float
        The planner aims at finishing so much before each deadline, at most a fifth of the TTFT limit: a batch that
        overruns then makes nobody late, and the time is won back after it.
    planner_limit_ms : float
        A decision that takes longer counts as a failure of the planner.
    max_planned_waiting : int
        Waiting requests that one decision looks at.
    thinking_end_token_id : int or None
        The token that ends thinking.
    decision_log, step_log : Path or None
        Files for what became of each request, and of each batch; None writes none.

    Raises
    ------
    ConfigError
        A value of another type or out of range, an unknown policy, setting or default class.
    """

    policy: str = "slo-opt"
    setting: Mapping[str, Any] = field(default_factory=dict)
    engine: str = LEARN
    classes: Mapping[str, LiveClass] = field(default_factory=dict)
    default_class: str = DEFAULT_CLASS
    on_unattainable: OnUnattainable = "best-effort"
    retry_after_s: int = 1
    margin_quantile: float = 0.9
    recalibrate: bool = True
    headroom_ms: float = 5.0
    cushion_ms: float = 30.0
    planner_limit_ms: float = 50.0
    max_planned_waiting: int = 64
    thinking_end_token_id: int | None = None
    decision_log: Path | None = None
    step_log: Path | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "")
        classes = dict(self.classes)
        for name, live in classes.items():
            if name != live.name:
                refuse(joined("classes", name), f"holds a class that is named {shown(live.name)}", "Use one name.")
        if self.default_class == DEFAULT_CLASS:
            classes.setdefault(DEFAULT_CLASS, LiveClass(DEFAULT_CLASS, best_effort=True))
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "setting", dict(self.setting))
        self._check_names()
        self._check_numbers()
        for live in classes.values():
            if (
                live.thinking_tpot_ms is not None
                and live.thinking_tokens is None
                and self.thinking_end_token_id is None
            ):
                refuse(
                    f"classes.{live.name}.thinking_tpot_ms",
                    "is given, but nothing says where thinking ends",
                    "Give the class thinking_tokens, or give thinking_end_token_id at the top of the file.",
                )

    def _check_names(self) -> None:
        if self.default_class not in self.classes:
            hint = did_you_mean(self.default_class, self.classes)
            refuse(
                "default_class",
                f"is {shown(self.default_class)}, no class here. {hint}Known: {', '.join(self.classes) or 'none'}",
                f"Add [classes.{self.default_class}], or name another.",
            )
        if self.on_unattainable not in _ANSWERS:
            hint = did_you_mean(self.on_unattainable, _ANSWERS)
            refuse("on_unattainable", f"is {shown(self.on_unattainable)}", f"{hint}Known: {', '.join(_ANSWERS)}.")
        try:
            entry = policy_entry(self.policy)
        except InvalidInputError as error:
            refuse("policy.name", str(error), "Name one of them.")
        if self.setting:  # a policy's module loads the compiler of the DP: not where it can be spared
            try:
                check_setting(self.policy, pkgutil.resolve_name(entry.factory), self.setting)
            except (InvalidInputError, ImportError, AttributeError, ValueError) as error:
                refuse("policy", str(error), "Change or leave out the setting.")

    def _check_numbers(self) -> None:
        check_range("", "planner_limit_ms", self.planner_limit_ms, 0, 60_000, "milliseconds")
        for key, usual in (("headroom_ms", 5), ("cushion_ms", 30)):
            value = getattr(self, key)
            if not 0 <= value <= 60_000:
                refuse(key, f"is {shown(value)}; expected milliseconds in [0, 60000]", f"Take {usual}.")
        if not 0 < self.margin_quantile < 1:
            refuse("margin_quantile", f"is {shown(self.margin_quantile)}; expected a number in (0, 1)", "Take 0.9.")
        for key, least, most in (
            ("retry_after_s", 1, 86_400),
            ("max_planned_waiting", 1, 1_000_000),
            ("thinking_end_token_id", 0, (1 << 31) - 1),
        ):
            value = getattr(self, key)
            if value is not None and not least <= value <= most:
                refuse(
                    key,
                    f"is {shown(value)}; expected an integer in [{least}, {most}]",
                    "Change it, or leave the key out.",
                )

    def slo_classes(self) -> dict[str, SloClass]:
        """The classes as policies know them."""
        return {name: live.slo_class() for name, live in self.classes.items()}


def config_from_environment(environment: Mapping[str, str] | None = None) -> BridgeConfig:
    """The configuration that ``$SLO_OPT_CONFIG`` names; the defaults where it is unset or empty.

    Raises
    ------
    ConfigError
        See `load_config`.
    """
    path = (os.environ if environment is None else environment).get(ENVIRONMENT_VARIABLE)
    return load_config(path) if path else BridgeConfig()


def load_config(path: str | Path) -> BridgeConfig:
    """Read a TOML file. Relative paths in it start at its folder.

    Raises
    ------
    ConfigError
        The file cannot be read, is no TOML, has an unknown key, or a value that means nothing.
    """
    file = Path(path)
    try:
        tables = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            str(path), "file", f"cannot be read: {error.strerror or error}", f"Check ${ENVIRONMENT_VARIABLE}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), "file", f"is no TOML: {error}", "See docs/slo-fields.md.") from None
    try:
        return _config(tables, file.parent)
    except ConfigError as error:
        raise ConfigError(str(path), error.key, error.problem, error.remedy) from None


def _config(tables: dict[str, Any], folder: Path) -> BridgeConfig:
    """The configuration that the tables of a file describe."""
    known = [item.name for item in fields(BridgeConfig) if item.name != "setting"]
    check_keys("", tables, known)
    given = dict(tables)
    policy = _table("policy", given.pop("policy", {}))
    if "name" in policy:
        given["policy"] = policy.pop("name")
    classes: dict[str, LiveClass] = {}
    class_keys = [item.name for item in fields(LiveClass) if item.name != "name"]
    for name, content in _table("classes", given.pop("classes", {})).items():
        keys = _table(joined("classes", name), content)
        check_keys(joined("classes", name), keys, class_keys)
        classes[name] = LiveClass(name, **keys)
    for key in ("decision_log", "step_log"):
        if key in given:
            given[key] = _path(key, given[key], folder)
    if "engine" in given:
        given["engine"] = _engine(given["engine"], folder)
    return BridgeConfig(setting=policy, classes=classes, **given)


def _engine(value: Any, folder: Path) -> str:
    """The engine as given, or the path of its file."""
    if value == LEARN or (isinstance(value, str) and value in ENGINES):
        return cast(str, value)
    path = _path("engine", value, folder)
    if not path.is_file():
        known = [LEARN, *ENGINES]
        refuse(
            "engine",
            f"is {shown(value)}: no built-in engine, and there is no file {path}",
            f"{did_you_mean(value, known)}Known: {', '.join(known)}; or the file that slo-opt calibrate wrote.",
        )
    return str(path)


def _path(key: str, value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        refuse(key, f"is {shown(value)}; expected a path", "Write it in quotes.")
    return folder / os.path.expanduser(value)


def _table(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse(key, f"is {shown(value)}; expected a table", f"Write [{key}] and its keys below.")
    return dict(value)
