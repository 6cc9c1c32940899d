# %% [markdown]
# # 05 · The cure: where the noise sits
#
# **Question.** The paper's cure for the corruption stage is to fine-tune with random weights,
# $\theta=\mu+\sigma\circ\epsilon$, and to draw pictures with $\mu$. When does noise in *weights* take noise out of
# *pictures*, when does it add some, and how would you know whether it helps?
#
# ![Three rows of drawings over the steps of a training. Above, plain: a red dog, noisy patterns, the teal dog. In the middle, with noise on the memory: the patterns stay to the end. Below, with noise on the trust: hardly any patterns.](figures/05_predicted.png)
#
# *The model of memory and trust (tutorials 02 and 03): above plain, in the middle with weight noise on the memory,
# below with the same on the trust. One spreads the disease, the other cures it.*
#
# **Afterwards you can** derive what weight noise does to a memory, to a trust and to a loss, train with it in a few
# more lines, set up a fair comparison, and tell "no effect was proven" from "it was proven that there is no effect".
#
# You need: tutorials 03 and 04. About 85 minutes, 55 of them for the exercises. Symbols: [NOTATION.md](NOTATION.md).
# "The paper" is *Exploring Diffusion Models' Corruption Stage in Few-Shot Fine-tuning and Mitigating with Bayesian
# Neural Networks*, §4-5.

# %%
import matplotlib.pyplot as plt
import torch
from checks import TUTORIALS, show
from checks.the_cure import (
    check_noisy_loss,
    check_noisy_sigma1,
    check_noisy_trust,
    check_posterior_mean,
    check_sampled_weight,
    check_verdict,
)

from minibnn import StableDiffusion, __version__, data, schedule
from minibnn.experiments.corruption import report, stages
from minibnn.finetune import bayes
from minibnn.lab import eq2, intervals, sigma1_estimate
from minibnn.pictures import grid, to_pil, to_tensor
from minibnn.world import measures as world_measures

print("minibnn", __version__, "· torch", torch.__version__)

# %% [markdown]
# ## The idea
#
# The paper trains (Eq. 4)
#
# $$W^*=\arg\min_W\;\mathbb E_{\theta\sim Q_W}\,\mathcal L_{DM}+\lambda\,\mathcal L_r,\qquad Q_W=\mathcal N(\mu,\sigma^2),\quad W=\{\mu,\sigma\}$$
#
# and finds $\lambda=0$ enough. Then only the first term is left: the diffusion loss, *averaged over noisy weights*. At
# every step one $\theta$ is drawn, and $\mu$ and $\sigma$ follow its gradient. In the end $\mu$ is saved, and $\sigma$
# is thrown away.
#
# The paper's reason (§4.1) is that randomness hinders the network from learning the photos exactly, so that it learns
# a broader distribution. A *broader* distribution, in Eq. 2, is a larger $\sigma_1$: more noise, not less! So the
# reason cannot be the whole story. We compute what the average does, first in the model of memory and trust, where it
# can be done exactly, then in a network, to second order: expand the loss around $\mu$; $\epsilon$ has mean 0 and
# variance 1, and is independent from weight to weight, so of the first and second order only the diagonal is left:
#
# $$\mathbb E_\epsilon\big[\mathcal L(\mu+\sigma\circ\epsilon)\big]\approx\mathcal L(\mu)+\frac12\sum_i\sigma_i^2\,\frac{\partial^2\mathcal L}{\partial\theta_i^2}$$
#
# Weight noise is a **price on curvature**. Between two $\mu$ that fit equally well, the one in the flatter valley costs
# less. It also pushes every $\sigma_i$ with positive curvature towards 0: noise only costs.
#
# ## Part 1: in the model of memory and trust
#
# ## Exercise 1 · noise on the memory (10 minutes, medium)
#
# Tutorial 02: with a memory $m$ at the mean square distance $D$ from the photo and the trust $k$, the loss per
# element is $g^2+\frac{\bar\alpha_t}{1-\bar\alpha_t}(1-g)^2D$ with $g=\sqrt{\bar\alpha_t}\,k$, and it is smallest
# where $\sigma_1^2=D$. Now the *memory* consists of noisy weights: $m+\tau\xi$ with $\xi\sim\mathcal N(0,I)$, drawn
# anew in each step. Average the loss over $\xi$. What is the best $\sigma_1$ now, and what is it when the memory is
# exactly the photo?

# %%
def noisy_sigma1(distance, tau):
    """The σ₁ of least expected loss; distance: D, a number ≥ 0; tau: standard deviation of the memory's noise."""
    # --- exercise 1: what the memory's error is on average
    return (distance + tau**2) ** 0.5
    # --- end


check_noisy_sigma1(noisy_sigma1)

