"""`bitnet synthesize`: a checkpoint the other verbs take, never over an existing one."""

from pathlib import Path

import pytest


def test_writes_a_checkpoint(bitnet, tmp_path):
    folder = tmp_path / "new" / "model"
    written = bitnet("synthesize", "--preset", "stories", "--out", folder)
    assert written.code == 0
    assert f"{(folder / 'model.safetensors').stat().st_size:,} bytes" in written.out
    assert "5,776,640 parameters" in written.out
    assert bitnet("generate", "--model", folder, "--ids", "1,2", "--max-tokens", 1).code == 0


def test_seed_decides_the_bytes(bitnet, tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        bitnet("synthesize", "--preset", "stories", "--out", tmp_path / name, "--seed", seed)
    first, second, third = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == second
    assert first != third


def test_dead_neurons(bitnet, tmp_path):
    for name, extra in (("half", ()), ("more", ("--dead-neurons", 0.75))):
        assert bitnet("synthesize", "--preset", "stories", "--out", tmp_path / name, *extra).code == 0
    half, more = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "more"))
    assert len(half) == len(more)
    assert half != more
    refused = bitnet("synthesize", "--preset", "stories", "--out", tmp_path / "x", "--dead-neurons", 1.5)
    assert "0 and 1" in refused.refusal


def test_refuses(bitnet, tmp_path, ids_model):
    assert "2b4t, stories" in bitnet("synthesize", "--preset", "7b", "--out", tmp_path / "x").refusal
    before = (ids_model / "model.safetensors").read_bytes()
    assert str(ids_model) in bitnet("synthesize", "--preset", "stories", "--out", ids_model).refusal
    assert (ids_model / "model.safetensors").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_refuses_a_folder_that_cannot_be_made(bitnet):
    assert "/dev/full" in bitnet("synthesize", "--preset", "stories", "--out", "/dev/full/model").refusal
