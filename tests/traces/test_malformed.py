"""One damaged file per rule: the message names file, place, expectation and remedy."""

from pathlib import Path

import pytest

from slo_opt.domain.errors import TraceFormatError
from slo_opt.traces.read import read_trace

FOLDER = Path(__file__).parent / "malformed"
# file: place, what is wrong or expected, remedy
RULES = {
    "azure-bad-timestamp.csv": ("line 3", "expected a time such as", "Correct it or remove the line"),
    "azure-damaged.csv.gz": ("file", "damaged gzip", "Fetch or compress it again"),
    "azure-empty-cell.csv": ("line 3", "'ContextTokens': expected an integer, found ''", "Correct it"),
    "azure-fractional.csv": ("line 3", "expected an integer, found '3180.5'", "Correct it"),
    "azure-header-only.csv": ("file", "expected at least one row", "Give a file with rows"),
    "azure-huge.csv": ("line 3", "expected an integer <= 10000000, found '318000000000'", "Correct it"),
    "azure-missing-column.csv": ("line 1", "'GeneratedTokens' is missing", "--input-format"),
    "azure-nan.csv": ("line 3", "expected an integer, found 'nan'", "Correct it"),
    "azure-negative.csv": ("line 3", "expected an integer >= 0, found '-3180'", "Correct it"),
    "azure-nothing-generated.csv": ("file", "no request with tokens", "Give a file with rows"),
    "azure-truncated.csv": ("line 3", "has 1 fields; expected 3", "cut short"),
    "azure-unclosed-quote.csv": ("line 3", "is not CSV", "Check quotes"),
    "azure-unsorted.csv": ("line 3", "expected rows sorted by arrival", "slo-opt trace convert --sort"),
    "azure-utf16.csv": ("line 1", "is not UTF-8", "iconv"),
    "azure-wrong-checksum.csv.gz": ("file", "damaged gzip (CRC", "Fetch or compress it again"),
    "bailian-duplicate-chat.jsonl": ("line 2", "ids must be unique", "Rename one"),
    "bailian-missing-length.jsonl": ("line 1", "'output_length' is missing", "Add the column"),
    "binary.bin": ("line 2", "is not UTF-8", "iconv"),
    "blank.csv": ("file", "is empty", "Give a file with requests"),
    "burstgpt-missing-column.csv": ("line 1", "'Response tokens' is missing", "Add the column"),
    "burstgpt-only-failures.csv": ("file", "no request with tokens", "Give a file with rows"),
    "burstgpt-text.csv": ("line 2", "'Request tokens': expected an integer, found 'many'", "Correct it"),
    "empty.json": ("file", "is empty", "Give a file with requests"),
    "mooncake-negative.jsonl": ("line 2", "'input_length': expected an integer >= 0, found -1", "Correct it"),
    "mooncake-no-hash-ids.jsonl": ("line 1", "neither hash_ids", "--input-format mooncake or bailian"),
    "mooncake-text-hash.jsonl": ("line 2", "'hash_ids[0]': expected an integer", "Correct it"),
    "mooncake-unsorted.jsonl": ("line 2", "expected rows sorted", "--sort"),
    "native-array.json": ("$", "expected an object, got a list", "docs/trace-format.md"),
    "native-class-two-ttft.json": ("$.slo_classes[0]", "exactly one of ttft_ms and ttft_slowdown", "Correct"),
    "native-class-without-ttft.json": ("$.slo_classes[0]", "exactly one of ttft_ms and ttft_slowdown", "Correct"),
    "native-comment.json": ("line 4, column 2", "is not JSON", "Mend the file there"),
    "native-duplicate-class.json": ("$.slo_classes[1].name", "defined twice", "Rename one"),
    "native-duplicate-id.json": ("$.requests[1]", "ids must be unique", "Rename one"),
    "native-empty-id.json": ("$.requests[0]", "empty id", "Correct"),
    "native-first-stage-without-prompt.json": ("$.requests[0]", "prompt_tokens must be >= 1", "Correct"),
    "native-fractional-count.json": ("$.requests[1].prompt_tokens", "expected an integer, got a number", "docs/"),
    "native-huge-count.json": ("$.requests[1]", "expected an integer in [0, 10000000]", "Correct"),
    "native-infinite-arrival.json": ("$.requests[0].arrival_s", "number out of range", "Correct"),
    "native-inline-engine-without-piece.json": ("$.engine", "give at least one", "Correct"),
    "native-missing-format.json": ("$", "'format' is missing", '"format": "slo-opt-trace"'),
    "native-missing-slo.json": ("$.requests[0]", "'slo' is missing", "stages"),
    "native-nan.json": ("line 6, column 28", "NaN", "Mend the file there"),
    "native-negative-arrival.json": ("$.requests[0]", "expected seconds in [0, 1e9]", "Correct"),
    "native-negative-count.json": ("$.requests[1]", "prompt_tokens is -3; expected an integer in", "Correct"),
    "native-negative-pause.json": ("$.requests[0].stages[1]", "pause_s is -1.0; expected seconds", "Correct"),
    "native-nested-provenance.json": ("$.provenance", "got an object", "docs/trace-format.md"),
    "native-no-requests.json": ("$.requests", "expected at least one request", "Add requests"),
    "native-no-stages.json": ("$.requests[0]", "has no stage", "give it at least"),
    "native-other-format.json": ("$.format", "expected 'slo-opt-trace'", "--input-format"),
    "native-slowdown-below-one.json": ("$.slo_classes[0]", "expected a multiple >= 1", "Correct"),
    "native-stages-and-short.json": ("$.requests[0]", "has stages and also 'prompt_tokens'", "not both"),
    "native-truncated.json": ("line 6", "expected a complete JSON object", "Complete the file"),
    "native-unknown-class.json": ("$.requests[1].slo", "'cod' is not defined; defined: code", "Did you mean 'code'?"),
    "native-unknown-engine.json": ("$.engine", "unknown engine 'opt-6.7b-a10'", "Did you mean 'opt-6.7b-a100'?"),
    "native-unknown-field.json": ("$.requests[0]", "unknown field 'prompt_token'", "Did you mean 'prompt_tokens'?"),
    "native-unknown-score-rule.json": ("$.score_rule", "expected one of dslo", "Did you mean 'dslo'?"),
    "native-unknown-top-field.json": ("$", "unknown field 'scorerule'", "Did you mean 'score_rule'?"),
    "native-unsorted.json": ("$.requests[1]", "expected rows sorted by arrival", "slo-opt trace convert --sort"),
    "native-version-2.json": ("$.version", "expected 1", "Update slo-opt"),
    "native-wrong-type.json": ("$.requests[1].prompt_tokens", "expected an integer, got text", "docs/"),
    "native-zero-output.json": ("$.requests[1]", "output_tokens is 0; expected an integer in [1,", "Correct"),
    "native-zero-tpot.json": ("$.slo_classes[0]", "tpot_ms is 0.0; expected milliseconds", "Correct"),
    "plain-array-line.jsonl": ("line 2", "not a JSON object", "one object a line"),
    "plain-duplicate-id.csv": ("line 3", "ids must be unique", "Rename one"),
    "plain-extra-field.csv": ("line 3", "has 4 fields; expected 3", "Complete or remove the line"),
    "plain-infinite-arrival.csv": ("line 3", "'arrival_s': expected a number <=", "Correct it"),
    "plain-latin1.csv": ("line 2", "byte 50 (0xe9) is not UTF-8", "iconv -f latin1"),
    "plain-missing-field.jsonl": ("line 2", "'output_tokens' is missing", "Add the column"),
    "plain-misspelt-column.csv": ("line 1", "unknown column 'reason_ration'", "Did you mean 'reason_ratio'?"),
    "plain-misspelt-field.jsonl": ("line 1", "unknown column 'cached_token'", "Did you mean 'cached_tokens'?"),
    "plain-misspelt-required.csv": ("line 1", "'prompt_tokens' is missing", "Did you mean 'prompt_token'?"),
    "plain-nan-arrival.csv": ("line 2", "'arrival_s': expected a number >= 0.0, found 'nan'", "Correct it"),
    "plain-ratio-above-one.csv": ("line 2", "'reason_ratio': expected a number <= 1.0", "Correct it"),
    "plain-repeated-column.csv": ("line 1", "'prompt_tokens' appears twice", "Keep one"),
    "plain-text-count.jsonl": ("line 1", "expected an integer, found '5'", "Correct it"),
    "plain-truncated.jsonl": ("line 2", "expected one JSON object", "Mend or remove the line"),
    "plain-unknown-slo.csv": ("line 3", "'coderr' is no part of scenario 'mixed'", "Did you mean 'coder'?"),
    "plain-unsorted.csv": ("line 3", "expected rows sorted by arrival", "slo-opt trace convert --sort"),
    "plain-zero-output.csv": ("line 2", "'output_tokens': expected an integer >= 1, found '0'", "Correct it"),
    "prose.txt": ("line 1", "resembles no known trace format", "--input-format"),
    "unknown-columns.csv": ("line 1", "resembles no known trace format", "--input-format"),
}


def test_every_malformed_file_has_a_rule() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(RULES)


@pytest.mark.parametrize("name", sorted(RULES))
def test_message_names_file_place_expectation_and_remedy(name: str) -> None:
    place, problem, remedy = RULES[name]
    with pytest.raises(TraceFormatError) as caught:
        read_trace(FOLDER / name, scenario=None if name.startswith("native") else "mixed")
    error = caught.value
    assert error.path.endswith(name)
    assert error.place.startswith(place), error
    assert problem in error.problem, error
    assert remedy in f"{error.problem} {error.remedy}", error
    assert "\n" not in str(error)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceFormatError, match=r"there is no such file.*Check the path"):
        read_trace(tmp_path / "none.json")
    with pytest.raises(TraceFormatError, match="this is a folder"):
        read_trace(tmp_path)
