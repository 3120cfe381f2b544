"""Rate curves: what a file must hold, and requests that follow one."""

import contextlib
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slo_opt.domain.errors import InvalidInputError, TraceFormatError
from slo_opt.domain.request import Request, Stage
from slo_opt.traces.rate_curve import RateCurve, along_curve, read_rate_curve

RATES = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 100)), min_size=1, max_size=30).filter(any)


def requests_at(times_s: list[float]) -> list[Request]:
    return [Request(f"r{k}", time_s, (Stage(10 + k, 5, "chat"),)) for k, time_s in enumerate(sorted(times_s))]


def steady(count: int, gap_s: float = 1.0) -> list[Request]:
    return requests_at([k * gap_s for k in range(count)])


def written(path: Path, rows: list[str], header: str = "t_s,rate_rps") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_file(tmp_path: Path):
    path = written(tmp_path / "day.csv", ["600,2.5", "1200,0", "1800,7"])
    curve = read_rate_curve(path)
    assert curve == RateCurve("day", 600.0, (2.5, 0.0, 7.0))
    assert curve.duration_s == 1800
    assert curve.mean_rps == pytest.approx(9.5 / 3)
    packed = tmp_path / "day.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_rate_curve(packed) == curve


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["0,1"], "holds 1 windows"),
        (["0,1", "0,2"], "line 2"),
        (["0,1", "600,2", "1300,3"], "line 4: t_s is 1300; expected 1200"),
        (["600,1", "0,2"], "line 2"),
        (["0,1", "600,-2"], "rate_rps"),
        (["0,1", "600,nan"], "rate_rps"),
        (["0,1", "600,inf"], "rate_rps"),
        (["0,1", "600,many"], "rate_rps"),
        (["0,1", "600"], "has 1 fields"),
        ([], "holds 0 windows"),
    ],
)
def test_a_damaged_file_names_the_line(tmp_path: Path, rows: list[str], words: str):
    with pytest.raises(TraceFormatError, match=r"day\.csv") as refused:
        read_rate_curve(written(tmp_path / "day.csv", rows))
    assert words in str(refused.value)


