"""trace.json: what is written is read back, the schema and the reader agree, fuzzed files only raise SloOptError."""

import contextlib
import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import ENGINES
from slo_opt.domain.errors import InvalidInputError, SloOptError, TraceFormatError
from slo_opt.domain.request import Prefix, Request, Stage
from slo_opt.domain.slo import ScoreRule, SloClass
from slo_opt.traces.formats import native
from slo_opt.traces.formats.detect import TraceFormat
from slo_opt.traces.profiles import PROFILES
from slo_opt.traces.read import read_any, read_trace
from slo_opt.traces.scenarios import SCENARIOS
from slo_opt.traces.source import Source
from slo_opt.traces.trace import Trace
from slo_opt.traces.write import write_trace

EXAMPLES = Path(__file__).parents[2] / "examples"
SCHEMA = json.loads((files("slo_opt.traces") / "trace.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
seconds = st.floats(0, 1e6)
counts = st.integers(1, 5000)


@st.composite
def slo_classes(draw: st.DrawFn, name: str) -> SloClass:
    slowdown = draw(st.booleans())
    return SloClass(
        name,
        tpot_ms=draw(st.floats(1, 1000)),
        ttft_ms=None if slowdown else draw(st.floats(1, 1e6)),
        ttft_slowdown=draw(st.floats(1, 50)) if slowdown else None,
        weight=draw(st.sampled_from([1.0, 2.5, 1e-3])),
        best_effort=draw(st.booleans()),
    )


@st.composite
def prefixes(draw: st.DrawFn, first: Stage) -> Prefix | None:
    if first.cached_tokens or draw(st.booleans()):
        return None
    block = draw(st.sampled_from([1, 16, 512]))
    return Prefix(block, tuple(draw(st.lists(st.integers(0, 2**40), max_size=min(4, first.prompt_tokens // block)))))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    labels = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    classes = {name: draw(slo_classes(name)) for name in labels}
    slo = st.sampled_from(labels)
    first = st.builds(Stage, counts, counts, slo, st.integers(0, 100), st.just(0.0) | seconds)
    later = st.builds(Stage, counts, counts, slo, st.integers(0, 100), seconds) | st.builds(
        Stage, st.just(0), counts, slo
    )
    stages = st.tuples(first) | st.tuples(first, later) | st.tuples(first, later, later)
    ids = draw(st.lists(names, min_size=1, max_size=6, unique=True))
    arrivals = sorted(draw(st.lists(seconds, min_size=len(ids), max_size=len(ids))))
    requests = tuple(
        Request(key, at_s, parts := draw(stages), draw(prefixes(parts[0])))
        for key, at_s in zip(ids, arrivals, strict=True)
    )
    engine = draw(
        st.none()
        | st.sampled_from(list(ENGINES))
        | st.sampled_from(list(ENGINES.values()))
        | st.builds(
            EngineModel,
            names,
            st.just("measured"),
            st.tuples(st.builds(RooflinePiece, st.floats(1e-6, 1e-3), st.floats(0, 0.1))),
            kv_blocks=counts,
        )
    )
    scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | st.text('abc é\n"')
    provenance = draw(st.dictionaries(names, scalars, max_size=3))
    return Trace(draw(names), requests, classes, engine, draw(st.sampled_from(ScoreRule)), provenance)


@given(traces())
@settings(max_examples=150, deadline=None)
def test_read_undoes_write_and_the_schema_holds(trace: Trace) -> None:
    data = native.encode(trace)
    assert native.read(Source("x.json", data.decode())) == trace
    assert native.encode(native.read(Source("x.json", data.decode()))) == data
    VALIDATOR.validate(json.loads(data))


@pytest.mark.parametrize("name", ["coder-burst.json", "mixed.json"])
def test_examples_satisfy_the_schema(name: str) -> None:
    VALIDATOR.validate(json.loads((EXAMPLES / name).read_text()))
    trace = read_trace(EXAMPLES / name)
    assert native.encode(trace) == (EXAMPLES / name).read_bytes()


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


BASE: dict[str, Any] = {
    "format": "slo-opt-trace",
    "version": 1,
    "name": "t",
    "engine": {"name": "e", "source": "s", "pieces": [{"per_token_s": 1e-4, "base_s": 0.01}], "max_num_seqs": 8},
    "score_rule": "dslo",
    "provenance": {"seed": 1},
    "slo_classes": [
        {"name": "a", "tpot_ms": 50, "ttft_slowdown": 5, "weight": 2},
        {"name": "b", "tpot_ms": 100, "ttft_ms": 300, "best_effort": True},
    ],
    "requests": [
        {"id": "0", "arrival_s": 0, "prompt_tokens": 10, "output_tokens": 5, "slo": "a", "cached_tokens": 3},
        {
            "id": "1",
            "arrival_s": 1.5,
            "stages": [
                {"prompt_tokens": 10, "output_tokens": 5, "slo": "a"},
                {"prompt_tokens": 3, "output_tokens": 5, "slo": "b", "pause_s": 0.5, "cached_tokens": 15},
                {"prompt_tokens": 0, "output_tokens": 5, "slo": "b"},
            ],
        },
    ],
}
# Integral floats are left out: JSON Schema calls 5.0 an integer, the reader wants 5.
REPLACEMENTS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 5, 0.5, -0.5, 10**7, 10**7 + 1, 2**53 + 2, 10**30, 1e300,
    "", "a", "dslo", "zz", [], {}, [1], {"a": 1},
]  # fmt: skip


def _paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here]
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += _paths(item, (*here, key))
    return found


PATHS = [path for path in _paths(BASE) if path]


def _mutate(document: Any, path: tuple[Any, ...], action: str, value: Any) -> None:
    parent = document
    for key in path[:-1]:
        try:
            parent = parent[key]
        except (KeyError, IndexError, TypeError):
            return
    with contextlib.suppress(KeyError, IndexError, TypeError):
        if action == "replace":
            parent[path[-1]]  # only what is there
            parent[path[-1]] = value
        elif action == "remove":
            del parent[path[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent[value if isinstance(value, str) else "extra"] = 1


# What a schema cannot say; everything else must be said by both.
BEYOND_SCHEMA = (
    "ids must be unique",
    "expected rows sorted",
    "is not defined",
    "is defined twice",
    "unknown engine",
    "continues the decode before it",
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(PATHS),
            st.sampled_from(["replace", "replace", "remove", "add"]),
            st.sampled_from(REPLACEMENTS),
        ),
        min_size=1,
        max_size=2,
    )
)
@settings(max_examples=1500, deadline=None)
def test_schema_and_reader_agree(mutations: list[tuple[tuple[Any, ...], str, Any]]) -> None:
    document = json.loads(json.dumps(BASE))
    for path, action, value in mutations:
        _mutate(document, path, action, value)
    schema_accepts = VALIDATOR.is_valid(document)
    try:
        native.read(Source("x.json", json.dumps(document)))
        refusal = None
    except TraceFormatError as error:
        refusal = str(error)
    if refusal is None:
        assert schema_accepts, list(VALIDATOR.iter_errors(document))
    else:
        assert not schema_accepts or any(words in refusal for words in BEYOND_SCHEMA), refusal


def test_base_document_is_valid() -> None:
    VALIDATOR.validate(BASE)
    trace = native.read(Source("x.json", json.dumps(BASE)))
    assert trace.to_instance().engine.max_num_seqs == 8
    assert trace.requests[0].stages[0].cached_tokens == 3


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = read_trace(EXAMPLES / "mixed.json")
    target = tmp_path / "t.json"
    target.write_text("precious")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_trace(trace, target)
    assert target.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    write_trace(trace, target)
    assert read_trace(target) == trace


def test_gzip_is_written_by_name_and_deterministic(tmp_path: Path) -> None:
    trace = read_trace(EXAMPLES / "coder-burst.json")
    for name in ("a.json.gz", "b.json.gz"):
        write_trace(trace, tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()) == native.encode(trace)
    assert read_trace(tmp_path / "a.json.gz") == trace


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, [1], {"a": 1}])
def test_provenance_holds_only_what_json_keeps(value: Any) -> None:
    trace = read_trace(EXAMPLES / "mixed.json")
    with pytest.raises(InvalidInputError, match="provenance 'odd'"):
        trace.with_provenance(odd=value)


SEEDS = [
    json.dumps(BASE).encode(),
    gzip.compress(json.dumps(BASE).encode(), mtime=0),
    b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.03,8,8\r\n",
    b'{"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]}\n' * 2,
    b"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,,,a,4,1,5,b\n",
    b'{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.1, "input_length": 521, "output_length": 132}\n',
    b"arrival_s,prompt_tokens,output_tokens,id,slo,reason_ratio,cached_tokens\n0,5,6,a,coder,0.5,3\n1,5,6,b,,,\n",
    b'{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6, "slo": "reasoning"}\n'
    b'{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 1}\n',
]
SPLICES = [
    b"", b"\x00", b"\xff", b'"', b",", b"\n", b"\r", b"-", b"9" * 30, b"nan", b"1e999", b"{", b"]",
    b"\xef\xbb\xbf", b"null", b"\\ud800", b"[" * 3000,
]  # fmt: skip
FORMATS = [None, "native", "azure", "burstgpt", "mooncake", "bailian", "csv", "jsonl"]


def _read_or_refuse(folder: Path, data: bytes, input_format: str | None) -> None:
    path = folder / "fuzz"
    path.write_bytes(data)
    for scenario in (None, "mixed"):
        with contextlib.suppress(SloOptError):
            read_any(path, input_format=input_format, scenario=scenario, engine="opt-6.7b-a100")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(data=st.binary(max_size=200), input_format=st.sampled_from(FORMATS))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_crash(folder: Path, data: bytes, input_format: str | None) -> None:
    _read_or_refuse(folder, data, input_format)


@given(
    seed=st.sampled_from(SEEDS),
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(SPLICES) | st.binary(max_size=4)),
        min_size=1,
        max_size=4,
    ),
    input_format=st.sampled_from([None, None, None, *FORMATS]),
)
@settings(max_examples=1200, deadline=None)
def test_mutated_files_never_crash(
    folder: Path, seed: bytes, cuts: list[tuple[float, int, bytes]], input_format: str | None
) -> None:
    data = seed
    for where, length, splice in cuts:
        start = int(where * len(data))
        data = data[:start] + splice + data[start + length :]
    _read_or_refuse(folder, data, input_format)


def test_documented_example_is_valid() -> None:
    text = (EXAMPLES.parent / "docs/trace-format.md").read_text().split("```json\n")[1].split("```")[0]
    VALIDATOR.validate(json.loads(text))
    trace = native.read(Source("docs", text))
    assert [len(request.stages) for request in trace.requests] == [1, 2]


def test_documentation_lists_every_field_and_format() -> None:
    text = (EXAMPLES.parent / "docs/trace-format.md").read_text()
    fields = [name for part in (SCHEMA, *SCHEMA["$defs"].values()) for name in part.get("properties", ())]
    for name in [*fields, *SCENARIOS, *PROFILES, *TraceFormat]:
        assert f"`{name}`" in text, name
