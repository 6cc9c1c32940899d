# %% [markdown]
# # 04 · A Bayesian linear layer, from nothing
#
# **Question.** A Bayesian network does not learn weights but a *distribution* of weights,
# $\theta=\mu+\sigma\circ\epsilon$. How does one train a distribution by gradient descent, and is the one that comes out
# right?
#
# ![Ellipses of two weights. The exact posterior is long, thin and tilted. The full-rank fit lies on it. The mean-field fit has the right centre but is a small upright ellipse inside. Algorithm 1's is upright and too large, and without a KL term only a point is left.](figures/04_posteriors.png)
#
# *One problem, whose right answer is known in closed form (black), and four things one may train. You will write all of
# it.*
#
# **Afterwards you can** draw weights so that gradients reach $\mu$ and $\sigma$, derive and compute the ELBO, tell the
# two directions of the KL divergence apart, and say what a factorised Gaussian cannot represent.
#
# You need: linear regression, the Gaussian, PyTorch's autograd. About 65 minutes, 40 of them for the exercises.
# Symbols: [NOTATION.md](NOTATION.md). "The paper" is *Exploring Diffusion Models' Corruption Stage in Few-Shot
# Fine-tuning and Mitigating with Bayesian Neural Networks*.

# %%
import matplotlib.pyplot as plt
import torch
from checks import show
from checks.bayes_linear import (
    check_bayes_linear,
    check_exact_posterior,
    check_gaussian_kl,
    check_gradients,
    check_negative_elbo,
)

from minibnn import __version__
from minibnn.finetune import bayes

print("minibnn", __version__, "· torch", torch.__version__)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The idea
#
# Before seeing data we believe the weights to be near some $\theta_0$ (for us: the pretrained ones),
# $P(\theta)=\mathcal N(\theta_0,\sigma_p^2)$. After seeing data $\mathcal D$, Bayes' rule gives
# $P(\theta\mid\mathcal D)\propto P(\mathcal D\mid\theta)P(\theta)$. For a network nobody can compute that, so we look
# for the Gaussian $Q$ nearest to it. "Nearest" in the sense of
# $\mathrm{KL}(Q\Vert P(\theta\mid\mathcal D))=\mathbb E_Q[\log Q-\log P(\theta\mid\mathcal D)]$ needs the posterior
# only up to a constant: insert Bayes' rule, and what depends on $Q$ is (the paper's Eq. 3)
#
# $$\mathcal L = \mathbb E_{\theta\sim Q}\big[-\log P(\mathcal D\mid\theta)\big] + \mathrm{KL}\big(Q(\theta)\,\Vert\,P(\theta)\big)$$
#
# the negative **ELBO** (evidence lower bound): fit the data on average over $Q$, and pay for every nat by which $Q$
# leaves the prior (a nat is the unit of information that goes with the natural logarithm). The second term is a
# formula. The first is an average over $Q$ whose parameters we want gradients for. The **reparameterisation trick**
# draws a standard normal $\epsilon$, which depends on no parameter, and computes the weights from it:
#
# $$\theta=\mu+\sigma\circ\epsilon,\qquad\epsilon\sim\mathcal N(0,I)$$
#
# Now one draw is an ordinary forward pass, and ordinary backpropagation reaches $\mu$ and $\sigma$.

# %% [markdown]
# ## Exercise 1 · a layer with random weights (5 minutes, easy)
#
# `draw(shape)` returns standard normal numbers. Compute $y=x\,\theta^\top$ with **one** $\theta$ for the whole batch: a
# draw is a network, and all pictures of a batch go through the same network.

# %%
def bayes_linear(x, mu, sigma, draw):
    """y = x θᵀ with θ = μ + σ∘ε; x (B, in), mu and sigma (out, in), draw(shape) -> ε. Returns (B, out)."""
    # --- exercise 1: draw the weights, then multiply
    theta = mu + sigma * draw(mu.shape)
    return x @ theta.T
    # --- end


