# %% [markdown]
# # 06 · Guidance and the unconditional prior
#
# **Question.** Guidance pushes a picture away from what the model would draw *without* a prompt. Fine-tuning on a few
# pictures hardly trains that prediction, and what it trains it spoils. Can we borrow it from the model we started from?
#
# ![Points guided to one of six clusters on a circle. True guidance gives a tight cloud at its outer side. With the fine-tuned model's own unconditional prediction the cloud lies below it, with the base's at the right place with a few stray points, with a wrong base's far outside.](figures/06_toy.png)
#
# *A toy whose right answer is known. The only difference between the pictures is whose unconditional prediction
# guides.*
#
# **Afterwards you can** write guidance with one and two conditions, ask a base model that has another noise schedule
# and another parameterisation, say what guided sampling draws (and what it does not), and judge when borrowing pays.
#
# You need: tutorial 01. About 45 minutes, 28 of them for the exercises. Symbols: [NOTATION.md](NOTATION.md). "UPM" is
# *Unconditional Priors Matter!* (arXiv 2503.20240).

# %%
import matplotlib.pyplot as plt
import torch
from checks import show
from checks.guidance import check_base_eps, check_guide, check_guide_two, check_schedule_map

from minibnn import __version__, sample, schedule
from minibnn.neighbours import guidance

print("minibnn", __version__, "· torch", torch.__version__)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The idea
#
# A text-to-image model is trained to predict noise with a caption $c$ and, for one picture in ten, with an empty one,
# $\varnothing$. Drawing with the caption alone gives vague pictures. Classifier-free guidance extrapolates (UPM eq. 6,
# which writes $\gamma$ for our $w$; Ho & Salimans 2022, eq. 6, write $1+w$):
#
# $$\hat\epsilon = \epsilon_\theta(x_t,\varnothing) + w\,\big(\epsilon_\theta(x_t,c)-\epsilon_\theta(x_t,\varnothing)\big)$$
#
# The unconditional prediction is the point one starts from *and* the point one moves away from. Suppose it is wrong by
# $d$: then $\hat\epsilon$ is wrong by $(1-w)\,d$, at $w=7.5$ by six and a half times as much.
#
# DreamBooth trains the captions "a photo of a sks dog" and "a photo of a dog", never the empty one, but all weights
# move; other recipes drop one caption in ten, and teach the model that *nothing* means *my six pictures*. Either way
# the model's idea of pictures in general suffers. The model it was fine-tuned from, $\psi$, still has it. So (UPM eq.
# 7)
#
# $$\hat\epsilon = \epsilon_\psi(x_t,\varnothing) + w\,\big(\epsilon_\theta(x_t,c)-\epsilon_\psi(x_t,\varnothing)\big)$$
#
# This takes no training: one line changes, and one more network is in memory.

# %% [markdown]
# ## Exercise 1 · guidance (3 minutes, easy)
#
# Write the first formula. Called with the base's prediction as `eps_u`, the same line is the second one.

# %%
def guide(eps_u, eps_c, scale):
    """From the unconditional prediction towards the conditional one and beyond; scale is w.   (UPM eq. 6 and 7)"""
    # --- exercise 1: extrapolate
    return eps_u + scale * (eps_c - eps_u)
    # --- end


check_guide(guide)

# %% [markdown]
# ## Experiment 1: what a wrong unconditional prediction does
#
# Single numbers instead of pictures, and exact predictions, as in tutorial 01. The condition asks for
# $\mathcal N(1, 0.5^2)$. The base knows that things in general are $\mathcal N(0, 2^2)$; the fine-tuned model believes,
# wrongly, $\mathcal N(0.8, 0.6^2)$. All predictions are linear in $x$, so the whole sampler is, and two points tell
# mean and spread of what it draws.

# %%
def gaussian_eps(x, abar_t, mean, std):
    """The exact prediction for data N(mean, std²), exercise 5 of tutorial 01."""
    return (1 - abar_t).sqrt() * (x - abar_t.sqrt() * mean) / (abar_t * std**2 + 1 - abar_t)


def drawn(unconditional, scale, steps=2000):
    """Mean and standard deviation of what DDIM draws from N(0, 1) with guided exact predictions."""
    x = torch.tensor([0.0, 1.0])
    abar = torch.cos(torch.linspace(0.9999, 0, steps + 1) * torch.pi / 2) ** 2
    for now, after in zip(abar, abar[1:], strict=False):
        eps = guide(gaussian_eps(x, now, *unconditional), gaussian_eps(x, now, 1.0, 0.5), scale)
        x = schedule.ddim_step(x, eps, now, after)
    return x[0].item(), (x[1] - x[0]).abs().item()