def test_other_columns_and_no_requests(tmp_path: Path):
    with pytest.raises(TraceFormatError, match="rate_rps"):
        read_rate_curve(written(tmp_path / "day.csv", ["0,1", "1,2"], "t_s,rate_rpm"))
    with pytest.raises(InvalidInputError, match="every rate is 0"):
        read_rate_curve(written(tmp_path / "day.csv", ["0,0", "600,0"]))
    with pytest.raises(TraceFormatError, match="no such file"):
        read_rate_curve(tmp_path / "nowhere.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_curve_or_an_error(tmp_path: Path, data: bytes):
    path = tmp_path / "any.csv"
    path.write_bytes(data)
    with contextlib.suppress(InvalidInputError):
        assert read_rate_curve(path).mean_rps > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(RATES.filter(lambda rates: len(rates) > 1), st.floats(0, 1e4), st.floats(1, 1e4))
def test_what_is_written_is_read(tmp_path: Path, rates: list[float], start_s: float, window_s: float):
    rows = [f"{start_s + k * window_s!r},{rate!r}" for k, rate in enumerate(rates)]
    curve = read_rate_curve(written(tmp_path / "any.csv", rows))
    assert curve.rates_rps == tuple(rates)
    assert curve.window_s == pytest.approx(window_s)


def test_days():
    curve = RateCurve("fortnight", 600.0, tuple(float(k + 1) for k in range(14 * 144)))
    assert curve.day(0).rates_rps == curve.rates_rps[:144]
    assert curve.day(13).rates_rps == curve.rates_rps[-144:]
    assert curve.day(13).duration_s == 86_400
    for number in (-1, 14):
        with pytest.raises(InvalidInputError, match="14 whole days"):
            curve.day(number)
    with pytest.raises(InvalidInputError, match="do not make up a day"):
        RateCurve("odd", 700.0, (1.0,) * 200).day(0)
    with pytest.raises(InvalidInputError, match="0 whole days"):
        RateCurve("short", 600.0, (1.0,) * 143).day(0)


@given(RATES, st.integers(2, 40), st.floats(0.05, 20), st.floats(1, 2000), st.integers(0, 3))
def test_the_mean_rate_is_kept_and_the_shape_is_the_curves(rates, count, rate, duration_s, seed):
    """Steady requests: each window holds its share of them, to within one."""
    curve = RateCurve("any", 10.0, tuple(rates))
    played = along_curve(steady(count), curve, rate=rate, duration_s=duration_s, seed=seed)
    total = max(1, round(rate * duration_s))
    assert len(played) == total
    times_s = np.array([request.arrival_s for request in played])
    assert (np.diff(times_s) >= 0).all()
    assert 0 <= times_s[0] <= times_s[-1] < duration_s
    edges = np.linspace(0, duration_s, len(rates) + 1)
    found = np.histogram(times_s, edges)[0].cumsum()
    expected = np.cumsum(rates) / math.fsum(rates) * total
    assert np.abs(found - expected).max() <= 1 + 1e-6 * total
    assert len({request.id for request in played}) == total


def test_equal_seeds_give_equal_requests_and_others_do_not():
    curve = RateCurve("any", 10.0, (1.0, 3.0))
    rounds = [along_curve(steady(30), curve, rate=2.0, duration_s=60.0, seed=seed) for seed in (0, 0, 1)]
    assert rounds[0] == rounds[1]
    assert [r.arrival_s for r in rounds[0]] == [r.arrival_s for r in rounds[2]]
    assert [r.prompt_tokens for r in rounds[0]] != [r.prompt_tokens for r in rounds[2]]
    # The first lap of seed 0 is the trace as it is; a later one holds the same requests in another order.
    assert [r.prompt_tokens for r in rounds[0][:30]] == [r.prompt_tokens for r in steady(30)]
    assert sorted(r.prompt_tokens for r in rounds[0][30:60]) == sorted(r.prompt_tokens for r in steady(30))
    assert rounds[0][30].id.endswith("-lap1")


def test_a_flat_curve_changes_nothing():
    times_s = [0.0, 0.1, 0.2, 7.0, 7.1, 9.0]
    requests = requests_at(times_s)
    period_s = 9.0 * 6 / 5
    played = along_curve(requests, RateCurve("flat", 1.0, (5.0,) * 7), rate=6 / period_s, duration_s=period_s)
    assert [r.arrival_s for r in played] == pytest.approx(times_s)
    assert [r.stages for r in played] == [r.stages for r in requests]


def test_bursts_stay_bursts():
    """Requests that come together come together at any point of the curve."""
    times_s = [10.0 * burst + 0.01 * k for burst in range(20) for k in range(10)]
    played = along_curve(requests_at(times_s), RateCurve("any", 1.0, (1.0, 2.0)), rate=1.0, duration_s=200.0)
    gaps_s = np.diff([r.arrival_s for r in played])
    assert np.median(gaps_s) < 0.05
    assert (gaps_s > 2.0).sum() == 19


@pytest.mark.parametrize(
    ("rate", "duration_s", "words"),
    [(0.0, 1.0, "above 0"), (math.nan, 1.0, "above 0"), (1.0, -1.0, "above 0"), (1e6, 1e6, "more than")],
)
def test_what_makes_no_sense_is_refused(rate: float, duration_s: float, words: str):
    curve = RateCurve("any", 1.0, (1.0,))
    with pytest.raises(InvalidInputError, match=words):
        along_curve(steady(3), curve, rate=rate, duration_s=duration_s)
    with pytest.raises(InvalidInputError, match="no request"):
        along_curve([], curve, rate=1.0, duration_s=1.0)


@pytest.mark.parametrize(("window_s", "rates"), [(0.0, (1.0,)), (math.nan, (1.0,)), (1.0, ()), (1.0, (-1.0,))])
def test_curves_are_checked(window_s: float, rates: tuple[float, ...]):
    with pytest.raises(InvalidInputError, match="any"):
        RateCurve("any", window_s, rates)
