"""A whole benchmark: parity first, then for each number of threads load, warm up, measure.

Each number of threads gets a model of its own. Loading times are those of a file that the system has cached,
for the parity check has read it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import bitnet
from bitnet import _core
from bitnet.benchmark.cases import Case, EngineRunner, Plan, fixed_ids, measure
from bitnet.benchmark.machine import commit, cpu_name, memory, reset_peak
from bitnet.benchmark.parity import check_parity
from bitnet.benchmark.peers import Peer
from bitnet.benchmark.report import Row
from bitnet.benchmark.roofline import read_bandwidth, step_bytes
from bitnet.config import ModelConfig
from bitnet.cpu_model import CpuModel, head_type, kv_type
from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.tensor_names import count_parameters
from bitnet.load import load_model
from bitnet.quantize.kv_cache import KvType


class Session:
    """One model on this machine.

    Raises:
        InputError: BITNET_ISA names no instruction set that works here, or a case does not fit the context.
    """

    def __init__(self, directory: Path, name: str, plan: Plan, kv_dtype: KvType = "auto") -> None:
        self.directory, self.plan = directory, plan
        if directory.is_dir():
            self.config = ModelConfig.from_file(directory / "config.json")
        else:
            self.config = read_checkpoint(directory).config
        plan.check_context(self.config.max_position_embeddings)
        try:
            self.isa = _core.chosen_isa()
        except ValueError as error:
            raise InputError(str(error)) from None
        self.head = head_type("auto", self.config)
        self.kv_dtype = kv_type(kv_dtype, self.config)
        self.facts: dict[str, Any] = {
            "model": name,
            "parameters": count_parameters(self.config),
            "head": self.head,
            "kv_dtype": self.kv_dtype,
            "isa": self.isa,
            "cpu": cpu_name(),
            "physical_cores": _core.physical_cores(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "version": bitnet.__version__,
            "commit": commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }

    def describe(self) -> str:
        """What our engine computes, for comparisons."""
        quantization = self.config.quantization
        inputs = "/".join(dict.fromkeys(vars(quantization.inputs).values()))
        bits = "1 bit" if quantization.weights == "binary" else "2 bits"
        return (
            f"bitnet {bitnet.__version__} ({self.isa}): {quantization.weights} weights in "
            f"{bits} times {inputs} activations, exact, one scale a token; "
            f"{self.config.hidden_act} in float32; keys and values in {self.kv_dtype}; head: "
            + (
                "bfloat16, every logit"
                if self.head == "full"
                else "4 bits to find the likely tokens, whose 64 largest logits are exact from bfloat16"
            )
        )

    def check(self) -> list[str]:
        """The parity check; what disagrees, a line each."""
        return check_parity(self._load, self.isa, self.plan.threads)

    def rows(
        self, peer: Peer | None = None, progress: Callable[[str], None] = lambda text: None
    ) -> Iterator[Row]:
        """Measure everything, our row of a case first and then the peer's."""
        for threads in self.plan.threads:
            progress(f"memory bandwidth, {threads} thread(s)")
            bandwidth = read_bandwidth(threads)
            progress(f"loading, {threads} thread(s)")
            reset_peak()
            start = time.perf_counter()
            model = self._load(threads)
            loaded = time.perf_counter() - start
            model.forward([(model.new_cache(1), fixed_ids(self.config.vocab_size, 1))])
            loading = loaded, time.perf_counter() - start
            for case in self.plan.cases(threads):
                progress(f"{case.title}, {threads} thread(s), batch {case.batch}")
                yield from self._measure(model, case, bandwidth, loading, peer)
            del model  # before the next one is loaded

    def _measure(
        self, model: CpuModel, case: Case, bandwidth: float, loading: tuple[float, float], peer: Peer | None
    ) -> Iterator[Row]:
        if peer is not None and peer.refusal(case) is not None:
            peer = None
        engine = EngineRunner(model)
        samples = measure([engine, peer] if peer else [engine], case, self.plan.repetitions)
        taken = memory()
        decode = case.phase == "tg"
        yield Row(
            "bitnet",
            case,
            tuple(samples[0]),
            step_bytes=step_bytes(self.config, self.head).total if decode else None,
            bandwidth=bandwidth,
            live_shares=model.live_shares if decode and case.batch == 1 else None,
            load_seconds=loading[0],
            first_token_seconds=loading[1],
            peak_memory=taken.peak,
            anonymous_memory=taken.anonymous,
            facts=self.facts,
        )
        if peer is not None:
            yield Row(peer.name, case, tuple(samples[1]), against=tuple(samples[0]), facts=self.facts)

    def _load(self, threads: int) -> CpuModel:
        model = load_model(self.directory, threads=threads, kv_dtype=self.kv_dtype)
        assert isinstance(model, CpuModel)
        return model
