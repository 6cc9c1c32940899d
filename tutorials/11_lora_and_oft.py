# %% [markdown]
# # 11 · LoRA and OFT, and where they may be random
#
# **Question.** DreamBooth trains all 860 million weights of Stable Diffusion's UNet on four photos. What can be learned
# by training a few of them, what cannot, and which of these few may be random variables?
#
# ![Bars of what is left after the best fit. For a change of rank 2, LoRA leaves nothing and OFT 71 % or more. For a rotation, OFT of one block leaves nothing and LoRA of rank 2 78 %. For weights that are all 10 % larger, OFT leaves everything and LoRA of rank 2 81 %.](figures/11_what_each_can_learn.png)
#
# *How much of a wanted change remains undone after the best fit: each method has its own language. You will write
# both.*
#
# **Afterwards you can** write LoRA and OFT in a few lines each, merge them, save them so that other programs read the
# same change, and say why exactly one matrix of LoRA and the $Q$ of OFT are random in the paper.
#
# You need: linear layers, orthogonal matrices; tutorial 04 for the last part. About 55 minutes, 35 of them for the
# exercises. Symbols: [NOTATION.md](NOTATION.md).

# %%
import matplotlib.pyplot as plt
import torch
from checks import TUTORIALS, show
from checks.lora_and_oft import check_cayley, check_for_diffusers, check_lora, check_rotated_weight, check_weight_std

from minibnn import StableDiffusion, __version__, data, posterior, schedule
from minibnn.finetune import adapters, bayes, oft

print("minibnn", __version__, "· torch", torch.__version__)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The idea
#
# Leave the pretrained weight $W$ (out × in) as it is and train a small description of a *change*. **LoRA** (Hu et al.
# 2021, eq. 3) adds a matrix of low rank $r$:
#
# $$W' = W + \frac{\alpha}{r}\,B A,\qquad A\in\mathbb R^{r\times\text{in}},\quad B\in\mathbb R^{\text{out}\times r}$$
#
# $A$ ("down") starts random, $B$ ("up") at zero, so training starts from the pretrained model. For a layer of SD with
# 1280 inputs and outputs, $r=4$ means 10,240 numbers instead of 1,638,400.
#
# **OFT** (Qiu et al. 2023) instead *rotates* what the layer sees, block by block: $W'=WR^\top$ with block-diagonal
# orthogonal $R$. An orthogonal matrix cannot be trained number by number, for it would not stay orthogonal. The Cayley
# map makes one from *any* matrix $Q$ (the paper's App. D):
#
# $$S=\tfrac12(Q-Q^\top),\qquad R=(I+S)(I-S)^{-1}$$
#
# $S$ is skew: its eigenvalues are imaginary, $i\lambda$, so $I-S$ is always invertible, and $R$ has the eigenvalues
# $\frac{1+i\lambda}{1-i\lambda}$, of absolute value 1. Hence $R^\top R=I$, and $Q=0$ gives $R=I$: training again starts
# from the pretrained model.

# %% [markdown]
# ## Exercise 1 · LoRA (5 minutes, easy)
#
# Compute $y$ for a batch of rows. Do not form $BA$: two thin products are cheaper, and with $B=0$ the output must be
# that of $W$ to the last bit. The rank is the number of rows of $A$.

# %%
def lora(x, weight, down, up, alpha):
    """x (n, in), weight (out, in), down (r, in), up (out, r) -> (n, out)."""
    # --- exercise 1: the layer plus its low-rank correction
    return x @ weight.T + alpha / len(down) * (x @ down.T) @ up.T
    # --- end


check_lora(lora)

# %% [markdown]
# ## Exercise 2 · a file for another program (5 minutes, easy)
#
# diffusers stores a LoRA as `….lora.down.weight` and `….lora.up.weight` and computes $W+BA$: there is no place for
# $\alpha$. (Files in kohya's layout keep `….alpha` beside the matrices.) A wrong scale raises no error; the subject
# just comes out too weak or burnt. Return an $A$ and a $B$ to be stored; minibnn puts the factor into $B$.