# %% [markdown]
# So **noise on the memory broadens**: $\sigma_1^2=D+\tau^2$, and it never memorises. That is the paper's reason,
# exactly. It keeps the network from over-fitting, and it makes the pictures noisier at every step.
#
# ## Exercise 2 · noise on the trust (15 minutes, hard)
#
# A gain in a network is a product of weights. Take the shortest one, $k=uv$, and let both be noisy:
# $k=(u+\sigma\epsilon_1)(v+\sigma\epsilon_2)$. As a function of $k$ the loss is a parabola around its best value
# $k_D$ (that of $\sigma_1^2=D$), so up to a factor the expected loss is $\mathbb E(k-k_D)^2$. Compute the mean and
# the variance of $k$. For a given product $uv$, which $u$ and $v$ make the variance smallest? Then minimise over the
# product. (All of it is exact, for any $\sigma$; $k_D\ge0$.)

# %%
def noisy_trust(trust, sigma):
    """The product uv of least expected loss; trust: k_D ≥ 0; sigma: standard deviation of each factor's noise."""
    # --- exercise 2: the variance of a product is a price on the product
    return max(0.0, trust - sigma**2)
    # --- end


check_noisy_trust(noisy_trust)

# %% [markdown]
# **Noise on the trust is a soft threshold on the gain of Eq. 1**: each $k$ loses $\sigma^2$, and small ones become 0.
# Less trust is less noise left in. So the same noise harms in one place and cures in another: *where it sits decides*
# (the paper's Table 3 asks that question of a network's layers). Trust neither law: train $u$ and $v$, and the
# memory's $\sigma_1$, on noisy losses.

# %%
def trained(parameters, loss, steps=1500, draws=256):
    """The parameters after Adam with a falling rate on the mean of `draws` noisy losses a step."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(parameters, lr=0.01)
    slower = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(torch.randn(2, draws, generator=generator)).mean().backward()
        optimiser.step()
        slower.step()
    return [p.item() for p in parameters]


def trained_sigma1(distance, tau, abar_t):
    """σ₁ of the share g that has learned a memory with noise tau."""
    g = torch.tensor(0.5, requires_grad=True)

    def loss(noise):
        return g**2 + abar_t / (1 - abar_t) * (1 - g) ** 2 * (distance**0.5 + tau * noise[0]) ** 2

    trained([g], loss)
    return eq2.sigma1_of(g.item() / abar_t**0.5, abar_t).item()


def trained_trust(trust, sigma):
    """The product of two factors that have learned to be `trust` under noise."""
    u, v = (torch.tensor(start, requires_grad=True) for start in (0.9, 0.6))
    trained([u, v], lambda noise: ((u + sigma * noise[0]) * (v + sigma * noise[1]) - trust) ** 2)
    return (u * v).item()


ABAR = schedule.alphas_cumprod()
print("trained on noisy losses, and the law:")
for tau in (0.2, 0.5):
    law = noisy_sigma1(0.09, tau)
    print(f"  memory, √D = 0.3, τ = {tau}: σ₁ = {trained_sigma1(0.09, tau, ABAR[400].item()):.3f}, law {law:.3f}")
for sigma in (0.1, 0.3, 0.8):
    law = noisy_trust(0.5, sigma)
    print(f"  trust, k_D = 0.5, σ = {sigma}: k = {trained_trust(0.5, sigma):.3f}, law {law:.3f}")
print(f"  the paper's σ = 0.01 shifts k by {0.01**2:.0e}")

# %% [markdown]
# The last line is a prediction for everything below: in a *gain* $\sigma=0.01$ can hardly be seen. It takes many noisy
# weights in a row, or weights that are small beside their noise, to be felt.
#
# The three phases of tutorial 03 once more, now with noise. The memory's rates are as there; $\sigma_1$ goes to
# $\sqrt{D+\tau^2}$, or to what is left of the trust at $t=400$. **Predict**: which run ends noisy? Which is the least
# noisy at its worst? Does fidelity still dip?

# %%
PROMPT = "a photo of a sks dog"
photo = data.load_pictures([TUTORIALS / "dog" / "00.png"], 64)
sd = StableDiffusion.load("tiny")
latent = sigma1_estimate.latents_of(sd, photo)
red = to_tensor(sd.generate(["a red dog on the grass"], seed=3, steps=10, progress=False))
red_dog = sigma1_estimate.latents_of(sd, red)
index = torch.arange(8)
dct = torch.cos(torch.pi * (index[None] + 0.5) * index[:, None] / 8) / 2
dct[0] /= 2**0.5  # an orthogonal matrix (8, 8)
rates = torch.where((index[:, None] < 3) & (index[None] < 3), 0.3, 0.004)
LOOKS = (0, 20, 80, 200, 400, 1000)


def phases(towards):
    """[(memory, σ₁) at LOOKS] of tutorial 03's race, where σ₁ goes to towards(D)."""
    memory, sigma1, found = red_dog, 0.12, []
    for step in range(LOOKS[-1] + 1):
        if step in LOOKS:
            found.append((memory, sigma1))
        away = latent - memory
        memory = memory + dct.T @ (rates * (dct @ away @ dct.T)) @ dct
        sigma1 = sigma1 + 0.02 * (towards(away.square().mean().item()) - sigma1)
    return found


