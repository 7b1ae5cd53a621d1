"""Tables, charts, pictures and files of a sweep."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fanout import UsageError
from fanout.sim.published import TABLES
from fanout.sweep import plot
from fanout.sweep.chart import chart
from fanout.sweep.point import Point, Server, Spread
from fanout.sweep.record import Sweep, Work, from_file, to_json
from fanout.sweep.shape import Shape
from fanout.sweep.table import table, to_csv, verdict

SPREAD = Spread(mean=10, p50=9, p95=12, p99=13, max=14)


def published(alias: str) -> Sweep:
    return Sweep(
        endpoint=alias,
        url=f"http://{alias}:8000/v1",
        model=f"model-{alias}",
        work=Work(shape=Shape()),
        points=[
            Point(
                concurrency=row.concurrency,
                requests=row.concurrency,
                timeouts=row.timeouts,
                tokens_per_s=row.tokens_per_s,
                per_sequence_tokens_per_s=row.per_sequence_tokens_per_s,
                wall_s=row.wall_s,
                mean_latency_s=10,
                latency=SPREAD,
                ttft=SPREAD,
                in_flight=row.concurrency,
                server=Server(kv_max=0.5, waiting_max=0, preemptions=0),
            )
            for row in TABLES[alias]
        ],
    )


def lines_of(what: object, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(what)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("alias", list(TABLES))
def test_a_table_fits_and_has_the_article_s_columns(alias: str, width: int) -> None:
    lines = lines_of(table(published(alias), width), width)
    assert len(lines) == 1 + len(TABLES[alias])
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    for heading in ("N", "tokens/s", "per seq.", "wall s", "scaling"):
        assert heading in lines[0]


def test_a_wide_table_has_everything_and_a_narrow_one_what_matters_most() -> None:
    wide, narrow = (lines_of(table(published("mamba"), w), w)[0] for w in (200, 80))
    for heading in ("p99 s", "TTFT p50", "in flight", "waiting", "KV", "timeouts"):
        assert heading in wide
    assert "timeouts" in narrow
    assert "p99 s" not in narrow


def test_what_no_row_has_is_no_column() -> None:
    heading = lines_of(table(published("dense"), 200), 200)[0]
    assert "timeouts" not in heading
    assert "valid/s" not in heading
    assert "errors" not in heading


def test_the_marks_of_the_rows() -> None:
    lines = lines_of(table(published("mamba"), 80), 80)
    assert lines[3].split()[0] == "8"
    assert lines[3].endswith("← N")
    assert lines[5].endswith("← peak")
    assert lines[-1].endswith("↓")


def test_scaling_as_published() -> None:
    lines = lines_of(table(published("dense"), 80), 80)
    assert "120.05x" in lines[14]


def test_the_verdict_names_n_the_peak_and_the_cliff() -> None:
    said = [str(line) for line in verdict(published("mamba"))]
    assert said[0] == ("N = 8  153.2 tokens/s, the smallest N within 3 % of the peak (156.8 at 32)")
    assert said[1] == "cliff  [256, 384]"
    assert str(verdict(published("dense"))[0]) == "N = 256  695.1 tokens/s, the peak"


def test_notes_and_examples_of_failures_are_said() -> None:
    sweep = published("moe")
    sweep.note("prompts have 7 tokens instead of 1500")
    sweep.note("prompts have 7 tokens instead of 1500")
    sweep.points[0] = sweep.points[0].model_copy(update={"messages": {"server": "HTTP 500: no"}})
    said = [str(line) for line in verdict(sweep)]
    assert said.count("note: prompts have 7 tokens instead of 1500") == 1
    assert "server: HTTP 500: no" in said


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_chart_fits_and_marks_every_series(width: int) -> None:
    lines = lines_of(chart([published(alias) for alias in TABLES], width), width)
    assert all(len(line) <= max(width, 80) for line in lines[:-2])
    body = "\n".join(lines)
    for mark in ("●", "▲", "■", "★"):
        assert mark in body
    assert "● dense" in body
    assert "256" in lines[-2] or "256" in lines[-3]


def test_a_chart_rises_to_the_right() -> None:
    rows = lines_of(chart([published("dense")], 80), 80)[1:15]
    star = next(n for n, row in enumerate(rows) if "★" in row)
    axis = rows[-1].index("┤")
    first = next(n for n, row in enumerate(rows) if row[axis + 1 : axis + 2] == "●")
    assert (star, first) == (1, 13)


def test_a_chart_of_nothing_and_of_one_point() -> None:
    assert str(chart([Sweep(endpoint="x", url="")], 80)) == ""
    one = Sweep(endpoint="x", url="", points=[Point(concurrency=4, requests=4, tokens_per_s=3.5)])
    assert "★" in str(chart([one], 80))


def test_the_csv_has_a_row_for_each_point_and_all_figures() -> None:
    text = to_csv([published("dense"), published("moe")]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 27
    assert rows[13]["endpoint"] == "dense"
    assert rows[13]["concurrency"] == "256"
    assert float(rows[13]["scaling"]) == pytest.approx(120.05, abs=0.01)
    for name in ("latency_p99_s", "ttft_p95_s", "kv_max", "waiting_max", "preemptions", "timeouts"):
        assert rows[13][name] != ""


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    sweeps = [published("dense"), published("moe")]
    sweeps[0].points.reverse()  # measured in another order: the search goes by it
    path = tmp_path / "sweep.json"
    path.write_bytes(to_json(sweeps))
    read = from_file(path)
    assert [s.model_dump() for s in read] == [s.model_dump() for s in sweeps]
    document = json.loads(path.read_bytes())
    assert document["sweeps"][0]["analysis"]["cliff"] == [256, 320]
    assert [p["concurrency"] for p in document["sweeps"][0]["points"]][:2] == [1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a sweep"),
        (b'{"format": "fanout-sweep-1", "sweeps": [{}]}', "not a whole sweep"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        from_file(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "http://other/v1"}, "another endpoint"),
        ({"model": "other"}, "another model"),
        ({"work": Work(shape=Shape(prompt_tokens=7))}, "another shape"),
        ({"work": Work(shape=Shape(), stream=True)}, "another stream"),
        ({"work": Work(task="extract")}, "another shape"),
    ],
)
def test_points_of_another_sweep_cannot_stand_beside(change: dict[str, object], says: str) -> None:
    sweep = published("dense")
    sweep.check_same(published("dense"))
    with pytest.raises(UsageError, match=says):
        sweep.check_same(published("dense").model_copy(update=change))


def test_pictures_of_several_sweeps_and_of_none() -> None:
    pytest.importorskip("matplotlib")
    sweeps = [published(alias) for alias in TABLES]
    found = plot.pictures(sweeps)
    assert found["png"].startswith(b"\x89PNG")
    svg = found["svg"].decode()
    for words in ("model-dense", "N = 256: 863 tokens/s", "requests in flight", "past the cliff"):
        assert words in svg
    assert plot.pictures(sweeps)["svg"] == found["svg"]
    assert plot.pictures([Sweep(endpoint="x", url="")])["png"].startswith(b"\x89PNG")