# %%
def for_diffusers(down, up, alpha):
    """down (r, in), up (out, r) with scale α/r -> the pair (A, B) to store, for a program that computes W + B A."""
    # --- exercise 2: fold the scale
    return down, alpha / len(down) * up
    # --- end


check_for_diffusers(for_diffusers)

# %% [markdown]
# ## Exercise 3 · an orthogonal matrix from any matrix (10 minutes, medium)
#
# Prefer a linear solve to an inverse. ($I+S$ and $(I-S)^{-1}$ commute: the order does not matter.)

# %%
def cayley(q):
    """Q (b, b) -> the rotation R (b, b)."""
    # --- exercise 3: the Cayley map
    s, eye = (q - q.T) / 2, torch.eye(len(q))
    return torch.linalg.solve(eye - s, eye + s)
    # --- end


check_cayley(cayley)

# %% [markdown]
# ## Exercise 4 · rotate the inputs, block by block (5 minutes, easy)
#
# One $R$ for 1280 inputs would have 1.6 million numbers again. With $r$ blocks it has $1/r$ of that (for OFT, $r$
# counts *blocks*: more means fewer parameters!). `torch.block_diag` puts matrices on a diagonal.

# %%
def rotated_weight(weight, rotations):
    """weight (out, in) and a list of r rotations (in/r, in/r) -> W Rᵀ (out, in)."""
    # --- exercise 4: W Rᵀ with R block-diagonal
    return weight @ torch.block_diag(*rotations).T
    # --- end


check_rotated_weight(rotated_weight)

# %% [markdown]
# ## Experiment: what can each of them learn?
#
# A layer of 16 inputs and outputs, and three wanted changes: one of rank 2, a rotation of the inputs, and simply all
# weights 10 % larger. Every method is trained directly towards the wanted weight; what it leaves undone is what it
# cannot say.

# %%
generator, d = torch.Generator().manual_seed(0), 16
weight = torch.randn(d, d, generator=generator) / d**0.5
thin = torch.randn(d, 2, generator=generator) @ torch.randn(2, d, generator=generator) / d
targets = {
    "a change\nof rank 2": weight + thin,
    "a rotation\nof the inputs": rotated_weight(weight, [cayley(0.3 * torch.randn(d, d, generator=generator))]),
    "all weights\n10 % larger": 1.1 * weight,
}
zeros = torch.zeros
languages = {  # what is trained, from its start, and the weight it makes
    "LoRA, r = 2": ([torch.randn(2, d, generator=generator) / 2, zeros(d, 2)], lambda a, b: weight + b @ a),
    "LoRA, r = 8": ([torch.randn(8, d, generator=generator) / 8, zeros(d, 8)], lambda a, b: weight + b @ a),
    "OFT, 4 blocks": ([zeros(4, 4, 4)], lambda q: rotated_weight(weight, [cayley(block) for block in q])),
    "OFT, 1 block": ([zeros(d, d)], lambda q: rotated_weight(weight, [cayley(q)])),
}


def undone(target, start, make, steps=150):
    """Share of the wanted change that is left after training towards it: 0 … 1."""
    parameters = [p.clone().requires_grad_() for p in start]
    optimiser = torch.optim.Adam(parameters, lr=0.05)
    slower = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (make(*parameters) - target).square().sum().backward()
        optimiser.step()
        slower.step()
    return ((make(*parameters) - target).norm() / (weight - target).norm()).item()


figure, axis = plt.subplots(figsize=(6, 3))
for i, (name, (start, make)) in enumerate(languages.items()):
    left = [undone(target, start, make) for target in targets.values()]
    count = sum(p.numel() for p in start)
    print(f"{name:14}: {count:3} numbers, leaves", ", ".join(f"{100 * v:.0f} %" for v in left))
    axis.bar([j + 0.2 * i - 0.3 for j in range(3)], left, 0.18, label=f"{name} ({count} numbers)")
axis.set(ylabel="share left undone", ylim=(0, 1.35), xticks=range(3), xticklabels=targets)
axis.legend(fontsize=7, ncols=2)
show(
    figure,
    "11_what_each_can_learn",
    "What is left after the best fit: of a change of rank 2, LoRA leaves nothing and OFT most; of a rotation, OFT of "
    "one block leaves nothing and LoRA of rank 2 most; of weights 10 % larger, OFT leaves everything and LoRA most.",
)

