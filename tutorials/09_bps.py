# %% [markdown]
# # 09 · Bayesian Power Steering: a frozen model learns to follow sketches
#
# **Question.** A model knows what a dog looks like, and you have forty sketches with their drawings. Can it learn to
# put the dog *where the sketch is*, without a single one of its weights being changed?
#
# ![Three rows of six pictures, dogs first: sketches; what the frozen model draws from the captions, with the sketches' lines in red; what it draws when a branch, trained for a few seconds, steers it.](figures/09_steered.png)
#
# *Sketches of drawings that the branch was not trained on; the frozen model's drawings from the captions alone; the
# same noise, steered. Red: the sketch's lines.*
#
# **Afterwards you can** derive the term that a hint adds to a noise prediction, say why zero convolutions are safe and
# why they still learn, and attach a branch to any UNet with hooks.
#
# You need: tutorial 01; exercise 1 uses the Gaussian's log density. About 55 minutes, 35 of them for the exercises.

# %%
import re

import matplotlib.pyplot as plt
import numpy as np
import torch
from checks import show
from checks.bps import check_guided_eps, check_pixels_to_channels, check_run_steered, check_steering_term

from minibnn import StableDiffusion, __version__
from minibnn.neighbours import bps, bps_branch, edges
from minibnn.pictures import to_pil
from minibnn.world import scenes as world

print("minibnn", __version__, "· torch", torch.__version__)

# %% [markdown]
# ## The idea
#
# A pretrained model is a *prior* over pictures $z_0$. A hint $y$ (a sketch) is data that belongs to an unknown picture.
# Bayes' rule, $p(z_t\mid y)\propto p(z_t)\,p_t(y\mid z_t)$, becomes a sum after taking logarithms and gradients, and a
# noise prediction is such a gradient: $\hat\epsilon=-\sqrt{1-\bar\alpha_t}\,\nabla\log p_t(z_t)$. So the right
# prediction for a model that knows the hint is
#
# $$\hat\epsilon(z_t,t,y)=\hat\epsilon(z_t,t)+M,\qquad M=-\sqrt{1-\bar\alpha_t}\,\nabla_{z_t}\log p_t(y\mid z_t)$$
#
# The first term we have: it is frozen. Only $M$ must be learned, and few pairs may do, because everything about
# *pictures* is in the first term; $M$ says only what a sketch says.
#
# $M$ depends on the time and on $z_t$: in pure noise no $z_t$ suits the hint better than another, and in the end $z_t$
# itself says more than an inexact hint can. BPS builds a *branch*, a U-shaped network that sees the hint and the time
# but **not** $z_t$, and adds its features inside the frozen UNet, after every residual block and every attention. The
# dependence on $z_t$ comes from the frozen layers that they pass.

# %% [markdown]
# ## Exercise 1 · M where it can be computed (15 minutes, medium)
#
# Pictures are numbers $z_0\sim\mathcal N(0,1)$, the hint is $y=a z_0+$ noise of standard deviation `noise`. Given
# $z_t$, the picture is $\mathcal N(\sqrt{\bar\alpha_t}\,z_t,\ 1-\bar\alpha_t)$. So what is $p_t(y\mid z_t)$? Take the
# gradient of its logarithm.

# %%
def steering_term(z, y, abar, a, noise):
    """M for hints y (n,) and places z (n,); abar, a, noise: numbers."""
    # --- exercise 1: −√(1−ᾱ) times the gradient of a Gaussian's logarithm
    variance = a**2 * (1 - abar) + noise**2
    gradient = abar**0.5 * a * (y - abar**0.5 * a * z) / variance
    return -((1 - abar) ** 0.5) * gradient
    # --- end


check_steering_term(steering_term)

# %% [markdown]
# Two things to see: $M$ changes with $z_t$ (a branch that is blind to $z_t$ and added to the *output* could never do
# that), and it begins at 0 in pure noise, grows, and goes back to 0 at the end: the more exact the hint, the later.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 2.7))
z = torch.linspace(-2.5, 2.5, 50)
for abar in (0.1, 0.5, 0.9):
    axes[0].plot(z, steering_term(z, torch.full((50,), 1.0), abar, 1.0, 0.3), label=f"ᾱ = {abar}")
axes[0].set(xlabel="z_t", ylabel="M", title="hint y = 1")
axes[0].legend()
left = torch.logspace(0, -4, 100)[1:]  # 1 − ᾱ, the noise that is left
here, hint = torch.zeros(1), torch.ones(1)
for noise in (0.1, 0.3, 1.0):
    sizes = [-steering_term(here, hint, 1 - amount, 1.0, noise).item() for amount in left.tolist()]
    axes[1].semilogx(left, sizes, label=f"noise {noise}")
