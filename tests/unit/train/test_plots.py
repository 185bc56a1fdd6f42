"""Pictures show the values of the files, whatever the values and names are."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bitnet.errors import InputError
from bitnet.train.plots import plot_run, plot_schedule
from bitnet.train.record import Record

COLUMNS = ("step", "tokens", "loss", "learning_rate", "weight_decay", "heldout:a", "heldout:b", "packed:a")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, by file name."""
    figures, save = {}, Figure.savefig

    def noted(self, path, **options):
        figures[path.name] = self
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


def curves(axes) -> list[tuple[list[float], list[float]]]:
    return [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]


def test_a_run_is_drawn_as_recorded(tmp_path, drawn):
    record = Record(tmp_path, COLUMNS, 0)
    for step in (1, 2, 3):
        record.add({"step": step, "tokens": step * 500_000, "loss": 4 / step, "learning_rate": step / 8})
    record.add({"step": 4, "tokens": 2_000_000, "heldout:a": 1.5, "heldout:b": 1.75, "packed:a": 1.25})
    plot_run(tmp_path)
    loss, rate, bits, _ = drawn["loss.png"].axes
    assert curves(loss) == [([0.5, 1.0, 1.5], [4.0, 2.0, 1.33333])]
    assert curves(rate) == [([0.5, 1.0, 1.5], [0.125, 0.25, 0.375])]
    assert curves(bits) == [([2.0], [1.5]), ([2.0], [1.75]), ([2.0], [1.25])]
    a, b, packed_a = (to_hex(line.get_color()) for line in bits.lines)
    assert a == packed_a != b  # a text keeps its colour
    assert [text.get_text() for text in bits.get_legend().texts] == ["heldout:a", "heldout:b", "packed:a"]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "codes.png").exists()


def test_codes_have_a_colour_a_kind_and_a_line_a_layer(tmp_path, drawn):
    record = Record(tmp_path, COLUMNS, 0)
    for step, flips in ((10, float("nan")), (20, 0.5)):
        record.add_codes(
            step,
            {"layers.3.q_proj": (0.25, flips), "layers.3.up": (0.5, flips), "layers.4.up": (0.75, flips)},
        )
    plot_run(tmp_path)
    zeros, rates = drawn["codes.png"].axes
    assert curves(zeros) == [([10, 20], [share, share]) for share in (0.25, 0.5, 0.75)]
    assert curves(rates) == [([20], [0.5])] * 3
    q, up, other_up = (line.get_color() for line in zeros.lines)
    assert q != up == other_up
    assert [text.get_text() for text in zeros.get_legend().texts] == ["q_proj", "up"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_any_value_can_be_drawn(tmp_path, drawn, value):
    record = Record(tmp_path, COLUMNS, 0)
    for step in (1, 2):
        record.add({"step": step, "tokens": 0} | dict.fromkeys(COLUMNS[2:], value))
    plot_run(tmp_path)
    assert len(drawn["loss.png"].axes[0].lines) == 1


def test_a_name_is_no_formula(tmp_path, drawn):
    name = "heldout:_$\\frac$ 5_$"
    record = Record(tmp_path, (*COLUMNS, name), 0)
    record.add({"step": 1, "tokens": 1, name: 1.0})
    plot_run(tmp_path)
    assert "loss.png" in drawn


def test_no_rows_make_no_picture(tmp_path, drawn):
    Record(tmp_path, COLUMNS, 0)
    plot_run(tmp_path)
    assert drawn == {}


def test_a_schedule_is_drawn_in_panels(tmp_path, drawn):
    rate, decay = ([0, 1, 2], [0.0, 1.0, 0.5]), ([0, 2], [0.1, 0.0])
    plot_schedule({"rate": rate, "decay": decay}, tmp_path / "curves.svg", "step")
    assert [curves(axes) for axes in drawn["curves.svg"].axes] == [[rate], [decay]]
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    plot_schedule({"rate": ([0], [0.0])}, tmp_path / "bare", "step")
    assert (tmp_path / "bare").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"curves\.doc: .*\.png"):
        plot_schedule({"rate": rate}, tmp_path / "curves.doc", "step")
