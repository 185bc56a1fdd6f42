import json
from io import StringIO

import pytest
from rich.console import Console

from bitnet.benchmark import report
from bitnet.benchmark.cases import Case
from bitnet.benchmark.report import Row, loads_table, plot, rates_table, require_plot
from bitnet.errors import InputError, ResourceError

FACTS = {"model": "tiny", "cpu": "a processor", "isa": "scalar", "version": "1.2", "commit": None}
DECODE = Row(
    "bitnet",
    Case("tg", 128, 2, batch=8, depth=64),
    (90.0, 100.0, 80.0),
    step_bytes=1_000_000_000,
    bandwidth=25.0,
    live_shares=(0.29, 0.16),
    load_seconds=1.25,
    first_token_seconds=1.5,
    peak_memory=2_000_000_000,
    anonymous_memory=900_000_000,
    facts=FACTS,
)
PEER = Row("peer 2", Case("tg", 128, 2), (30.0, 40.0, 50.0), against=(80.0, 100.0, 90.0), facts=FACTS)


def text(table):
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_arithmetic():
    assert DECODE.rate == 90
    # 90 tokens/s over 8 sequences are 11.25 steps/s, each of 1 GB
    assert DECODE.gigabytes_per_second == pytest.approx(11.25)
    assert DECODE.bandwidth_share == pytest.approx(0.45)
    assert PEER.ratio == pytest.approx((90 / 40, 90 / 50, 80 / 30))
    assert PEER.gigabytes_per_second is None
    assert PEER.bandwidth_share is None


def test_json():
    row = json.loads(json.dumps(DECODE.to_json()))
    assert (row["test"], row["threads"], row["batch"], row["depth"]) == ("tg128", 2, 8, 64)
    assert row["tokens_per_second"] == 90
    assert (row["tokens_per_second_min"], row["tokens_per_second_max"]) == (80, 100)
    assert row["samples"] == [90, 100, 80]
    assert row["gigabytes_per_second"] == 11.25
    assert (row["live_share_up"], row["live_share_down"]) == (0.29, 0.16)
    assert row["anonymous_memory_bytes"] == 900_000_000
    assert row | FACTS == row
    assert "ratio" not in row
    peer = PEER.to_json()
    assert peer["ratio"] == 2.25
    assert peer["step_bytes"] is None


def test_tables():
    rates = text(rates_table([DECODE, PEER]))
    for cell in ("tg128 @ d64", "80 – 100", "11.25", "45%", "29% / 16%", "2.25× (1.80 – 2.67)", "peer 2"):
        assert cell in rates
    assert "we are" not in text(rates_table([DECODE]))
    loads = text(loads_table([DECODE, PEER]))
    assert [line.split() for line in loads.splitlines()[1:]] == [["2", "1.25", "1.50", "2,000", "900"]]


def test_plot(tmp_path):
    prefill = Row("bitnet", Case("pp", 512, 1), (400.0, 410.0), facts=FACTS)
    plot([prefill, DECODE, PEER], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_plot_is_refused_before_measuring(tmp_path, monkeypatch):
    require_plot(tmp_path / "speed.png")
    with pytest.raises(InputError, match=r"\.png"):
        require_plot(tmp_path / "speed.txt")
    with pytest.raises(InputError, match="no folder"):
        require_plot(tmp_path / "nowhere" / "speed.png")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="extra `bench`"):
        report.require_plot(tmp_path / "speed.png")
