"""The order of an epoch is pure, whole, and stays within a few shards at a time."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cmdvid.data.order import ShardWindows, check_same_size, random_order

SIZES = np.array([5, 0, 9, 3, 7, 6, 1, 4])
SHARDS = ShardWindows(SIZES, window=3)
SIZE = int(SIZES.sum())


def test_each_row_comes_once():
    for shards in (None, SHARDS):
        order = random_order(SIZE, seed=1, epoch=2, shards=shards)
        assert sorted(order.tolist()) == list(range(SIZE))


def test_order_is_a_function_of_seed_and_epoch():
    for shards in (None, SHARDS):

        def order(seed, epoch, shards=shards):
            return random_order(SIZE, seed=seed, epoch=epoch, shards=shards)

        assert torch.equal(order(1, 2), order(1, 2))
        assert not torch.equal(order(1, 2), order(1, 3))
        assert not torch.equal(order(1, 2), order(2, 2))


def test_rows_of_few_shards_are_wanted_at_a_time():
    firsts = set()
    for epoch in range(10):
        shards = ShardWindows(np.array([5, 2, 9, 3, 7, 6, 1, 4]), window=3)
        order = random_order(37, seed=0, epoch=epoch, shards=shards)
        left = np.repeat(np.arange(8), shards.sizes)[order.numpy()].tolist()
        for num_shards in (3, 3, 2):  # each window is over before the next begins
            window = list(dict.fromkeys(left))[:num_shards]
            rows = sum(shards.sizes[shard] for shard in window)
            assert set(left[:rows]) == set(window)
            left = left[rows:]
            firsts.add(tuple(window))
    assert len(firsts) > 15  # windows change from epoch to epoch


def test_rows_of_a_window_are_mixed():
    order = random_order(200, seed=0, epoch=0, shards=ShardWindows(np.full(4, 50), window=4))
    shards = order.numpy() // 50
    assert len(set(shards[:20])) == 4
    assert np.abs(np.diff(order.numpy())).mean() > 40


PROCESS = """
import sys
from torch import distributed
from cmdvid.data.order import check_same_size

rank, meeting = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
check_same_size(8)
check_same_size(8 - rank)
"""


@pytest.mark.ddp
def test_processes_with_other_numbers_of_rows_stop_together(tmp_path):
    check_same_size(8)  # alone there is nothing to compare
    command = [sys.executable, "-c", PROCESS]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), f"file://{tmp_path}/meeting"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    for process in ranks:
        assert b"ValueError: the processes found [8, 7] samples" in process.communicate()[1]
