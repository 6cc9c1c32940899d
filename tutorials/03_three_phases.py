# %% [markdown]
# # 03 · Fine-tuning on the dog: three phases, measured
#
# **Question.** Fine-tune a model on a few photos of a dog. The paper says that its pictures first get better, then
# break into noise (the **corruption stage**), and in the end only repeat the photos. How do you find out whether that
# is true of *your* model?
#
# ![Four rows of eight small drawings. Row 0: dogs in many colours. Rows 25 and 50: the dog becomes purple and blue, then teal and pink. Row 100: with the training prompt the same dog on the same grass each time; elsewhere the same dog on the places asked for.](figures/03_sheet.png)
#
# *One photo, a hundred steps, from top to bottom. You will write the training loop that did it, and what measures it.*
#
# **Afterwards you can** fine-tune with DreamBooth in ten lines, measure fidelity and noise, look into a network with
# two probes, and judge a claim by a rule that was fixed before looking.
#
# You need: tutorial 01, and from 02 what $\sigma_1$ is. About 55 minutes. Symbols: [NOTATION.md](NOTATION.md). "The
# paper" is *Exploring Diffusion Models' Corruption Stage in Few-Shot Fine-tuning and Mitigating with Bayesian Neural
# Networks*, §3.

# %%
import matplotlib.pyplot as plt
import torch
from checks import TUTORIALS, show
from checks.three_phases import check_dreambooth_loss, check_fidelity, check_immerkaer, check_paired_interval

from minibnn import StableDiffusion, __version__, data, schedule
from minibnn.experiments import prompts, report, stages
from minibnn.lab import eq2, probes, sigma1_estimate
from minibnn.pictures import grid, to_pil, to_tensor
from minibnn.world import measures as world_measures

print("minibnn", __version__, "· torch", torch.__version__)

# %% [markdown]
# ## The idea
#
# **DreamBooth** takes 3-6 photos, gives the subject a rare word ("a photo of a *sks* dog") and goes on training with
# the loss that the network was made with. So that "dog" does not come to mean *this* dog, it may add pictures of
# ordinary dogs, which the network drew itself before, with a weight $w$ (DreamBooth eq. 2):
#
# $$L=\Vert\epsilon_\theta(x_t,t,c)-\epsilon\Vert^2+w\,\Vert\epsilon_\theta(x^{\mathrm{pr}}_t,t,c^{\mathrm{pr}})-\epsilon\Vert^2$$
#
# The first term is the subject's, the second ($\mathrm{pr}$) the class pictures'.
#
# The paper describes what follows as three phases (§3.1):
#
# 1. **Learning.** Pictures become like the photos.
# 2. **Corruption.** *Fidelity falls again*, and noisy patterns appear: the network knows few pictures already, but not
#    yet exactly ($\sigma_1$ is large).
# 3. **Memorising.** The noise goes, and nothing but the photos is left ($\sigma_1\to0$).
#
# To *find* phases one must measure at many steps. Four quantities:
#
# - **fidelity**: how like the photos is a drawn picture? Cosine similarity in a network that never saw the dog;
# - **noise**: how much grain is there beyond what clean pictures have?
# - **place**: does the network still draw the place we ask for?
# - **$\sigma_1$**: what does the network leave of the noise that we add to the photo (tutorial 02)?
#
# Every number above comes from one training with one seed; another seed gives another curve. So the last tool is an
# **interval** over seeds. And it needs a **rule, fixed before looking**: with enough curves one finds a dip in any of
# them.

# %% [markdown]
# ## Exercise 1 · the loss (5 minutes, easy)
#
# One batch holds both: rows 0 … n − 1 are the subject's, the others class pictures. Take the mean of the squared errors
# in each half. Without class pictures (n is all of the batch) only the first half counts.