print("  w    with the base's N(0, 2²)    with the model's own N(.8, .6²)")
for scale in (0, 1, 1.5, 2, 3):
    (mean, std), (own_mean, own_std) = drawn((0.0, 2.0), scale), drawn((0.8, 0.6), scale)
    print(f"{scale:3}      {mean:5.2f} ± {std:5.3f}              {own_mean:5.2f} ± {own_std:5.3f}")

# %% [markdown]
# With the base, guidance sharpens: at $w=3$ the spread is 0.03, around 1.1. With the spoiled prediction the picture
# moves *away from* 0.8 and hardly sharpens: guidance amplifies the error and no longer the condition.
#
# One may read guidance as drawing from $p_\psi(x_t)^{1-w}\,p_\theta(x_t\mid c)^w$ at every $t$. Beware: that is a
# family of densities, one for each $t$, and *not* the noising of one of them, so the sampler does not end in its last
# member:

# %%
precision = (1 - 2) / 2**2 + 2 / 0.5**2
mean, std = drawn((0.0, 2.0), 2)
print(f"w = 2: the product of densities is {2 / 0.5**2 / precision:.3f} ± {precision**-0.5:.3f}")
print(f"       drawn is                    {mean:.3f} ± {std:.3f}")

# %% [markdown]
# ## Exercise 2 · another noise schedule (10 minutes, medium)
#
# The base may be any model of the same latent space, with other $\beta_t$. Asked at our time $t$, it would expect
# another amount of noise than $x_t$ has. Ask it at the time of the nearest variance (so does UPM, where the two
# schedules differ):
#
# $$\tau(t)=\arg\min_\tau\,\big\vert(1-\bar\alpha^\psi_\tau)-(1-\bar\alpha^\theta_t)\big\vert$$

# %%
def schedule_map(abar, abar_base):
    """τ(t) for all our times: abar (T,), abar_base (T',) -> (T,) of integers below T'."""
    # --- exercise 2: the nearest variance
    return ((1 - abar_base)[None] - (1 - abar)[:, None]).abs().argmin(1)
    # --- end


check_schedule_map(schedule_map)

# %% [markdown]
# ## Exercise 3 · another parameterisation (10 minutes, medium)
#
# SD v2's large model predicts the velocity $v=\sqrt{\bar\alpha}\,\epsilon-\sqrt{1-\bar\alpha}\,x_0$ instead of
# $\epsilon$. Two predictions may only be mixed in the same currency. From
# $x=\sqrt{\bar\alpha}\,x_0+\sqrt{1-\bar\alpha}\,\epsilon$ follows
# $\epsilon=\sqrt{\bar\alpha}\,v+\sqrt{1-\bar\alpha}\,x$ (Salimans & Ho 2022, App. D). Which $\bar\alpha$: the
# fine-tuned model's at $t$, or the base's at $\tau$? The base made its $v$ with *its own*.

# %%
def base_eps(network, x, t, tau, abar_base):
    """ε of a base that predicts v: network(x, time) -> v, asked at tau[t]; t an int, abar_base (T',)."""
    # --- exercise 3: ask at τ(t), convert with the base's ᾱ
    abar = abar_base[tau[t]]
    return abar.sqrt() * network(x, tau[t]) + (1 - abar).sqrt() * x
    # --- end


check_base_eps(base_eps)

# %% [markdown]
# Does the map matter? A base with DDPM's linear $\beta_t$ that knows $\mathcal N(0,2^2)$ exactly, asked by a sampler
# with a cosine schedule, at $w=0$ (only the base counts, so its own spread, 2, should come out):

# %%
linear = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
s = torch.arange(1000) / 1000
cosine = (torch.cos((s + 0.008) / 1.008 * torch.pi / 2) / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2))) ** 2
tau = schedule_map(cosine, linear)


def spread(times):
    x = torch.tensor([0.0, 1.0])
    for t in range(990, 0, -1):
        x = schedule.ddim_step(x, gaussian_eps(x, linear[times[t]], 0.0, 2.0), cosine[t], cosine[t - 1])
    return (x[1] - x[0]).item()


print(f"spread with τ(t): {spread(tau):.3f}, with τ = t: {spread(torch.arange(1000)):.3f}; τ(500) = {tau[500].item()}")

