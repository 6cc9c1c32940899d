# %% [markdown]
# # 01 · Schedules, DDPM, DDIM, and why a sampler can be stiff
#
# **Question.** A diffusion model draws a picture by taking noise away in some 25 steps. Why in these steps, what does
# each compute, and can the *steps* spoil a picture that the *network* would draw well?
#
# ![Two rows of four pictures from the same network, prompts and starting noise. Above, drawn by DDIM: a red car, a fish, a house and a dog. Below, drawn by PNDM: the car has become a blue and purple blob, the fish and the house look the same, and the dog stands a little differently.](figures/01_samplers.png)
#
# *Same network, same prompts, same starting noise, 25 steps, guidance 7.5. Only the sampler differs. You will make this
# picture at the end, and know why.*
#
# **Afterwards you can** write the noise schedule and the DDPM and DDIM steps from memory, test a sampler on a problem
# with a known answer, and say when a sampler is stable.
#
# You need: Python and a little probability (the Gaussian), no knowledge of diffusion. The first part, up to the network
# that is right, takes about 45 minutes. The second part asks when a sampler is stable; it is for readers who have met
# Euler's method, takes 15 minutes more, and may be left out: only its last paragraph is needed later. Symbols:
# [NOTATION.md](NOTATION.md).

# %%
import matplotlib.pyplot as plt
import torch
from checks import TUTORIALS, show
from checks.schedules import check_alphas_cumprod, check_ddim_step, check_gaussian_eps, check_posterior, check_q_sample

from minibnn import StableDiffusion, __version__, data, schedule

print("minibnn", __version__, "· torch", torch.__version__)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The idea
#
# Take a picture $x_0$ and mix in Gaussian noise a little at a time. Step $t$ keeps the share $1-\beta_t$ of the
# variance and adds the share $\beta_t$ of noise:
#
# $$x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon_t,\qquad \epsilon_t\sim\mathcal N(0, I)$$
#
# After 1000 such steps hardly anything is left of the picture. Sums of Gaussians are Gaussian, so we need not walk:
# with $\bar\alpha_t=\prod_{s\le t}(1-\beta_s)$, any $x_t$ comes in one jump (DDPM eq. 4),
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,\qquad \epsilon\sim\mathcal N(0, I)$$
#
# A network learns to guess $\epsilon$ from $x_t$. A guess of the noise is a guess of the picture, and drawing a picture
# means: begin with pure noise, guess, go back *a little*, guess again. The samplers differ only in how they go back.

# %% [markdown]
# ## Exercise 1 · the schedule (5 minutes, easy)
#
# Stable Diffusion's $\beta_t$ run from 0.00085 to 0.012, evenly spaced in their square roots. Compute all
# $\bar\alpha_t$.

# %%
def alphas_cumprod(betas):
    """ᾱ_t, the product of 1 − β_s over s ≤ t; betas (T,) -> (T,).   (DDPM eq. 4)"""
    # --- exercise 1: the product that says how much of the picture is left
    return torch.cumprod(1 - betas, dim=0)
    # --- end


check_alphas_cumprod(alphas_cumprod)

# %%
betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
abar = alphas_cumprod(betas)

figure, axis = plt.subplots(figsize=(6, 2.6))
axis.plot(abar.sqrt(), label="√ᾱ: factor of the picture")
axis.plot((1 - abar).sqrt(), label="√(1−ᾱ): factor of the noise")
axis.set_xlabel("time t")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
show(
    figure,
    "01_schedule",
    "Two curves over time: the picture's factor falls from 1 to 0.07, the noise's rises from 0.03 to 1.",
)
print(f"at t = 999 {abar[-1].sqrt():.3f} times the picture is left: the noise we start drawing from has none")

# %% [markdown]
# ## Exercise 2 · noise a picture (5 minutes, easy)
#
# In training, every picture of a batch gets its own time, so `abar_t` has shape (B,) beside pictures (B, C, H, W).

# %%
def q_sample(x0, eps, abar_t):
    """x_t from x_0 in one jump; x0, eps (B, C, H, W), abar_t (B,).   (DDPM eq. 4)"""
    # --- exercise 2: mix picture and noise
    abar_t = abar_t.reshape(-1, 1, 1, 1)
    return abar_t.sqrt() * x0 + (1 - abar_t).sqrt() * eps
    # --- end


check_q_sample(q_sample)

# %% [markdown]
# What a network sees in training: one picture at seven times, with the same noise. Before you look: at which of them
# will you still recognise the dog?