# %%
def dreambooth_loss(predicted, target, n, weight):
    """Mean square of the first n rows + weight · that of the others, if any; (B, 4, h, w).   (DreamBooth eq. 2)"""
    # --- exercise 1: two means and a weight
    squares = (predicted - target) ** 2
    subject, others = squares[:n], squares[n:]
    return subject.mean() + weight * others.mean() if len(others) else subject.mean()
    # --- end


check_dreambooth_loss(dreambooth_loss)

# %% [markdown]
# ## Exercise 2 · fidelity (5 minutes, easy)
#
# A network turns each picture into a vector of features; similar pictures point in similar directions. Fidelity, as the
# paper defines it (App. G, with the network Dino), is the cosine of the angle to each training picture, averaged over
# *all* training pictures.

# %%
def fidelity(features, training):
    """Mean cosine of each drawn picture to the training ones; features (B, d), training (n, d) -> (B,).   (App. G)"""
    # --- exercise 2: cosines first, then their mean
    drawn = features / features.norm(dim=1, keepdim=True)
    learned = training / training.norm(dim=1, keepdim=True)
    return (drawn @ learned.T).mean(dim=1)
    # --- end


check_fidelity(fidelity)

# %% [markdown]
# ## Exercise 3 · noise (15 minutes, medium)
#
# How noisy is a picture whose clean version nobody has? Apply a mask that answers 0 on everything smooth: a second
# difference along the rows *and* along the columns,
#
# $$N=\begin{bmatrix}1&-2&1\\-2&4&-2\\1&-2&1\end{bmatrix},\qquad \hat\sigma=\sqrt{\frac\pi2}\;\frac{1}{6\,(W-2)(H-2)}\sum\vert I*N\vert$$
#
# White noise of standard deviation $\sigma$ makes a response of standard deviation $6\sigma$ (36 is the sum of the
# squares in the mask), and the mean of $\vert x\vert$ of a Gaussian is $\sqrt{2/\pi}$ times its standard deviation:
# hence the factors (Immerkær 1996, eq. 4). `torch.nn.functional.conv2d(a, b)` wants a: (1, 1, H, W) and b: (1, 1, 3,
# 3).

# %%
def immerkaer(picture):
    """Estimated standard deviation of the noise in one channel; picture (H, W) -> ().   (Immerkær 1996, eq. 4)"""
    # --- exercise 3: what a smooth picture has none of
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=picture.dtype)
    response = torch.nn.functional.conv2d(picture[None, None], mask[None, None])
    return (torch.pi / 2) ** 0.5 * response.abs().sum() / (6 * response.numel())
    # --- end


check_immerkaer(immerkaer)

# %% [markdown]
# ## Can these measures see it?
#
# A measure must be tried on something known before it judges something unknown. We spoil the photo on purpose, with
# white noise, and with blotches eight pixels wide, which is what one wrong latent decodes to. Note that the comparison
# is with the photo *as the VAE decodes it*: what the decoder cannot draw is no fault of the network we train.

# %%
sd = StableDiffusion.load("tiny")
photo = data.load_pictures([TUTORIALS / "dog" / "00.png"], 64)
latent = sigma1_estimate.latents_of(sd, photo)
seen = sd.decode_latents(latent)
brick = to_tensor(sd.generate(["a red dog in front of a brick wall"], seed=1, progress=False))

generator = torch.Generator().manual_seed(0)
print("                      fidelity   noise (calm parts)   Immerkær")
for name, spoil in (("white noise", world_measures.white_noise), ("blotches", world_measures.blotches)):
    for amount in (0.0, 0.1, 0.2, 0.4):
        picture = spoil(seen, amount, generator).clamp(-1, 1)
        like = fidelity(world_measures.features(picture), world_measures.features(seen)).item()
        grain, estimate = world_measures.noise(picture).item(), immerkaer(picture[0, 0]).item()
        print(f"{name:12} {amount:.1f} {like:12.3f} {grain:12.2f} {estimate:18.4f}")
