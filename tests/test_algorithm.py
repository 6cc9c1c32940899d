"""Fifty steps of the paper's Algorithm 1, written down once more as it is printed, against the training loop.

The transcription takes the choices of the scripts that the authors released: prior preservation for every method, AdamW
at a constant rate, gradients clipped at 1, σ kept above 1e-7, KL(P ‖ Q). It knows no layers and no adapters: in each
step it makes the whole weights of the network out of the numbers that are trained, and hands them to diffusers' UNet.

    DreamBooth   θ = μ + ε_θ∘σ
    LoRA         θ = W₀ + (α/r)·(μ + ε∘σ)·down          OFT   θ = W₀ Rᵀ,  R = (I + ½(Q−Qᵀ))(I − ½(Q−Qᵀ))⁻¹,  Q = μ + ε∘σ

Both sides draw from a generator of the same seed, in the order that the loop documents. Networks are those of SD v1 and
v2 on two levels, in float64. (`test_train_oracle.py` compares three steps with peft's own adapters.)
"""

import pytest
import torch

from minibnn import StableDiffusion
from minibnn.cli.settle import settle
from minibnn.files.layouts import check_config
from minibnn.finetune import bayes
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.options.training import TrainOptions
from minibnn.train import fine_tuning, train

diffusers = pytest.importorskip("diffusers")

D, STEPS, SEED, SIZE = torch.float64, 50, 7, 8  # SIZE: of the latents
LAYOUTS = {  # without upcast_attention, which would round float64 to float32
    "SD1": {"attention_head_dim": 2, "use_linear_projection": False},
    "SD2": {"attention_head_dim": [2, 4], "use_linear_projection": True},
}
# The prior's σ is not that of the start: nothing but the KL moves the diagonal of Q's σ, and where its gradient is 0
# but for rounding, Adam makes the rounding as large as any gradient.
PENALTY = {"lambda_kl": 1e-6, "kl": "p-q", "prior_sigma": 0.02}
CASES = {  # every method, without and with BNN, in both layouts; with BNN once with λ = 0 and once with λ > 0
    "DreamBooth, SD1": ("SD1", {"bayes": False}),
    "DreamBooth, SD2": ("SD2", {"bayes": False}),
    "DreamBooth with BNN, SD1": ("SD1", {"where": "paper,projections"}),
    "DreamBooth with BNN and λ, SD2": ("SD2", {"where": "paper,time,projections", **PENALTY}),
    "LoRA, SD1": ("SD1", {"method": "lora", "bayes": False}),
    "LoRA, SD2": ("SD2", {"method": "lora", "bayes": False}),
    "LoRA with BNN, SD1": ("SD1", {"method": "lora"}),
    "LoRA with BNN and λ, SD2": ("SD2", {"method": "lora", **PENALTY}),
    "OFT, SD1": ("SD1", {"method": "oft", "bayes": False}),
    "OFT, SD2": ("SD2", {"method": "oft", "bayes": False}),
    "OFT with BNN and λ in the up blocks, SD1": ("SD1", {"method": "oft", "where": "up", **PENALTY}),
    "OFT with BNN, SD2": ("SD2", {"method": "oft"}),
}


def small_sd(layout):
    """The bundled model with a random UNet in the layout of SD v1, or of v2, which predicts v."""
    sd = StableDiffusion.load("tiny")
    sd.configs["scheduler"]["prediction_type"] = "v_prediction" if layout == "SD2" else "epsilon"
    sd.configs["unet"] |= LAYOUTS[layout] | {
        "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 16,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    torch.manual_seed(3)
    sd.unet = UNet(check_config(UNetConfig, sd.configs["unet"], "UNet")).double()
    return sd


def batches(i, generator):
    """x_0 of a subject's picture and of a class picture, and what they are called; one draw from the generator."""
    own = torch.Generator().manual_seed(100 + i % 5)
    x0 = torch.randn(2, 4, SIZE, SIZE, generator=own, dtype=D)
    context = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(9), dtype=D)
    return x0 + 0.1 * torch.randn(x0.shape, generator=generator), context


def whole_weights(options, base, trained, sigmas, streams, seed):
    """The weights θ of this step, {name in a plain UNet: tensor}."""
    sample = {}
    for name, mu in trained.items():
        layer, _, leaf = name.rpartition(".")
        sample[name] = mu
        if name in sigmas:
            noise = bayes.epsilon(mu.shape, seed, 2 * streams[layer] + (leaf == "bias"), "cpu").to(D)
            sample[name] = mu + noise * sigmas[name]
    if options.method == "dreambooth":
        return sample
    weights = dict(base)
    for layer in streams:
        frozen = base[f"{layer}.weight"]
        if options.method == "lora":
            change = sample[f"{layer}.up"] @ sample[f"{layer}.down"]
            weights[f"{layer}.weight"] = frozen + options.alpha / options.rank * change
        else:
            skew = 0.5 * (sample[f"{layer}.q"] - sample[f"{layer}.q"].transpose(1, 2))
            eye = torch.eye(skew.shape[1], dtype=D)
            rotation = torch.block_diag(*((eye + s) @ torch.linalg.inv(eye - s) for s in skew))
            weights[f"{layer}.weight"] = frozen @ rotation.T
    return weights


