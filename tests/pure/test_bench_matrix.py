"""The matrix of the benchmarks: what is measured in which order, the bound, tables, the plot."""

from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.matrix import report
from benchmarks.matrix.peers import Peer, read_peers
from benchmarks.matrix.plan import (
    CELLS,
    FULL_PULLS,
    OURS,
    Cell,
    Item,
    bound_s,
    estimate_s,
    items,
)
from benchmarks.matrix.profiles import frames_bytes
from benchmarks.matrix.results import Results, Sample
from lazyfs.profile.document import BlockRun

SLOW, FAST = Cell(50, 10), Cell(0.5, 1000)


def sample(contender: str, round_: int, seconds: float, cell: Cell = FAST) -> Sample:
    return Sample(
        "numpy", "import", str(cell), contender, round_, 0.25, seconds - 0.25, 5 << 20, 12, 3
    )


@pytest.fixture
def results() -> Results:
    found = [("fuse", 2.0), ("fuse+profile", 1.0), ("pull-unpack", 4.0)]
    samples = [
        sample(name, number, seconds + number / 10)
        for name, seconds in found
        for number in range(3)
    ]
    return Results(
        machine={"processors": 2, "kernel": "6.18", "time": "now"},
        versions={"skopeo": "1.9"},
        commands=["python -m benchmarks.matrix"],
        left_out={"nydus": "not installed"},
        images={"numpy": {"tar_bytes": 2 << 20, "profiled_bytes": 1e6}},
        lines={str(FAST): {"rtt_s": 0.0005, "set_up_s": 0.001, "bits_per_s": 1e9}},
        samples=samples,
    )


def test_the_bound_is_round_trips_and_bytes_over_the_line():
    assert bound_s(Cell(50, 100), 7, 12_500_000) == pytest.approx(7 * 0.05 + 1.0)


def test_every_contender_begins_once_and_nobody_is_left_out():
    names = (*OURS, *FULL_PULLS)
    found = list(items([FAST], ["numpy", "files"], names, len(names)))
    assert {item.contender for item in found if item.image == "numpy"} == set(names)
    begins = [
        next(item.contender for item in found if item.round == number)
        for number in range(len(names))
    ]
    assert sorted(begins) == sorted(names)


def test_slow_lines_have_fewer_rounds():
    def rounds(*numbers: int) -> Counter[Cell]:
        return Counter(item.cell for item in items([SLOW, FAST], ["numpy"], ("fuse",), *numbers))

    assert rounds(3) == {SLOW: 1, FAST: 3}
    assert rounds(3, 2) == {SLOW: 2, FAST: 3}
    assert rounds(1, 2) == {SLOW: 1, FAST: 1}


def test_estimates_grow_with_what_goes_over_the_line():
    slow, fast = (
        estimate_s(Item(cell, 0, "numpy", "pull-unpack"), 100 << 20, 2) for cell in (SLOW, FAST)
    )
    assert slow > 80 > fast


@pytest.mark.parametrize("cell", CELLS)
def test_cells_are_named_as_they_are_asked_for(cell):
    assert Cell.parse(str(cell)) == cell


@pytest.mark.parametrize("text", ["", "5", "5ms", "5ms/Mbit", "ms/5Mbit", "5ms/5Mbit "])
def test_what_is_no_cell(text):
    with pytest.raises(ValueError, match="5ms/100Mbit"):
        Cell.parse(text)


def test_frames_count_once():
    chunks = [(0, 10), (8192, 20), (16384, 40)]
    assert frames_bytes(chunks, [BlockRun(0, 0, 1), BlockRun(0, 1, 1)]) == 10
    assert frames_bytes(chunks, [BlockRun(0, 1, 2)]) == 30
    assert frames_bytes(chunks, [BlockRun(0, 5, 1), BlockRun(0, 0, 2)]) == 50
    assert frames_bytes(chunks, []) == 0


def test_results_come_back_from_their_file(results, tmp_path):
    results.write(tmp_path / "x.json")
    assert Results.read(tmp_path / "x.json") == results
    assert results.done() == {
        Item(FAST, number, "numpy", name)
        for number in range(3)
        for name in ("fuse", "fuse+profile", "pull-unpack")
    }


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"samples": [], "other": 1}')
    with pytest.raises(ValueError, match="no results"):
        Results.read(tmp_path / "x.json")


def test_tables_have_medians_spread_and_ratios(results):
    [row] = report.times(results.samples).rows
    assert row[:3] == ["numpy/import", "0.5ms/1000Mbit", "2.1 s (2-2.2)"]
    assert row[3] == "1.1 s (1-1.2)"
    assert row[4].startswith("4.1 s (4-4.2) \N{MULTIPLICATION SIGN}0.27")  # 1.1 / 4.1
    [bound] = report.bounds(results, results.samples).rows
    assert bound[2] == "0.0115 s, \N{MULTIPLICATION SIGN}95.65"  # 7 * 0.5 ms + 8 ms; 1.1 s
    text = report.text(results)
    assert "5.0 MiB, 12" in text
    assert "Left out: nydus: not installed" in text


def test_what_failed_is_told_and_in_no_median(results):
    broken = replace(sample("kernel", 0, 0.0), error="mount failed")
    results.samples.append(broken)
    assert "kernel: FAILED: mount failed" in report.text(results)
    assert "kernel" not in report.times([s for s in results.samples if not s.error]).head


def test_the_plot_has_a_bar_for_each_contender_and_line(results):
    results.samples += [sample("fuse", 0, 9.0, SLOW), sample("pull-unpack", 0, 99.0, SLOW)]
    drawing = ElementTree.fromstring(report.plot(results))
    words = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"50 ms, 10 Mbit/s", "0.5 ms, 1000 Mbit/s", "1.1", "99"} <= set(words)
    bars = [
        element
        for element in drawing.iter("{http://www.w3.org/2000/svg}rect")
        if element.get("fill") != "white"
    ]
    assert len(bars) == 5


def test_peers_come_with_all_that_is_run():
    peers = read_peers()
    assert {"stargz", "nydus", "soci", "mount-erofs"} <= peers.keys()
    for peer in peers.values():
        assert "{root}" in peer.start
        assert peer.needs


def test_a_peer_has_what_it_lacks_from_the_one_it_is_like(tmp_path):
    (tmp_path / "one.toml").write_text(
        'about = "one"\nneeds = ["sh"]\nstart = "start"\nstop = "stop"'
    )
    (tmp_path / "another.toml").write_text('like = "one"\nabout = "another"\nonce = "once"')
    assert read_peers(tmp_path) == {
        "one": Peer("one", "one", ["sh"], "start", "stop"),
        "another": Peer("another", "another", ["sh"], "start", "stop", once="once"),
    }
    (tmp_path / "another.toml").write_text('like = "none"')
    with pytest.raises(KeyError):
        read_peers(tmp_path)