check_bayes_linear(bayes_linear)

# %% [markdown]
# ## Exercise 2 · its gradients by hand (10 minutes, medium)
#
# Backpropagation hands you $\partial L/\partial y$. For $y=x\theta^\top$ the chain rule gives
# $\partial L/\partial\theta=(\partial L/\partial y)^\top x$. Go on to $\mu$ and $\sigma$ (the paper's Eq. 14): how does
# $\theta=\mu+\sigma\circ\epsilon$ change with each?

# %%
def gradients(x, grad_y, eps):
    """∂L/∂μ and ∂L/∂σ from ∂L/∂y (B, out), with the ε (out, in) of the forward pass; both (out, in)."""
    # --- exercise 2: the chain rule through θ = μ + σ∘ε
    grad_theta = grad_y.T @ x
    return grad_theta, grad_theta * eps
    # --- end


check_gradients(gradients)

# %% [markdown]
# The gradient of $\sigma$ needs the *same* $\epsilon$ as the forward pass. Keeping it costs as much memory as the
# weights; drawing a new one is the classic mistake, which no shape error reveals. minibnn keeps only the **seed** and
# draws the same $\epsilon$ again.
#
# A single draw's gradient is noisy, but right on average. On a parabola, $L=\frac a2\theta^2$, the average is known:
# $\mathbb E[L]=\frac a2(\mu^2+\sigma^2)$, so the gradient of $\sigma$ must be $a\sigma$ on average. With a new
# $\epsilon$ in the backward pass it is 0: $\sigma$ would never learn anything.

# %%
eps, other = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
a, mu, sigma = 3.0, 0.5, 0.4
by_theta = a * (mu + sigma * eps)
for name, e in (("the same ε", eps), ("another ε ", other)):
    g = by_theta * e
    print(f"∂L/∂σ with {name}: {g.mean():.3f} ± {g.std() / len(g) ** 0.5:.3f}   (right: {a * sigma:.3f})")

# %% [markdown]
# ## Exercise 3 · the price (10 minutes, medium)
#
# $\mathrm{KL}(Q\Vert P)=\mathbb E_Q[\log Q(\theta)-\log P(\theta)]$. For one weight with
# $Q=\mathcal N(\mu_q,\sigma_q^2)$, $P=\mathcal N(\mu_p,\sigma_p^2)$, insert the two log densities and use
# $\mathbb E_Q[(\theta-\mu_p)^2]=\sigma_q^2+(\mu_q-\mu_p)^2$:
#
# $$\mathrm{KL}(Q\Vert P)=\log\frac{\sigma_p}{\sigma_q}+\frac{\sigma_q^2+(\mu_q-\mu_p)^2}{2\sigma_p^2}-\frac12$$
#
# Independent weights: their KLs add up.

# %%
def gaussian_kl(mu_q, sigma_q, mu_p, sigma_p):
    """KL(Q‖P) in nats, summed over all weights; all four of one shape, the σ are standard deviations."""
    # --- exercise 3: the sum of the KL divergences of all weights
    terms = torch.log(sigma_p / sigma_q) + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2) - 0.5
    return terms.sum()
    # --- end


check_gaussian_kl(gaussian_kl)

# %% [markdown]
# ## Exercise 4 · the loss (5 minutes, easy)
#
# Data: $y_i=x_i\theta^\top$ + Gaussian noise of known standard deviation. Compute Eq. 3 for one draw: the negative log
# likelihood of **all** points, each $\frac{(y_i-\hat y_i)^2}{2\,\mathrm{noise}^2}+\frac12\log(2\pi\,\mathrm{noise}^2)$,
# plus the KL.

# %%
def negative_elbo(y, predicted, noise, kl):
    """−log P(D|θ) + KL for one draw; y and predicted (n, 1), noise: a standard deviation.   (the paper's Eq. 3)"""
    # --- exercise 4: the data's term and the price
    points = (y - predicted) ** 2 / (2 * noise**2) + 0.5 * torch.log(torch.tensor(2 * torch.pi * noise**2))
    return points.sum() + kl
    # --- end


