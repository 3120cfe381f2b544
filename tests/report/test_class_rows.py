"""Tables of SLO classes stay readable, whatever their number."""

from hypothesis import given
from hypothesis import strategies as st

from slo_opt.report.class_rows import MAX_ROWS, class_rows

COUNTS = {"offered": 3, "admitted": 2, "attained": 1}


def rows_for(names: list[str]) -> list[dict[str, object]]:
    return [
        {"name": name, "limits": {"ttft_ms": 100.0 + k, "tpot_ms": 50.0, "weight": 1}, **COUNTS}
        for k, name in enumerate(names)
    ]


def test_few_classes_have_a_row_each() -> None:
    classes = rows_for([f"chat {k}" for k in range(MAX_ROWS - 1)])
    classes.append({"name": "code", "limits": {"ttft_slowdown": 5.0, "tpot_ms": 30.0}, **COUNTS})
    found = class_rows(classes)
    assert [row.name for row in found] == [row["name"] for row in classes]
    assert (found[0].ttft, found[0].tpot) == ("100 ms", "50 ms")
    assert (found[-1].ttft, found[-1].tpot) == ("5x", "30 ms")


def test_many_classes_have_a_row_a_family() -> None:
    classes = rows_for([*(f"chat {k}" for k in range(MAX_ROWS)), "code"])
    chat, code = class_rows(classes)
    assert (chat.name, chat.ttft, chat.tpot) == (f"chat ({MAX_ROWS} limits)", f"100–{99 + MAX_ROWS} ms", "50 ms")
    assert (chat.offered, chat.admitted, chat.attained) == (3 * MAX_ROWS, 2 * MAX_ROWS, MAX_ROWS)
    assert (code.name, code.offered) == ("code", 3)


@given(st.lists(st.text(max_size=6), max_size=80, unique=True))
def test_no_request_is_lost(names: list[str]) -> None:
    found = class_rows(rows_for(names))
    assert sum(row.offered for row in found) == 3 * len(names)
    assert len(found) <= max(MAX_ROWS, len({name.split(" ")[0] for name in names}))