# %% [markdown]
# ## Exercise 4 · two conditions (5 minutes, easy)
#
# Some models take two conditions, for instance an edited picture *and* an instruction. Then there are two arrows, each
# with its own scale (UPM eq. 8):
#
# $$\hat\epsilon=\epsilon_\psi(\varnothing,\varnothing)+w_1\big(\epsilon_\theta(c_1,\varnothing)-\epsilon_\psi(\varnothing,\varnothing)\big)+w_2\big(\epsilon_\theta(c_1,c_2)-\epsilon_\theta(c_1,\varnothing)\big)$$
#
# The base replaces the unconditional prediction in **both** places, and nothing else. With text alone, $c_1$ can be a
# part of the prompt, "a photo of a sks dog", and $c_2$ the rest, "on the beach".

# %%
def guide_two(eps_u, eps_1, eps_12, scale_1, scale_2):
    """ε̂ from the unconditional, the first condition's and both conditions' predictions.   (UPM eq. 8)"""
    # --- exercise 4: two arrows
    return eps_u + scale_1 * (eps_1 - eps_u) + scale_2 * (eps_12 - eps_1)
    # --- end


check_guide_two(guide_two)

# %% [markdown]
# ## The same in minibnn
#
# Your lines are `minibnn/sample.py:guide`, `minibnn/neighbours/guidance.py:schedule_map`,
# `minibnn/neighbours/guidance.py:unconditional_of` and `minibnn/neighbours/guidance.py:guide_two`. From the command
# line, for a run of `python -m minibnn train`:
#
# ```
# python -m minibnn sample --model runs/dog --unconditional-from tiny-v2 --guidance 2 \
#     --prompt "a photo of a sks dog on the beach"
# ```
#
# A base of another latent space is refused (`minibnn/neighbours/guidance.py:check_same_latents`): the same numbers
# would mean another picture.

# %%
u, c = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, 8, 8)
print("mine = minibnn's:", torch.equal(guide(u, c, 3.0), sample.guide(u, c, 3.0)))
print("τ: mine = minibnn's:", torch.equal(schedule_map(cosine, linear), guidance.schedule_map(cosine, linear)))

# %% [markdown]
# ## Experiment 2: a network that is really fine-tuned
#
# Points in the plane, in six clusters; the "caption" is the cluster's number, 6 stands for none. A small network learns
# all of it, then is fine-tuned on 100 points of two clusters, with one label in ten dropped.

# %%
torch.set_default_dtype(torch.float32)
TOY = schedule.alphas_cumprod(0.001, 0.02, 200)
ANGLES = torch.arange(6) * torch.pi / 3
CENTRES = 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


class Network(torch.nn.Module):
    """ε̂ for points (B, 2) at times (B,) with labels (B,)."""

    def __init__(self):
        super().__init__()
        self.label = torch.nn.Embedding(7, 16)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(21, 96), torch.nn.SiLU(), torch.nn.Linear(96, 96), torch.nn.SiLU(), torch.nn.Linear(96, 2)
        )

    def forward(self, x, t, label):
        a = TOY[t][:, None]
        return self.body(torch.cat([x, self.label(label), a, a.sqrt(), (1 - a).sqrt()], 1))