check_negative_elbo(negative_elbo)

# %% [markdown]
# ## Exercise 5 · the right answer (10 minutes, medium)
#
# For a linear model the posterior is a Gaussian in closed form (Bishop, *PRML*, eq. 3.50-3.51): precisions (inverse
# covariances) of data and prior add up, and each pulls the mean with its precision:
#
# $$\Lambda=\frac{X^\top X}{\mathrm{noise}^2}+\frac{I}{\sigma_p^2},\qquad \mathrm{mean}=\Big(\frac{y^\top X}{\mathrm{noise}^2}+\frac{\mu_p}{\sigma_p^2}\Big)\Lambda^{-1}$$
#
# The covariance is $\Lambda^{-1}$. This needs no training and has no noise, so everything below is compared with it.

# %%
def exact_posterior(x, y, noise, mu_p, sigma_p):
    """Mean (1, d) and covariance (d, d) of P(θ|D); x (n, d), y (n, 1), mu_p (1, d), noise and sigma_p: numbers."""
    # --- exercise 5: Bayesian linear regression
    precision = x.T @ x / noise**2 + torch.eye(x.shape[1]) / sigma_p**2
    covariance = torch.linalg.inv(precision)
    return (y.T @ x / noise**2 + mu_p / sigma_p**2) @ covariance, covariance
    # --- end


check_exact_posterior(exact_posterior)

# %% [markdown]
# ## Experiment: does training find it?
#
# Twenty points on a line, two weights (intercept and slope). The points all lie to the right of 0, so intercept and
# slope must trade off against each other: the exact posterior is strongly correlated.

# %%
generator = torch.Generator().manual_seed(0)
n, noise, sigma_p = 20, 0.5, 1.0
place = 0.5 + 2 * torch.rand(n, 1, generator=generator)
x = torch.cat([torch.ones(n, 1), place], dim=1)
y = x @ torch.tensor([[0.5], [1.0]]) + noise * torch.randn(n, 1, generator=generator)
mu_p = torch.zeros(1, 2)
mean, covariance = exact_posterior(x, y, noise, mu_p, sigma_p)


