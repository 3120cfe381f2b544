"""The configuration file: what it may say, and what each mistake is answered with."""

import json
import pickle
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError
from slo_opt.engine_bridge.config import (
    BridgeConfig,
    LiveClass,
    config_from_environment,
    load_config,
)
from slo_opt.engine_bridge.config_checks import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/slo-fields.md"
CHAT = LiveClass("chat", ttft_ms=500, tpot_ms=50)


def load(tmp_path: Path, text: str | bytes) -> BridgeConfig:
    file = tmp_path / "slo.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(file)


def refused(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    error = caught.value
    assert error.path == str(tmp_path / "slo.toml")
    assert str(error).startswith(f"{error.path}: {error.key}: ")
    assert error.remedy
    return error


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load(tmp_path, "") == BridgeConfig()
    default = BridgeConfig().classes["default"]
    assert default.best_effort
    assert (BridgeConfig().policy, BridgeConfig().engine) == ("slo-opt", "learn")


def test_the_environment_names_the_file(tmp_path):
    (tmp_path / "a.toml").write_text("max_planned_waiting = 7\n")
    assert config_from_environment({"SLO_OPT_CONFIG": str(tmp_path / "a.toml")}).max_planned_waiting == 7
    assert config_from_environment({}) == config_from_environment({"SLO_OPT_CONFIG": ""}) == BridgeConfig()
    with pytest.raises(ConfigError, match=r"no\.toml: file: cannot be read"):
        config_from_environment({"SLO_OPT_CONFIG": str(tmp_path / "no.toml")})


def test_every_key_can_be_set(tmp_path):
    (tmp_path / "engine.json").write_text("{}")
    config = load(
        tmp_path,
        """
        engine = "engine.json"
        default_class = "chat"
        on_unattainable = "refuse"
        retry_after_s = 3
        margin_quantile = 0.95
        recalibrate = false
        headroom_ms = 2
        cushion_ms = 12.5
        planner_limit_ms = 20
        max_planned_waiting = 32
        thinking_end_token_id = 128003
        decision_log = "logs/decisions.jsonl"
        step_log = "/var/log/steps.jsonl"
        [policy]
        name = "sarathi"
        cap_factor = 0.8
        [classes.chat]
        ttft_slowdown = 5
        tpot_ms = 100
        thinking_tpot_ms = 50
        thinking_tokens = 1000
        weight = 2
        [classes.batch]
        best_effort = true
        """,
    )
    assert config == BridgeConfig(
        policy="sarathi",
        setting={"cap_factor": 0.8},
        engine=str(tmp_path / "engine.json"),
        classes={
            "chat": LiveClass(
                "chat", ttft_slowdown=5, tpot_ms=100, thinking_tpot_ms=50, thinking_tokens=1000, weight=2
            ),
            "batch": LiveClass("batch", best_effort=True),
        },
        default_class="chat",
        on_unattainable="refuse",
        retry_after_s=3,
        margin_quantile=0.95,
        recalibrate=False,
        headroom_ms=2,
        cushion_ms=12.5,
        planner_limit_ms=20,
        max_planned_waiting=32,
        thinking_end_token_id=128003,
        decision_log=tmp_path / "logs/decisions.jsonl",
        step_log=Path("/var/log/steps.jsonl"),
    )
    assert all(getattr(config, item.name) != getattr(BridgeConfig(), item.name) for item in fields(BridgeConfig))


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ("margin_quantil = 0.9", "margin_quantil", "Did you mean 'margin_quantile'?"),
        ("setting = {}", "setting", "is no key"),
        ("policy = 'slo-opt'", "policy", "expected a table"),
        ("classes = 3", "classes", "expected a table"),
        ("[classes]\nchat = 5", "classes.chat", "expected a table"),
        ("[classes.chat]\nttft = 5", "classes.chat.ttft", "Did you mean 'ttft_ms'?"),
        ("[classes.chat]\nttft_ms = 5", "classes.chat.tpot_ms", "is missing"),
        ("[classes.chat]\ntpot_ms = 5", "classes.chat.ttft_ms", "is missing"),
        ("[classes.chat]\nttft_ms = 5\nttft_slowdown = 2\ntpot_ms = 5", "classes.chat.ttft_slowdown", "beside"),
        ("[classes.chat]\nttft_ms = '5'\ntpot_ms = 5", "classes.chat.ttft_ms", "expected a number"),
        ("[classes.chat]\nttft_ms = true\ntpot_ms = 5", "classes.chat.ttft_ms", "expected a number"),
        ("[classes.chat]\nttft_ms = nan\ntpot_ms = 5", "classes.chat.ttft_ms", "milliseconds in (0, "),
        ("[classes.chat]\nttft_ms = inf\ntpot_ms = 5", "classes.chat.ttft_ms", "milliseconds in (0, "),
        ("[classes.chat]\nttft_ms = 5\ntpot_ms = 0", "classes.chat.tpot_ms", "milliseconds in (0, "),
        ("[classes.chat]\nttft_ms = 5\ntpot_ms = 86400001", "classes.chat.tpot_ms", "milliseconds in (0, "),
        ("[classes.chat]\nttft_slowdown = 0.9\ntpot_ms = 5", "classes.chat.ttft_slowdown", "[1, 1e6]"),
        ("[classes.chat]\nttft_ms = 5\ntpot_ms = 5\nweight = 0", "classes.chat.weight", "(0, 1e+06]"),
        ("[classes.chat]\nttft_ms = 5\ntpot_ms = 5\nthinking_tokens = 9", "classes.chat.thinking_tokens", "without"),
        ("[classes.chat]\nttft_ms = 5\ntpot_ms = 5\nthinking_tokens = 1.5", "classes.chat.thinking_tokens", "integer"),
        ("[classes.chat]\nttft_ms = 5\ntpot_ms = 5\nthinking_tpot_ms = 5", "classes.chat.thinking_tpot_ms", "ends"),
        ("[classes.chat]\nbest_effort = true\ntpot_ms = 5", "classes.chat.tpot_ms", "best-effort class"),
        ("[classes.chat]\nbest_effort = 1", "classes.chat.best_effort", "true or false"),
        ("[classes.'a b']\nbest_effort = true", "classes.'a b'", "no name for a class"),
        ("[classes.'']\nbest_effort = true", "classes.''", "no name for a class"),
        ("default_class = 'chat'", "default_class", "no class here"),
        ("default_class = 'chta'\n[classes.chat]\nbest_effort = true", "default_class", "Did you mean 'chat'?"),
        ("on_unattainable = 'reject'", "on_unattainable", "Known: best-effort, refuse"),
        ("retry_after_s = 0", "retry_after_s", "[1, 86400]"),
        ("margin_quantile = 1.0", "margin_quantile", "(0, 1)"),
        ("margin_quantile = nan", "margin_quantile", "(0, 1)"),
        ("recalibrate = 0", "recalibrate", "true or false"),
        ("headroom_ms = -1", "headroom_ms", "[0, 60000]"),
        ("cushion_ms = nan", "cushion_ms", "[0, 60000]"),
        ("planner_limit_ms = 0", "planner_limit_ms", "(0, 60000]"),
        ("max_planned_waiting = 0", "max_planned_waiting", "[1, 1000000]"),
        ("max_planned_waiting = 2.0", "max_planned_waiting", "an integer"),
        ("thinking_end_token_id = -1", "thinking_end_token_id", "[0, "),
        ("decision_log = ''", "decision_log", "expected a path"),
        ("step_log = 5", "step_log", "expected a path"),
        ("engine = 'llama-3-8b-h10'", "engine", "Did you mean 'llama-3-8b-h100'?"),
        ("engine = 5", "engine", "expected a path"),
        ("[policy]\nname = 'slo-op'", "policy.name", "Did you mean 'slo-opt'?"),
        ("[policy]\nname = 5", "policy.name", "expected text"),
        ("[policy]\nname = 'sarathi'\ncap_facto = 1.0", "policy", "Did you mean 'cap_factor'?"),
        ("[policy]\nname = 'sarathi'\ncap_factor = 'big'", "policy", "expected a number"),
        ("[policy]\nname = 'no_such_module:Policy'\nx = 1", "policy", "no_such_module"),
        ("max_planned_waiting = 0x" + "f" * 6000, "max_planned_waiting", "an integer of 24000 bits"),
        ("a = ", "file", "is no TOML"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "file", "is no TOML"),
        ("a = " + "[" * 100_000, "file", "is no TOML"),
    ],
)
def test_each_mistake_is_named_with_file_key_and_remedy(tmp_path, text, key, told):
    error = refused(tmp_path, text)
    assert error.key == key
    assert told in str(error)
    assert len(str(error)) < 600