# %% [markdown]
# OFT cannot make a single weight vector longer: $WR^\top(WR^\top)^\top=WW^\top$, so lengths of and angles between the
# neurons stay what they were. That is its point: Qiu et al. hold that these angles carry what the pretrained model
# knows. LoRA can do anything, but only in $r$ directions at once.

# %% [markdown]
# ## Where may they be random?
#
# The paper's App. D makes **only the up matrix** of LoRA random, $B=\mu+\sigma\circ\epsilon$, and for OFT **only $Q$**.
# Why not everything?
#
# - Given $A$, the weight $W+\frac\alpha r BA$ is linear in $B$: it is Gaussian when $B$ is, and App. C's argument
#   holds. If $A$ were random too, the weight would contain *products* of Gaussians.
# - For OFT any noise on $R$ itself, or on $WR^\top$, would end the orthogonality. Noise on $Q$ does not: the Cayley map
#   is orthogonal for every $Q$.
#
# (The paper writes $W=W_0+BA$ and calls $A$ the up matrix. What its code makes random is the one that starts at zero:
# our $B$.)
#
# ## Exercise 5 · how random is the weight? (10 minutes, medium)
#
# Let all entries of $B$ be independent with standard deviation $\sigma$. Then
# $W'_{ij}=W_{ij}+\frac\alpha r\sum_k B_{ik}A_{kj}$. What is its standard deviation? It does not depend on $i$.

# %%
def weight_std(down, sigma, alpha):
    """down (r, in), sigma: of every entry of B -> the standard deviation of each column of the weight, (in,)."""
    # --- exercise 5: the standard deviation of a sum of independent terms
    return alpha / len(down) * sigma * (down**2).sum(0).sqrt()
    # --- end


check_weight_std(weight_std)

# %%
draws, rank, sigma = 500_000, 2, 0.3
down = torch.randn(rank, 1, generator=generator)
b = sigma * torch.randn(draws, rank, generator=generator)
one_random = (b @ down)[:, 0]
both_random = (b * torch.randn(draws, rank, generator=generator)).sum(1)
expected = weight_std(down, sigma, rank).item()
print(f"one random: standard deviation {one_random.std():.4f}, exercise 5 says {expected:.4f}")
for name, values in (("one random ", one_random), ("both random", both_random)):
    z = (values - values.mean()) / values.std()
    print(f"{name}: excess kurtosis {(z**4).mean() - 3:+.2f}   "
          f"(a Gaussian has 0, a sum of {rank} products 6/{rank} = {6 / rank:.0f})")
q = 0.05 * torch.randn(2, 40, 40, generator=generator)
noisy_r = cayley(q[0]) + 0.05 * q[1]
for name, r in (("noise on Q", cayley(q[0] + q[1])), ("noise on R", noisy_r)):
    print(f"{name}: RᵀR − I is at most {(r.T @ r - torch.eye(40)).abs().max():.0e}")

# %% [markdown]
# ## The same in minibnn
#
# Your lines are `minibnn/finetune/lora.py:LoraLinear` (and `minibnn/finetune/lora.py:delta`),
# `minibnn/finetune/adapter_files.py:write_lora`, `minibnn/finetune/oft.py:cayley`, `minibnn/finetune/oft.py:rotate`.
# `minibnn/finetune/adapters.py:attach_lora` puts a LoRA into every attention projection;
# `minibnn/finetune/methods.py:make_trainable` is all that the training loop knows of methods:
#
# ```
# python -m minibnn train --images tutorials/dog --method lora --keep-posterior
# python -m minibnn train --images tutorials/dog --method oft --no-bayes --out runs/dog-oft
# ```
#
# Let us look at the bundled model. First: what does $\sigma=0.01$ mean? The same number is a different amount of
# randomness for each method.