def fit(network, points, labels, steps, dropout, seed):
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(steps):
        pick = torch.randint(len(points), (256,), generator=generator)
        label = torch.where(torch.rand(256, generator=generator) < dropout, 6, labels[pick])
        t = torch.randint(200, (256,), generator=generator)
        eps = torch.randn(256, 2, generator=generator)
        loss = (network(schedule.q_sample(points[pick], eps, TOY[t]), t, label) - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.requires_grad_(False)


def fine_tuned(seed):
    """A copy of the base, trained on 100 points of the first two clusters."""
    network = Network()
    network.load_state_dict(base.state_dict())
    return fit(network, points[few], labels[few], 400, 0.1, seed)


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
labels = torch.randint(6, (2000,), generator=generator)
points = CENTRES[labels] + 0.25 * torch.randn(2000, 2, generator=generator)
base = fit(Network(), points, labels, 1500, 0.2, 1)
few = (labels < 2).nonzero()[:100, 0]
finetunings = [fine_tuned(seed) for seed in range(2, 7)]
elsewhere = 0.3 * torch.randn(2000, 2, generator=generator) + torch.tensor([0.0, -2.0])
wrong = fit(Network(), elsewhere, labels, 600, 0.2, 3)


def true_unconditional(x, t):
    """The exact prediction for all six clusters."""
    a = TOY[t]
    variance = a * 0.25**2 + 1 - a
    weight = torch.softmax(-torch.cdist(x, a.sqrt() * CENTRES).square() / (2 * variance), 1)
    return (1 - a).sqrt() * (x - weight @ (a.sqrt() * CENTRES)) / variance


def exact_conditional(x, t):
    """The exact prediction for cluster 0, which no network has learned."""
    return (1 - TOY[t]).sqrt() * (x - TOY[t].sqrt() * CENTRES[0]) / (TOY[t] * 0.25**2 + 1 - TOY[t])


def asked(network, label):
    """The network with a fixed label, as a function of x and an int t; 6: no label."""
    return lambda x, t: network(x, torch.full((len(x),), t), torch.full((len(x),), label))


def points_drawn(conditional, anchor, scale, n=300):
    """Points of cluster 0: the conditional prediction, guided away from the anchor's."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(9))
    for t in range(199, -1, -4):
        eps = guide(anchor(x, t), conditional(x, t), scale)
        x = schedule.ddim_step(x, eps, TOY[t], TOY[t - 4] if t >= 4 else torch.ones(()))
    return x


def energy_distance(a, b):
    """0 if two clouds of points have the same distribution."""
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def strays(cloud, goal):
    """How many of 300 points are farther than 1 from the middle of the cloud where they should be."""
    return int(((cloud - goal.mean(0)).norm(dim=1) > 1).sum())


def anchors(finetuned):
    """{name: whose prediction one guides away from}; the last two are controls."""
    return {
        "own": asked(finetuned, 6), "base": asked(base, 6), "base with the label": asked(base, 0),
        "wrong base": asked(wrong, 6),
    }


print("energy distance to guidance by the true unconditional prediction, for each of five fine-tunings")
for scale in (1.5, 3, 7.5):
    for name in anchors(base):
        distances = []
        for finetuned in finetunings:
            ours = asked(finetuned, 0)
            goal = points_drawn(ours, true_unconditional, scale)
            distances.append(energy_distance(points_drawn(ours, anchors(finetuned)[name], scale), goal))
        print(f"  w = {scale:3}  {name:20}" + "".join(f"{d:7.3f}" for d in distances))

print("strays among 300 points")
for name, conditional in (("the first fine-tuning", asked(finetunings[0], 0)), ("the exact one", exact_conditional)):
    for scale in (1, 3, 7.5):
        goal = points_drawn(conditional, true_unconditional, scale)
        counts = [strays(points_drawn(conditional, a, scale), goal) for a in (true_unconditional, asked(base, 6))]
        print(f"  conditional: {name:22} w = {scale:3} guided by the true one {counts[0]:3}, by the base {counts[1]:3}")

# %%
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharex=True, sharey=True)
finetuned = finetunings[0]
sources = {
    "the true one": true_unconditional, "its own": asked(finetuned, 6), "the base's": asked(base, 6),
    "a wrong base's": asked(wrong, 6),
}
for axis, (name, unconditional) in zip(axes, sources.items(), strict=True):
    axis.scatter(*points.T, s=1, color="lightgrey", label="data")
    axis.scatter(*points[labels == 0].T, s=1, color="grey", label="cluster asked for")
    axis.scatter(*points_drawn(asked(finetuned, 0), unconditional, 3.0).T, s=2, label="drawn")
    axis.set(xlim=(-3, 5), ylim=(-3, 5), aspect="equal")
    axis.set_title(f"unconditional: {name}", fontsize=9)
axes[0].legend(fontsize=7, markerscale=4, loc="upper right")
figure.tight_layout()
show(
    figure,
    "06_toy",
    "Guidance 3. With the true unconditional prediction a tight cloud at the outer side of its cluster; with its own a "
    "cloud below it; with the base's one at the right place with a few stray points; with a wrong base's one far "
    "outside.",
)

# %% [markdown]
# The fine-tuned network knows only two clusters, so its guidance points away from the other one: down. The base knows
# all six, and points outwards, as the truth does. Five trainings, read as five answers:
#
# - At $w=1.5$ and 3 the base is nearer to the truth than the model's own prediction in five of five. At $w=7.5$ in
#   three of five; one training alone would have told either story.
# - **The control.** "Base with the label" asks the base for cluster 0, so it is no unconditional prediction. If the
#   prior is what helps, it must be worse than the base, and at 1.5 it is, in five of five, hardly better than the
#   model's own. At 7.5 it is the *best* of all: there, what helps is a small difference between the two predictions,
#   not a right prior.
# - **The strays.** One might blame them on the fine-tuned network, whose errors are multiplied by 7.5. But with an
#   exact conditional, which has no errors, 47 of 300 points still stray when the base guides, and none when the true
#   unconditional does. They come from the base: a learned prior has errors where few points lie, and $w$ multiplies
#   them.
#
# ## Experiment 3: drawings
#
# And the bundled model? Fine-tuned on six drawings of a spotted dog, a cat or a fish, with five seeds each, and drawn
# from the same weights with its own and with the pretrained model's unconditional prediction, it answers otherwise
# ([results/guidance.md](results/guidance.md) has all figures, each with its interval):
#
# - At $w=3$ the base's prediction makes the subject **less** faithful, by 0.161 [0.139, 0.183] of cosine, and at 7.5 by
#   0.128 [0.095, 0.161]. At 1.5 no difference is shown (−0.006 [−0.021, 0.008]), but the
#   pictures are noisier, by 0.25 [0.19, 0.31], and the subject is seen in 10 [4, 17] points fewer of them.
# - At 7.5 the place that the prompt asks for is lost in 16 [9, 24] points more of the pictures.
# - The control, the base's *"a photo of a dog"*, does at 1.5 what its empty prompt does: +0.002 [−0.000, 0.004].
# - Without any guidance, $w=1$, the subject is as faithful as with the base at 1.5: +0.003 [−0.013, 0.019].
#
# Here, then, drawing without guidance was as good, and another anchor did not help. The gains of lesson 03 (the slope
# of the predicted on the true noise; a prediction with gain 1 finds all of it) tell why. Around the training pictures
# the base finds less of the noise than the fine-tuned model ($u=0.73$ against $c=0.87$ at $t=100$, means of the
# fifteen trainings), so that $w\,c-(w-1)\,u$ is 1.17 at $w=3$ and 1.84 at $w=7.5$: nearly twice the noise that is
# there is taken out. The model's own prediction stays near 1 (0.91 at 7.5).
#
# ## What fails, and why
#
# - **A large scale.** $w$ multiplies every difference between the two networks: on the toy the strays, on drawings the
#   noise (+1.3 [0.7, 2.0] at 7.5) and lost places.
# - A base that is not the right prior makes it *worse* than no remedy (the last picture above): the method stands and
#   falls with $p_\psi(x_t)$ being nearer to the truth than $p_\theta(x_t)$.
# - It costs two evaluations that cannot share a batch, and a second network in memory. For LoRA and OFT the base is the
#   same network with the adapter switched off: no second copy.
# - **Another question than the authors'.** They test models fine-tuned on much data for editing, new views and classes,
#   no personalisation on a few pictures, and speak of little gain for adapters such as ControlNet. What we found with
#   six drawings of an animal contradicts nothing of that.
#
# ## Questions
#
# 1. Both predictions of a model are wrong by the same $d(x_t)$. What does guidance at $w$ make of it, with the model's
#    own unconditional prediction and with a perfect one? When is the *spoiled* prior the better anchor?
# 2. In experiment 1 the guided spread at $w=3$ is 0.03 with the base, far narrower than the condition's 0.5. Which $w$
#    would you choose if you wanted the right spread, and why is it not a fault of the base?
# 3. "Base with the label" is nearest to the truth at $w=7.5$ on the toy. Write its guided prediction with the labelled
#    predictions of both models. What does it extrapolate, and what is left of the prompt?
#
# **An open problem.** All of this asks for *one* anchor at all times. The base's prior is exact in pure noise and has
# its errors late, the fine-tuned one the other way round. Find from the two networks alone, without the truth, a time
# at which to change over. Does it beat both on the toy, at $w=7.5$ too?
#
# ## Summary
#
# | what | where |
# |---|---|
# | guidance | UPM eq. 6 (Ho & Salimans 2022, eq. 6), `minibnn/sample.py:guide` |
# | the base's unconditional prediction | UPM eq. 7, `minibnn/neighbours/guidance.py:one_condition` |
# | two conditions | UPM eq. 8, `minibnn/neighbours/guidance.py:guide_two` |
# | unlike schedules | `minibnn/neighbours/guidance.py:schedule_map` |
# | $\epsilon$ from $v$ | Salimans & Ho 2022, App. D, `minibnn/schedule.py:eps_from_v` |
#
# Further reading: *Domain Guidance* (Zhong et al., ICLR 2025) uses the same formula for class-conditional transformers;
# *Autoguidance* (Karras et al. 2024) guides away from a *worse* version of the same model, with the same condition.
#
# Next: 07, fine-tuning a model towards what you like.