def less_trust(distance, sigma=0.4, t=400):
    """σ₁ of the trust that is left at t."""
    best = eq2.gain(ABAR[t], distance**0.5).item()
    return eq2.sigma1_of(noisy_trust(best, sigma), ABAR[t]).item()


z = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
seen = sd.decode_latents(latent)
sheet = []
for name, towards in (
    ("plain", lambda distance: distance**0.5),
    ("noise 0.4 on the memory", lambda distance: noisy_sigma1(distance, 0.4)),
    ("noise 0.4 on the trust", less_trust),
):
    run = [sd.decode_latents(memory + sigma1 * z) for memory, sigma1 in phases(towards)]
    sheet += [pictures[:1] for pictures in run]
    noise = [world_measures.noise(pictures).mean().item() for pictures in run]
    like = [world_measures.fidelity(pictures, seen)[0].mean().item() for pictures in run]
    print(f"{name:26} noise   ", "".join(f"{value:6.2f}" for value in noise))
    print(f"{'':26} fidelity", "".join(f"{value:6.2f}" for value in like))

figure, axis = plt.subplots(figsize=(6, 3.3))
axis.imshow(grid(to_pil(torch.cat(sheet)), len(LOOKS)))
axis.set_xticks([33 + 66 * i for i in range(len(LOOKS))], [f"step {step}" for step in LOOKS], fontsize=8)
axis.set_yticks([33, 99, 165], ["plain", "on the\nmemory", "on the\ntrust"], fontsize=8)
axis.tick_params(length=0)
show(
    figure,
    "05_predicted",
    "Three rows of drawings at steps 0 to 1000. Plain: a red dog, a ghost with green blotches at steps 20 to 200, the "
    "teal dog. Noise on the memory: the blotches stay to the end. Noise on the trust: hardly any blotches, but a ghost "
    "at step 200.",
)

# %% [markdown]
# Plain, the noise rises to 1.9 and is gone at the end. With noise on the **memory** it rises to 2.6, and 0.9 of it
# stays for ever. With noise on the **trust** it is halved at its worst and gone by step 200. But look at fidelity:
# with less trust it dips to 0.2 at step 200, deeper than plain, although the picture is clean. That is the ghost
# between two dogs, which noise had covered. So the cure of the noise is paid with slower learning: whoever compares
# must ask at *equal learning*, not only at equal steps. (Where the noise sits, and $\sigma=0.4$, were chosen to be
# seen.)
#
# ## Part 2: in a network
#
# A network's weights are not labelled "memory" and "trust". Three things can be done: compute what noise costs, train
# with and without, and compare.
#
# ## Exercise 3 · a weight from its seed (10 minutes, medium)
#
# The gradient of $\sigma$ needs the $\epsilon$ of the forward pass (tutorial 04). Keeping it would double the memory; a
# *seed* is enough. Draw $\epsilon$ with a generator of your own, made from the seed, forward and again backward. The
# global generator must stay untouched, or weight noise would change the order of the photos, and a comparison would be
# no longer fair.

# %%
def sampled_weight(mu, sigma, seed):
    """θ = μ + σ∘ε, where ε = torch.randn(…) of the seed, and backward(grad_theta) -> (∂L/∂μ, ∂L/∂σ).   (Eq. 14)"""
    # --- exercise 3: the same ε twice, from its seed
    def epsilon():
        return torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))

    def backward(grad_theta):
        return grad_theta, grad_theta * epsilon()

    return mu + sigma * epsilon(), backward
    # --- end


check_sampled_weight(sampled_weight)

# %% [markdown]
# ## Exercise 4 · what noise costs (5 minutes, easy)
#
# The formula above: loss at $\mu$, plus half the sum of $\sigma_i^2$ times curvature.

# %%
def noisy_loss(loss, sigma, curvature):
    """E[L(μ + σ∘ε)] to second order; loss: L(μ), a number; sigma and curvature (∂²L/∂θ_i²) of one shape."""
    # --- exercise 4: Taylor's second term, averaged
    return loss + 0.5 * (sigma**2 * curvature).sum()
    # --- end


check_noisy_loss(noisy_loss)

# %% [markdown]
# A loss with one weight and two valleys: a deep and narrow one, and a wide one that is less deep. We average over
# 20,000 noisy weights (Monte Carlo, with your `sampled_weight`), and compare with your formula.