# %%
torch.set_default_dtype(torch.float32)
sd = StableDiffusion.load("tiny")
images = data.load_pictures(data.list_pictures(TUTORIALS / "dog"), 64)
x0 = sd.encode_pictures(images, torch.Generator().manual_seed(0))
eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
t = torch.full((len(x0),), 300)
x_t = schedule.q_sample(x0, eps, sd.alphas_cumprod[t])
context = sd.encode_prompts(["a photo of a sks dog"]).expand(len(x0), -1, -1)
before = sd.unet(x_t, t, context).detach()


def adapted(method, sigma):
    """The bundled model with random weights of one method at their start, and the noise of these weights."""
    model = StableDiffusion.load("tiny")
    noise = bayes.WeightNoise()
    if method == "lora":
        adapters.attach_lora(model.unet, sigma=sigma, noise=noise)
    elif method == "oft":
        adapters.attach_oft(model.unet, sigma=sigma, noise=noise)
    else:
        noise = bayes.bayesianize(model.unet, "paper", sigma)
    return model, noise


for method in ("all weights", "lora", "oft"):
    model, noise = adapted(method, 0.01)
    seeds, moved = torch.Generator().manual_seed(0), []
    model.unet.train()
    for _ in range(4):
        noise.renew(seeds)
        moved.append(((model.unet(x_t, t, context) - before).norm() / before.norm()).item())
    trained = sum(p.numel() for n, p in model.unet.named_parameters() if p.requires_grad and not n.endswith("_sigma"))
    share = bayes.random_share(model.unet)
    print(f"{method:12}: {trained / 1e3:5.0f} thousand trained, {100 * share:5.2f} % random: "
          f"a draw moves ε̂ by {100 * sum(moved) / 4:.1f} %")

# %% [markdown]
# Then a very short training of both, sixty steps instead of the recipe's 600, and pictures of the trained prompt from
# the same noise. The last column draws the weights five times from what was trained and shows where the pictures
# disagree (white: by 64 grey levels and more): what `sample --posterior-samples` does.

