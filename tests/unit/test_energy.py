"""Operation counts against a product that counts as it goes, and the papers' tables cell by cell."""

import importlib.util
import sys
from pathlib import Path

import pytest

from bitnet.config import ModelConfig, preset
from bitnet.energy import (
    PICOJOULES,
    Operations,
    head_operations,
    joules,
    kv_cache_bytes,
    operations,
    projections,
    weight_bytes,
)
from bitnet.errors import InputError

ROOT = Path(__file__).parents[2]
TINY = ModelConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=7,
)


@pytest.fixture(scope="module")
def papers():
    """benchmarks/papers_energy.py as a module."""
    spec = importlib.util.spec_from_file_location("papers_energy", ROOT / "benchmarks" / "papers_energy.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def count(rows, inner, columns):
    """(ADD, MUL) of a plain product, which starts each sum with its first term."""
    adds = muls = 0
    for _ in range(rows * columns):
        muls += 1
        for _ in range(inner - 1):
            muls += 1
            adds += 1
    return adds, muls


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("tokens", [1, 5])
def test_counts_are_those_of_plain_products(tokens, gated):
    linear, attention, scales = [0, 0], [0, 0], 0
    for _ in range(TINY.num_hidden_layers):
        for columns, inner in projections(TINY, gated).values():
            linear = [a + b for a, b in zip(linear, count(tokens, inner, columns), strict=True)]
            scales += tokens * inner + tokens * columns  # into the codes, out of the sums
        for _ in range(TINY.num_attention_heads):
            for shape in ((tokens, TINY.head_dim, tokens), (tokens, tokens, TINY.head_dim)):
                attention = [a + b for a, b in zip(attention, count(*shape), strict=True)]
    assert operations(TINY, tokens, "fp32", gated) == (
        Operations("projections", "fp32", *linear),
        Operations("attention", "fp32", *attention),
    )
    assert operations(TINY, tokens, "bitnet", gated) == (
        Operations("projections", "int8", linear[0], 0),
        Operations("scales", "fp16", 0, scales),
        Operations("attention", "fp16", *attention),
    )
    assert head_operations(TINY, tokens) == Operations("head", "fp16", *count(tokens, 8, 16))


def test_counts_by_hand():
    """3 layers of q 8x24, k and v 8x12, o 24x8, gate and up 8x12, down 12x8; 4 heads of 6; 2 tokens."""
    muls = 2 * 3 * (192 + 96 + 96 + 192 + 96 + 96 + 96)
    adds = 2 * 3 * (7 * 24 + 7 * 12 + 7 * 12 + 23 * 8 + 7 * 12 + 7 * 12 + 11 * 8)
    scales = 2 * 3 * (32 + 20 + 20 + 32 + 20 + 20 + 20)
    attention = (3 * 4 * (2 * 5 * 2 + 2 * 1 * 6), 3 * 4 * 2 * (2 * 6 * 2))
    assert [(part.adds, part.muls) for part in operations(TINY, 2, "fp16")] == [(adds, muls), attention]
    assert [(part.adds, part.muls) for part in operations(TINY, 2)] == [(adds, 0), (0, scales), attention]
    energy = joules(operations(TINY, 2), "45nm")
    assert energy.add == pytest.approx((adds * 0.03 + attention[0] * 0.4) * 1e-12, rel=1e-12)
    assert energy.mul == pytest.approx((scales + attention[1]) * 1.1e-12, rel=1e-12)
    assert energy.total == energy.add + energy.mul


def test_bytes_by_hand():
    parameters = 3 * (192 + 96 + 96 + 192 + 96 + 96 + 96)
    assert weight_bytes(TINY, 16).projections == 2 * parameters
    assert weight_bytes(TINY, 2).projections == parameters // 4
    assert weight_bytes(TINY, 2).embedding == 2 * 16 * 8
    assert weight_bytes(TINY, 2).total == parameters // 4 + 256  # tied: no head
    assert kv_cache_bytes(TINY, 7) == 2 * 3 * 12 * 7 * 2
    assert kv_cache_bytes(TINY, 7, 3) == 189
    assert kv_cache_bytes(TINY, 1, 3) == 27


def test_matrices_of_2b4t_are_its_published_parameters():
    config = preset("2b4t")
    norms = 30 * (3 * 2560 + 6912) + 2560
    assert weight_bytes(config, 16).total // 2 + norms == 2_412_820_480


def test_an_untied_head_is_stored():
    size = weight_bytes(preset("b1.58-700m"), 2)
    assert size.head == size.embedding == 2 * 32000 * 1536


@pytest.mark.parametrize("tokens", [0, -1])
def test_refuses_no_tokens(tokens):
    for call in (operations, head_operations, kv_cache_bytes):
        with pytest.raises(InputError, match=f"tokens is {tokens}; it must be positive"):
            call(TINY, tokens)


@pytest.mark.parametrize("bits", [0, -2, float("nan")])
def test_refuses_no_bits(bits):
    with pytest.raises(InputError, match="bits is"):
        weight_bytes(TINY, bits)
    with pytest.raises(InputError, match="bits is"):
        kv_cache_bytes(TINY, 1, bits)


def test_table_1_of_bitnet(papers):
    """arXiv 2310.11453: 34 of the 36 cells; docs/energy.md says what is known of the other two."""
    columns = ("7nm mul", "7nm add", "45nm mul", "45nm add")
    different = {
        (size, weights, column): (cell.published, round(cell.ours, 4))
        for size, weights in papers.TABLE_1
        for column, cell in zip(columns, papers.energy_cells(size, weights), strict=True)
        if not cell.equal
    }
    assert different == {
        ("6.7B", "bitnet", "7nm add"): ("0.04", 0.0340),
        ("30B", "bitnet", "7nm add"): ("0.14", 0.1348),
    }
    assert len(columns) * len(papers.TABLE_1) == 36


def test_figure_1_of_bitnet(papers):
    different = {
        size: (cell.published, round(cell.ours, 2))
        for size, cell in papers.ratio_cells().items()
        if not cell.equal
    }
    assert different == {"760M": ("15.0", 15.05), "30B": ("38.8", 38.88)}


def test_matrix_product_of_b158(papers):
    assert papers.product_ratio().equal
    assert set(PICOJOULES) == set(papers.NODES)


def test_table_of_2b4t(papers):
    """arXiv 2504.12285: every energy; one size is a tenth of a gigabyte off."""
    cells = {name: papers.cells_2b4t(name) for name in papers.TABLE_2B4T}
    assert all(energy.equal for energy, _ in cells.values())
    assert [name for name, (_, size) in cells.items() if not size.equal] == ["MiniCPM 2B"]


def test_a_cell_is_equal_in_its_printed_digits_only(papers):
    assert papers.Cell("0.14", 0.135001).equal
    assert not papers.Cell("0.14", 0.1348).equal
    assert str(papers.Cell("2", 1.99)) == "2 / 2"
    assert str(papers.Cell("0.14", 0.1348)) == "0.14 / 0.1348 ≠"


def test_the_documentation_shows_these_tables(papers):
    text = (ROOT / "docs" / "energy.md").read_text()
    for name, table in papers.tables().items():
        assert table in text, name