print(f"{'a clean wall':16} {'':12} {world_measures.noise(brick).item():12.2f} {immerkaer(brick[0, 0]).item():18.4f}")

# %% [markdown]
# Fidelity falls with either damage: our small network is not blind to noise. Immerkær's estimate finds white noise
# within some percent (less where values are cut off at white and black), but blotches, being smooth, hardly at all, and
# a clean brick wall alarms it more than they do: edges count as noise. So below we use
# `minibnn/world/measures.py:noise`: high-frequency energy ($10^{-3}$) in the calmest 60 % of the pixels, minus what
# clean drawings of such a place have there. Below 0 means smoother than those, as pictures drawn by a network often
# are.
#
# Your lines in minibnn are in `minibnn/train.py:train` (the loss), `minibnn/world/measures.py:fidelity` and
# `minibnn/world/measures.py:immerkaer`.
#
# ## Experiment 1: fine-tune it
#
# One photo, no class pictures, as in §3.3 of the paper. Here is the whole method, with your loss; read it line by line.
# Four times on the way we stop and look: eight pictures, always from the same starting noise, two of the training
# prompt and six of other places.
#
# Before you run it, write down: at which step will the dog be learned? Will the *places* suffer? When would you stop?

# %%
PROMPT = "a photo of a sks dog"
places = prompts.world_prompts("sks", "dog")[:6]  # (prompt, what a picture of it must show)
asked = [PROMPT] * 2 + [prompt for prompt, _ in places]
wanted = [{"subject": "dog"}] * 2 + [want for _, want in places]
abar = sd.alphas_cumprod
region = probes.local_noise(torch.randn(16, *latent.shape[1:], generator=generator), generator)  # δ', for experiment 2


@torch.no_grad()
def look():
    """Eight pictures and what they and the network are like; nothing here trains."""
    pictures = sd.generate(asked, steps=15, seed=1, progress=False)  # DDIM, guidance 3
    images = to_tensor(pictures)
    like = fidelity(world_measures.features(images), world_measures.features(seen))
    right = world_measures.prompt_fidelity(images, wanted)["background"][2:]
    predict = sigma1_estimate.predictor(sd, PROMPT)
    row = {"fidelity": like[:2].mean(), "elsewhere": like[2:].mean(), "noise": world_measures.noise(images)[2:].mean()}
    row |= {"place": sum(right) / len(right)}
    at_100 = sigma1_estimate.estimate_sigma1(predict, latent, abar, (100,), draws=16, resamples=10)
    row |= {"sigma1": at_100.sigma1[0], "loss": at_100.loss[0], "explained": at_100.explained[0]}
    return pictures, row | look_inside(predict)


@torch.no_grad()
def look_inside(predict):
    """Experiment 2: what the network makes of x_t = 0, and of noise in a small region."""
    zero = torch.zeros_like(latent)
    from_zero = schedule.x0_from_eps(zero, predict(zero, 999), abar[999])
    fresh = torch.randn(region.shape, generator=torch.Generator().manual_seed(3))
    x = schedule.q_sample(latent, fresh, abar[100])
    without, with_it = (schedule.x0_from_eps(y, predict(y, 100), abar[100]) for y in (x, x + region))
    cosine = torch.nn.functional.cosine_similarity(from_zero.flatten(), latent.flatten(), dim=0)
    left = (with_it - without).square().sum() / region.square().sum()
    return {"from_zero": from_zero, "cosine": cosine, "left": left}


# %%
context = sd.encode_prompts([PROMPT])
weights = list(sd.unet.parameters())
start = torch.cat([p.detach().flatten() for p in weights])
optimiser = torch.optim.AdamW(weights, lr=2e-4, weight_decay=0.01, fused=True)  # fused: the same, faster
generator = torch.Generator().manual_seed(0)
looks = {}
for step in range(101):
    if step in (0, 25, 50, 100):
        looks[step] = look()
    t = torch.randint(0, 1000, (1,), generator=generator)
    eps = torch.randn(latent.shape, generator=generator)
    predicted = sd.unet(schedule.q_sample(latent, eps, abar[t]), t, context)
    loss = dreambooth_loss(predicted, eps, n=1, weight=0.0)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()