# %%
VALLEYS = ((1.0, -1.0, 0.1), (0.8, 1.0, 0.6))  # depth, place, width


def toy_loss(theta):
    return 1 - sum(a * torch.exp(-((theta - m) ** 2) / (2 * w**2)) for a, m, w in VALLEYS)


def toy_curvature(theta):
    distances = [(a, (theta - m) / w, w) for a, m, w in VALLEYS]
    return sum(a * torch.exp(-(d**2) / 2) * (1 - d**2) / w**2 for a, d, w in distances)


place = torch.linspace(-2, 2.5, 181)
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(place, toy_loss(place), "k", label="L(μ)")
for sigma, colour in ((0.05, "C0"), (0.2, "C1")):
    noisy = [toy_loss(sampled_weight(mu.expand(20_000), sigma, seed=0)[0]).mean().item() for mu in place]
    taylor = [noisy_loss(toy_loss(mu), torch.tensor([sigma]), toy_curvature(mu)[None]).item() for mu in place]
    best = place[torch.tensor(noisy).argmin()].item()
    print(f"σ = {sigma:4}: the best μ is {best:+.2f};  at μ = −1: average {noisy[40]:.3f}, "
          f"second order {taylor[40]:.3f};  at μ = +1: {noisy[120]:.3f}, {taylor[120]:.3f}")
    axis.plot(place, noisy, colour, label=f"average, σ = {sigma}")
    axis.plot(place, taylor, colour + "--", lw=1, label=f"second order, σ = {sigma}")
axis.set(xlabel="μ", ylabel="loss", ylim=(-0.1, 1.5))
axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
show(
    figure,
    "05_valleys",
    "A loss with a narrow deep valley at −1 and a wide one at +1. Averaged over σ = 0.05 the narrow valley is still "
    "the deepest; over σ = 0.2 it is almost gone and the wide one wins. Dashed: the second order, close for 0.05, far "
    "off in the narrow valley for 0.2.",
)

# %% [markdown]
# With little noise the narrow valley still wins; with more, the wide one does: **noise prefers flat minima**. And the
# second order (dashed) holds while $\sigma$ is small beside the width of the valley (0.1 and 0.6), and no longer.
#
# So everything depends on how wide *our* network's valleys are compared with $\sigma_0=0.01$. That is measurable: draw
# weights, look at the loss. One trick makes it cheap: with $+\epsilon$ *and* $-\epsilon$ the first order cancels
# exactly instead of on average.

# %%
generator = torch.Generator().manual_seed(0)
times = torch.linspace(20, 980, 16).long()
noise = torch.randn(16, 4, 8, 8, generator=generator)


@torch.no_grad()
def price(sd, sigmas, seeds=2):
    """(L(μ), [mean of L(μ ± σ∘ε) − L(μ) for each σ]) of the photo at fixed times and noise; as a plain network."""
    layers = [sd.unet.get_submodule(name) for name in bayes.select(sd.unet, "paper")]
    weights = [p for layer in layers for p in layer.parameters()]
    means = [p.clone() for p in weights]
    x = schedule.q_sample(sigma1_estimate.latents_of(sd, photo).expand_as(noise), noise, sd.alphas_cumprod[times])
    context = sd.encode_prompts([PROMPT]).expand(len(x), -1, -1)

    def loss(sigma, seed):
        for i, (p, mu) in enumerate(zip(weights, means, strict=True)):
            p.copy_(sampled_weight(mu, sigma, 1000 * seed + i)[0] if sigma else mu)
        return (sd.unet(x, times, context) - noise).square().mean().item()

    signed = [(sign, seed) for seed in range(seeds) for sign in (1, -1)]
    costs = [sum(loss(sign * sigma, seed) for sign, seed in signed) / len(signed) for sigma in sigmas]
    at_mean = loss(0.0, 0)
    return at_mean, [cost - at_mean for cost in costs]


SIGMAS = (0.01, 0.03, 0.1)


def show_price(name, sd):
    at_mean, costs = price(sd, SIGMAS)
    prices = [f"σ = {s}: {c:+.4f} ({c / at_mean:+.1%})" for s, c in zip(SIGMAS, costs, strict=True)]
    scaled = [f"{c / s**2:.1f}" for s, c in zip(SIGMAS, costs, strict=True)]
    print(f"{name}: L(μ) = {at_mean:.4f}; " + ", ".join(prices))
    print(f"{'':{len(name)}}  price / σ²: " + ", ".join(scaled))


show_price("pretrained", sd)