def train(price, weight, steps=1500, draws=4):
    """μ and σ after Adam on −log P(D|θ) + weight·price(μ, σ), averaged over a few draws a step."""
    fresh = torch.Generator().manual_seed(1)
    mu, sigma = mu_p.clone().requires_grad_(), torch.full((1, 2), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([mu, sigma], lr=0.03)
    slower = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    for _ in range(steps):
        kl = weight * price(mu, sigma) if weight else 0.0
        losses = [
            negative_elbo(y, bayes_linear(x, mu, sigma, lambda shape: torch.randn(shape, generator=fresh)), noise, kl)
            for _ in range(draws)
        ]
        optimiser.zero_grad()
        (sum(losses) / draws).backward()
        optimiser.step()
        slower.step()
        sigma.data.clamp_(min=1e-7)  # a standard deviation stays positive
    return mu.detach(), sigma.detach()


prior = torch.full((1, 2), sigma_p)
fits = {
    "Eq. 3, KL(Q‖P)": train(lambda mu, sigma: gaussian_kl(mu, sigma, mu_p, prior), 1.0),
    "Algorithm 1, KL(P‖Q)": train(lambda mu, sigma: gaussian_kl(mu_p, prior, mu, sigma), 1.0),
    "λ = 0, no KL": train(None, 0.0),
}
print("exact mean", mean.numpy().round(3), "· exact spread of each weight", covariance.diag().sqrt().numpy().round(3))
print("1/√Λ_ii, what the best factorised Q has:", (1 / torch.linalg.inv(covariance).diag().sqrt()).numpy().round(3))
for name, (mu, sigma) in fits.items():
    print(f"{name:21}: μ {mu.numpy().round(3)}, σ {sigma.numpy().round(7)}")

# %% [markdown]
# Eq. 3 finds the mean, and within a few percent $\sigma_i=1/\sqrt{\Lambda_{ii}}$: three times too small! That is no
# failure of the training. A factorised $Q$ has no tilt; the tilted posterior is thin, and $\mathrm{KL}(Q\Vert\cdot)$
# punishes $Q$ for every bit of mass where the posterior has none. So $Q$ shrinks into it: $1/\sqrt{\Lambda_{ii}}$ is
# the spread of weight $i$ *if all others were known* (Bishop, eq. 10.12-10.15), less than its spread
# $\sqrt{(\Lambda^{-1})_{ii}}$. With a full matrix, $\theta=\mu+L\epsilon$, the same loss finds the exact answer:

# %%
def train_full(steps=1500, draws=16):
    """Mean and covariance of the best Gaussian with any covariance LLᵀ, by the same trick and Eq. 3."""
    fresh = torch.Generator().manual_seed(2)
    mu, lower = mu_p.clone().requires_grad_(), (0.5 * torch.eye(2)).requires_grad_()
    optimiser = torch.optim.Adam([mu, lower], lr=0.03)
    slower = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    for _ in range(steps):
        root = lower.tril()
        theta = mu + torch.randn(draws, 2, generator=fresh) @ root.T  # (draws, 2)
        misfit = ((y - x @ theta.T) ** 2).sum() / (2 * noise**2) / draws
        kl = 0.5 * ((root**2).sum() + ((mu - mu_p) ** 2).sum()) / sigma_p**2 - root.diag().abs().log().sum()
        optimiser.zero_grad()
        (misfit + kl).backward()
        optimiser.step()
        slower.step()
    return mu.detach(), (root @ root.T).detach()


full_mean, full_covariance = train_full()
print("full rank: mean", full_mean.numpy().round(3), "covariance", full_covariance.numpy().round(4).tolist())
print("exact    : mean", mean.numpy().round(3), "covariance", covariance.numpy().round(4).tolist())


# %%
def ellipse(mean, covariance):
    """The curve that holds 86 % of a Gaussian of two weights (two standard deviations)."""
    angle = torch.linspace(0, 2 * torch.pi, 200)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    values, vectors = torch.linalg.eigh(covariance)
    return (mean + 2 * circle * values.clamp(min=0).sqrt() @ vectors.T).T


figure, axis = plt.subplots(figsize=(6, 4))
axis.plot(*ellipse(mean, covariance), "k", lw=3, label="exact posterior")
axis.plot(*ellipse(full_mean, full_covariance), "C1--", label="full rank, Eq. 3")
for (name, (mu, sigma)), colour in zip(fits.items(), ("C0", "C2", "C3"), strict=True):
    axis.plot(*ellipse(mu, (sigma**2).diag_embed()[0]), colour, label=name)
axis.plot(*fits["λ = 0, no KL"][0][0], "C3o")
axis.set(xlabel="intercept", ylabel="slope")
axis.legend(fontsize=8)
show(
    figure,
    "04_posteriors",
    "Ellipses of two weights: the exact posterior long, thin and tilted; full rank on it; mean field small and upright "
    "inside; Algorithm 1 upright and too large; without KL a point.",
)

# %% [markdown]
# ## Two directions, and none
#
# The paper's text (Eq. 3) has $\mathrm{KL}(Q\Vert P)$; its Algorithm 1, and the authors' code, compute
# $\mathrm{KL}(P\Vert Q)$. Both are 0 at the prior, and near it hardly differ. Away from it only the first gives Bayes'
# rule. For one weight, with $a$ the data's precision and $d=\mu-\theta_0$, setting the derivative by $\sigma$ to 0
# gives
#
# $$\begin{aligned}\text{Eq. 3:}\quad&\sigma^2=\frac{1}{a+1/\sigma_p^2}\\ \text{Algorithm 1:}\quad&\sigma^2=\frac{-1+\sqrt{1+4a(\sigma_p^2+d^2)}}{2a}\\ \lambda=0:\quad&\sigma=0\end{aligned}$$
#
# $a$ grows with the number $n$ of data, so the spread shrinks as $n^{-1/2}$, as it should, by Eq. 3, but only as
# $n^{-1/4}$ by Algorithm 1. Without a KL nothing holds $\sigma$ up: noise in the weights only ever hurts the fit.

# %%
def eq3_sigma(a, sigma_p):
    """The σ that minimises E_Q[a θ²/2] + KL(Q‖P)."""
    return (1 / (a + 1 / sigma_p**2)) ** 0.5


def algorithm1_sigma(a, sigma_p, d):
    """The σ that minimises E_Q[a θ²/2] + KL(P‖Q) when μ lies d from the prior's mean."""
    return ((-1 + (1 + 4 * a * (sigma_p**2 + d**2)) ** 0.5) / (2 * a)) ** 0.5


data_precision = (x**2).sum(0) / noise**2
mu, sigma = fits["Algorithm 1, KL(P‖Q)"]
formula = algorithm1_sigma(data_precision, sigma_p, mu)
print("Algorithm 1, trained σ:", sigma.numpy().round(3), "formula:", formula.numpy().round(3))

counts = torch.logspace(0, 5, 50)
figure, axis = plt.subplots(figsize=(5, 2.8))
axis.loglog(counts, eq3_sigma(counts / noise**2, sigma_p), label="Eq. 3: falls as n^(−1/2)")
axis.loglog(counts, algorithm1_sigma(counts / noise**2, sigma_p, 0.0), label="Algorithm 1: as n^(−1/4)")
axis.set(xlabel="number of data n", ylabel="σ after training")
axis.legend()
show(
    figure,
    "04_directions",
    "σ after training against the number of data: Eq. 3 falls with slope −1/2, Algorithm 1 with slope −1/4.",
)

# %% [markdown]
# ## The same in minibnn
#
# Your lines are `minibnn/finetune/bayes.py:BayesLinear`, `minibnn/finetune/weight_noise.py:sample_weights` (gradients
# by hand, $\epsilon$ from its seed), `minibnn/finetune/bayes.py:gaussian_kl`, `minibnn/finetune/bayes.py:kl` (both
# directions) and `minibnn/finetune/bayes.py:clamp_sigma`.

# %%
torch.manual_seed(0)
layer = bayes.BayesLinear(torch.nn.Linear(2, 1, bias=False), 0.3, bayes.WeightNoise(), stream=0)
seeds = torch.Generator().manual_seed(0)


def rounded(y):
    return y.detach().flatten().numpy().round(3)


for i in range(3):
    layer.noise.renew(seeds)  # one new network for each step
    print(f"draw {i}:", rounded(layer(x[:2])), "again:", rounded(layer(x[:2])))
print("eval():", rounded(layer.eval()(x[:2])), "= with μ:", rounded(x[:2] @ layer.weight.T))

# %% [markdown]
# **Store $\sigma$ or $\rho$?** A standard deviation must be positive. Blundell et al. store $\rho$ and compute
# $\sigma=\log(1+e^\rho)$ (softplus). The paper's code stores $\sigma$ and clamps it at $10^{-7}$ after each step; so
# does minibnn. At the paper's rate of $5\cdot10^{-6}$ it matters: Adam moves any parameter by about the rate a step,
# and 0.01 is a large number for $\sigma$ but a small step for $\rho$.

# %%
for name, start, to_sigma in (
    ("σ itself", torch.tensor(0.01), lambda p: p),
    ("softplus", torch.tensor(0.01).expm1().log(), torch.nn.functional.softplus),
):
    parameter = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=5e-6)
    for _ in range(800):  # a gradient that always says "smaller"
        optimiser.zero_grad()
        to_sigma(parameter).backward()
        optimiser.step()
    moved = 1 - to_sigma(parameter).item() / 0.01
    print(f"{name}: 800 steps of Adam at 5e-6 moved σ = 0.01 by {100 * moved:.1f} %")