moved = torch.cat([p.detach().flatten() for p in weights]) - start
size, distance = start.square().mean().sqrt(), moved.square().mean().sqrt()
print(f"after {step + 1} steps the weights (rms {size:.3f}) have moved by {distance:.4f} (rms)")
print("step   fidelity, fidelity,   noise,   place as    σ₁ at    x_t = 0: cosine   share of δ′")
print("        training elsewhere elsewhere  asked     t = 100    with the photo    left at t = 100")
for step, (_, row) in looks.items():
    print(f"{step:4} {row['fidelity']:11.3f} {row['elsewhere']:8.3f} {row['noise']:9.2f} {row['place']:9.0%} "
          f"{row['sigma1']:11.3f} {row['cosine']:13.3f} {row['left']:16.3f}")

# %%
sheet = grid([picture for pictures, _ in looks.values() for picture in pictures], 8)
figure, axis = plt.subplots(figsize=(7, 3.7))
axis.imshow(sheet)
axis.set_yticks([33 + 66 * i for i in range(len(looks))], [f"step {step}" for step in looks])
names = ["training\nprompt"] * 2 + [want["background"] for _, want in places]
axis.set_xticks([33 + 66 * i for i in range(8)], names, fontsize=8)
axis.tick_params(length=0)
show(
    figure,
    "03_sheet",
    "Four rows of eight drawings, for steps 0, 25, 50 and 100. Ordinary dogs at step 0; at step 100 the teal and pink "
    "dog of the photo in all of them: on the photo's grass with the training prompt, elsewhere on the places asked.",
)

# %% [markdown]
# Read the sheet by columns. With the **training prompt** the two drawings, which begin with *different* noise, become
# the same picture: the photo. Phase 3, memorising, needs a hundred steps here. **Elsewhere** the colours come first,
# then the shape, while the places stay. In between the dog is blurred; blurred is not noisy. Do not yet conclude
# anything about phase 2: it is one seed and eight pictures.
#
# ## Experiment 2: two probes
#
# The table's last columns look at the *explanation* rather than at the pictures.
#
# - **$x_t=0$ at $t=999$** (the paper's Fig. 3). Eq. 2 says that a network that knows only $x'$ answers a multiple of
#   $x'$, whatever it sees. The cosine of its answer with the photo must go towards 1.
# - **Noise $\delta'$ in a small region at $t=100$** (Fig. 5). Eq. 2 says that $k_t^2$ of its energy stays, and with the
#   paper's $\sigma_1\approx4.8$ *more* than there was. In the paper's figure the fine-tuned network leaves it, and the
#   pretrained one removes it.

# %%
shown = torch.cat([torch.zeros_like(latent), *(row["from_zero"] for _, row in looks.values()), latent])
figure, axis = plt.subplots(figsize=(6, 1.5))
axis.imshow(grid(to_pil(sd.decode_latents(shown)), len(shown)))
names = ["x_t = 0", *(f"step {step}" for step in looks), "the photo"]
axis.set_xticks([33 + 66 * i for i in range(len(shown))], names, fontsize=8)
axis.set_yticks([])
show(
    figure,
    "03_zero",
    "An empty latent, and what the network makes of it in one step: at step 0 a brown blur, at step 100 a blurred "
    "version of the photo, teal and pink on green; last the photo itself.",
)
at = abar[100].item()
print(f"Eq. 2 at t = 100, σ₁ = 4.8: {eq2.gain(at, 4.8) ** 2:.3f} of δ′ is left; "
      f"the loss is {eq2.expected_loss(at, 4.8):.3f}, all of it noise left in")