axes[1].set(xlabel="1 − ᾱ (drawing goes from left to right)", title="size of M at z_t = 0", xlim=(1, 1e-4))
axes[1].legend()
figure.tight_layout()
show(
    figure,
    "09_steering",
    "Left: M against z for three times, three rising straight lines, the steeper the later. Right: the size of M while "
    "the noise falls to a ten-thousandth: it rises from 0 and falls back to 0; for exact hints it is larger and later.",
)

# %% [markdown]
# ## Exercise 2 · a sketch at the size of a latent (10 minutes, medium)
#
# The sketch has 64 × 64 pixels, the latent 8 × 8 places. Averaging would wash the lines away. Instead each tile of
# $f\times f$ pixels becomes $f^2$ *channels* at one place: nothing is lost. Order of the channels: colour, row in the
# tile, column.

# %%
def pixels_to_channels(hint, factor):
    """(B, C, H, W) -> (B, C·factor², H/factor, W/factor)."""
    # --- exercise 2: tiles into channels
    tiles = hint.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))  # (B, C, h, f, w, f)
    return tiles.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    # --- end


check_pixels_to_channels(pixels_to_channels)

# %% [markdown]
# ## Exercise 3 · steer a frozen network (5 minutes, easy)
#
# The frozen network is a chain of blocks. After each block its feature is added, where there is one. (In PyTorch, a
# *forward hook* does this without touching the network's code: see `minibnn/neighbours/bps_branch.py:added`.)

# %%
def run_steered(blocks, features, h):
    """Run h through all blocks, adding features[k] (a tensor or None) to the output of blocks[k]."""
    # --- exercise 3: add what the branch says
    for block, feature in zip(blocks, features, strict=True):
        h = block(h) if feature is None else block(h) + feature
    return h
    # --- end


check_run_steered(run_steered)

# %% [markdown]
# ## Zero convolutions
#
# Each feature passes a convolution whose weights and biases are **zero** at first. So the first picture is exactly that
# of the frozen model: nothing is spoilt before something is learned. Does it learn at all? For $f=w\cdot b$ the
# gradient for $w$ is the feature $b$, not zero; the gradient for what made $b$ is $w=0$. After one step $w\neq0$, and
# the layer before begins. The branch wakes up from its outputs backwards.

# %%
sd = StableDiffusion.load("tiny")
sd.unet.requires_grad_(False)
torch.manual_seed(0)
branch = bps_branch.Branch(sd.unet.config)
x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([100, 700]), sd.encode_prompts(["a red car", "a dog"])
hint = torch.rand(2, 1, 64, 64)
same = torch.equal(bps_branch.steered(sd.unet, branch, x, t, context, hint), sd.unet(x, t, context))
print("before training, steered and frozen predictions are equal to the last bit:", same)

optimiser = torch.optim.SGD(branch.parameters(), 0.1)
for step in range(3):
    optimiser.zero_grad()
    bps_branch.steered(sd.unet, branch, x, t, context, hint).square().mean().backward()
    gradients = [p.grad for p in branch.parameters() if p.grad is not None]
    print(f"step {step + 1}: {sum(bool(g.any()) for g in gradients)} of {len(gradients)} tensors have a gradient")
    optimiser.step()

# %% [markdown]
# ## Head-heavy and foot-light
#
# Where is the branch strong? Its encoder and middle have heavy blocks that see the time, and their features are
# multiplied by fixed **gains** 16, 8, 4, 2 (from fine to coarse) and 16 in the middle; its decoder has light blocks
# without time, with gain 1. A gain before a convolution that starts at zero changes nothing at first. But Adam moves
# every weight about equally far in a step, so a gain of 16 lets that feature grow 16 times as fast: a learning rate for
# each place, in disguise.

# %%
units = bps_branch.units(sd.unet)
print("gains of encoder and middle:", branch.gains)
print("units:", len(units), "· additions:", sum(map(len, units)), "(SD v1.5: 25 and 38)")

# %% [markdown]
# ## Exercise 4 · guidance with a hint (5 minutes, easy)
#
# Guidance strengthens the prompt by comparing with an empty prompt. The hint is not an alternative to be compared with:
# BPS keeps it in **both** predictions.