# %% [markdown]
# Where the second order holds, price / $\sigma^2$ is one number: half the trace of the Hessian over the random weights.
# And compare the price at $\sigma_0=0.01$, the paper's value and our recipe's, with the loss itself. We will look again
# after fine-tuning, when the loss is small and the valley may be narrower.
#
# ## Exercise 5 · what is saved (5 minutes, easy)
#
# "During the inference, we explicitly replace each parameter θ with its mean value" (§4.2): the file is an ordinary
# network's. A state dictionary of a Bayesian network holds `weight` (that is $\mu$) and `weight_sigma`, `bias` and
# `bias_sigma`, and layers that are not random.

# %%
def posterior_mean(state):
    """The state dictionary of the ordinary network at θ = μ; `state` stays as it is."""
    # --- exercise 5: μ without σ
    return {name: value for name, value in state.items() if not name.endswith("_sigma")}
    # --- end


check_posterior_mean(posterior_mean)

# %% [markdown]
# The same in minibnn: `minibnn/finetune/weight_noise.py:sample_weights`, `minibnn/finetune/bayes.py:posterior_mean`,
# and `minibnn/finetune/bayes.py:bayesianize`, which puts random layers in the place of the chosen ones.
#
# ## One pair of trainings
#
# The loop of tutorial 03, with two more lines and no weight decay. Both trainings see the same photo, the same $t$ and
# the same $\epsilon$, for the weights' seeds come from a generator of their own. The pictures are drawn from the same
# starting noise. What differs is the weight noise, and what it brings along (clipping sees the gradients of $\sigma$,
# too): a **pair**.

# %%
STEPS = 40


def fine_tune(sigma):
    """The bundled model after STEPS steps on the photo, with random weights unless sigma is None; and their σ's."""
    sd = StableDiffusion.load("tiny")
    latent, context, abar = sigma1_estimate.latents_of(sd, photo), sd.encode_prompts([PROMPT]), sd.alphas_cumprod
    weight_noise = bayes.bayesianize(sd.unet.train(), "paper", sigma) if sigma else bayes.WeightNoise()
    optimiser = torch.optim.AdamW(sd.unet.parameters(), lr=2e-4, weight_decay=0.0, fused=True)  # fused: faster
    generator, of_weights = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        t = torch.randint(0, 1000, (1,), generator=generator)
        eps = torch.randn(latent.shape, generator=generator)
        weight_noise.renew(of_weights)  # a new ε for the weights: a new network
        predicted = sd.unet(schedule.q_sample(latent, eps, abar[t]), t, context)
        loss = (predicted - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sd.unet.parameters(), 1.0)
        optimiser.step()
        bayes.clamp_sigma(sd.unet)  # σ stays a standard deviation
    spread = [s.detach().flatten() for _, s in bayes.sigmas(sd.unet).values()]
    ordinary = StableDiffusion.load("tiny")
    ordinary.unet.load_state_dict(posterior_mean(sd.unet.state_dict()), strict=True)
    return ordinary, torch.cat(spread) if spread else None


plain, _ = fine_tune(None)
bnn, spread = fine_tune(0.01)
low, middle, high = torch.quantile(spread[::37], torch.tensor([0.01, 0.5, 0.99])).tolist()
print(f"{len(spread):,} σ's started at 0.01; now their mean is {spread.mean():.5f}, 98 % lie in {low:.4f} … {high:.4f}")
show_price("without", plain)
show_price("with   ", bnn)

# %% [markdown]
# Two things to see. **The mean of $\sigma$ has hardly moved**, though single ones went both ways: the gradient of
# $\sigma_i$ is $\epsilon_i$ times that of the weight, whose sign is nearly chance at each step; the pull towards 0 is
# the *average* of many. And **the price at 0.01 is small** beside the loss. A price that is hardly felt can hardly
# change what is learned: prediction for the pictures?

# %%
asked = [PROMPT, "a sks dog in the snow", "a sks dog on the beach", "a sks dog at night"]
pictures = [model.generate(asked, steps=12, seed=1, progress=False) for model in (plain, bnn)]
figure, axis = plt.subplots(figsize=(5, 2.7))
axis.imshow(grid(pictures[0] + pictures[1], 4))
axis.set_yticks([33, 99], ["without", "with"])
axis.set_xticks([33 + 66 * i for i in range(4)], ["training\nprompt", "snow", "beach", "night"], fontsize=8)
axis.tick_params(length=0)
show(
    figure,
    "05_pairs",
    "Two rows of four drawings of the dog, fine-tuned without (above) and with random weights (below): nearly alike.",
)
images = [to_tensor(row) for row in pictures]
for name, measure in (("fidelity", lambda x: world_measures.fidelity(x, seen)[0]), ("noise", world_measures.noise)):
    without, with_it = map(measure, images)
    d = with_it - without
    print(f"{name}: without {without.mean():.3f}, with {with_it.mean():.3f}, difference {d.mean():+.3f}, "
          f"standard error over the four pictures {d.std() / 2:.3f}")