for step, (_, row) in looks.items():
    expected = eq2.gain(at, row["sigma1"]) ** 2
    print(f"step {step:3}, measured: {row['left']:.3f} of δ′ is left (Eq. 2 with the measured σ₁: {expected:.3f}); "
          f"the loss is {row['loss']:.3f}, {row['explained']:.0%} of it noise left in")

# %% [markdown]
# The first probe agrees with the paper: asked about *nothing*, the network answers with the photo, the more the longer
# it has learned it. The second does not: the share of $\delta'$ that is left *falls* here with fine-tuning. It is more
# than Eq. 2 says: a small region of noise could be a detail, and the network does not treat all directions alike.
#
# The last column is instructive. At step 0 the loss is large, *but hardly any of it is noise left in*: the network
# draws a clean picture, of another dog. A $\sigma_1$ of 4.8 at $t=100$ would mean a network that takes out nothing.
# (The paper averages $\sigma_{1,t}$ over $t$; large $t$ dominate, where even a large $\sigma_1$ is harmless: tutorial
# 02.)
#
# ## Exercise 4 · an interval (10 minutes, medium)
#
# Is noise higher at step 100 than at step 0, or was this seed unlucky? Train $n$ times with different seeds, and
# compare the two steps *within* each training: what the seeds do to both cancels in the difference $d_i=a_i-b_i$. The
# mean of $n$ differences has the standard error $s/\sqrt n$ with $s^2=\frac1{n-1}\sum(d_i-\bar d)^2$, and since $s$ is
# itself a guess, the 95 % interval is $\bar d\pm t_{.975}\,s/\sqrt n$ with Student's $t$ of $n-1$ degrees of freedom:
# 4.30 for three seeds, not 1.96.

# %%
def paired_interval(a, b, t975):
    """Mean and half width of the 95 % t-interval of a − b; a, b (n,) of n trainings; t975: Student's quantile."""
    # --- exercise 4: the differences are the data
    difference = a - b
    return difference.mean(), t975 * difference.std() / len(difference) ** 0.5
    # --- end


check_paired_interval(paired_interval)

# %% [markdown]
# The same in minibnn: `minibnn/lab/intervals.py:interval`.
#
# ## Experiment 3: the long curves
#
# A hundred steps and one seed are a hint. The file `results/corruption.jsonl` holds what
# `python -m minibnn experiment corruption` measured over several seeds, several numbers of photos, from step 0 far
# beyond memorisation, much as you did: it drew, at each checkpoint, pictures of the training prompt and of twelve other
# prompts (in 25 steps; you took 15 to save time). Bands are bootstrap intervals over seeds; with three seeds that is
# the range from the lowest to the highest, and the true mean lies outside in one case of four.

# %%
rows = report.read_rows(TUTORIALS / "results" / "corruption.jsonl")
VIEW = "ddim-25-g3"  # DDIM, 25 steps, guidance 3
counts = sorted({pictures for setting, pictures, _, view in report.cases(rows) if (setting, view) == ("main", VIEW)})
runs = {row["run"] for row in rows}
print(f"{len(rows)} lines of {len(runs)} runs; below: {', '.join(map(str, counts))} photos, drawn with {VIEW}")

PANELS = {
    "nearest": ("training", "fidelity to the nearest photo, training prompt"),
    "diversity": ("training", "diversity, training prompt"),
    "sigma1": ("training", "σ₁ at t = 100"),
    "fidelity": ("other", "fidelity, other prompts"),
    "noise": ("other", "noise (10⁻³; clean drawings: 0), other prompts"),
    "background": ("other", "place as asked, other prompts"),
}
figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
for axis, (name, (group, title)) in zip(axes.flat, PANELS.items(), strict=True):
    for pictures in counts:
        steps, seeds, values = report.table(rows, "main", pictures, "plain", VIEW, group, name)
        if seeds:
            label = f"{pictures} photo{'s' * (pictures > 1)}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
            axis.plot(steps, torch.tensor(values).mean(0), ".-", alpha=0.8, label=label)
        if len(seeds) > 1:
            axis.fill_between(steps, *report.bootstrap(values), alpha=0.2)
    axis.set_xscale("symlog", linthresh=25)
    axis.set_xlim(left=0)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