# %% [markdown]
# ## What fails, and why
#
# - **A factorised Gaussian is too sure** of itself when weights are correlated, by the factor you measured. Do not read
#   its $\sigma$ as the uncertainty of a weight.
# - **$\lambda=0$**, which the paper uses most, is no Bayesian inference: trained to the end, $\sigma$ goes to 0. What
#   keeps it from there is that training is short and slow (800 steps at $5\cdot10^{-6}$ move 0.01 by at most 40 %).
#   What remains is training with weight noise. For a *linear* model that noise does not even move the optimal $\mu$:
#   the average loss is the loss at $\mu$ plus $\frac12\sum_i a_i\sigma_i^2$, whatever $\mu$. In a network, where
#   curvature depends on the place, it prefers flat places. Whether that cures the corruption stage is a question for
#   measurements: tutorial 05.
# - **The loss of a diffusion model is no $-\log P(\mathcal D\mid\theta)$.** It is a weighted bound of it: the exact
#   bound weights each time with a factor that the simple loss leaves out (DDPM eq. 12 and 14), has a variance of its
#   own in place of our `noise`, and is a sum over all elements and all times, where training takes a mean. So even
#   with $\lambda=1$ and sums in both terms, Eq. 4 is Bayes' rule only up to a scale that nobody knows: the posterior
#   of the paper is a *tempered* one, and its width a matter of $\lambda$.
# - **Mean or sum.** With the mean over data and the sum over weights the KL counts $n$ times too much, and $\mu$ hardly
#   leaves the prior; a mean over weights makes it count for nothing. $\lambda$ hides such mistakes, it does not repair
#   them. (The paper's Eq. 4 has a $\lambda$; it is 1 in Bayes' rule, with both as sums.)
# - **At inference** the paper uses $\mu$ alone: no cost, but also no averaging over the posterior.
#
# ## Questions
#
# 1. Two weights of a linear model have the same input twice ($x_1=x_2$). What does the exact posterior look like, what
#    does the factorised one, and which of their predictions agree?
# 2. Draw $\theta$ anew for each *row* of a batch instead of once for all. Which is the better estimate of the gradient,
#    and why does minibnn not do it? (Think of the price, and of what one draw means.)
# 3. Algorithm 1's $\sigma$ grows with $d$, the distance that $\mu$ has moved. Is that a good property in fine-tuning?
#
# **An open problem.** Mean field is too narrow by the factor you measured, in every network with correlated weights.
# The kernel of tutorial 10 draws $\epsilon$ from a seed, so a *correlated*
# $Q=\mu+(\mathrm{diag}(\sigma)+UV^\top)\epsilon$ with a few columns costs hardly more memory. Does it keep its
# advantage after 800 steps from four photos, in anything that can be seen on a picture?
#
# ## Summary
#
# | what | where |
# |---|---|
# | $\theta=\mu+\sigma\circ\epsilon$ and its gradients | the paper's Eq. 14; Blundell et al. 2015, *Weight Uncertainty in Neural Networks*, Proposition 1 |
# | the negative ELBO | the paper's Eq. 3 |
# | KL of two Gaussians, both directions | `minibnn/finetune/bayes.py:gaussian_kl`, `minibnn/finetune/bayes.py:kl`; the paper's Eq. 3 and Algorithm 1 |
# | the exact posterior | Bishop 2006, eq. 3.50-3.51 |
# | why mean field is too narrow | Bishop 2006, eq. 10.12-10.15 |
# | the same as one fused kernel | tutorial 10 |
#
# Next: 05, the same layers inside a diffusion model.