def test_no_text_and_no_file(tmp_path):
    with pytest.raises(ConfigError, match="is no TOML"):
        load(tmp_path, b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert load(tmp_path, b"\xef\xbb\xbfmax_planned_waiting = 3").max_planned_waiting == 3


def test_a_configuration_made_in_python_is_checked_too():
    with pytest.raises(InvalidInputError, match=r"<configuration>: classes\.code: holds a class"):
        BridgeConfig(classes={"code": CHAT})
    with pytest.raises(ConfigError, match="on_unattainable"):
        BridgeConfig(on_unattainable="reject")


def test_it_travels_between_processes():
    config = BridgeConfig(policy="sarathi", setting={"cap_factor": 0.8}, classes={"chat": CHAT})
    assert pickle.loads(pickle.dumps(config)) == config


def test_classes_as_policies_know_them():
    classes = BridgeConfig(classes={"chat": CHAT}).slo_classes()
    assert classes["chat"].limits() == {"ttft_ms": 500, "tpot_ms": 50, "weight": 1.0}
    assert not classes["chat"].best_effort
    assert classes["default"].best_effort


MILLISECONDS = st.floats(0.001, 86_400_000) | st.integers(1, 86_400_000)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@st.composite
def live_classes(draw: st.DrawFn) -> dict[str, object]:
    """The keys of a class that is right."""
    if draw(st.booleans()):
        return {"best_effort": True}
    keys: dict[str, object] = {"tpot_ms": draw(MILLISECONDS), "weight": draw(st.floats(0.001, 1e6))}
    if draw(st.booleans()):
        keys["ttft_ms"] = draw(MILLISECONDS)
    else:
        keys["ttft_slowdown"] = draw(st.floats(1, 1e6))
    if draw(st.booleans()):
        keys |= {"thinking_tpot_ms": draw(MILLISECONDS), "thinking_tokens": draw(st.integers(1, 10_000_000))}
    return keys


@given(classes=st.dictionaries(NAMES, live_classes(), max_size=4))
def test_what_is_written_is_what_is_read(tmp_path_factory, classes):
    lines = []
    for name, keys in classes.items():
        lines.append(f'[classes."{name}"]')
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    config = load(tmp_path_factory.mktemp("config"), "\n".join(lines))
    assert config.classes == BridgeConfig(classes={name: LiveClass(name, **k) for name, k in classes.items()}).classes
    assert config.slo_classes().keys() == {*classes, "default"}


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.integers(), max_size=2)
)
KEYS = st.sampled_from([item.name for item in fields(BridgeConfig)]) | st.text(max_size=10)
CLASS_KEYS = st.sampled_from([item.name for item in fields(LiveClass)]) | st.text(max_size=10)


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    return repr(value).lower() if isinstance(value, float) else json.dumps(value)


