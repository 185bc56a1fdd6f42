"""TensorBoard and W&B get every step once, resumed or not; what is missing is said."""

import json
import sys

import pytest

from bitnet.errors import FormatError, ResourceError
from bitnet.train.sinks import TensorBoard, WeightsAndBiases


def row(step, loss=1.5):
    return {"step": step, "tokens": 64 * step, "loss": loss, "mfu": float("nan"), "heldout:story": 2.0}


@pytest.mark.parametrize(
    ("package", "open_sink"),
    [
        ("tensorboard", lambda folder: TensorBoard(folder, 0)),
        ("wandb", lambda folder: WeightsAndBiases(folder, "project", {}, [])),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, package, open_sink):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"pip install 'bitnet-ternary\[{package}\]'"):
        open_sink(tmp_path)
    assert list(tmp_path.iterdir()) == []


class TestTensorBoard:
    @pytest.fixture
    def read(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        def scalars(tag):
            events = EventAccumulator(str(tmp_path / "tensorboard"))
            events.Reload()
            return [(event.step, event.value) for event in events.Scalars(tag)]

        return scalars

    def test_values_arrive_by_name(self, tmp_path, read):
        sink = TensorBoard(tmp_path, 0)
        sink.add(1, row(1))
        assert read("heldout/story") == [(1, 2.0)]  # before close: a killed run has lost nothing
        sink.add(3, row(3, 0.25))
        sink.close()
        assert read("loss") == [(1, 1.5), (3, 0.25)]
        assert [step for step, _ in read("mfu")] == [1, 3]

    @pytest.mark.parametrize("step", [0, 4])
    def test_a_resumed_run_replaces_what_was_behind_its_step(self, tmp_path, read, step):
        interrupted = TensorBoard(tmp_path, 0)
        for number in (2, 4, 6, 8):
            interrupted.add(number, row(number, 8.0))
        interrupted.close()
        resumed = TensorBoard(tmp_path, step)
        later = [number for number in (2, 4, 6, 8, 10) if number > step]
        for number in later:
            resumed.add(number, row(number, 0.5))
        resumed.close()
        assert read("loss") == [(number, 8.0) for number in (2, 4) if number <= step] + [
            (number, 0.5) for number in later
        ]


class TestWeightsAndBiases:
    @pytest.fixture
    def wandb(self, monkeypatch):
        """Real W&B that stays on this machine."""
        wandb = pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        return wandb

    @pytest.fixture
    def server(self, monkeypatch):
        """W&B without W&B: what it was asked to start, and which rows arrived."""
        wandb = pytest.importorskip("wandb")

        class Server:
            def __init__(self):
                self.starts, self.rows, self.finished = [], {}, 0

            def init(self, **options):
                self.starts.append(options)
                return Run(self, self.rows.setdefault(options["id"], []))

        class Run:
            def __init__(self, server, rows):
                self._server, self._rows = server, rows

            @property
            def step(self):
                return self._rows[-1][0] + 1 if self._rows else 0

            def log(self, values, step):
                assert step >= self.step, "W&B would drop this row"
                self._rows.append((step, values["loss"]))

            def finish(self):
                self._server.finished += 1

        server = Server()
        monkeypatch.setattr(wandb, "init", server.init)
        return server

    def test_a_real_run_stays_in_the_folder(self, tmp_path, wandb):
        sink = WeightsAndBiases(tmp_path, "stories", {"seed": 3}, [row(1), row(2)])
        sink.add(2, row(2))
        sink.add(4, row(4))
        sink.close()
        wandb.teardown()  # its service writes on for a moment; the end of a process waits for it as this does
        (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        assert json.loads((tmp_path / "wandb-run.json").read_text())["id"] in file.name
        content = file.read_bytes()
        assert b"stories" in content
        assert content.count(b"heldout:story") >= 3

    @pytest.mark.parametrize("arrived", [0, 4, 6, 10])
    def test_a_resumed_run_goes_on_under_its_id_and_fills_the_gaps(self, tmp_path, server, arrived):
        """Killed after step 10, saved at step 6; W&B has what had arrived by then."""
        first = WeightsAndBiases(tmp_path / ".", "stories", {}, [])
        for step in (2, 4, 6, 8, 10):
            first.add(step, row(step, 8.0))
        (arrivals,) = server.rows.values()
        arrivals[:] = [(step, loss) for step, loss in arrivals if step <= arrived]
        resumed = WeightsAndBiases(tmp_path, "stories", {}, [row(step, 8.0) for step in (2, 4, 6)])
        for step in (8, 10, 12):
            resumed.add(step, row(step, 8.0))
        resumed.close()
        assert arrivals == [(step, 8.0) for step in (2, 4, 6, 8, 10, 12)]
        assert len(server.rows) == server.finished == 1
        assert {start["resume"] for start in server.starts} == {"allow"}
        assert {start["name"] for start in server.starts} == {tmp_path.name}

    def test_runs_of_one_folder_name_or_another_project_are_different(self, tmp_path, server):
        for folder in ("a", "b"):
            (tmp_path / folder / "run").mkdir(parents=True)
            WeightsAndBiases(tmp_path / folder / "run", "stories", {}, []).add(5, row(5))
        WeightsAndBiases(tmp_path / "a" / "run", "tales", {}, [row(3)])
        assert [[step for step, _ in rows] for rows in server.rows.values()] == [[5], [5], [3]]

    def test_a_refusal_of_wandb_is_the_machines_fault(self, tmp_path, wandb, monkeypatch):
        def refuse(**options):
            raise wandb.errors.UsageError("No API key configured")

        monkeypatch.setattr(wandb, "init", refuse)
        with pytest.raises(ResourceError, match=r"'stories'.*No API key.*WANDB_MODE=offline"):
            WeightsAndBiases(tmp_path, "stories", {}, [])

    @pytest.mark.parametrize("content", ["", "[]", '{"id": 3, "project": "p"}', '{"project": "p"}'])
    def test_a_damaged_state_is_refused_by_name(self, tmp_path, server, content):
        (tmp_path / "wandb-run.json").write_text(content)
        with pytest.raises(FormatError, match=r"wandb-run\.json"):
            WeightsAndBiases(tmp_path, "p", {}, [])
        assert server.starts == []
