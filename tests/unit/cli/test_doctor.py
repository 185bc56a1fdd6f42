"""`bitnet doctor`: healthy here, and 1 as soon as one kernel is wrong."""

import json

import pytest

from bitnet import _core


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_core, "read_bandwidth", lambda threads, megabytes: 10.0 * threads)


def test_reports_a_healthy_machine(bitnet):
    result = bitnet("doctor", "--json")
    report = json.loads(result.out)
    assert result.code == 0
    assert report["healthy"] is True
    assert report["isa"]["chosen"] in report["isa"]["supported"]
    assert report["isa"]["supported"][-1] == "scalar"
    tested = {test["isa"] for test in report["self_tests"]}
    assert tested == set(report["isa"]["supported"])
    assert report["packages"]["numpy"]
    assert bitnet("doctor").out.count("self-test") == len(tested)


def test_a_wrong_kernel_fails(bitnet, monkeypatch):
    monkeypatch.setattr(
        _core, "self_test", lambda isa: [("ternary_gemm", isa == "scalar", "row 3: 7, not [8]")]
    )
    monkeypatch.setattr(_core, "supported_isas", lambda: ["avx2", "scalar"])
    result = bitnet("doctor")
    assert result.code == 1
    assert "row 3: 7, not [8]" in result.out
    assert json.loads(bitnet("doctor", "--json").out)["healthy"] is False


def test_unknown_instruction_set(bitnet, monkeypatch):
    monkeypatch.setenv("BITNET_ISA", "mmx")
    assert "mmx" in bitnet("doctor").refusal
