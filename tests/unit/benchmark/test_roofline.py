from dataclasses import replace

import pytest

from bitnet.benchmark.roofline import step_bytes
from bitnet.config import preset
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.tensor_names import projections


def test_counts_what_the_file_holds(golden):
    checkpoint = read_checkpoint(golden / "packed_offline")
    packed = sum(checkpoint.tensor(f"{name}.weight").data.nbytes for name in projections(checkpoint.config))
    head = checkpoint.tensor("model.embed_tokens.weight").data.nbytes
    counted = step_bytes(checkpoint.config, "full")
    assert (counted.ternary, counted.head) == (packed, head)
    # masters are packed at load
    assert step_bytes(read_checkpoint(golden / "bf16_online").config, "full") == counted


def test_2b4t():
    """2.085 G ternary weights and 328 M in the head."""
    config = preset("2b4t")
    assert step_bytes(config, "full").ternary == 2_084_044_800 // 4
    assert step_bytes(config, "full").head == 2 * 128256 * 2560
    assert step_bytes(config, "shortlist").head == 128256 * 2560 // 2
    assert step_bytes(replace(config, tie_word_embeddings=False), "full") == step_bytes(config, "full")
    assert step_bytes(config, "shortlist").total == pytest.approx(0.685e9, rel=0.01)
