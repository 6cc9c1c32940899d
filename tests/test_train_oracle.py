"""Whole training steps against diffusers' UNet and DDPMScheduler, peft's adapters and PyTorch's AdamW, in float64.

Both sides take the same random draws: the oracle asks a generator of the same seed for them in the order that the loop
documents (latents, times, noise, the seed of ε_θ). Everything else is theirs: the noisy latent, the target, the
network, the loss, the KL, clipping, the rate, the optimiser. After three steps every parameter must agree.
"""

import math

import pytest
import torch

from minibnn import StableDiffusion, data, schedule
from minibnn.cli.settle import settle
from minibnn.files.layouts import check_config
from minibnn.finetune import bayes
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.options.training import TrainOptions
from minibnn.train import Batches, fine_tuning, train

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

D = torch.float64
STEPS, SEED = 3, 5
TOLERANCE = 2e-10  # of the largest change of a tensor; measured: at most 1.5e-11
SUBJECT, CLASS = 2, 2  # pictures of a batch


def small_sd(prediction_type):
    """The bundled model with a small random UNet on two levels, in float64: it is quick."""
    sd = StableDiffusion.load("tiny")
    sd.configs["scheduler"]["prediction_type"] = prediction_type
    sd.configs["unet"] |= {
        "block_out_channels": [16, 24], "norm_num_groups": 4,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    torch.manual_seed(1)
    sd.unet = UNet(check_config(UNetConfig, sd.configs["unet"], "UNet")).double()
    sd.unet.conv_out.weight.data *= 8  # gradients long enough to be clipped
    return sd


def settled(sd, **changes):
    words = {"images": "somewhere", "out": "nowhere", "steps": STEPS, "seed": SEED, "batch_size": SUBJECT, "lr": 1e-3}
    return settle(TrainOptions(**(words | {"bayes": False, "monitor": False, "device": "cpu"} | changes)), sd, 6)


def batches_of(prior_weight):
    """batches(i, generator) as the loop wants them, of fixed latents and contexts, one draw from the generator each."""
    n = SUBJECT + (CLASS if prior_weight else 0)

    def batches(i, generator):
        own = torch.Generator().manual_seed(100 + i)
        x0, context = torch.randn(n, 4, 8, 8, generator=own, dtype=D), torch.randn(n, 77, 128, generator=own, dtype=D)
        return x0 + 0.1 * torch.randn(x0.shape, generator=generator), context

    return batches


# --- the oracle -------------------------------------------------------------------------------------------------------


def theta_of(parameters, sigmas, streams, seed):
    """θ = μ + σ∘ε of every parameter that has a σ. streams: {layer: number}; ε is given, the rest is theirs."""
    theta = dict(parameters)
    for name, sigma in sigmas.items():
        layer, _, leaf = name.rpartition(".")
        stream = 2 * streams[layer] + (leaf == "bias")
        theta[name] = parameters[name] + sigma * bayes.epsilon(sigma.shape, seed, stream, "cpu").to(D)
    return theta


def divergence(options, means, parameters, sigmas):
    """KL between the posterior and the prior by torch.distributions, the sum over all random parameters."""
    total = 0
    for name, sigma in sigmas.items():
        posterior = torch.distributions.Normal(parameters[name], sigma)
        prior = torch.distributions.Normal(means[name], torch.full_like(sigma, options.prior_sigma))
        pair = (posterior, prior) if options.kl == "q-p" else (prior, posterior)
        total = total + torch.distributions.kl_divergence(*pair).sum()
    return total


def oracle(sd, options, call, parameters, sigmas, streams, batches):
    """Train {name: tensor} and {name: σ} with diffusers' formulas; returns the losses of the last step and all norms.

    call(θ, x_t, t, context) is their network's prediction at the weights θ.
    """
    config = sd.configs["scheduler"]
    noiser = diffusers.DDPMScheduler(
        beta_start=config["beta_start"], beta_end=config["beta_end"], beta_schedule="scaled_linear",
        prediction_type=config["prediction_type"],
    )
    torch.testing.assert_close(noiser.alphas_cumprod, sd.alphas_cumprod, rtol=2e-6, atol=0)
    noiser.alphas_cumprod = sd.alphas_cumprod.double()  # theirs is a float32 product: 1e-6 away would hide small bugs
    means = {name: parameters[name].detach().clone() for name in sigmas}
    trained = [*parameters.values(), *sigmas.values()]
    groups = [{"params": list(parameters.values())}, {"params": list(sigmas.values()), "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], options.lr, weight_decay=0.01)
    # diffusers' own warm-up is at 0 in the first step, which then changes nothing; ours begins one step later
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / max(1, options.lr_warmup_steps))
    )
    norms, before = [], {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for step in range(options.steps):
        logged = {"diffusion": 0.0, "prior": 0.0, "kl": 0.0}
        for micro in range(options.accumulate):
            forward = step * options.accumulate + micro
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + forward)
            x0, context = batches(forward, generator)
            t = torch.randint(0, 1000, (len(x0),), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            if options.noise_offset:  # the line of diffusers' train_text_to_image.py
                noise += options.noise_offset * torch.randn((x0.shape[0], x0.shape[1], 1, 1), generator=generator)
            if options.noise_spread:
                noise *= 1 + options.noise_spread * torch.randn((len(x0), 1, 1, 1), generator=generator)
            noise = noise.double()
            seed = int(torch.randint(2**62, (1,), generator=generator))
            x_t = noiser.add_noise(x0, noise, t)
            kind = noiser.config.prediction_type
            target = noise if kind == "epsilon" else noiser.get_velocity(x0, noise, t)
            if options.prior_target == "pretrained":
                subject, _ = target.split((options.batch_size, len(x0) - options.batch_size))
                with torch.no_grad():
                    target = torch.cat([subject, call(before, x_t, t, context)[options.batch_size :]])
            predicted = call(theta_of(parameters, sigmas, streams, seed), x_t, t, context)
            squares = torch.nn.functional.mse_loss(predicted, target, reduction="none").mean((1, 2, 3))
            if options.min_snr:
                snr = noiser.alphas_cumprod[t] / (1 - noiser.alphas_cumprod[t])
                squares = squares * torch.minimum(snr, torch.tensor(options.min_snr)) / (snr + (kind != "epsilon"))
            of_subject, of_class = squares.split((options.batch_size, len(x0) - options.batch_size))
            loss = of_subject.mean()
            logged["diffusion"] += loss.item() / options.accumulate
            if len(of_class):
                prior = of_class.mean()
                logged["prior"] += prior.item() / options.accumulate
                loss = loss + options.prior_weight * prior
            if options.lambda_kl:
                kl = divergence(options, means, parameters, sigmas)
                logged["kl"] += kl.item() / options.accumulate
                loss = loss + options.lambda_kl * kl
            (loss / options.accumulate).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        optimiser.step()
        rate.step()
        optimiser.zero_grad()
        for sigma in sigmas.values():
            sigma.data.clamp_(min=1e-7)
    return logged, norms


def leaves(tensors):
    return {name: tensor.detach().clone().requires_grad_(True) for name, tensor in tensors.items()}


def split(network):
    """The trained parameters of a prepared network of ours: ({name: copy of μ}, {name of μ: copy of σ})."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    sigmas = {name.removesuffix("_sigma"): p for name, p in trained.items() if name.endswith("_sigma")}
    return leaves({n: p for n, p in trained.items() if not n.endswith("_sigma")}), leaves(sigmas)


def assert_same(training, before, parameters, sigmas):
    """Every parameter within TOLERANCE of the largest change in its tensor, and everything has changed."""
    expected = parameters | {f"{name}_sigma": sigma for name, sigma in sigmas.items()}
    found = {name: p for name, p in training.network.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        change = (wanted - before[name]).abs().max()
        assert change > 1e-5, f"{name} was not trained"
        error = (found[name] - wanted).abs().max() / change
        assert error < TOLERANCE, f"{name}: {error:.1e} of its change"


def run_both(sd, options, make_call, streams):
    """Train ours and theirs from the same start; make_call(unet) -> `call` of `oracle`. Returns the oracle's norms."""
    call = make_call(sd)
    training, batches = fine_tuning(sd, options), batches_of(options.prior_weight)
    parameters, sigmas = split(sd.unet)
    before = {name: p.detach().clone() for name, p in sd.unet.named_parameters()}
    assert bool(sigmas) == options.bayes
    train(training, options, batches)
    logged, norms = oracle(sd, options, call, parameters, sigmas, streams, batches)
    assert_same(training, before, parameters, sigmas)
    assert training.step == STEPS and training.losses == pytest.approx(logged, rel=TOLERANCE)
    return norms


def theirs(sd):
    """diffusers' UNet with the present weights of ours, in training mode and float64."""
    unet = diffusers.UNet2DConditionModel.from_config(sd.configs["unet"]).double()
    unet.load_state_dict(sd.unet.state_dict())
    return unet.train()


# --- DreamBooth -------------------------------------------------------------------------------------------------------

CASES = {
    "prior, accumulated, warm-up": {"prior_weight": 0.5, "accumulate": 2, "lr_warmup_steps": 2},
    "v-prediction": {"prediction_type": "v_prediction", "prior_weight": 0.5},
    "no prior": {"prior_weight": 0.0},
    "pretrained prior": {"prior_weight": 0.5, "prior_target": "pretrained", "accumulate": 2},
    "pretrained prior, v": {"prior_weight": 0.5, "prior_target": "pretrained", "prediction_type": "v_prediction"},
    "pretrained prior, BNN": {"bayes": True, "prior_weight": 0.5, "prior_target": "pretrained", "min_snr": 5.0},
    "min-SNR": {"prior_weight": 0.5, "min_snr": 5.0},
    "noise offset": {"prior_weight": 0.5, "noise_offset": 0.3},
    "noise spread": {"noise_offset": 0.1, "noise_spread": 0.2},
    "min-SNR, v": {"prior_weight": 0.5, "min_snr": 2.0, "prediction_type": "v_prediction"},
    "BNN": {"bayes": True, "prior_weight": 0.5, "accumulate": 2, "lr_warmup_steps": 2},
    "BNN, all layers, KL": {"bayes": True, "prior_weight": 0.0, "where": "all", "lambda_kl": 1e-7, "prior_sigma": 0.02},
    "BNN, v, the other KL": {
        "bayes": True,
        "prior_weight": 0.5,
        "lambda_kl": 1e-7,
        "kl": "p-q",
        "sigma": 0.02,
        "prediction_type": "v_prediction",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps_of_dreambooth(case):
    changes = dict(CASES[case])
    sd = small_sd(changes.pop("prediction_type", "epsilon"))
    options = settled(sd, **changes)
    streams = {name: i for i, name in enumerate(bayes.select(sd.unet, options.where))}

    def make_call(sd):
        unet = theirs(sd)
        return lambda theta, x, t, context: torch.func.functional_call(unet, theta, (x, t, context)).sample

    norms = run_both(sd, options, make_call, streams)
    assert max(norms) > 1.05, "clipping must bite, or the test would not see it"


def test_a_gradient_shorter_than_the_limit_is_not_touched():
    """Adam hides a factor in all gradients; a step that is clipped beside one that is not shows it."""
    sd = small_sd("epsilon")
    for parameter in (*sd.unet.conv_out.parameters(), *sd.unet.conv_norm_out.parameters()):
        parameter.data *= 0.36
    options = settled(sd, prior_weight=0.0, lr=2e-2, accumulate=2)

    def make_call(sd):
        unet = theirs(sd)
        return lambda theta, x, t, context: torch.func.functional_call(unet, theta, (x, t, context)).sample

    norms = run_both(sd, options, make_call, {})
    assert min(norms) < 0.95 and max(norms) > 1.05, norms


# --- LoRA and OFT -----------------------------------------------------------------------------------------------------

# an adapter without noise begins as its teacher: Adam would magnify the rounding of a class loss that is next to 0
ADAPTERS = [(None, "noise"), (0.01, "noise"), (0.1, "pretrained")]  # σ and --prior-target


@pytest.mark.parametrize(("sigma", "target"), ADAPTERS, ids=["plain", "BNN", "pretrained prior, BNN"])
def test_three_steps_of_lora_as_peft(sigma, target):
    sd = small_sd("epsilon")
    changes = {"method": "lora", "prior_weight": 0.5, "prior_target": target, "lr": 1e-2}
    options = settled(sd, rank=3, alpha=6.0, bayes=sigma is not None, sigma=sigma, **changes)
    config = peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    model = peft.inject_adapter_in_model(config, theirs(sd)).double()

    def make_call(sd):
        def call(theta, x, t, context):
            named = {}
            for name, value in theta.items():
                layer, _, part = name.rpartition(".")
                named[f"{layer}.lora_{'A' if part == 'down' else 'B'}.default.weight"] = value
            return torch.func.functional_call(model, named, (x, t, context)).sample

        return call

    norms = run_both(sd, options, make_call, streams_of_adapters(sd, options))
    assert all(math.isfinite(norm) for norm in norms)


@pytest.mark.parametrize(("sigma", "target"), ADAPTERS, ids=["plain", "BNN", "pretrained prior, BNN"])
def test_three_steps_of_oft_as_peft(sigma, target):
    """peft trains the upper triangle of −½(Q − Qᵀ); the oracle trains Q, as the paper does, through peft's network."""
    sd = small_sd("epsilon")
    changes = {"method": "oft", "prior_weight": 0.5, "prior_target": target, "lr": 1e-2}
    options = settled(sd, blocks=4, bayes=sigma is not None, sigma=sigma, **changes)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.OFTConfig(r=4, oft_block_size=0, target_modules=targets, use_cayley_neumann=False)
    model = peft.inject_adapter_in_model(config, theirs(sd)).double()

    def make_call(sd):
        def call(theta, x, t, context):
            named = {}
            for name, q in theta.items():
                rows, columns = torch.triu_indices(*q.shape[1:], 1)
                triangle = -0.5 * (q - q.mT)[:, rows, columns]
                named[f"{name.rpartition('.')[0]}.oft_R.default.weight"] = triangle
            return torch.func.functional_call(model, named, (x, t, context)).sample

        return call

    run_both(sd, options, make_call, streams_of_adapters(sd, options))


def streams_of_adapters(sd, options):
    """{layer: number}: adapted layers are numbered in the order of the network's modules."""
    ends = tuple("." + word for word in options.layers.split(","))
    linear = [n for n, m in sd.unet.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(ends)]
    return {name: i for i, name in enumerate(linear)}


# --- pictures → latents -----------------------------------------------------------------------------------------------


def test_batches_are_draws_of_diffusers_vae_in_a_new_order_each_epoch():
    sd = StableDiffusion.load("tiny")
    vae = diffusers.AutoencoderKL.from_config(sd.configs["vae"]).eval()
    vae.load_state_dict(sd.vae.state_dict())
    images = [torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in (5, 3)]
    prompts = ["a photo of a sks dog", "a photo of a dog"]
    batches = Batches(sd, [(images[0], prompts[:1] * 5), (list(images[1]), prompts[1:] * 3)], 2, SEED)
    for i in range(4):
        x0, context = batches(i, torch.Generator().manual_seed(i))
        generator, expected = torch.Generator().manual_seed(i), []
        for pictures in images:
            picked = [data.epoch_order(len(pictures), 2 * i + k, SEED) for k in range(2)]
            with torch.no_grad():
                moments = vae.encode(pictures[picked]).latent_dist
            noise = torch.randn(moments.mean.shape, generator=generator)
            expected.append((moments.mean + moments.std * noise) * vae.config.scaling_factor)
        torch.testing.assert_close(x0, torch.cat(expected), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(context, sd.encode_prompts(prompts).repeat_interleave(2, 0), rtol=1e-5, atol=1e-5)


def test_times_are_drawn_from_the_whole_schedule_one_for_each_picture():
    """Seen through the network: 300 batches of 4, both ends reached, four different times nearly always."""
    sd = small_sd("epsilon")
    options = settled(sd, prior_weight=0.0, steps=300)
    training, times = fine_tuning(sd, options), []
    weight = next(training.network.parameters())

    def predict(x_t, t, condition, generator):
        times.append(t)
        return x_t * 0 + weight.sum() * 0

    training.predict = predict
    train(training, options, batches_of(0.0))
    times = torch.stack(times)
    assert times.min() < 10 and times.max() > schedule.TRAIN_STEPS - 10
    assert (times[:, 0] == times[:, 1]).float().mean() < 0.05