# %%
def fine_tune(method, steps=60, lr=5e-3):
    """Fine-tune on the dog, with random weights; returns the model at the mean and {name: (μ, σ)}."""
    model, noise = adapted(method, 0.01)
    unet, generator = model.unet.train(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam([p for p in unet.parameters() if p.requires_grad], lr, fused=True)  # fused: faster
    for step in range(steps):
        i, t = [step % len(x0)], torch.randint(0, 1000, (1,), generator=generator)
        eps = torch.randn(x0[i].shape, generator=generator)
        noise.renew(generator)
        predicted = unet(schedule.q_sample(x0[i], eps, sd.alphas_cumprod[t]), t, context[i])
        optimiser.zero_grad()
        (predicted - eps).square().mean().backward()
        optimiser.step()
        bayes.clamp_sigma(unet)
    unet.eval()
    return model, {name: (mu.detach().clone(), sigma.detach()) for name, (mu, sigma) in bayes.sigmas(unet).items()}


def pictures(model, count):
    return model.generate(["a photo of a sks dog"] * count, steps=12, seed=4, progress=False)


figure, axes = plt.subplots(3, 4, figsize=(6, 4.6))
rows = {"pretrained": (sd, None), "LoRA": fine_tune("lora"), "OFT": fine_tune("oft")}
for row, (name, (model, random)) in zip(axes, rows.items(), strict=True):
    shown = pictures(model, 3)
    if random:
        _, *drawn = posterior.generate_with_draws(model, random, 5, 0, lambda model=model: pictures(model, 1))
        _, deviation, average = posterior.mean_and_deviation([draw[0] for draw in drawn])
        print(f"{name}: five draws of the weights deviate by {average:.1f} of 255 grey levels")
        shown.append(deviation)
    for axis in row:
        axis.axis("off")
    for axis, picture in zip(row, shown, strict=False):
        axis.imshow(picture)
    row[0].set_title(name, fontsize=9, loc="left")
axes[1, 3].set_title("deviation of\nthe first", fontsize=9)
show(
    figure,
    "11_dog",
    "Three pictures from the same noise by the pretrained model, by LoRA and by OFT after 60 steps, and for the latter "
    "two the deviation of the first picture over five draws of the weights.",
)

# %% [markdown]
# Why do LoRA's pictures deviate by 14 grey levels and OFT's by 3, where one draw moved $\hat\epsilon$ by about 2 % with
# either before training? Training moves $\sigma$, too: Adam moves every number by up to its rate in a step, and these
# sixty steps have five times the recipe's rate, so that the mean $\sigma$ more than doubles with both. What sets LoRA
# apart is exercise 5: the weight's standard deviation is $\sigma$ times the size of $A$, and $A$ is trained as well. A
# rotation has no such factor. We have not measured how much of the difference this explains; the first question below
# asks you to. Such pictures show what the *posterior of this training* is unsure about, not which method is surer.
#
# ## Exact, or nearly?
#
# In float32 a rotation of 320 inputs (SD's blocks of 1280/4) is orthogonal to a few $10^{-7}$, also with a drawn $Q$.
# In half precision it would not be: so minibnn rotates the *weight* in float32 and rounds once, whatever autocast says.
# A LoRA merged into half-precision weights loses changes below the weights' own rounding.

# %%
q = 0.01 * torch.randn(1, 320, 320)
for dtype in (torch.float32, torch.bfloat16):
    r = oft.cayley(q).to(dtype).double()
    print(f"{dtype}: RᵀR − I is at most {(r.mT @ r - torch.eye(320)).abs().max():.0e}")
w, change = torch.randn(320, 320) / 320**0.5, 1e-4 * torch.randn(320, 320)
for dtype in (torch.float32, torch.bfloat16):
    kept = (w + change).to(dtype).double() - w.to(dtype).double()
    print(f"{dtype}: a merged change of 1e-4 differs by {100 * ((kept - change).norm() / change.norm()).item():.2g} %")

# %% [markdown]
# ## What fails, and why
#
# - **A forgotten $\alpha/r$** (exercise 2) is the commonest reason why "the same LoRA" looks different in two programs.
#   Compare pictures, not file sizes.
# - **Unmerging by subtraction** does not give the old weights back to the last bit. Whoever wants them back keeps the
#   old layers.
# - **One $\sigma$ does not fit all.** $0.01$ on every entry of $Q$ turns a block of $b$ inputs by about $0.014\sqrt b$;
#   the wider the block, the more. LoRA's depends on the size of $A$ (exercise 5). Compare methods by how far a draw
#   moves $\hat\epsilon$, not by $\sigma$.
# - **COFT** (`--coft`) keeps the *mean* of $Q$ in a ball; a draw may leave it.
# - **Is random better?** `python -m minibnn paper --only table1` measures six rows (DreamBooth, LoRA, OFT, each with
#   and without BNN) on the bundled model; [what it found](results/table1/report.md).
#
# ## Questions
#
# 1. Print `weight_std` of one layer before and after the sixty steps above, with $\sigma$ held at its value and then as
#    trained. How much of LoRA's larger deviation comes from $A$, and how much from $\sigma$?
# 2. OFT leaves the lengths of the neurons alone, LoRA does not. Which of the two can make a layer's output larger for
#    all inputs, and what does guidance do with such a change?
# 3. You merge two LoRAs of rank 4 by adding them. Which rank may the sum have, and when is the result *not* what both
#    subjects were trained for?
#
# **An open problem.** One $\sigma$ means another amount of noise in every layer and method. Find a rule that sets each
# layer's $\sigma$ so that one draw moves $\hat\epsilon$ by the same share everywhere, at a cost of a few forwards
# before training. Does the choice of method then still matter for what the noise does?
#
# ## Summary
#
# | what | where |
# |---|---|
# | $W+\frac\alpha rBA$, $B$ starts at 0 | Hu et al. 2021, *LoRA*, eq. 3 and §4.1 |
# | only the up matrix is random | the paper's App. D; its name for it is $A$ |
# | $R=(I+S)(I-S)^{-1}$, $S=\frac12(Q-Q^\top)$ | the paper's App. D; Qiu et al. 2023, *Controlling Text-to-Image Diffusion by Orthogonal Finetuning* |
# | rates and steps: 1e-4; 400 and 200 a picture | the paper's App. H.1 |
# | files for diffusers, peft, kohya's tools | `minibnn/finetune/adapter_files.py` |
