"""The training loop and its folder.

OUT/training.yaml           the resolved configuration      OUT/tokenizer/         tokenizer.json
OUT/checkpoints/step-N/     the last states, to go on from  OUT/metrics.csv, …     what was recorded
OUT/model-packed/           the result, packed             OUT/model-bf16/        its masters

One process or many run the same code; files are written and lines printed by the first.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from tokenizers import Tokenizer

from bitnet.errors import DivergedError, FormatError, InputError
from bitnet.formats.checkpoint import Checkpoint, read_checkpoint
from bitnet.formats.tensor_names import expected_tensors
from bitnet.nn import Transformer
from bitnet.nn.bitlinear import set_quantization
from bitnet.quant_config import QuantizationMode
from bitnet.train.checkpointing import load_state, save_state, saved_steps
from bitnet.train.code_health import CodeHealth
from bitnet.train.config import CONFIG_FILE, TrainingConfig
from bitnet.train.export import computed_config, export, whole_tensors
from bitnet.train.guard import Guard
from bitnet.train.heldout import HeldOut, open_texts
from bitnet.train.initial import quieten_branches
from bitnet.train.lock import sole_writer
from bitnet.train.masters import load_masters
from bitnet.train.optimizer import build_optimizer, follow_schedule, set_constants
from bitnet.train.order import Batches
from bitnet.train.parallel import Parallel, check_batch
from bitnet.train.reporting import Reporting
from bitnet.train.schedule import Schedule
from bitnet.train.shards import Corpus
from bitnet.train.sinks import check_packages
from bitnet.train.sources import open_source
from bitnet.train.step import Ids, StepResult, TrainingStep, weights_are_finite
from bitnet.train.tokenizer import id_bound, load_tokenizer, read_chat_template, save_tokenizer
from bitnet.train.yaml_file import override, read_yaml

TOKENIZER_FOLDER = "tokenizer"
EXPORTS: dict[str, QuantizationMode] = {"model-packed": "offline", "model-bf16": "online"}


class Trainer:
    """One run in one folder; `run` trains to the horizon or until a signal asks to stop."""

    def __init__(
        self,
        directory: Path,
        config: TrainingConfig,
        tokenizer: Tokenizer,
        parallel: Parallel,
        initial: Checkpoint | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Build model and optimiser, from the folder's newest checkpoint if there is one.

        Args:
            tokenizer, chat_template: exports bring them along.
            initial: where the first weights come from; None: from the seed.

        Raises:
            InputError: the vocabulary does not fit the model, or `initial` has another shape.
            ConfigError: a process would have no row of a batch.
            FormatError: the folder's state is damaged or of another model.
        """
        if id_bound(tokenizer) > config.model.vocab_size:
            raise InputError(
                f"the tokenizer's ids go up to {id_bound(tokenizer) - 1}, the model's vocab_size is "
                f"{config.model.vocab_size}; set model.vocab_size={id_bound(tokenizer)}"
            )
        check_batch(parallel, config.data.batch_size)
        self.directory, self.config, self.parallel = directory, config, parallel
        self.tokenizer, self.chat_template = tokenizer, chat_template
        self.schedule = Schedule(config.schedule, config.data.tokens_per_step)
        torch.manual_seed(config.seed)
        self.model = Transformer(config.model)
        if initial is None:
            quieten_branches(self.model, config.branch_norm)
        else:
            load_masters(self.model, initial)
        self.model.to(parallel.device)
        self.model.model.activation_checkpointing = config.compute.activation_checkpointing
        if config.compute.compile:
            for layer in self.model.model.layers:
                layer.compile()
        parallel.shard(self.model)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.guard = Guard(config.guard)
        self.step = 0
        self.notices: list[str] = []
        self._texts: tuple[Batches, list[HeldOut]] | None = None
        if saved_steps(directory):
            self._restore()

    def _restore(self) -> None:
        facts = load_state(self.directory, self.model, self.optimizer, self.parallel)
        set_constants(self.optimizer, self.config.optimizer)
        self.step = int(facts["step"])
        self.guard.restore(facts.get("guard", {}), str(self.directory))
        if facts.get("schedule") != self._curves():
            self.notices.append(f"the schedule differs from the one that led to step {self.step}")

    @classmethod
    def create(
        cls,
        directory: Path,
        config: TrainingConfig,
        tokenizer: Tokenizer,
        parallel: Parallel | None = None,
        initial: Checkpoint | None = None,
        chat_template: str | None = None,
    ) -> Trainer:
        """Start a run in a new folder; nothing is written unless the texts can be read.

        Raises:
            InputError: the folder holds a run already; else as the constructor and for its texts, as `run`.
            ResourceError: the folder cannot be written, or a package that the report needs is missing.
        """
        parallel = parallel or Parallel()
        if (directory / CONFIG_FILE).exists():
            raise InputError(f"{directory}: holds a training run already; add --resume to continue it")
        if saved_steps(directory):
            raise InputError(
                f"{directory}: holds checkpoints of a run without {CONFIG_FILE}; use a new folder"
            )
        parallel.wait()  # nobody may find the file that the first process writes below
        trainer = cls(directory, config, tokenizer, parallel, initial, chat_template)
        trainer._open_texts()
        parallel.from_first(trainer._write_head)
        return trainer

    def _write_head(self) -> None:
        """Tokenizer and configuration; the latter last, as it makes the folder a run."""
        longest = self.config.model.max_position_embeddings
        save_tokenizer(self.tokenizer, self.directory / TOKENIZER_FOLDER, longest, self.chat_template)
        self.config.save(self.directory / CONFIG_FILE)

    @classmethod
    def resume(
        cls, directory: Path, changes: Sequence[str] = (), parallel: Parallel | None = None
    ) -> Trainer:
        """Continue the run of a folder.

        Before its first checkpoint a run begins anew, from `initial` if it has one.

        Args:
            changes: `a.b=c` assignments to its configuration: another horizon, other texts, longer sequences.
                They are kept once the texts can be read.
        Raises:
            FormatError: there is no run, or its files are damaged.
            InputError: a step would hold another number of tokens, in which schedule and record count; the
                model would have other tensors; or the run has gone beyond its new horizon.
        """
        parallel = parallel or Parallel()
        path = directory / CONFIG_FILE
        if not path.exists():
            raise FormatError(f"{path}: not found; there is no training run to resume here")
        config = TrainingConfig.load(path)
        changed = TrainingConfig.from_dict(override(read_yaml(path), changes), str(path))
        if changed.data.tokens_per_step != config.data.tokens_per_step:
            raise InputError(
                f"{directory}: a step of this run holds {config.data.tokens_per_step} tokens, not "
                f"{changed.data.tokens_per_step}; keep batch_size times sequence_length"
            )
        if expected_tensors(changed.model) != expected_tensors(config.model):
            raise InputError(
                f"{directory}: these changes give the model other tensors than its checkpoints hold; start a "
                "new run"
            )
        folder = directory / TOKENIZER_FOLDER
        anew = changed.initial is not None and not saved_steps(directory)
        trainer = cls(
            directory,
            changed,
            load_tokenizer(folder),
            parallel,
            read_checkpoint(str(changed.initial)) if anew else None,
            read_chat_template(folder),
        )
        if trainer.step > trainer.schedule.steps:
            raise InputError(
                f"{directory}: {trainer.step} steps are done, the schedule has {trainer.schedule.steps}; "
                "raise schedule.horizon"
            )
        if changed.model.quantization != config.model.quantization:
            trainer.notices.append(f"the quantisers differ from those that led to step {trainer.step}")
        if changed != config:
            trainer._open_texts()
            with sole_writer(directory, parallel):
                parallel.from_first(lambda: changed.save(path))
        return trainer

    def run(self) -> bool:
        """Train; saves at intervals, at the end, and when SIGINT or SIGTERM arrives; exports at the end.

        Returns:
            Whether the horizon was reached.
        Raises:
            FormatError, InputError: a text is missing, damaged or too short.
            InputError: another process trains in this folder.
            ResourceError: the disk is full, or another process is gone.
            DivergedError: too many steps in a row were not finite, or the weights are not.
        """
        with sole_writer(self.directory, self.parallel):
            return self._run()

    def _run(self) -> bool:
        config, steps, parallel = self.config, self.schedule.steps, self.parallel
        batches, heldout = self._texts or self._open_texts()
        update = TrainingStep(
            self.model,
            self.optimizer,
            self.guard,
            config.data,
            config.compute,
            config.optimizer.clip,
            parallel,
        )
        codes = CodeHealth(self.model)
        if self.step % config.report.codes_every == 0:
            codes.measure()  # the next flips are counted from here, as if the run had not been interrupted
        result = None
        with _stop_signals() as stop, Reporting(self.directory, config, heldout, parallel) as report:
            report.start(self.step, steps, self.notices)
            while self.step < steps and not (result and result.stop):
                values = self.schedule.at(self.step)
                follow_schedule(self.optimizer, values)
                set_quantization(
                    self.model, values.quantizer_strength, values.activation_bits, values.low_bit
                )
                rows = parallel.rows(config.data.batch_size)
                inputs, targets = batches.batch(self.step, config.data.batch_size, rows)
                result = update(inputs, targets, bool(stop))
                self.step += 1
                report.step(self.step, result, values, self.guard.skipped, self.model)
                if not result.taken:
                    self._bad_step(inputs, result, report)
                last = self.step == steps
                if last or self.step % config.report.codes_every == 0:
                    report.codes(self.step, codes.measure())
                if last or result.stop or self.step % config.report.save_every == 0:
                    self._save()
            finished = self.step == steps
            if finished and config.schedule.quantized:
                for name, mode in EXPORTS.items():
                    self._export_anew(self.directory / name, mode)
            elif finished:
                report.notice(
                    "schedule.quantized is false: nothing is exported, no format here holds such weights"
                )
        return finished

    def export(self, directory: Path, mode: QuantizationMode) -> None:
        """Write the weights as a model folder, "offline" (packed) or "online" (bfloat16 masters).

        Its configuration says what the last step computed: before schedule.low_bit_from, int8 inputs.

        Raises:
            InputError: the folder exists and is not empty, or the run is not quantised.
            ResourceError: the disk has no room.
        """
        if not self.config.schedule.quantized:  # the file would hold codes this model never computed with
            raise InputError(
                f"{self.directory}: schedule.quantized is false; no format here holds such weights"
            )
        low_bit = self.schedule.at(max(0, self.step - 1)).low_bit
        tensors, config = whole_tensors(self.model), computed_config(self.config.model, low_bit)
        self.parallel.from_first(
            lambda: export(tensors, config, self.tokenizer, directory, mode, self.chat_template)
        )

    def _export_anew(self, directory: Path, mode: QuantizationMode) -> None:
        """`export` over what a shorter horizon left there, which stays until the new folder is whole."""
        new = directory.with_name(f".{directory.name}.tmp")

        def swap() -> None:
            shutil.rmtree(directory, ignore_errors=True)
            new.replace(directory)

        self.parallel.from_first(lambda: shutil.rmtree(new, ignore_errors=True))
        self.export(new, mode)
        self.parallel.from_first(swap)

    def _save(self) -> None:
        if not weights_are_finite(self.model, self.parallel):
            raise DivergedError(
                f"{self.directory}: the weights are not finite any more after step {self.step}, and are not "
                f"saved. Lower schedule.learning_rate.peak, then --resume from step {self._last_saved()}"
            )
        facts = {"schedule": self._curves(), "guard": self.guard.state()}
        save_state(
            self.directory,
            self.model,
            self.optimizer,
            self.step,
            facts,
            self.parallel,
            self.config.report.keep,
        )

    def _curves(self) -> dict[str, object]:
        """The schedule in the plain form of run.json: lengths in steps, curves over fractions of the run."""
        curves = {
            name: [dict(vars(stage)) for stage in stages] for name, stages in self.schedule.curves.items()
        }
        return {"horizon": self.schedule.horizon, "warmup": self.schedule.warmup, "curves": curves}

    def _bad_step(self, inputs: Ids, result: StepResult, report: Reporting) -> None:
        """Note a skipped step; keep its batch, and end the run, after too many of them."""
        report.notice(
            f"step {self.step} skipped: loss {result.loss:.4g}, gradient norm {result.norm:.4g} "
            f"({self.guard.skipped} skipped so far)"
        )
        if not self.guard.exhausted:
            return
        path = self.directory / f"bad-batch-step-{self.step:08d}-rank-{self.parallel.rank}.npy"
        try:
            np.save(path, inputs)
            where = f"in {path.name}"
        except OSError as error:
            where = f"lost ({error.strerror})"
        raise DivergedError(
            f"{self.directory}: {self.guard.in_a_row} bad steps in a row up to step {self.step}; the ids of "
            f"the last one are {where}. Lower schedule.learning_rate.peak or look at the data, then --resume "
            f"from step {self._last_saved()}"
        )

    def _last_saved(self) -> int:
        return max(saved_steps(self.directory), default=0)

    def _open_texts(self) -> tuple[Batches, list[HeldOut]]:
        """All that a run can miss only when it has begun: what it learns from, evaluates on, reports by."""
        check_packages(self.config.report)
        data, template = self.config.data, self.chat_template
        corpora: list[Corpus] = [
            open_source(Path(source.path), self.tokenizer, chat_template=template) for source in data.sources
        ]
        shares = [(source.passes, source.until) for source in data.sources]
        batches = Batches(corpora, shares, data.sequence_length, self.config.seed)
        self._texts = batches, open_texts(data.heldout, self.tokenizer, template)
        return self._texts


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGINT or SIGTERM arrives; a second signal acts as it always does.

    In another thread than the main one, where Ray trains, it stays empty: Python has no handlers there.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