# %% [markdown]
# Beware of the last two lines. Four pictures are four looks at **one** pair of trainings; their standard error says
# how sure we are about *these two networks*. A mean beyond two standard errors would pass for "significant", and still
# be an accident of this seed: another seed is another pair, and pairs may differ by more than pictures do. Whoever
# computes intervals over pictures, prompts and checkpoints of one training will find "significant" effects at will. The
# unit that is repeated is the *training*.
#
# ## Exercise 6 · a verdict that can say "no" (10 minutes, medium)
#
# From $n$ pairs of trainings comes the interval of an improvement, [low, high] (exercise 6 of tutorial 03). Fix
# beforehand the least improvement that would matter, the margin.
#
# - the whole interval lies above 0: **"present"** (ask this first; it may still be small);
# - even the upper end is below the margin: **"absent"**, an improvement that matters is ruled out;
# - otherwise: **"undecided"**. The data allow for none and for one that matters.
#
# The last two are often mixed up. "Not significant" alone is never "absent".

# %%
def verdict(low, high, margin):
    """ "present", "absent" or "undecided" of an improvement with the interval [low, high]."""
    # --- exercise 6: three answers
    if low > 0:
        return "present"
    return "absent" if high < margin else "undecided"
    # --- end


check_verdict(verdict)

# %% [markdown]
# The same in minibnn: `minibnn/experiments/corruption/stages.py:verdict`, with the margins 0.02 for fidelity and 0.2
# for noise, fixed before the runs.
#
# ## Many pairs: what weight noise did to $\sigma_1$
#
# `results/corruption.jsonl` (tutorial 03) holds trainings on four photos with and without random weights at the same
# seeds. Does weight noise act like noise on the memory ($\sigma_1$ rises), or like noise on the trust (it falls)? The
# difference of $\sigma_1$ at $t=100$, with minus without, for four initial $\sigma_0$:

# %%
records = report.read_rows(TUTORIALS / "results" / "corruption.jsonl")
VIEW = "ddim-25-g3"  # DDIM, 25 steps, guidance 3


def differences(setting, view, group, name, step, n=4):
    """with − without at one step on n photos, one value for each seed that both have."""
    sides = []
    for which, kind in ((setting, "bnn"), (report.plain_of(records, setting, n, view), "plain")):
        steps, seeds, values = report.table(records, which, n, kind, view, group, name)
        sides.append({seed: run[steps.index(step)] for seed, run in zip(seeds, values, strict=True)})
    with_it, without = sides
    return torch.tensor([with_it[seed] - without[seed] for seed in with_it if seed in without])