# %%
dog = data.load_pictures([TUTORIALS / "dog" / "00.png"], 64).double()
times = (0, 50, 100, 200, 400, 600, 900)
noise = torch.randn(dog.shape, generator=torch.Generator().manual_seed(0))
figure, axes = plt.subplots(1, len(times), figsize=(9, 1.6))
for axis, t in zip(axes, times, strict=True):
    axis.imshow((q_sample(dog, noise, abar[t : t + 1])[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1))
    axis.set(xticks=[], yticks=[], title=f"t = {t}")
    axis.set_xlabel(f"√ᾱ = {abar[t].sqrt():.2f}", fontsize=8)
show(
    figure,
    "01_noised",
    "The same drawing of a spotted dog with more and more noise: clear at t = 0 and 50, still a dog at 200, a shadow "
    "at 400, and nothing but noise at 900.",
)

# %% [markdown]
# The large shapes outlive the small ones: at $t=400$ a shadow of the dog is left, but no spot. So a sampler decides
# early (large $t$) *what* it draws, and late the details.

# %% [markdown]
# ## Exercise 3 · one step back, with the picture known (15 minutes, medium)
#
# Suppose $x_0$ were known. Where was $x_{t-1}$, given $x_t$? Bayes' rule multiplies two Gaussians in $x_{t-1}$: the
# likelihood of the step, $q(x_t\mid x_{t-1})=\mathcal N(\sqrt{\alpha_t}\,x_{t-1},\,\beta_t)$, and the prior from the
# picture, $q(x_{t-1}\mid x_0)=\mathcal N(\sqrt{\bar\alpha_{t-1}}\,x_0,\,1-\bar\alpha_{t-1})$. Derive the product
# (DDPM eq. 6-7). The rule for two Gaussians of one number: **precisions** (1/variance) add up, and means are weighted
# with their precisions. Read as a statement about $x_{t-1}$, the likelihood has the mean $x_t/\sqrt{\alpha_t}$ and the
# precision $\alpha_t/\beta_t$.
#
# Here $\alpha_t=\bar\alpha_t/\bar\alpha_{t-1}$ and $\beta_t=1-\alpha_t$. Written so, "$t-1$" may be *any* earlier time,
# which we need for skipping steps. The code may add the precisions as they stand; no short form is needed.
#
# <details><summary>The result on one fraction line, if you are stuck or want to compare</summary>
#
# The precisions' sum is $\alpha_t/\beta_t+1/(1-\bar\alpha_{t-1})$, whose numerator on one line is
# $\alpha_t(1-\bar\alpha_{t-1})+\beta_t=1-\bar\alpha_t$, for $\alpha_t\bar\alpha_{t-1}=\bar\alpha_t$. So
#
# $$\begin{aligned}\tilde\mu_t &= \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,x_0 + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t\\ \tilde\beta_t &= \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t\end{aligned}$$
#
# </details>

# %%
def posterior(x, x0, abar_t, abar_prev):
    """Mean and variance of q(x_{t−1} | x_t, x_0); abar_t and abar_prev are numbers.   (DDPM eq. 6-7)"""
    # --- exercise 3: Bayes' rule for two Gaussians
    alpha = abar_t / abar_prev
    beta = 1 - alpha
    mean = abar_prev.sqrt() * beta / (1 - abar_t) * x0 + alpha.sqrt() * (1 - abar_prev) / (1 - abar_t) * x
    return mean, (1 - abar_prev) / (1 - abar_t) * beta
    # --- end


check_posterior(posterior)

# %% [markdown]
# **DDPM** draws with exactly this Gaussian, and puts the network's guess $\hat x_0$ in the place of $x_0$ (DDPM eq.
# 15):
#
# $$\hat x_0 = \frac{x_t-\sqrt{1-\bar\alpha_t}\,\hat\epsilon}{\sqrt{\bar\alpha_t}}$$
#
# Every step adds fresh noise. **DDIM** asks: must it? Training only ever used $q(x_t\mid x_0)$, and many chains have
# these same marginals. The one without any fresh noise goes to the guessed picture $\hat x_0$ and noises it again, with
# the *guessed* noise, to the earlier time: exercise 2 with guesses (DDIM eq. 12 with $\sigma_t=0$; DDIM's $\alpha_t$ is
# our $\bar\alpha_t$).
#
# ## Exercise 4 · the DDIM step (5 minutes, easy)
#
# Write it in two lines: the guessed picture, and the picture noised to $t-1$.
#
# <details><summary>The formula, to compare</summary>
#
# $$x_{t-1} = \sqrt{\bar\alpha_{t-1}}\,\hat x_0 + \sqrt{1-\bar\alpha_{t-1}}\,\hat\epsilon$$
#
# </details>

# %%
def ddim_step(x, eps, abar_t, abar_prev):
    """From x_t to the earlier x_{t−1} without fresh noise; eps: the network's guess, shaped as x.   (DDIM eq. 12)"""
    # --- exercise 4: to the guessed picture, and some noise back
    x0 = (x - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()
    return abar_prev.sqrt() * x0 + (1 - abar_prev).sqrt() * eps
    # --- end


check_ddim_step(ddim_step)

# %% [markdown]
# ## The same in minibnn
#
# Your lines are `minibnn/schedule.py:alphas_cumprod`, `minibnn/schedule.py:q_sample`, `minibnn/schedule.py:posterior`
# and `minibnn/schedule.py:ddim_step`. A whole drawing is a loop over falling times, `minibnn/schedule.py:sample_ddim`:

# %%
def draw(model, x, steps):
    """From noise to a picture with *your* step; model(x, t) -> ε̂."""
    for t, abar_t, abar_prev in schedule.pairs(schedule.timesteps(steps), abar, abar[0]):
        x = ddim_step(x, model(x, t), abar_t, abar_prev)
    return x


toy = torch.randn(1000, generator=torch.Generator().manual_seed(0))
mine = draw(lambda x, t: 0.5 * x, toy, 25)
theirs = schedule.sample_ddim(lambda x, t: 0.5 * x, toy, schedule.timesteps(25), abar)
print("times of a 5-step sampler:", schedule.timesteps(5).tolist())
print("largest difference between your drawings and minibnn's:", (mine - theirs).abs().max().item())

# %% [markdown]
# ## Exercise 5 · a network that is right (10 minutes, medium)
#
# To judge a sampler we need a model *without* errors. If "pictures" are single numbers $x_0\sim\mathcal N(m, s^2)$, the
# best guess of the noise is known, because $\epsilon$ and $x_t$ are jointly Gaussian:
# $\mathbb E[\epsilon\mid x_t]$ = covariance of $\epsilon$ and $x_t$ / variance of $x_t$ × (deviation of $x_t$ from its
# mean). Find the three from the recipe of $x_t$.

# %%
def gaussian_eps(x, abar_t, mean, std):
    """E[ε | x_t] if x_0 ~ N(mean, std²); x any shape."""
    # --- exercise 5: the exact denoiser of a Gaussian
    return (1 - abar_t).sqrt() * (x - abar_t.sqrt() * mean) / (abar_t * std**2 + 1 - abar_t)
    # --- end


check_gaussian_eps(gaussian_eps)

# %% [markdown]
# ## Second part. Experiment 1: how many steps?
#
# We start at the first time's exact distribution and look at the spread of what comes out. It should be $s$. DDIM is a
# rule for a differential equation: with $\bar x=x/\sqrt{\bar\alpha}$ and $\sigma=\sqrt{(1-\bar\alpha)/\bar\alpha}$, the
# step of exercise 4 reads $\bar x\leftarrow\bar x+(\sigma_{t-1}-\sigma_t)\,\hat\epsilon$ (DDIM eq. 13), Euler's method
# with steps in $\sigma$. **PNDM** (`minibnn/schedule.py:sample_pndm`), Stable Diffusion's default, replaces
# $\hat\epsilon$ by a combination of the last four guesses, the Adams-Bashforth rule, which is exact where the guesses
# lie on a cubic polynomial.

# %%
def spread_error(sampler, steps, std):
    """|standard deviation of the samples / the right one − 1| for x_0 ~ N(0, std²)."""
    times = schedule.timesteps(steps)
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    first, last = abar[times[0]], torch.ones(()) if sampler == "ddpm" else abar[0]  # DDIM and PNDM end at ᾱ_0
    start = (first * std**2 + 1 - first).sqrt() * z

    def model(x, t):
        return gaussian_eps(x, abar[t], 0.0, std)

    if sampler == "ddpm":
        fresh = torch.Generator().manual_seed(2)
        drawn = schedule.sample_ddpm(model, start, times, abar, lambda i: torch.randn(z.shape, generator=fresh))
    else:
        drawn = {"ddim": schedule.sample_ddim, "pndm": schedule.sample_pndm}[sampler](model, start, times, abar)
    return abs(drawn.std() / (z.std() * (last * std**2 + 1 - last).sqrt()) - 1).item()


figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
counts = [5, 10, 20, 50, 100, 250, 500]
for axis, std in zip(axes, (1.0, 0.1), strict=True):
    for sampler in ("ddpm", "ddim", "pndm"):
        axis.loglog(counts, [spread_error(sampler, n, std) for n in counts], "o-", label=sampler.upper())
    axis.set(title=f"x_0 ~ N(0, {std}²)", xlabel="steps")
axes[0].set_ylabel("relative error of the spread")
axes[0].legend()
show(
    figure,
    "01_convergence",
    "Error of the spread against steps for a wide and a narrow Gaussian: PNDM falls fastest, and the narrow Gaussian "
    "needs more steps.",
)

# %% [markdown]
# PNDM wins by far, on a model without errors and without guidance. Its error falls through 0 near 100 steps, from too
# narrow to too wide, and shrinks again from there: hence the notch. DDPM converges slowest: for the narrow Gaussian 500
# steps are too few, and for the wide one 20,000 samples cannot show an error below 0.005. But PNDM has a weakness, too.
#
# ## Why a sampler can be stiff
#
# Follow a small disturbance $e$ of $\bar x$. For the Gaussian, $\hat\epsilon=\sigma(\bar x-m)/(s^2+\sigma^2)$, so
# one Euler step multiplies it by
#
# $$1-z,\qquad z = (\sigma_t-\sigma_{t-1})\,J,\qquad J=\frac{\partial\hat\epsilon}{\partial\bar x}=\frac{\sigma_t}{s^2+\sigma_t^2}$$
#
# The equation itself *damps* it, and it damps more when the data are narrower (small $s$: $J\approx1/\sigma$). But a
# rule with steps can overshoot: Euler's damps only while $z<2$, and the four-step Adams-Bashforth rule, better in
# everything else, only while $z<3/10$ (both for equal steps). An equation that damps faster than the rule can follow is
# called **stiff**.
#
# Without guidance $z<1$ always: Euler cannot blow up. **Guidance** draws with
# $\hat\epsilon=\hat\epsilon_u+w\,(\hat\epsilon_c-\hat\epsilon_u)$, which multiplies the slope of the narrow conditional
# distribution by $w$: then $z$ can be 7.5 times as large.

# %%
def slope(sigma, std):
    return sigma / (std**2 + sigma**2)


figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, steps in zip(axes, (10, 50), strict=True):
    plan = schedule.pairs(schedule.timesteps(steps), abar, abar[0])
    sigma = torch.stack([((1 - now) / now).sqrt() for _, now, _ in plan])
    sigma_next = torch.stack([((1 - after) / after).sqrt() for _, _, after in plan])
    for w in (1, 3, 7.5):
        z = (sigma - sigma_next) * (w * slope(sigma, 0.1) - (w - 1) * slope(sigma, 1.0))
        axis.semilogy([t for t, _, _ in plan], z, ".-", label=f"w = {w}")
    axis.axhline(2, color="black", ls="--", label="Euler's limit, 2")
    axis.axhline(0.3, color="black", ls=":", label="Adams-Bashforth's, 0.3")
    axis.set(title=f"{steps} steps", xlabel="time t (drawing goes from right to left)", ylim=(0.01, 20))
axes[0].set_ylabel("z")
axes[0].legend(fontsize=7)
show(
    figure,
    "01_stability",
    "z against time for guidance 1, 3 and 7.5. With 10 steps and guidance 7.5 every step lies above 0.3, the limit of "
    "Adams-Bashforth (dotted), and two lie above 2, Euler's limit (dashed); with 50 steps the last third of them lies "
    "above 0.3.",
)

# %% [markdown]
# One step above the limit does little harm; what counts is what becomes of a disturbance over *all* steps. The toy is
# linear, so we need no bound: we add 1 to the start, or to one guess of the noise, and follow it to the end through the
# sampler itself.

# %%
def guided_gaussian(std, w):
    """model(x, t) -> ε̂ of guidance w between the exact denoisers of N(1, std²) and, without the prompt, N(0, 1)."""

    def model(x, t):
        conditional, unconditional = gaussian_eps(x, abar[t], 1.0, std), gaussian_eps(x, abar[t], 0.0, 1.0)
        return unconditional + w * (conditional - unconditional)

    return model


def left_at_the_end(sampler, steps, std, w):
    """What is left of an error of 1: (in the starting noise, in the guess of the noise where it counts most)."""
    wrong, calls = torch.eye(steps + 2), iter(range(steps + 1))  # PNDM asks once more
    model = guided_gaussian(std, w)

    def disturbed(x, t):  # element i gets its error in call i, the last but one in the start, the last one nowhere
        return model(x, t) + wrong[next(calls)]

    end = sampler(disturbed, wrong[-2], schedule.timesteps(steps), abar)
    left = (end - end[-1]).abs()
    return left[-2].item(), left[:steps].max().item()


print("an error of 1 at the start, or in the worst place of a guess, is at the end (s = 0.1):")
for w in (1, 3, 7.5):
    for steps in (10, 50):
        ddim = left_at_the_end(schedule.sample_ddim, steps, 0.1, w)
        pndm = left_at_the_end(schedule.sample_pndm, steps, 0.1, w)
        print(f"w = {w:3}, {steps} steps: DDIM {ddim[0]:8.2g}, {ddim[1]:6.2f}     PNDM {pndm[0]:8.2g}, {pndm[1]:8.2f}")

# %% [markdown]
# ## Experiment 2: measured
#
# Conditional $\mathcal N(1, s^2)$, unconditional $\mathcal N(0, 1)$, compared with DDIM in 500 steps. Prediction: PNDM
# fails first, and its errors grow with a smaller $s$, a larger $w$ and fewer steps.

# %%
def guided_errors(std, w, counts):
    """Root mean square distance to the fine solution; {steps: (DDIM, PNDM)}."""
    model = guided_gaussian(std, w)
    start = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    fine = schedule.sample_ddim(model, start, schedule.timesteps(500), abar)
    return {
        steps: tuple(
            (sampler(model, start, schedule.timesteps(steps), abar) - fine).square().mean().sqrt().item()
            for sampler in (schedule.sample_ddim, schedule.sample_pndm)
        )
        for steps in counts
    }


print("root mean square error      s = 0.5           s = 0.1           s = 0.01")
print("                         DDIM     PNDM     DDIM     PNDM     DDIM     PNDM")
for w in (1, 3, 7.5):
    columns = [guided_errors(std, w, (10, 25, 50)) for std in (0.5, 0.1, 0.01)]
    for steps in (10, 25, 50):
        print(f"w = {w:3}, {steps} steps   ", "".join(f"{error:9.3f}" for column in columns for error in column[steps]))

# %% [markdown]
# So the sampler alone can throw a sample hundreds of standard deviations away, while the network is exact. With 50
# steps PNDM still multiplies an error in a guess by two hundred, but the exact network is smooth and has hardly any.
# What was in the starting noise is forgotten in any case, unless the steps are few. Does the bundled network meet
# this? We draw four prompts from the same noise and compare the latents with DDIM in 60 steps.

# %%
torch.set_default_dtype(torch.float32)
sd = StableDiffusion.load("tiny")
prompts = ["a red car on the beach", "a green fish in the snow", "a blue house at night", "a white dog on the grass"]
start = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
context = sd.encode_prompts(prompts)
unconditional = sd.encode_prompts([""]).expand_as(context)


@torch.no_grad()
def latents(sampler, steps, guidance):
    def model(x, t):
        return sd.guided_eps(x, t, context, unconditional, guidance)

    return sampler(model, start, schedule.timesteps(steps), sd.alphas_cumprod)


rows = {}
for guidance in (3, 7.5):
    fine = latents(schedule.sample_ddim, 60, guidance)
    for steps in (10, 25):
        for name, sampler in (("DDIM", schedule.sample_ddim), ("PNDM", schedule.sample_pndm)):
            rows[name, steps, guidance] = x = latents(sampler, steps, guidance)
            error = (x - fine).square().mean().sqrt() / fine.std()
            print(f"guidance {guidance:3}, {steps} steps, {name}: error {error:.3f} of the latents' standard deviation")

# %%
figure, axes = plt.subplots(2, 4, figsize=(7, 3.8))
for row, name in zip(axes, ("DDIM", "PNDM"), strict=True):
    for axis, picture in zip(row, sd.decode_latents(rows[name, 25, 7.5]), strict=True):
        axis.imshow(picture.permute(1, 2, 0) / 2 + 0.5)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"{name}, 25 steps")
figure.tight_layout()
show(
    figure,
    "01_samplers",
    "Above, drawn by DDIM: a red car, a fish, a house and a dog. Below, by PNDM: the car is a blue and purple blob.",
)

# %% [markdown]
# Is it the same cause? The rule needs $z$, and $z$ needs the slope $J=\partial\hat\epsilon/\partial\bar x$ of the
# network in the direction in which it is steepest. Power iteration finds it: disturb $x$ a little, look how
# $\hat\epsilon$ answers, take the answer as the next disturbance. We do it along DDIM's path to the car.

# %%
@torch.no_grad()
def steepest(x, t, guidance, rounds=6, size=1e-2):
    """The largest J of the network at x (1, 4, 8, 8), by power iteration with finite differences."""

    def model(x):
        return sd.guided_eps(x, t, context[:1], unconditional[:1], guidance)

    here = model(x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    for _ in range(rounds):
        direction = direction / direction.norm()
        direction = (model(x + size * direction) - here) / size
    return direction.norm() * sd.alphas_cumprod[t].sqrt()  # ∂/∂x̄ = √ᾱ ∂/∂x


plan = schedule.pairs(schedule.timesteps(25), sd.alphas_cumprod, sd.alphas_cumprod[0])
for guidance in (1, 7.5):
    x, found = start[:1], []
    for i, (t, now, after) in enumerate(plan):
        if i % 4 == 2:
            apart = ((1 - now) / now).sqrt() - ((1 - after) / after).sqrt()
            found.append(f"{t}: {apart * steepest(x, t, guidance):.2f}")
        with torch.no_grad():
            eps = sd.guided_eps(x, t, context[:1], unconditional[:1], guidance)
        x = schedule.ddim_step(x, eps, now, after)
    print(f"guidance {guidance:3}, 25 steps, the car: z at t =", ",  ".join(found))

# %% [markdown]
# ## What fails, and why it matters here
#
# At guidance 1 the network's $z$ lies between 0.13 and 0.18 on most of the path, and at 0.33 near its end. At 7.5 it
# lies between 0.33 and 0.77: above Adams-Bashforth's limit at each of the times looked at, and far below Euler's. So
# the toy's rule is the network's, and it says which of the two samplers fails.
#
# - The remedy is known from the formula: more steps (smaller $z$), less guidance (smaller $J$), or DDIM (limit 2
#   instead of 0.3).
# - Fine-tuning on four pictures makes the conditional distribution **narrow**: that is what memorising means. So the
#   equation becomes stiffer while you train, and a sampler that was good enough for the pretrained model may begin to
#   draw noisy blotches. That is a *rival explanation* of noisy pictures in few-shot fine-tuning: whoever claims that
#   the network is to blame must draw with DDIM and more steps, too. Tutorial 03 does.
# - What the toy does not have: errors of the network, many dimensions, a nonlinear decoder.
#
# ## Questions
#
# 1. DDIM with $\hat\epsilon=0$ everywhere: what does it draw, and why is that not the mean of all pictures?
# 2. DDPM adds fresh noise at every step and ends with clean pictures. What would happen to a sampler that takes out 5 %
#    too little of the noise at every step: with DDIM, and with DDPM? (Tutorial 03 meets such a network.)
# 3. DDPM puts one guess $\hat x_0$ in the place of $x_0$, although many pictures may have led to $x_t$. At which times
#    does it matter most that a single picture stands for all of them, and where does it not matter? (What does the
#    posterior of exercise 3 do for $\bar\alpha_{t-1}\to1$?)
#
# **An open problem.** Along a path the largest $z$ can be measured, as you just did. Choose the steps so that $z$ is
# the same everywhere, for *this* prompt and *this* guidance, with a cost of a few network calls. Does PNDM then keep
# its advantage at guidance 7.5, and do the best times for one prompt serve another?
#
# ## Summary
#
# | what | where |
# |---|---|
# | $x_t$ in one jump | DDPM (Ho et al. 2020) eq. 4, `minibnn/schedule.py:q_sample` |
# | one step back, with $x_0$ known | DDPM eq. 6-7, `minibnn/schedule.py:posterior` |
# | $\hat x_0$ from $\hat\epsilon$ | DDPM eq. 15, `minibnn/schedule.py:x0_from_eps` |
# | the step without fresh noise | DDIM (Song et al. 2021) eq. 12, `minibnn/schedule.py:ddim_step` |
# | as Euler's method | DDIM eq. 13 |
# | four guesses combined | PNDM (Liu et al. 2022), `minibnn/schedule.py:plms_eps` |
# | stability limits 2 and 3/10 | Hairer & Wanner, *Solving Ordinary Differential Equations II*, chapter V.1 |
#
# Next: 02, what a fine-tuned network does with these formulas.
