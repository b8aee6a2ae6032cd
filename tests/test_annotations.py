"""Annotation files in the dialects of other programs, and one note for a problem of many files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_sets import write_set

from resp_tune.data.annotations import Cycle, join_notes, parse_cycles
from resp_tune.data.dataset import load_dataset
from resp_tune.data.discovery import find_annotation
from resp_tune.predict import _read_cycles

LINES = (("0.036", "0.579", "0", "0"), ("0.579", "2.45", "1", "0"), ("2.45", "3.9", "0", "1"))
CYCLES = (
    Cycle(0.036, 0.579, False, False),
    Cycle(0.579, 2.45, True, False),
    Cycle(2.45, 3.9, False, True),
)


def joined(separator: str, *more: str, decimal: str = ".") -> str:
    lines = (separator.join((*line, *more)).replace(".", decimal) for line in LINES)
    return "\n".join(lines) + "\n"


def notes(text: str) -> list[str]:
    return join_notes({"a.txt": parse_cycles(text, 20.0)[1]})


@pytest.mark.parametrize(
    "text",
    [
        joined("\t"),
        joined(","),
        joined(", "),
        joined(";", decimal=","),
        joined("\t", decimal=","),
        joined("  ", decimal=","),
        joined("|"),
        joined("\t", ""),
        "sep=;\n" + joined(";"),
        "\n\n" + joined("\t").replace("\n", "\r\n\r\n"),
        "start\tend\tcrackles\twheezes\n" + joined("\t"),
        "Start time;End time;Crackle;Wheeze\n" + joined(";", decimal=","),
        "# made by hand\n" + joined("\t"),
        "# start end crackle wheeze\n" + joined("\t"),
        'end,wheezes,,crackles,start\n0.579,0,0,0,.036\n2.45,0,1,1,"0,579"\n3.9,1,2,0,2.45\n',
    ],
)
def test_dialects_are_read_without_a_note(text: str) -> None:
    assert parse_cycles(text, 20.0) == (CYCLES, ())


@pytest.mark.parametrize("more", [("ok",), ("ok", "1"), ("2",)])
def test_further_columns_are_ignored_and_noted(more: tuple[str, ...]) -> None:
    cycles, _ = parse_cycles(joined("\t", *more), 20.0)
    assert cycles == CYCLES
    number = 4 + len(more)
    assert notes(joined("\t", *more)) == [
        f"a.txt has {number} columns: those after the fourth are ignored"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (joined(",", decimal=","), "has 6 columns"),  # 0,036 is one number or two
        ("0,0.1,0.5,0,1\n1,0.5,0.9,1,0\n", "has 5 columns"),  # row numbers first
        ("0,0.1,1,0,1\n", "has 5 columns"),
        ("0.1\t0.5\n0.5\t0.9\n", "has 2 columns"),
        ("0.1\t0.5\tcrackle\n", "has 3 columns"),
        ("onset;offset;c;w\n" + joined(";"), "header 'onset, offset, c, w'"),
        ("start\tend\tcrackle\tcrackles\n" + joined("\t"), "does not name"),
        ("x\n", "one column"),
        ("0\t1500\t0\t0\n1500\t3200\t1\t0\n", "times reach 3200, but the recording is 20 s"),
        ("36\t1579\t0\t1\n", "write seconds"),
        (joined("\t") + "start\tend\twheeze\tcrackle\n" + joined("\t"), "line 4 is a header"),
        ('0.1,"0.5,0,1\n', "quotation mark"),
    ],
)
def test_what_is_not_clear_is_not_read(text: str, reason: str) -> None:
    cycles, _ = parse_cycles(text, 20.0)
    (line,) = notes(text)
    assert cycles == ()
    assert line.startswith("a.txt is not used: ")
    assert reason in line


def test_a_line_with_another_number_of_cells_is_named_and_not_used() -> None:
    text = "0.1\t0.5\t0\t0\n0.5\t0.9\t1\n0.9\t1.2\t0\t0\n1.2\t1.4\t0\t1\t0\n"
    assert [cycle.start for cycle in parse_cycles(text, 20.0)[0]] == [0.1, 0.9]
    (line,) = notes(text)
    assert "lines 2, 4 have not 4 cells" in line


def test_a_cycle_with_two_labels_is_named_and_not_used() -> None:
    text = "0.1\t0.5\t0\t1\n0.1\t0.5\t1\t0\n0.5\t0.9\t0\t0\n"
    assert parse_cycles(text, 20.0)[0] == (Cycle(0.5, 0.9, False, False),)
    (line,) = notes(text)
    assert line.startswith("2 times in 1 annotation: another line has the same cycle with other")


def test_no_line_of_the_same_length_is_no_error() -> None:
    text = "0.0\t0.0\t0.0\n\t0.0\n"
    assert parse_cycles(text, 20.0)[0] == ()
    assert "rest of line 1" in notes(text)[0]


def test_of_two_different_annotations_elsewhere_none_is_used(tmp_path: Path) -> None:
    root = write_set(tmp_path, {"101_1b1_Al_sc_Meditron": "COPD"})
    for name, label in (("v1", "0\t1"), ("v2", "1\t0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "101_1b1_Al_sc_Meditron.txt").write_text(f"0.0\t0.7\t{label}\n")
    dataset = load_dataset(root)
    assert [cycle.end for cycle in dataset.recordings[0].cycles] == [0.5, 1.0]  # those beside it
    assert dataset.problems == ()
    (tmp_path / "audio_and_txt_files" / "101_1b1_Al_sc_Meditron.txt").unlink()
    dataset = load_dataset(root)
    (line,) = dataset.problems
    assert dataset.recordings[0].cycles == ()
    assert f"differs in '{tmp_path / 'v1'}' and '{tmp_path / 'v2'}'" in line


def test_the_same_problem_of_many_files_is_one_note(tmp_path: Path) -> None:
    stems = {f"{n}_1b1_Al_sc_Meditron": "COPD" for n in range(101, 121)}
    root = write_set(tmp_path, stems)
    for number, path in enumerate(sorted(tmp_path.rglob("*_Meditron.txt"))):
        path.write_text("0.0\t0.5\t0\t2\n0.5\t0.9\t0\tx\n" if number else "0.0\t9\t0\t1\tok\n")
    problems = load_dataset(root).problems
    assert problems == (
        "101_1b1_Al_sc_Meditron.txt has 5 columns: those after the fourth are ignored",
        "101_1b1_Al_sc_Meditron.txt line 1, '0.0, 9, 0, 1, ok': the cycle ends at 9 s, but the "
        "recording is 1 s long; the cycle is cut there",
        "19 times in 19 annotations: crackle and wheeze must be 0 or 1, e.g. "
        "102_1b1_Al_sc_Meditron.txt line 1, '0.0, 0.5, 0, 2'",
        "19 times in 19 annotations: start, end, crackle and wheeze must be numbers, e.g. "
        "102_1b1_Al_sc_Meditron.txt line 2, '0.5, 0.9, 0, x'",
    )


@pytest.mark.parametrize("name", ["101.txt", "101.TXT", "101.Txt"])
def test_the_annotation_beside_a_recording_is_found_by_any_case_of_its_suffix(
    tmp_path: Path, name: str
) -> None:
    for other in ("101.txt.bak", "1011.txt", "101.csv"):
        (tmp_path / other).write_text("")
    (tmp_path / name).write_text("")
    assert find_annotation(tmp_path / "101.wav") == tmp_path / name
    assert find_annotation(tmp_path / "102.wav") is None
    assert find_annotation(tmp_path / "gone" / "101.wav") is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("suffix", [".txt", ".TXT"])
def test_predict_reads_annotations_as_a_data_set_does(
    tmp_path: Path, encoding: str, suffix: str
) -> None:
    text = "start;end;crackles;wheezes\n" + joined(";", decimal=",")
    (tmp_path / f"a{suffix}").write_bytes(text.encode(encoding))
    assert _read_cycles(tmp_path / "a.wav", 20.0) == [(c.start, c.end) for c in CYCLES]
    assert _read_cycles(tmp_path / "b.wav", 20.0) == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_no_dialect_gives_a_wrong_cycle(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # no secret
    times = sorted(rng.sample(range(1, 9000), 8))
    true = [
        (a / 1000, b / 1000, rng.random() < 0.5, rng.random() < 0.5)
        for a, b in zip(times[::2], times[1::2], strict=True)
    ]
    cells = {
        "start": [str(a) for a, _, _, _ in true],
        "end": [str(b) for _, b, _, _ in true],
        "crackles": [str(int(c)) for _, _, c, _ in true],
        "wheezes": [str(int(w)) for _, _, _, w in true],
    }
    columns = list(cells.items())
    if rng.random() < 0.4:
        columns.insert(rng.choice((0, 4)), ("", [str(i) for i in range(len(true))]))
    if rng.random() < 0.4:
        columns.append(("remark", [rng.choice(("", "ok", "1")) for _ in true]))
    if header := rng.random() < 0.5:
        rng.shuffle(columns)
    rows = [list(row) for row in zip(*(values for _, values in columns), strict=True)]
    decimal = rng.choice(".,")
    rows = [[cell.replace(".", decimal) for cell in row] for row in rows]
    if header:
        rows.insert(0, [name for name, _ in columns])
    separator = rng.choice(("\t", ";", ",", ", ", " "))
    text = "\n".join(separator.join(row) for row in rows)
    found, problems = parse_cycles(text, 9.5)
    expected = [Cycle(*cycle) for cycle in true]
    assert all(cycle in expected for cycle in found)
    assert problems or list(found) == expected
