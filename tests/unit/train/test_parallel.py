"""How processes find each other, and what they say when they cannot."""

import pytest
import torch

from bitnet.errors import ConfigError, ResourceError
from bitnet.train.parallel import Parallel, is_lost_peer, processes


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [7, 8, 23])
def test_every_row_has_one_process(world, batch_size):
    parts = [Parallel(rank, world).rows(batch_size) for rank in range(world)]
    assert [row for part in parts for row in range(batch_size)[part]] == list(range(batch_size))
    longest = max(part.stop - part.start for part in parts)
    assert longest == Parallel(0, world).most_rows(batch_size)


def test_one_process_works_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes() as parallel:
        assert parallel.world == 1
        assert parallel.from_first(lambda: 3) == 3
        assert parallel.sum(1.5, 2.0) == [1.5, 2.0]


def test_variables_that_are_missing_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2.*RANK.*torchrun"), processes():
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU"), processes():
        pass


def test_memory_that_does_not_suffice_is_no_defect(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ResourceError, match="micro_batch_size"), processes():
        torch.empty(1 << 55)
    with pytest.raises(RuntimeError, match="shape"), processes():
        torch.ones(2, 3) @ torch.ones(2, 3)  # a defect stays one: not a ResourceError


def test_a_full_disk_is_no_lost_process():
    assert not is_lost_peer(OSError(28, "No space left on device"))
    assert not is_lost_peer(ConnectionResetError(104, "Connection reset by peer"))
    assert is_lost_peer(RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:29500"))