def algorithm_1(sd, unet, options, trained, sigmas, streams):
    """Train the tensors `trained` and `sigmas` in place; returns (L_DM, prior loss, L_r) of each step."""
    base = {name: tensor.detach() for name, tensor in unet.state_dict().items()}
    theta_0 = {name: trained[name].detach().clone() for name in sigmas}
    alpha = sd.alphas_cumprod.double()
    optimiser = torch.optim.AdamW([
        {"params": list(trained.values()), "weight_decay": 0.01},
        {"params": list(sigmas.values()), "weight_decay": 0.0},  # the one choice of ours: theirs decays σ too
    ][: 1 + bool(sigmas)], lr=options.lr)
    losses = []
    for i in range(options.steps):
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + i)
        x, context = batches(i, generator)
        t = torch.randint(0, 1000, (2,), generator=generator)
        eps_t = torch.randn(x.shape, generator=generator).double()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        a = alpha[t].reshape(2, 1, 1, 1)
        x_t = a.sqrt() * x + (1 - a).sqrt() * eps_t
        target = a.sqrt() * eps_t - (1 - a).sqrt() * x if sd.v_prediction else eps_t
        theta = whole_weights(options, base, trained, sigmas, streams, seed)
        away = ((torch.func.functional_call(unet, theta, (x_t, t, context)).sample - target) ** 2).mean((1, 2, 3))
        regular = torch.zeros((), dtype=D)
        for name, sigma in sigmas.items():
            variance = options.prior_sigma**2 + (theta_0[name] - trained[name]) ** 2
            divergence = torch.log(sigma / options.prior_sigma) + variance / (2 * sigma**2) - 0.5
            regular = regular + divergence.sum()
        (away[0] + away[1] + options.lambda_kl * regular).backward()
        torch.nn.utils.clip_grad_norm_([*trained.values(), *sigmas.values()], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        for sigma in sigmas.values():
            sigma.data.clamp_(min=1e-7)
        losses.append((away[0].item(), away[1].item(), regular.item() if options.lambda_kl else 0.0))
    return losses


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_of_algorithm_1(case):
    """Losses of every step and all that is trained, within 1e-6."""
    layout, changes = CASES[case]
    sd = small_sd(layout)
    words = {"images": "x", "out": "x", "steps": STEPS, "seed": SEED, "lr": 1e-3, "prior_weight": 1.0, "device": "cpu",
             "monitor": False, "class_prompt": "a", "kernel": "torch"}
    options = settle(TrainOptions(**(words | changes)), sd, 1)
    unet = diffusers.UNet2DConditionModel.from_config(sd.configs["unet"]).double().train()
    unet.load_state_dict(sd.unet.state_dict())
    if options.method == "dreambooth":
        chosen = bayes.select(sd.unet, options.where) if options.bayes else []
    else:
        ends = ("to_q", "to_k", "to_v", "to_out.0")
        chosen = [name for name, _ in sd.unet.named_modules() if name.endswith(ends)]
    streams = {name: i for i, name in enumerate(chosen)}
    training = fine_tuning(sd, options)
    start = {name: p.detach().clone().requires_grad_() for name, p in sd.unet.named_parameters() if p.requires_grad}
    sigmas = {name.removesuffix("_sigma"): p for name, p in start.items() if name.endswith("_sigma")}
    trained = {name: p for name, p in start.items() if not name.endswith("_sigma")}
    assert bool(sigmas) == options.bayes
    before = {name: p.detach().clone() for name, p in start.items()}

    logged = []
    train(training, options, batches, [lambda it: logged.append(tuple(it.losses.values()))])
    losses = algorithm_1(sd, unet, options, trained, sigmas, streams)
    assert len(losses) == STEPS
    torch.testing.assert_close(torch.tensor(logged[1:]).double(), torch.tensor(losses).double(), rtol=1e-6, atol=0)
    for name, parameter in sd.unet.named_parameters():
        if name in start:
            wanted = start[name].detach()
            assert (wanted - before[name]).abs().max() > 1e-3, f"{name} was not trained"
            torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-6 * wanted.abs().max().item())