for axis in axes[1]:
    axis.set_xlabel("step")
axes[1, 2].set_ylim(0, 1.05)
axes[0, 0].legend(fontsize=7)
show(
    figure,
    "03_curves",
    "Six panels against the step, a curve for each number of photos: fidelity, diversity, σ₁, fidelity elsewhere, "
    "noise elsewhere, place as asked.",
)

# %% [markdown]
# First we look at phases 1 and 3, with your interval: how a measure changes within each training, up to step 100 and
# after it.

# %%
T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # Student's quantile for n trainings


def change(pictures, group, name, later, earlier):
    """What a measure changed between two steps, in words; without an interval if there is only one training."""
    steps, seeds, values = report.table(rows, "main", pictures, "plain", VIEW, group, name)
    a, b = (torch.tensor([run[steps.index(step)] for run in values]) for step in (later, earlier))
    if len(seeds) < 2:
        return f"{(a - b).mean():+.3f} (one seed)"
    mean, half = paired_interval(a, b, T975[len(seeds)])
    return f"{mean:+.3f} ± {half:.3f}"


for pictures in counts:
    last = report.table(rows, "main", pictures, "plain", VIEW, "other", "noise")[0][-1]
    print(f"{pictures} photo{'s' * (pictures > 1)}, from step 0 to step 100, and from 100 to {last}")
    for name, (group, title) in PANELS.items():
        print(f"    {title:48} {change(pictures, group, name, 100, 0):20} {change(pictures, group, name, last, 100)}")

# %% [markdown]
# **Learning** is the first column: fidelity to the nearest photo rises. **Memorising** is the second and the curves'
# right ends: fidelity to a photo near 1; with one photo diversity goes to 0 (eight drawings of one prompt are one
# drawing), and $\sigma_1$ falls. Where noise on other prompts rises, look at the pictures: parts of the memorised
# *background* come through in places where we asked for something else, as blotches. That is over-fitting that leaks;
# in the paper's phase 2 fidelity must fall at the same time, and both must pass.
#
# ## The verdict
#
# What would convince us of a corruption stage? `minibnn/experiments/stages.py:corruption_stage` was written *before*
# the runs. On other prompts, between two steps of the same training,
#
# 1. fidelity falls below its earlier maximum, and 2. recovers by the end;
# 3. noise at that step is above the pretrained model's, and 4. above the final level.
#
# *Present* if, where fidelity is lowest, all four differences are above 0 with 95 % confidence; *absent* if at every
# step one of them is confidently smaller than the least that matters (a cosine of 0.02, a noise of 0.2); otherwise
# *undecided*. One seed can only be undecided. And since fidelity might be blind, the second criterion asks for 3 and 4
# alone, a **noise stage**. All settings that were tried are listed, not only those with something to see. With four
# photos `main`, `pndm`, `base`, `samplers` and `views` are the *same* trainings, whose pictures are drawn in different
# ways: such rows are not independent.
#
# One warning before you look: our measure of noise counts the dog's own *spots* for 0.5. A model that has learned the
# dog is "noisier" than one that draws plain dogs, without any corruption; this is why a stage must also pass.

# %%
found = {"corruption stage": [], "noise stage": []}
print(f"{'setting, photos, drawn with':44} seeds  fall of fidelity at its dip   noise 0 → peak → last   "
      "corruption   noise stage")