@given(
    tables=st.dictionaries(KEYS, VALUES, max_size=3),
    policy=st.none() | VALUES | st.dictionaries(st.sampled_from(["name", "lead_s"]) | st.text(max_size=5), VALUES),
    classes=VALUES | st.dictionaries(st.text(max_size=5), VALUES | st.dictionaries(CLASS_KEYS, VALUES), max_size=2),
)
def test_anything_else_is_a_configuration_or_a_named_error(tmp_path_factory, tables, policy, classes):
    tables = {**tables, "policy": policy, "classes": classes}
    text = "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in tables.items() if value is not None)
    found = outcome(tmp_path_factory, text.encode())
    if isinstance(found, ConfigError):
        assert found.key
        assert found.remedy
        assert str(found).isprintable()
    else:
        assert found.default_class in found.classes


def outcome(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> BridgeConfig | ConfigError:
    try:
        return load(tmp_path_factory.mktemp("config"), content)
    except ConfigError as error:
        return error


@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory, content):
    found = outcome(tmp_path_factory, content)
    assert isinstance(found, BridgeConfig) or str(found).startswith(found.path)


def test_the_example_is_a_configuration():
    config = load_config(ROOT / "examples/slo-opt.toml")
    assert sum(not live.best_effort for live in config.classes.values()) >= 2


def test_every_key_is_documented():
    page = PAGE.read_text()
    for item in (*fields(BridgeConfig), *fields(LiveClass)):
        if item.name not in ("setting", "policy", "classes"):
            assert f"`{item.name}`" in page, item.name
    assert "[policy]" in page
    assert "[classes." in page