# %%
def guided_eps(eps, prompt, hint, w):
    """Guided prediction of the network eps(prompt, hint); the empty prompt is ""; w = 1: no guidance."""
    # --- exercise 4: guidance on the text alone
    plain = eps("", hint)
    return plain + w * (eps(prompt, hint) - plain)
    # --- end


check_guided_eps(guided_eps)

# %% [markdown]
# ## The same in minibnn
#
# Your lines are `minibnn/neighbours/bps_branch.py:added` (exercise 3, with hooks),
# `minibnn/neighbours/bps_branch.py:Branch` (exercise 2: the first line of its `forward`) and
# `minibnn/neighbours/bps.py:draw_steered` (exercise 4). The loss is that of every diffusion model;
# `minibnn/neighbours/bps.py:train_branch` moves the branch alone.
#
# ## Experiment: forty pairs, half a minute
#
# The world draws subjects with exact outlines. We train on forty pairs for as long as a tutorial may take, then give
# sketches of other drawings.

# %%
def pairs_of_the_world(count, seed):
    """Sketches (n, 1, 64, 64) in [0, 1], pictures (n, 3, 64, 64) in [-1, 1], captions."""
    rng = np.random.default_rng(seed)
    scenes = [world.random_scene(rng) for _ in range(count)]
    drawings = [world.draw(scene) for scene in scenes]
    masks = [world.subject_mask(scene, drawing) for scene, drawing in zip(scenes, drawings, strict=True)]
    sketches = torch.from_numpy(np.stack([world.outline(mask) for mask in masks]))[:, None]
    images = torch.from_numpy(np.stack(drawings)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return sketches, images, [world.caption(scene) for scene in scenes]


sketches, images, captions = pairs_of_the_world(40, 1)
torch.manual_seed(0)
branch = bps_branch.Branch(sd.unet.config)
losses = bps.train_branch(sd, branch, bps.Pairs(sd, sketches, images, captions), steps=100, lr=3e-4, batch_size=8)
new_sketches, new_images, new_captions = pairs_of_the_world(40, 3)
frozen = bps.draw_steered(sd, bps_branch.Branch(sd.unet.config), new_sketches, new_captions, steps=10)
steered = bps.draw_steered(sd, branch.eval(), new_sketches, new_captions, steps=10)

# %%
dogs = [i for i, caption in enumerate(new_captions) if "dog" in caption]
shown = (dogs[:2] + [i for i in range(40) if i not in dogs])[:6]


def outlined(picture, sketch):
    """The picture with the sketch's lines on it, in red."""
    return torch.where(sketch[0, :, :, None] > 0.5, torch.tensor([255, 0, 0]), torch.tensor(np.array(picture)))


figure, axes = plt.subplots(3, 6, figsize=(8, 4.2))
rows = {
    "sketch": [new_sketches[i, 0] for i in shown],
    "frozen": [outlined(frozen[i], new_sketches[i]) for i in shown],
    "steered": [outlined(steered[i], new_sketches[i]) for i in shown],
}
for row, (name, cells) in zip(axes, rows.items(), strict=True):
    for axis, cell in zip(row, cells, strict=True):
        axis.imshow(cell, cmap="gray")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
for axis, i in zip(axes[0], shown, strict=True):
    axis.set_title(re.sub(" (on|in|at|under) ", r"\n\1 ", new_captions[i]), fontsize=7)
figure.tight_layout()
show(
    figure,
    "09_steered",
    "Three rows of six, the first two of them dogs: outlines; pictures by the frozen model with the outlines in red, "
    "right in subject and colour but elsewhere; pictures by the steered model, nearer to the outlines.",
)

# %% [markdown]
# A figure of six flatters easily. A score for all forty sketches, none of which was trained on: how strong are the
# edges of the picture *on the sketch's lines*, beside its edges on average? A picture that knows nothing of the sketch
# has about what it has with another picture's sketch.

# %%
def edges_on_the_lines(pictures, sketches):
    """Edge strength on the lines over that everywhere, for each picture: (n,)."""
    strength = edges.gradient_length(torch.stack([torch.tensor(np.array(p)).permute(2, 0, 1) / 255 for p in pictures]))
    return (strength * sketches).sum((1, 2, 3)) / sketches.sum((1, 2, 3)) / strength.mean((1, 2, 3))


real = to_pil(new_images)
for name, pictures in (("the real drawings", real), ("frozen", frozen), ("steered", steered)):
    own, others = (edges_on_the_lines(pictures, lines) for lines in (new_sketches, new_sketches.roll(1, 0)))
    error = (own - others).std() / 40**0.5
    print(f"{name:17}: on its own sketch {own.mean():.2f}, on another's {others.mean():.2f}, "
          f"difference {(own - others).mean():+.2f} ± {error:.2f} (standard error over 40)")

# %% [markdown]
# A hundred steps are a beginning: subjects move and turn towards their outlines. On the sketch's own lines the steered
# pictures have 0.78 ± 0.14 more edge than on another sketch's, the frozen ones 0.26 ± 0.07 (both draw subjects near the
# middle, where another's lines are, too, and captions tell a little of the shape), real drawings 3.25 ± 0.42: about a
# sixth of the way. One training of one branch; the standard errors are over forty sketches. How well outlines are met
# after 60 and 180 steps with 12, 40 and 200 pairs is in [results/bps.md](results/bps.md), measured by
# `python -m minibnn experiment bps`, with additions at ControlNet's places (skips only) and T2I-Adapter's (encoder
# only) beside it. When each is tuned with the same budget, none of the three is shown to be the best.
#
# Does the branch use the *sketch*, or has it only learned what forty drawings look like? Control: the same branch, the
# sketches given to the wrong captions.

# %%
t, eps = torch.full((40,), 600), torch.randn(40, 4, 8, 8, generator=torch.Generator().manual_seed(0))
pair = bps.Pairs(sd, new_sketches, new_images, new_captions)
abar = sd.alphas_cumprod[600]
x_t = abar.sqrt() * pair.mean * sd.vae.config.scaling_factor + (1 - abar).sqrt() * eps
context = sd.encode_prompts(new_captions)
hints = {
    "its own sketch": new_sketches,
    "another's sketch": new_sketches.roll(1, 0),
    "an empty sketch": torch.zeros_like(new_sketches),
}
with torch.no_grad():
    for name, given in hints.items():
        error = (bps_branch.steered(sd.unet, branch, x_t, t, context, given) - eps).square().mean()
        print(f"error at t = 600 with {name:16}: {error:.4f}")
    print(f"error at t = 600, frozen model        : {(sd.unet(x_t, t, context) - eps).square().mean():.4f}")

# %% [markdown]
# ## What fails, and why
#
# - **It is not light**: for SD v1.5 the branch has 672 M parameters, nearly four fifths of the UNet. It is light in
#   *data* and in what it computes (no attention), not in size.
# - **A hint without information** should give $M=0$. The branch has never seen one: with an empty or a wrong sketch it
#   is worse than the frozen model alone.
# - **Guidance does not strengthen the hint**, since it is in both predictions.
# - The gains belong to a task: the authors use them for sketches, and ones everywhere for layouts.
# - **The score sees edges, not dogs.** A picture full of strong lines where the sketch has them scores well whatever it
#   shows; the judge of the experiment also asks which subject, colour and place it sees.
# - The branch cannot see $z_t$. What depends on it must come from the frozen layers behind each addition.
#
# ## Questions
#
# 1. In exercise 1, let the hint be exact (`noise` → 0). What does $M$ become, and where does the sampler end? Why is a
#    branch that is trained on sketches never in this situation?
# 2. Guidance keeps the hint in both predictions. Write the guided prediction for a hint that is in the first one only:
#    what does a scale of 7.5 then do to $M$?
# 3. A gain of 16 is a learning rate in disguise with Adam. What is it with plain gradient descent, and why would the
#    answer change what "head-heavy" means?
#
# **An open problem.** An empty sketch should give $M=0$, and the branch has never seen one. Train it with some hints
# blanked out, as captions are left out for guidance. It can then be guided by the hint, too (`bps --guide-hint` takes
# the frozen model in the place of the empty sketch). Does that move the overlap more than more training steps at the
# same cost, and what does it do to the pictures?
#
# ## Summary
#
# | what | where |
# |---|---|
# | $\hat\epsilon(z_t,t,y)=\hat\epsilon(z_t,t)+M$ | Bayes' rule; arXiv 2406.03683 builds on it |
# | heavy, timed encoder; light decoder; gains; zero convolutions | the authors' code, `minibnn/neighbours/bps_branch.py:Branch` |
# | where features are added | `minibnn/neighbours/bps_branch.py:units`, `minibnn/neighbours/bps_branch.py:added` |
# | training, drawing | `minibnn/neighbours/bps.py:train_branch`, `minibnn/neighbours/bps.py:draw_steered` |
# | exact sketches of drawings; sketches of your own photos | `minibnn/world/scenes.py:outline`; `minibnn/neighbours/edges.py:sketch` |
#
# Next: 10, the kernel.
