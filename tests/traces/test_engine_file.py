"""Engine models in files: read as they were written, wherever an engine can be named."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slo_opt.domain.engine import EngineModel, RooflinePiece
from slo_opt.domain.engines import ENGINES, engine_named
from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.traces.engine_file import encode_engine, engine_from, portable, read_engine
from slo_opt.traces.generate import generate
from slo_opt.traces.read import read_trace
from slo_opt.traces.write import write_trace

TIMES = st.floats(0, 1e3)
COUNTS = st.integers(1, 1 << 40)
ENGINE_MODELS = st.builds(
    EngineModel,
    name=st.text(max_size=20),
    source=st.text(max_size=20),
    pieces=st.lists(st.builds(RooflinePiece, st.floats(1e-9, 1), TIMES, TIMES), min_size=1, max_size=3).map(tuple),
    decode_context_s=TIMES,
    prefill_pair_s=TIMES,
    request_s=TIMES,
    host_s=TIMES,
    block_size_tokens=COUNTS,
    kv_blocks=COUNTS,
    max_num_batched_tokens=COUNTS,
    max_num_seqs=COUNTS,
    max_model_len=COUNTS,
)


@given(engine=ENGINE_MODELS)
def test_an_engine_comes_back_as_it_was(engine: EngineModel, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("engine") / "engine.json"
    path.write_bytes(encode_engine(engine))
    assert read_engine(path) == engine
    assert encode_engine(read_engine(path)) == path.read_bytes()


def test_gzip_is_unpacked_and_the_built_in_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = engine_named("llama-3-8b-h100")
    (tmp_path / "mine.json.gz").write_bytes(gzip.compress(encode_engine(engine)))
    (tmp_path / "opt-6.7b-a100").write_bytes(encode_engine(engine))
    (tmp_path / "without-ending").write_bytes(encode_engine(engine))
    monkeypatch.chdir(tmp_path)
    assert engine_from("mine.json.gz") == engine
    assert engine_from("without-ending") == engine
    assert engine_from("opt-6.7b-a100") == ENGINES["opt-6.7b-a100"]


def test_the_object_of_a_trace_is_an_engine_file(tmp_path: Path):
    trace = generate("chatbot", rate=2, duration_s=20, seed=1, engine=engine_named("llama-70b-tp4-h100"))
    write_trace(trace, tmp_path / "trace.json")
    inline = json.loads((tmp_path / "trace.json").read_text())["engine"]
    (tmp_path / "engine.json").write_text(json.dumps(inline))
    assert read_engine(tmp_path / "engine.json") == engine_named("llama-70b-tp4-h100")


def test_a_trace_keeps_the_content_of_a_file_not_its_path(tmp_path: Path):
    engine = EngineModel("mine", "measured", (RooflinePiece(1e-4, 2e-3),), max_model_len=3000)
    (tmp_path / "mine.json").write_bytes(encode_engine(engine))
    trace = generate("chatbot", rate=2, duration_s=20, seed=1, engine=str(tmp_path / "mine.json"))
    assert trace.engine == engine
    write_trace(trace, tmp_path / "trace.json")
    (tmp_path / "mine.json").unlink()
    assert read_trace(tmp_path / "trace.json").engine_model() == engine
    other = EngineModel("other", "measured", (RooflinePiece(1e-3, 2e-3),))
    (tmp_path / "other.json").write_bytes(encode_engine(other))
    again = read_trace(tmp_path / "trace.json", engine=str(tmp_path / "other.json"))
    assert again.to_instance().engine == other
    assert trace.to_instance(engine=str(tmp_path / "other.json")).engine == other


def test_built_in_names_and_models_are_kept():
    assert portable(None) is None
    assert portable("opt-6.7b-a100") == "opt-6.7b-a100"
    assert portable(engine_named("opt-6.7b-a100")) is engine_named("opt-6.7b-a100")


GOOD = json.loads(encode_engine(engine_named("llama-3-8b-h100")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ('{"pieces": ' + "[" * 100_000, "$.pieces[0]"),
        ('{\n"name": NaN}', "line 2, column 9"),
        ("[" * 100_000, "expected an object"),
        ("[]", "expected an object"),
        (json.dumps({**GOOD, "kvblocks": 3}), "Did you mean 'kv_blocks'?"),
        (json.dumps({**GOOD, "kv_blocks": 3.5}), "$.kv_blocks"),
        (json.dumps({**GOOD, "kv_blocks": 0}), "kv_blocks is 0"),
        (json.dumps({**GOOD, "host_s": -1}), "seconds in [0, 1e4)"),
        (json.dumps({**GOOD, "pieces": []}), "no roofline piece"),
        (json.dumps({**GOOD, "pieces": [{"per_token_s": 1}]}), "'base_s' is missing"),
        (json.dumps({"format": "slo-opt-trace", "version": 1}), "another file of slo-opt"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, words: str):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(TraceFormatError) as error:
        engine_from(str(path))
    assert words in str(error.value)
    assert str(path) in str(error.value)


@given(text=st.text(max_size=200))
def test_any_text_is_refused_with_a_message(text: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("engine") / "any.json"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(TraceFormatError):
        read_engine(path)


def test_an_unknown_engine_names_the_nearest_and_a_missing_file_is_missing(tmp_path: Path):
    with pytest.raises(InvalidInputError, match=r"llama-3-8b-h100.*calibrate"):
        engine_from("llama-3-8b-h10")
    with pytest.raises(TraceFormatError, match="no such file"):
        engine_from(str(tmp_path / "nowhere.json"))