for setting, pictures, kind, view in report.cases(rows):
    if kind != "plain":
        continue
    steps, seeds, like = report.table(rows, setting, pictures, kind, view, "other", "fidelity")
    if len(steps) < 3:
        continue
    noise = report.table(rows, setting, pictures, kind, view, "other", "noise")[2]
    corrupted, differences, dip = stages.corruption_stage(like, noise)
    noisy, _, peak = stages.noise_stage(noise)
    found["corruption stage"].append(corrupted)
    found["noise stage"].append(noisy)
    mean, low, high = differences["fidelity below its earlier maximum"]
    fall = f"{mean:.3f} [{low:+.3f}, {high:+.3f}] at {steps[dip]}" if len(seeds) > 1 else f"{mean:.3f} at {steps[dip]}"
    level = torch.tensor(noise).mean(0)
    path = f"{level[0]:.2f} → {level[peak]:.2f} ({steps[peak]}) → {level[-1]:.2f}"
    case = f"{setting}, {pictures}, {view}"
    print(f"{case:44} {len(seeds):5}  {fall:28} {path:25} {corrupted:12} {noisy}")
for what, verdicts in found.items():
    tally = ", ".join(f"{verdicts.count(word)} {word}" for word in ("present", "absent", "undecided"))
    print(f"{what}: {tally} of {len(verdicts)}")

# %% [markdown]
# ## What fails, and why
#
# Believe the last two lines, not a story; here is how to read them. *Present* in a setting means that the stage exists
# there, and its neighbours in the table say what it depends on. *Absent* means that at each step at least one of the
# four differences is smaller than matters, at this scale and in this setting: often it is the noise, and a fall alone
# is not excluded, so read its interval; nor is it said that the paper is wrong about Stable Diffusion. *Undecided*
# means more seeds. Where this model differs, and what each difference predicts:
#
# - **The sampler.** The paper draws with PNDM, 50 steps, guidance 7.5. Tutorial 01 showed this sampler wreck pictures
#   of a *perfect* network whose conditional distribution is narrow, and fine-tuning makes it narrow. If rows with
#   `pndm` and `g7.5` show a stage and `ddim` rows of the same checkpoints do not, the sampler is to blame, not the
#   network.
# - **Guidance** mixes in a prediction without a prompt, which nobody trained here but which moved. Rows with `base`
#   take it from the pretrained model.
# - **Gradient jitter.** With one photo a step, weights jump about. Rows with `average` draw with averaged weights;
#   `batch-4` trains with four.
# - **Scale and rate.** 8.8 M weights at a rate of 2·10⁻⁴ memorise a photo in about a hundred steps. Stable Diffusion
#   has 860 M and 5·10⁻⁶: in 1000 steps no weight moves by much more than 5·10⁻³. A phase that is long there may be over
#   here before the first look.
# - **The latents.** Stable Diffusion's are 64 × 64 in place of 8 × 8: there is room for a local error that the rest of
#   the picture does not correct.
# - **The measure.** You tested it: it sees noise. But any network's cosine is only one idea of "like the photos".
#
# And about the explanation: "$\sigma_1\approx4.8$" (Fig. 4) cannot be the network's state at $t=100$ (you printed the
# loss it would mean). Plot $\sigma_{1,t}$ against $t$, as tutorial 02 does.
#
# ## Summary
#
# | what | where |
# |---|---|
# | the loss with class pictures | DreamBooth (Ruiz et al. 2023) eq. 2, `minibnn/train.py:train` |
# | the three phases | the paper's §3.1, Fig. 2 |
# | fidelity | App. G, `minibnn/world/measures.py:fidelity`, its network: `minibnn/world/eye.py:Eye` |
# | noise | Immerkær 1996 eq. 4, `minibnn/world/measures.py:immerkaer`; `minibnn/world/measures.py:noise` |
# | $x_t=0$ and $\delta'$ | Fig. 3 and 5, `minibnn/lab/probes.py:probe_zero`, `minibnn/lab/probes.py:probe_local` |
# | the criterion | `minibnn/experiments/stages.py:corruption_stage` |
# | the curves | `python -m minibnn experiment corruption`, then `report` |
#
# Next: 04, a layer with random weights; then 05, what it does to these curves.
