import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from cmdvid.models.conditioning import LabelConditioner
from cmdvid.models.content_dit import ContentDiT
from cmdvid.models.diffusion import Diffusion, guide, guided_sample, seeded_noise

SAMPLER = {"clip_sample": False, "timestep_spacing": "trailing"}


class Toy(torch.nn.Module):
    """A denoiser simple enough to follow by hand."""

    def forward(self, noisy, t, condition, shift=0.0):
        return 0.3 * noisy + condition[:, :, None, None] * (t / 1000).view(-1, 1, 1, 1) + shift


@pytest.fixture
def diffusion() -> Diffusion:
    torch.manual_seed(0)
    dit = ContentDiT(width=32, depth=1, num_heads=4, patch=2, condition_dim=8)
    return Diffusion(dit, conditioner=LabelConditioner(3, dim=8), condition_dropout=0.0)


def test_guidance_scale_is_one_plus_the_papers_w():
    c, u, w = torch.randn(4), torch.randn(4), 3.0
    torch.testing.assert_close(guide(c, u, 1 + w), (1 + w) * c - w * u)
    torch.testing.assert_close(guide(c, u, 1.0), c)
    torch.testing.assert_close(guide(c, u, 0.0), u)


def test_ddim_follows_the_equations_by_hand():
    """eta = 0: x_{t-1} = sqrt(abar') x0 + sqrt(1 - abar') eps, no scheduler code involved."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    noise, c, n = torch.randn(2, 3, 4, 6), torch.randn(2, 3), torch.randn(2, 3)
    sample = guided_sample(
        Toy(), scheduler, noise, condition=c, negative=n, num_inference_steps=5, guidance_scale=4.0
    )
    x, alphas = noise, scheduler.alphas_cumprod
    for t in (800, 600, 400, 200, 0):
        step = torch.full((2,), t)
        eps = guide(Toy()(x, step, c), Toy()(x, step, n), 4.0)
        a, b = alphas[t], alphas[t - 200] if t >= 200 else torch.tensor(1.0)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    torch.testing.assert_close(sample, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler]
)
def test_every_scheduler_removes_known_noise(scheduler):
    """A denoiser that knows the answer must be led to it by any scheduler."""
    answer = torch.randn(1, 3, 4, 6)
    trained = DDIMScheduler(clip_sample=False)
    sampler = scheduler.from_config(trained.config)

    class Oracle(torch.nn.Module):
        def forward(self, noisy, t, condition):
            a = trained.alphas_cumprod[t.long().clamp(max=999)].view(-1, 1, 1, 1)
            return (noisy - a.sqrt() * answer) / (1 - a).sqrt()

    empty = torch.zeros(1, 1)
    sample = guided_sample(
        Oracle(),
        sampler,
        torch.randn(1, 3, 4, 6),
        condition=empty,
        negative=empty,
        num_inference_steps=20,
        guidance_scale=1.0,
    )
    assert (sample - answer).abs().mean() < 0.05


SCHEDULERS = pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        EulerDiscreteScheduler,
    ],
)


@SCHEDULERS
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loss_is_zero_for_a_perfect_prediction(scheduler, prediction_type):
    scheduler = scheduler.from_config(SAMPLER, prediction_type=prediction_type)
    x = torch.randn(4, 3, 4, 6)

    class Perfect(torch.nn.Module):
        def forward(self, noisy, t, condition):
            a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            noise = (noisy - a.sqrt() * x) / (1 - a).sqrt()
            velocity = a.sqrt() * noise - (1 - a).sqrt() * x
            return {"epsilon": noise, "v_prediction": velocity, "sample": x}[prediction_type]

    conditioner = LabelConditioner(3)
    diffusion = Diffusion(Perfect(), conditioner=conditioner, scheduler=scheduler)
    assert diffusion.loss(x, torch.zeros(4, dtype=torch.long)) < 1e-6


@SCHEDULERS
def test_noise_grows_to_almost_nothing_but_noise_whatever_the_scheduler(scheduler):
    seen = []

    class Record(torch.nn.Module):
        def forward(self, noisy, t, condition):
            seen.append(noisy)
            return noisy

    diffusion = Diffusion(
        Record(), conditioner=LabelConditioner(1), scheduler=scheduler.from_config(SAMPLER)
    )
    diffusion._random_steps = lambda x: torch.tensor([0, 500, 999])
    labels, signal = torch.zeros(3, dtype=torch.long), torch.full((3, 3, 32, 32), 3.0)
    diffusion.loss(torch.zeros_like(signal), labels)
    diffusion.loss(signal, labels)
    noise, means = (x.flatten(1) for x in seen)
    assert 0 < noise[0].std() < noise[1].std() < noise[2].std() < 1.1
    assert noise[2].std() > 0.9
    assert 3.1 > means[0].mean() > means[1].mean() > means[2].mean().abs()
    assert means[2].mean().abs() < 0.2


@SCHEDULERS
def test_sampling_walks_back_what_training_showed(scheduler):
    """Each step's input has the noise that training gives it, scaled as in training."""
    answer, levels = torch.zeros(1, 3, 4, 6), DDIMScheduler().alphas_cumprod
    misfits = []

    class Oracle(torch.nn.Module):
        def forward(self, noisy, t, condition):
            level = levels[t.long()].view(-1, 1, 1, 1)
            misfits.append(noisy.square().mean() / (1 - level).mean())
            return noisy / (1 - level).sqrt()

    diffusion = Diffusion(
        Oracle(), conditioner=LabelConditioner(1), scheduler=scheduler.from_config(SAMPLER)
    )
    noise = torch.randn(answer.shape)
    noise = noise / noise.square().mean().sqrt()
    sample = diffusion.sample(noise, torch.tensor([0]), num_inference_steps=20, guidance_scale=1.0)
    assert sample.abs().mean() < 0.05
    torch.testing.assert_close(torch.stack(misfits), torch.ones(20), atol=0.05, rtol=0)


