"""Each format as published: what is read, what is dropped, how it is told apart."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from slo_opt.domain.errors import InvalidInputError
from slo_opt.traces.formats.detect import TraceFormat, detect, format_named
from slo_opt.traces.read import read_any, read_trace
from slo_opt.traces.rows import RawTrace
from slo_opt.traces.source import load

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:17:03.9799600,4808,10\r\n"
    "2023-11-16 18:17:04.0319600,318,8\r\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
    '{"timestamp": 3000, "input_length": 1600, "output_length": 6, "hash_ids": [0, 1, 7, 8]}\n'
    '{"timestamp": 3000, "input_length": 1024, "output_length": 7, "hash_ids": [0, 1]}\n'
    '{"timestamp": 6000, "input_length": 900, "output_length": 7, "hash_ids": [9, 1]}\n'
)


def rows_of(path: Path, **options: object) -> RawTrace:
    found = read_any(path, **options)  # type: ignore[arg-type]
    assert isinstance(found, RawTrace)
    return found


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_azure_seven_fractional_digits_crlf(tmp_path: Path) -> None:
    raw = rows_of(write(tmp_path, "a.csv", AZURE))
    assert [(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in raw.rows] == [
        (0.0, 4808, 10),
        (0.052, 318, 8),
    ]
    assert raw.provenance["format"] == "azure"


def test_azure_2024_stamps_carry_a_zone(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,5,6\n2024-05-10 02:00:01+02:00,5,6\n"
    )
    raw = rows_of(write(tmp_path, "a.csv", text))
    assert raw.rows[1].arrival_s == pytest.approx(0.99007, abs=1e-9)


def test_azure_rows_without_tokens_are_counted(tmp_path: Path) -> None:
    raw = rows_of(write(tmp_path, "a.csv", AZURE + "2023-11-16 18:17:05,7,0\r\n2023-11-16 18:17:05,0,7\r\n"))
    assert len(raw.rows) == 2
    assert raw.provenance["dropped_without_tokens"] == 2


def test_azure_code_window_of_slos_serve(data: Path) -> None:
    path = data / "formats/AzureLLMInferenceTrace_code.csv.gz"
    trace = read_trace(path, scenario="coder", engine="opt-6.7b-a100", window=(1786, 2086))
    prompts = np.array([request.prompt_tokens for request in trace.requests])
    outputs = np.array([request.output_tokens for request in trace.requests])
    # SLOs-Serve: prompt mean/std/p99 845/616/2000, output 27/48/234; one request fills the context of 2,048 exactly.
    assert len(trace.requests) == 559
    assert trace.provenance["dropped_over_context"] == 346
    assert prompts.mean() == pytest.approx(845, rel=0.005)
    assert prompts.std() == pytest.approx(616, rel=0.005)
    assert outputs.mean() == pytest.approx(27, abs=0.5)
    assert outputs.std() == pytest.approx(48, abs=0.5)
    assert trace.requests[0].arrival_s >= 0
    assert trace.requests[-1].arrival_s < 300


def test_azure_conversation_window_of_slos_serve(data: Path) -> None:
    path = data / "formats/AzureLLMInferenceTrace_conv.csv.gz"
    trace = read_trace(path, scenario="chatbot", engine="opt-6.7b-a100", window=(900, 1200))
    prompts = np.array([request.prompt_tokens for request in trace.requests])
    outputs = np.array([request.output_tokens for request in trace.requests])
    assert (round(prompts.mean()), round(prompts.std()), round(np.percentile(prompts, 99))) == (763, 424, 1592)
    assert (round(outputs.mean()), round(outputs.std()), round(np.percentile(outputs, 99))) == (267, 161, 620)


def test_whole_azure_files_have_the_published_row_counts(data: Path) -> None:
    for name, rows in (("code", 8819), ("conv", 19366)):
        raw = rows_of(data / f"formats/AzureLLMInferenceTrace_{name}.csv.gz")
        assert (len(raw.rows), raw.provenance["dropped_without_tokens"]) == (rows, 0)


def test_compact_copy_agrees_with_the_published_file(data: Path) -> None:
    published = rows_of(data / "formats/AzureLLMInferenceTrace_code.csv.gz").rows
    compact = rows_of(data / "traces/azure2023_code.csv.gz").rows
    assert [row.prompt_tokens for row in published] == [row.prompt_tokens for row in compact]
    gap = np.array([row.arrival_s for row in published]) - np.array([row.arrival_s for row in compact])
    assert np.abs(gap).max() < 1e-3


def test_mooncake_timestamps_are_milliseconds(data: Path) -> None:
    raw = rows_of(data / "formats/mooncake_conversation_first300.jsonl")
    assert len(raw.rows) == 300
    assert raw.rows[-1].arrival_s == 102.0
    assert all((round(row.arrival_s * 1000) + 1) % 3000 in (0, 1) for row in raw.rows)  # 3 s ticks, some 1 ms early
    assert all(row.cached_tokens == 0 for row in raw.rows)


def test_mooncake_prefix_cache_holds_leading_blocks_seen_before(tmp_path: Path) -> None:
    path = write(tmp_path, "m.jsonl", MOONCAKE)
    raw = rows_of(path, prefix_cache=True)
    # Block 1 after block 9 is another prefix; a prompt held entirely leaves one token to compute.
    assert [(row.cached_tokens, row.prompt_tokens) for row in raw.rows] == [(0, 1500), (1024, 576), (1023, 1), (0, 900)]
    assert [row.cached_tokens for row in rows_of(path).rows] == [0, 0, 0, 0]


def test_prefix_cache_needs_hash_ids(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="needs the hash_ids of a mooncake trace"):
        read_any(write(tmp_path, "a.csv", AZURE), prefix_cache=True)


@pytest.mark.parametrize(
    "text",
    [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118.5,GPT-4,417,276,693,API log\n",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,1,2.5,ChatGPT,472,18,490,Conversation log\n45,,,ChatGPT,1087,0,1087,API log\n"
        "118.5,2,9.1,GPT-4,417,276,693,API log\n",
    ],
    ids=["v1", "v2"],
)
def test_burstgpt_drops_and_counts_failures(tmp_path: Path, text: str) -> None:
    raw = rows_of(write(tmp_path, "b.csv", text))
    assert [(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in raw.rows] == [
        (5, 472, 18),
        (118.5, 417, 276),
    ]
    assert raw.provenance["dropped_failures"] == 1


def test_bailian_ids_are_chat_ids(tmp_path: Path) -> None:
    text = (
        '{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 521, "output_length": 132, '
        '"type": "text", "turn": 1, "hash_ids": [1, 2]}\n'
        '{"chat_id": "x7", "parent_chat_id": 159, "timestamp": 90.5, "input_length": 800, "output_length": 20}\n'
    )
    raw = rows_of(write(tmp_path, "b.jsonl", text))
    assert [(row.id, row.arrival_s, row.prompt_tokens) for row in raw.rows] == [("159", 61.114, 521), ("x7", 90.5, 800)]
    assert rows_of(write(tmp_path, "b.jsonl", text), input_format="timed-trace").rows == raw.rows


def test_plain_columns_in_any_order_and_others_ignored(tmp_path: Path) -> None:
    header = "slo,output_tokens,client,prompt_tokens,arrival_s,reason_ratio,cached_tokens,id\n"
    text = header + "coder,5,9,7,0.5,0.25,16,a\n,5,9,7,1e1,,,b\n"
    first, second = rows_of(write(tmp_path, "p.csv", text)).rows
    assert (first.id, first.slo, first.reason_ratio, first.cached_tokens) == ("a", "coder", 0.25, 16)
    assert (second.id, second.slo, second.reason_ratio, second.cached_tokens) == ("b", None, None, 0)
    assert second.arrival_s == 10.0


def test_plain_jsonl_equals_plain_csv(tmp_path: Path) -> None:
    csv = rows_of(write(tmp_path, "p.csv", "arrival_s,prompt_tokens,output_tokens\n0,5,6\n\n2.5,7,8\n"))
    jsonl = rows_of(
        write(
            tmp_path,
            "p.jsonl",
            '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6}\r\n\r\n'
            '{"arrival_s": 2.5, "prompt_tokens": 7, "output_tokens": 8}',
        )
    )
    assert [(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in csv.rows] == [
        (row.arrival_s, row.prompt_tokens, row.output_tokens) for row in jsonl.rows
    ]


def test_servegen_rows_keep_their_thinking_share(data: Path) -> None:
    trace = read_trace(data / "traces/servegen_reasoning_thin5.csv.gz", scenario="reasoning")
    first = trace.requests[0]
    assert [stage.slo for stage in first.stages] == ["thinking", "response"]
    assert [stage.output_tokens for stage in first.stages] == [round(389 * 0.549), 389 - round(389 * 0.549)]


@pytest.mark.parametrize("wrap", ["plain", "gzip", "bom", "stdin"])
def test_gzip_bom_and_stdin_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: str) -> None:
    data = AZURE.encode()
    data = {"gzip": gzip.compress(data), "bom": b"\xef\xbb\xbf" + data}.get(wrap, data)
    path = tmp_path / "trace.csv"
    path.write_bytes(data)
    if wrap == "stdin":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    raw = rows_of(Path("-") if wrap == "stdin" else path)
    assert [row.prompt_tokens for row in raw.rows] == [4808, 318]


def test_detection(tmp_path: Path) -> None:
    examples = {
        AZURE: "azure",
        MOONCAKE: "mooncake",
        '{"chat_id": 1, "hash_ids": []}': "bailian",
        '{"arrival_s": 1}': "jsonl",
        '{"format": "slo-opt-trace"}': "native",
        '{\n "version": 1': "native",
        "Timestamp,Request tokens\n": "burstgpt",
        "prompt_tokens,arrival_s\n": "csv",
    }
    for text, name in examples.items():
        assert detect(load(write(tmp_path, "x", text))) is TraceFormat(name)


def test_unknown_format_and_missing_scenario(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"unknown input format 'azur'\. Did you mean 'azure'"):
        format_named("azur")
    with pytest.raises(InvalidInputError, match=r"carries no SLOs; choose a scenario: --scenario chatbot\|coder"):
        read_trace(write(tmp_path, "a.csv", AZURE))


def test_unsorted_rows_can_be_sorted(tmp_path: Path) -> None:
    header, first, second = AZURE.splitlines(keepends=True)
    path = write(tmp_path, "a.csv", header + second + first)
    trace = read_trace(path, scenario="coder", sort=True)
    assert [request.prompt_tokens for request in trace.requests] == [4808, 318]
    assert trace.requests[0].arrival_s == 0.0
