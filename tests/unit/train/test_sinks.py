"""TensorBoard and W&B get every step once, resumed or not; what is missing is said."""

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
        ("wandb", lambda folder: WeightsAndBiases(folder, "project", {})),
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
    def sent(self, monkeypatch):
        """W&B without W&B: what was asked of it, as (what, how)."""
        wandb = pytest.importorskip("wandb")
        calls = []

        class Run:
            def log(self, values, step):
                calls.append((step, values))

            def finish(self):
                calls.append("finished")

        def init(**options):
            calls.append(options)
            return Run()

        monkeypatch.setattr(wandb, "init", init)
        return calls

    def test_a_real_run_stays_in_the_folder(self, tmp_path, wandb):
        sink = WeightsAndBiases(tmp_path, "stories", {"seed": 3})
        sink.add(1, row(1))
        sink.add(4, row(4))
        sink.close()
        (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
        assert sink._id in file.name
        content = file.read_bytes()
        assert b"heldout:story" in content
        assert b"stories" in content

    def test_a_resumed_run_goes_on_under_its_id_and_sends_no_step_twice(self, tmp_path, sent):
        first = WeightsAndBiases(tmp_path / ".", "stories", {})
        for step in (2, 4, 6):
            first.add(step, row(step))
        resumed = WeightsAndBiases(tmp_path, "stories", {})  # from step 3, the first was killed
        for step in (4, 6, 8):
            resumed.add(step, row(step))
        resumed.close()
        starts = [call for call in sent if isinstance(call, dict)]
        assert starts[0]["id"] == starts[1]["id"]
        assert {start["resume"] for start in starts} == {"allow"}
        assert {start["name"] for start in starts} == {tmp_path.name}
        assert [call[0] for call in sent if isinstance(call, tuple)] == [2, 4, 6, 8]
        assert sent[-1] == "finished"

    def test_runs_of_one_folder_name_or_another_project_are_different(self, tmp_path, sent):
        for folder in ("a", "b"):
            (tmp_path / folder / "run").mkdir(parents=True)
            sink = WeightsAndBiases(tmp_path / folder / "run", "stories", {})
            sink.add(5, row(5))
        moved = WeightsAndBiases(tmp_path / "a" / "run", "tales", {})
        moved.add(3, row(3))
        assert len({call["id"] for call in sent if isinstance(call, dict)}) == 3
        assert sent[-1][0] == 3

    def test_a_refusal_of_wandb_is_the_machines_fault(self, tmp_path, wandb, monkeypatch):
        def refuse(**options):
            raise wandb.errors.UsageError("No API key configured")

        monkeypatch.setattr(wandb, "init", refuse)
        with pytest.raises(ResourceError, match=r"'stories'.*No API key.*WANDB_MODE=offline"):
            WeightsAndBiases(tmp_path, "stories", {})

    @pytest.mark.parametrize(
        "content", ["", "[]", '{"id": 3, "project": "p", "step": 1}', '{"id": "a", "project": "p"}']
    )
    def test_a_damaged_state_is_refused_by_name(self, tmp_path, sent, content):
        (tmp_path / "wandb-run.json").write_text(content)
        with pytest.raises(FormatError, match=r"wandb-run\.json"):
            WeightsAndBiases(tmp_path, "p", {})
        assert sent == []