def test_samples_of_a_perfect_denoiser_are_as_far_from_zero_as_the_data():
    """Of data with unit variance and no bounds, as latents are."""

    class Perfect(torch.nn.Module):
        def forward(self, noisy, t, condition):
            a = diffusion.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
            return (1 - a).sqrt() * noisy

    diffusion = Diffusion(Perfect(), conditioner=LabelConditioner(1))
    settings = {"num_inference_steps": 50, "guidance_scale": 1.0}
    sample = diffusion.sample(torch.randn(4, 3, 16, 24), torch.zeros(4).long(), **settings)
    assert sample.std().item() == pytest.approx(1, abs=0.05)


def test_loss_of_predicting_nothing_is_the_noise_variance(diffusion):
    """The DiT starts at zero, so Eq. 2 starts at E |eps|^2 = 1."""
    loss = diffusion.loss(torch.randn(32, 3, 8, 12), torch.zeros(32, dtype=torch.long))
    assert loss.item() == pytest.approx(1, abs=0.05)


def test_min_snr_weights_fall_with_the_signal():
    diffusion = Diffusion(Toy(), conditioner=LabelConditioner(1), min_snr_gamma=5.0)
    weights = diffusion._weights(diffusion._levels_at(torch.tensor([5, 500, 999])))
    snr = diffusion.scheduler.alphas_cumprod / (1 - diffusion.scheduler.alphas_cumprod)
    torch.testing.assert_close(weights[0], 5 / snr[5])
    torch.testing.assert_close(weights[2], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("prediction_type", "weight"), [("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)]
)
def test_min_snr_weights_are_finite_without_any_signal(prediction_type, weight):
    scheduler = DDIMScheduler(
        prediction_type=prediction_type, rescale_betas_zero_snr=True, clip_sample=False
    )
    assert scheduler.alphas_cumprod[-1] == 0
    options = {"conditioner": LabelConditioner(1), "min_snr_gamma": 5.0}
    diffusion = Diffusion(Toy(), scheduler=scheduler, **options)
    weights = diffusion._weights(diffusion._levels_at(torch.tensor([998, 999])))
    torch.testing.assert_close(weights, torch.full((2,), weight), atol=1e-4, rtol=0)


def test_a_predicted_sample_is_weighted_as_its_velocity_would_be_at_most_tenfold():
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    steps = torch.tensor([5, 200, 500, 999])
    snr = (scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod))[steps]
    assert snr[0] > 9 > snr[1]  # the limit is met in both directions

    class Wrong(torch.nn.Module):
        def forward(self, noisy, t, condition):
            return torch.full_like(noisy, 2.0)

    diffusion = Diffusion(Wrong(), conditioner=LabelConditioner(1), scheduler=scheduler)
    expected = torch.tensor([min(ratio + 1, 10) for ratio in snr.tolist()])
    torch.testing.assert_close(diffusion._weights(diffusion._levels_at(steps)), expected)
    diffusion._random_steps = lambda x: steps
    loss = diffusion.loss(torch.zeros(4, 3, 4, 6), torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(loss, 2.0**2 * expected.mean())


def test_the_noise_schedule_is_exact_in_any_precision_and_in_no_checkpoint(diffusion):
    steps, keys = torch.tensor([0, 500, 999]), set(diffusion.state_dict())
    diffusion.bfloat16()
    levels = diffusion._levels_at(steps)
    torch.testing.assert_close(levels, DDIMScheduler().alphas_cumprod[steps], atol=0, rtol=0)
    assert levels.dtype == torch.float32
    assert {name.partition(".")[0] for name in keys} == {"denoiser", "conditioner", "ema"}


def test_steps_cover_all_of_time_in_every_batch(diffusion):
    steps = diffusion._random_steps(torch.zeros(10, 1)).sort().values
    assert ((steps >= torch.arange(0, 1000, 100)) & (steps < torch.arange(100, 1100, 100))).all()


def test_rounding_never_leaves_the_schedule(diffusion, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n, device: torch.full((n,), 1 - 2**-24))
    assert diffusion._random_steps(torch.zeros(1024, 1)).max() == 999


def test_full_dropout_makes_the_condition_irrelevant(diffusion):
    diffusion.condition_dropout = 1.0
    for parameter in diffusion.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    losses = []
    for label in (0, 2):
        torch.manual_seed(5)
        losses.append(diffusion.loss(torch.ones(4, 3, 8, 8), torch.full((4,), label)))
    torch.testing.assert_close(*losses)


def test_ema_follows_slowly_and_sampling_uses_it(diffusion):
    diffusion.update_ema()  # the first update copies
    weight = diffusion.denoiser.head.out.weight
    averaged = diffusion.averaged[0].head.out.weight
    with torch.no_grad():
        weight.add_(1.0)
    diffusion.update_ema()
    assert 0 < averaged.mean() < 1
    labels, noise = torch.tensor([1]), torch.randn(1, 3, 8, 8)
    before = diffusion.sample(noise, labels, num_inference_steps=2, guidance_scale=1.0)
    with torch.no_grad():
        weight.add_(100.0)
    after = diffusion.sample(noise, labels, num_inference_steps=2, guidance_scale=1.0)
    torch.testing.assert_close(before, after)


def test_a_sample_does_not_depend_on_its_batch(diffusion):
    for parameter in diffusion.averaged[0].parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def sample(seeds):
        noise = seeded_noise((3, 8, 12), [torch.Generator().manual_seed(s) for s in seeds])
        labels = torch.tensor(seeds) % 3
        return diffusion.sample(noise, labels, num_inference_steps=3, guidance_scale=2.0)

    torch.testing.assert_close(sample([4, 5, 6])[1:2], sample([5]), atol=1e-5, rtol=1e-4)


def test_context_reaches_the_denoiser():
    scheduler, c = DDIMScheduler(clip_sample=False), torch.zeros(1, 3)
    noise = torch.randn(1, 3, 4, 6)

    def sample(shift):
        return guided_sample(
            Toy(),
            scheduler,
            noise,
            condition=c,
            negative=c,
            num_inference_steps=2,
            guidance_scale=2.0,
            shift=torch.full((1, 1, 1, 1), shift),
        )

    assert not torch.allclose(sample(0.0), sample(1.0))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"must be 'epsilon', .* or 'sample', got 'flow_pred"):
        Diffusion(
            Toy(),
            conditioner=LabelConditioner(1),
            scheduler=DDIMScheduler(prediction_type="flow_prediction", clip_sample=False),
        )
    with pytest.raises(ValueError, match=r"FlowMatchEuler.* no alphas_cumprod.* such as diffusers"):
        Diffusion(
            Toy(),
            conditioner=LabelConditioner(1),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    for name, scheduler in (
        ("clip_sample", DDIMScheduler()),
        ("clip_sample", DDPMScheduler()),
        ("thresholding", DPMSolverMultistepScheduler(thresholding=True)),
    ):
        with pytest.raises(ValueError, match=rf"scheduler\.{name} of the D.* set it to false"):
            Diffusion(Toy(), conditioner=LabelConditioner(1), scheduler=scheduler)
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got 0"):
        guided_sample(
            Toy(),
            DDIMScheduler(clip_sample=False),
            torch.zeros(1, 3, 2, 2),
            condition=torch.zeros(1, 3),
            negative=torch.zeros(1, 3),
            num_inference_steps=0,
            guidance_scale=1.0,
        )