print("σ₁ at t = 100, with − without [95 % interval over seeds]")
for sigma, setting in ((0.003, "sigma-0.003"), (0.01, "main"), (0.03, "sigma-0.03"), (0.1, "sigma-0.1")):
    cells = []
    for step in (25, 400):
        mean, low, high = intervals.interval(differences(setting, VIEW, "training", "sigma1", step))
        cells.append(f"step {step}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"σ₀ = {sigma:<6} ", "   ".join(cells))

# %% [markdown]
# A dose-response: nothing at 0.003 and, within the intervals, at the paper's 0.01; a rise at 0.03 and a larger one at
# 0.1. **In this network weight noise raises $\sigma_1$: it acts like noise on the memory.** By exercise 1 it should not
# cure noise in pictures here, and with the paper's $\sigma_0$ it does not. (With 0.1, which slows all learning, noise
# at guidance 3 is lower, by 0.28 [0.09, 0.47]: [RESULTS.md](RESULTS.md).)

# %%
print("other prompts, improvement by random weights [95 % interval over seeds]     is it better?")
for title, setting, view, step in (
    ("guidance 3", "pndm", VIEW, 400),
    ("the paper's sampler and guidance", "pndm", "pndm-50-g7.5", 400),
    ("pretrained ε(∅) at 7.5, as in tutorial 03", "base", "ddim-25-g7.5-base", 50),
    ("the same with σ₀ = 0.1", "base-sigma-0.1", "ddim-25-g7.5-base", 50),
):
    for name, sign in (("fidelity", 1), ("noise", -1)):
        mean, low, high = intervals.interval(sign * differences(setting, view, "other", name, step))
        print(f"{title:43} {name:8} {mean:+.3f} [{low:+.3f}, {high:+.3f}]   {verdict(low, high, stages.MARGIN[name])}")

better, worse, repeated, asked_for = 0, 0, 0, 0
for setting, n, kind, view in report.cases(records):  # all settings, at the noisiest step without and at the last
    steps, _, plain_noise = report.table(
        records, report.plain_of(records, setting, n, view), n, "plain", view, "other", "noise"
    )
    own = report.table(records, setting, n, "bnn", view, "other", "noise")[0]
    shared = [step for step in own if step in steps]
    if kind != "bnn" or len(shared) < 3:
        continue
    level = dict(zip(steps, torch.tensor(plain_noise).mean(0).tolist(), strict=True))
    for step in (max(shared[1:-1], key=level.get), shared[-1]):
        for name, sign in (("fidelity", 1), ("noise", -1)):
            found = sign * differences(setting, view, "other", name, step, n)
            if len(found):
                _, low, high = intervals.interval(found)
                better, worse = better + (low > 0), worse + (high < 0)
                repeated, asked_for = repeated + (len(found) > 1), asked_for + 1
print(f"of {asked_for} comparisons: {better} better, {worse} worse; by chance {0.025 * repeated:.1f} of each")

# %% [markdown]
# **What was found.** With the paper's $\sigma_0=0.01$ one of six improvements is shown (its interval excludes 0):
# fidelity at guidance 3, by less than the 0.02 that matters; a smaller noise that matters is ruled out at guidance 3
# and with the paper's sampler. In the setting that does break, weight noise changes nothing: a better fidelity that
# matters is ruled out at the step where the noise is largest, and the noise itself has too wide an interval to tell.
# Its rivals need no statistics: the model's own unconditional prediction, or no guidance, and those pictures are whole
# (the table of tutorial 03).
#
# ## The stage and its cures
#
# Tutorial 03 found a model with noise that stays: `textured`, on one photograph of a cat. Its cause were two directions
# that training hardly teaches, the mean colour and the strength of the noise. The same command trained it with random
# weights (the paper's linear layers, $\sigma=0.01$, fixed), and with two rivals that cost nothing: the empty prompt in
# every tenth step, so that $\epsilon(\varnothing)$ is trained, too, and noise with an offset of 0.1, so that the mean
# colour is. **Predict** from tutorial 03: which of the three will help?

# %%
folder = TUTORIALS / "results" / "stage-cat"
words = {"plain": "plain", "bnn": "random weights", "null": "empty prompt in 10 %", "offset": "noise offset 0.1"}
runs = {name: report.read_rows(folder / f"{name}-cat-textured-0.jsonl") for name in words}


def looked_up(name, step, view="ddim-20-g7.5", group="training"):
    return next(row for row in runs[name] if (row["step"], row["view"], row["group"]) == (step, view, group))


print("guidance 7.5, training prompt          noise at step              fidelity at step          tint")
print("                             250   400   600   800    250   400   600   800    250   800")
for name in runs:
    rows = [looked_up(name, step) for step in (250, 400, 600, 800)]
    print(f"{words[name]:25}" + "".join(f"{row['noise']:6.1f}" for row in rows) + "  "
          + "".join(f"{row['fidelity']:6.2f}" for row in rows) + "  "
          + "".join(f"{row['tint']:6.2f}" for row in (rows[0], rows[-1])))

print("the weights at step 800, drawn otherwise:       plain            random weights       noise offset 0.1")
print("                                      noise  fidelity     noise  fidelity     noise  fidelity")
for title, view in (
    ("DDIM, guidance 7.5", "ddim-20-g7.5"), ("guidance 3", "ddim-20-g3"), ("no guidance", "ddim-20-g1"),
    ("fresh noise, η = 1", "ddim-20-g7.5-eta1"), ("the photo's mean colour", "ddim-20-g7.5-colour"),
    ("ε(∅) of the pretrained model", "ddim-20-g7.5-base"),
    ("running mean of the weights", "ddim-20-g7.5-average"), ("PNDM", "pndm-20-g7.5"),
):
    own = [looked_up(name, 800, view) for name in ("plain", "bnn", "offset")]
    print(f"{title:32}" + "".join(f"{row['noise']:11.1f} {row['fidelity']:8.2f}" for row in own))

# %%
figure, axis = plt.subplots(figsize=(6, 3.2))
strips = [torch.from_numpy(plt.imread(folder / f"{name}-cat-textured-0.png"))[-48:] for name in runs]
space = torch.ones(4, *strips[0].shape[1:])
axis.imshow(torch.cat([part for strip in strips for part in (strip, space)][:-1]))
axis.set_yticks([24 + 52 * i for i in range(4)], ["plain", "random\nweights", "empty\nprompt", "noise\noffset"],
                fontsize=8)
axis.set_xticks([102, 310], ["training prompt", "other prompts"], fontsize=8)
axis.tick_params(length=0)
show(
    figure,
    "05_stage",
    "Four rows of eight small pictures of a cat's face at step 800, guidance 7.5. Plain: half of them tinted and "
    "noisy; with random weights more noise; with the empty prompt less; with the offset all of the cat's own colour, "
    "with little noise.",
)

# %% [markdown]
# **What this run shows.** The offset, one line of the training loop, lifts fidelity at step 800 from 0.40 to 0.68,
# and the tint is gone (0.03 instead of 0.15). The noise that is left, 2.6, is that of the plain run: the strength of
# the noise is another direction, which an offset does not train. (`--noise-spread 0.1`, which varies the strength in
# training, lowers it at guidance 1; at 3 and 7.5 that is not shown: [RESULTS.md](RESULTS.md).) Fresh noise ($\eta=1$)
# takes that away, in all three, and with the offset fidelity is 0.78. The trained empty prompt lowers the noise to
# 1.3, but at step 800 only; before, its pictures are noisier than plain ones. Random weights do not help in this run;
# their pictures have more noise than plain ones, and the same tint. They act on every direction a little, and the
# disease is in two.
#
# It is one subject and one seed, so it shows what can happen. What holds over subjects and seeds, with intervals and at
# equal learning, is in [RESULTS.md](RESULTS.md). There stands the simplest rival, too, half the learning rate: it
# lowers the noise, also where both have the same loss, and weight noise raises it. So weight noise is not just slower
# learning. (On another model, pretrained on photographs, the offset helps as it does here, and weight noise does no
# harm that is shown.) And DreamBooth's own prior preservation, which this run leaves out, lowers the noise most, but
# only as DDIM draws it at a high guidance: drawn with PNDM, as in the paper, its pictures are the worst.
#
# ## What fails, and why
#
# - **A cure needs a disease.** The bundled model has no corruption stage of the paper's kind (tutorial 03), so a cure
#   of it could not be tested there; in the textured model noise has another cause than the paper's.
# - **The cure of one disease is none for another.** The collapse of tutorial 03 is an extrapolated picture. Weight
#   noise cannot mend it; a lower guidance, or the model's own unconditional prediction, does.
# - **The price was small.** At $\sigma_0=0.01$ weight noise adds little to this network's loss, because its valleys
#   are wide beside 0.01 (8.8 M weights, rms 0.06). In a larger network more weights are noisy at once, and the prices
#   add up (a sum, not a mean!).
# - **More noise is not simply better.** At $\sigma=0.1$ the price is a multiple of the fine-tuned network's loss:
#   training then mostly learns to stand the noise, and is slower. The paper reports a collapse for large $\sigma_0$,
#   too (Fig. 9a).
# - **$\lambda=0$ is no inference** (tutorial 04). It is a fixed noise, in effect.
# - **Many questions.** All comparisons are in [results/corruption.md](results/corruption.md): 3 "better" and 6
#   "worse" of 112, where chance alone gives 2.8 of each. They are not independent: several are the same trainings,
#   drawn in other ways.
#
# What the paper measured on Stable Diffusion with 30 subjects, 5 seeds and Dino is not refuted by a toy, and the paper
# does not make the toy's result wrong: each result holds where it was measured.
#
# ## Questions
#
# 1. Batch normalisation would make the product $uv$ free of charge: $u$ may shrink if $v$ grows. What would exercise
#    2's law become if only $u$ is noisy?
# 2. Prior preservation, dropout and a smaller learning rate also "hinder the network from learning the photos exactly".
#    Which of them is noise on the memory, which on the trust, and which neither?
# 3. You are shown pictures of a BNN that are cleaner after 400 steps than those of a plain training after 400 steps.
#    Which plain training would you ask for before you believe in a cure?
#
# **An open problem.** Which weights of a network are its memory and which its trust? By exercises 1 and 2 the sign of
# $\partial\sigma_1/\partial\sigma_i^2$ tells, layer by layer, and it can be estimated without any training. Put
# weight noise only where the sign is negative. Does that cure what the paper's choice of layers cures, with less loss
# of fidelity?
#
# ## Summary
#
# | what | where |
# |---|---|
# | noise on memory and trust | this page; not in the paper |
# | the target with $\lambda$ | the paper's Eq. 4, `minibnn/train.py:train` |
# | why random weights | the paper's §4.1 |
# | gradients from a seed | the paper's App. C, Eq. 14, `minibnn/finetune/weight_noise.py:sample_weights` |
# | noise as a price on curvature | Bishop 1995, *Training with Noise is Equivalent to Tikhonov Regularization*, for inputs; here for weights |
# | what is saved | §4.2, `minibnn/finetune/bayes.py:posterior_mean` |
# | which layers | Table 3, `minibnn/finetune/bayes.py:select` |
# | interval, margin, verdict | `minibnn/lab/intervals.py:interval`, `minibnn/experiments/corruption/stages.py:verdict` |
# | all pairs | `python -m minibnn experiment corruption --settings all`, then `report` |
#
# Next: 06, what guidance mixes in.
