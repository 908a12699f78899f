"""Memory on fake tensors against sums by hand and against the same step on real tensors."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from cmdvid.cost_parts import diffusion_part
from cmdvid.memory import Tracker, call_memory, training_memory
from cmdvid.models.conditioning import LabelConditioner
from cmdvid.models.motion_dit import MotionDiT
from cmdvid.models.stable_diffusion import StableDiffusionUNet
from cmdvid.profiling import Call, Part

UNET = {
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}


def linear(num, size=64, depth=4) -> Part:
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(depth)))
    return Part("linear", network, lambda net, n: net(torch.empty(n, size)), num)


def motion(batch_size=4, **settings) -> Part:
    with torch.device("meta"):
        denoiser = MotionDiT(channels=4, condition_dim=16, width=64, depth=4, num_heads=4)
        labels = LabelConditioner(3, dim=16)
    shape, context = (8, 16, 24), {"content": (4, 16, 32)}
    settings["batch_size"] = batch_size
    return diffusion_part("motion", denoiser, labels, shape, context=context, **settings)


def test_a_step_of_linear_layers_is_the_sum_by_hand():
    memory = training_memory(linear(32))
    weights = 4 * 4 * 64**2
    assert memory.states == pytest.approx(5 * weights, abs=100)  # also gradient, moments, average
    # input, four results; then the loss's share of them
    assert 5 * 32 * 64 * 4 <= memory.activations <= 8 * 32 * 64 * 4 + 2 * 4 * 64**2
    assert memory.peak >= memory.states + memory.activations


def test_what_is_kept_in_copies_and_what_is_frozen_count():
    part = linear(4)
    plain, weights = training_memory(part).states, 4 * 4 * 64**2
    assert training_memory(replace(part, ema=False)).states == plain - weights
    assert training_memory(replace(part, buckets=True)).states == plain + weights
    frozen = nn.Linear(8, 8, bias=False, device="meta")
    assert training_memory(replace(part, frozen=(frozen,))).frozen == 4 * 64


def test_fake_tensors_take_what_real_ones_take():
    part = motion()
    network = copy.deepcopy(part.network).to_empty(device="cpu")
    for p in network.parameters():
        nn.init.normal_(p, std=0.02)
    optimizer = torch.optim.Adam(network.parameters(), foreach=True)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    tracker = Tracker()
    tracker.track_external(network, optimizer, *(p.grad for p in network.parameters()))
    with tracker:
        part.run(network, part.batch_size).square().mean().backward()
    measured = sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
    memory = training_memory(replace(part, ema=False))
    assert memory.states + memory.activations == pytest.approx(measured, rel=0.01)


def test_half_precision_and_checkpointing_keep_less():
    part = motion(batch_size=16)
    full = training_memory(part)
    mixed = training_memory(replace(part, precision="bf16-mixed"))
    assert mixed.states == full.states  # weights stay in fp32
    assert 0.4 * full.activations < mixed.activations < 0.9 * full.activations
    half = training_memory(replace(part, precision="bf16-true"))
    assert half.states == pytest.approx(full.states / 2, rel=0.01)
    part.network[0].enable_gradient_checkpointing()
    twice = training_memory(replace(part, precision="bf16-mixed"))
    assert twice.activations < 0.6 * mixed.activations


def test_lora_has_gradients_and_moments_of_its_own_weights_alone():
    def part(rank) -> Part:
        with torch.device("meta"):
            unet = StableDiffusionUNet(unet_config=UNET, lora_rank=rank)

        def run(net, num):
            t = torch.zeros(num, dtype=torch.long)
            return net(torch.empty(num, 4, 8, 16), t, torch.empty(num, 77, 16))

        return Part("content", unet, run, precision="bf16-mixed")

    full, lora = part(None), part(2)
    sizes = [4 * sum(p.numel() for p in each.network.parameters()) for each in (full, lora)]
    assert training_memory(full).states == pytest.approx(5 * sizes[0], rel=0.01)
    assert training_memory(lora).states < 1.2 * sizes[1]


def test_a_call_without_gradients_keeps_no_activations():
    part = linear(32, depth=8)
    call = Call(part.network, lambda net: part.run(net, 32))
    assert call_memory(call, "32-true") <= 3 * 32 * 64 * 4


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.precision 64-true: memory is known of 32-true"):
        training_memory(replace(linear(2), precision="64-true"))
