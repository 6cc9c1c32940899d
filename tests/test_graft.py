"""GRAFT and P-GRAFT: rules against closed forms on a Gaussian mixture, the switch, training, the command."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
import small_sd
import torch
from PIL import Image
from scipy import stats
from torch import nn

from minibnn import StableDiffusion, UserError, observers, ownership, runs, schedule
from minibnn.cli.export import export
from minibnn.cli.sample import sample
from minibnn.experiments.graft import check_enough, diversity, experiment, kept_seeds, path_kl
from minibnn.files import folders
from minibnn.files.weights import write_tensors
from minibnn.neighbours import candidates, graft, graft_run, guidance, rejection, rewards
from minibnn.networks.unet import UNet
from minibnn.observers import CtrlC
from minibnn.options.experiments import GraftExperimentOptions
from minibnn.options.neighbours import GraftOptions
from minibnn.options.parsing import parse
from minibnn.options.results import ExportOptions, SampleOptions
from minibnn.options.training import TrainOptions
from minibnn.pictures import to_tensor
from minibnn.world import scenes as world

EXACT = {"rtol": 1e-12, "atol": 1e-12}
WEIGHTS, MEANS, STD = (0.8, 0.2), (-2.0, 2.0), 0.5  # the mixture of all one-dimensional checks; its reward is x


def mixture(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    component = (torch.rand(n, generator=generator, dtype=torch.float64) < WEIGHTS[1]).long()
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.tensor(MEANS, dtype=torch.float64)[component] + STD * noise


def density(x, abar=1.0):
    """p_t of the mixture, noised by ᾱ."""
    spread = math.sqrt(abar * STD**2 + 1 - abar)
    return sum(w * stats.norm.pdf(x, math.sqrt(abar) * m, spread) for w, m in zip(WEIGHTS, MEANS, strict=True))


GRID = np.linspace(-8, 8, 40001)


def mean_under(weight):
    """∫ x p(x) a(x) dx / ∫ p(x) a(x) dx on the grid."""
    mass = density(GRID) * weight
    return float((GRID * mass).sum() / mass.sum())


def worse():
    """F(x), the chance that a sample is worse than x."""
    return sum(w * stats.norm.cdf(GRID, m, STD) for w, m in zip(WEIGHTS, MEANS, strict=True))


# --- 1, 2: the rules --------------------------------------------------------------------------------------------------


def test_graft_top_k_law_is_the_tilted_one():
    x = mixture(8 * 50_000).reshape(-1, 8)
    kept = rejection.top_k(x, 2)
    assert kept.double().mean() == 0.25 and (kept.sum(1) == 2).all()
    tilted = mean_under(rejection.top_k_probability(torch.from_numpy(1 - worse()), 8, 2).numpy())
    assert tilted == pytest.approx(0.917, abs=0.001)
    assert x[kept].mean().item() == pytest.approx(tilted, abs=0.015)  # standard error .005


def test_graft_best_of_n_law_is_the_tilted_one():
    """Best of N is top-k with K = 1, which keeps a sample with probability F^(N−1)."""
    x, f = mixture(8 * 50_000, seed=1).reshape(-1, 8), torch.from_numpy(worse())
    tilted = mean_under((f**7).numpy())
    assert tilted == pytest.approx(1.62, abs=0.005)
    assert x[rejection.top_k(x, 1)].mean().item() == pytest.approx(tilted, abs=0.015)
    torch.testing.assert_close(rejection.top_k_probability(1 - f, 8, 1), f**7, **EXACT)


def test_graft_top_k_probability_as_printed():
    for q in (0.0, 0.3, 1.0):
        printed = sum(math.comb(7, j) * q**j * (1 - q) ** (7 - j) for j in range(2))
        ours = rejection.top_k_probability(torch.tensor(q, dtype=torch.float64), 8, 2).item()
        assert ours == pytest.approx(printed, rel=1e-12)
        assert printed == pytest.approx(stats.binom.cdf(1, 7, q), rel=1e-12)


def test_graft_classical_rejection_is_the_exponential_tilt():
    """On five values: kept with probability exp((r − r_max)/α), and so p_acc ∝ p̄·exp(r/α)."""
    values, alpha = torch.arange(5.0, dtype=torch.float64), 1.7
    x = values[torch.randint(5, (400_000,), generator=torch.Generator().manual_seed(0))]
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = x[rejection.tilt(x, alpha, 4.0, uniform)]
    expected = torch.softmax(values / alpha, 0)
    got = torch.stack([(kept == v).double().mean() for v in values])
    torch.testing.assert_close(got, expected, atol=0.004, rtol=0)
    with pytest.raises(ValueError, match="a reward of 4 is above the maximum 3"):
        rejection.tilt(x, alpha, 3.0, uniform)


def test_graft_rules_by_rank_ignore_increasing_transforms_and_the_tilt_does_not():
    x = mixture(800, seed=2).reshape(-1, 8)
    for transform in (torch.exp, lambda r: r**3):
        assert torch.equal(rejection.top_k(x, 2), rejection.top_k(transform(x), 2))
        assert torch.equal(rejection.top_k(x, 1), rejection.top_k(transform(x), 1))
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = (rejection.tilt(r, 1.0, r.max(), uniform) for r in (x, x**3))
    assert not torch.equal(a, b)


def test_graft_binary_law_is_the_conditional_one():
    x = mixture(20_000, seed=3)
    kept = x[rejection.threshold((x > 0).double(), 1)]
    inside = GRID > 0
    cumulative = np.cumsum(density(GRID[inside]))
    cdf = lambda v: np.interp(v, GRID[inside], cumulative / cumulative[-1])  # noqa: E731
    assert stats.kstest(kept.numpy(), cdf).pvalue > 0.01
    assert stats.kstest(x.numpy(), cdf).pvalue < 1e-6


def test_equal_rewards_keep_k_and_threshold_keeps_what_reaches_it():
    same = torch.ones(3, 5)
    assert rejection.top_k(same, 2).tolist() == [[True, True, False, False, False]] * 3
    assert rejection.threshold(torch.tensor([0.1, 0.5, 0.9]), 0.5).tolist() == [False, True, True]


# --- 3: the optimum ---------------------------------------------------------------------------------------------------


def test_graft_lemma_2_3_the_accepted_law_maximises_the_regularised_reward():
    rng = np.random.default_rng(0)
    base, alpha, n = rng.dirichlet(np.full(20, 5.0)), 0.7, 6
    reward = rng.permutation(20).astype(float)
    below = np.array([base[reward < r].sum() for r in reward])
    keep = ((below + base) ** n - below**n) / (n * base)  # best of n with ties between equal atoms broken evenly
    accepted = base * keep / (base * keep).sum()
    draws = torch.from_numpy(rng.choice(20, (100_000, n), p=base))
    got = torch.bincount(draws[rejection.top_k(torch.from_numpy(reward)[draws], 1)], minlength=20) / 100_000
    np.testing.assert_allclose(got, accepted, atol=0.006)

    def objective(p):
        return (p * alpha * np.log(keep)).sum() - alpha * (p * np.log(p / base)).sum()

    best = objective(accepted)
    for _ in range(1000):
        p = accepted * np.exp(rng.choice([0.01, 0.3, 3.0]) * rng.normal(size=20))
        p /= p.sum()
        assert objective(p) < best
        total = (base * keep).sum()  # E_p[r̂] − α KL(p‖p̄) = α log Z − α KL(p ‖ p̄ e^{r̂/α}/Z), the identity behind it
        printed = alpha * np.log(total) - alpha * (p * np.log(p / (base * keep / total))).sum()
        assert objective(p) == pytest.approx(printed, rel=1e-12)
    assert best == pytest.approx(alpha * math.log((base * keep).sum()), rel=1e-12)


# --- 4: P-GRAFT with an exact model -----------------------------------------------------------------------------------

ABAR = schedule.alphas_cumprod().double()
SWITCHES = {0.9: 0.999, 0.5: 0.895, 0.2: 0.576, 0.05: 0.304}


def exact_eps(x, t):
    """−√(1−ᾱ)·∇log p_t of the mixture."""
    a = ABAR[t]
    variance = a * STD**2 + 1 - a
    modes = zip(WEIGHTS, MEANS, strict=True)
    logs = torch.stack([math.log(w) - (x - a.sqrt() * m) ** 2 / (2 * variance) for w, m in modes])
    posterior = torch.softmax(logs, 0)
    return (1 - a).sqrt() * (x - sum(p * a.sqrt() * m for p, m in zip(posterior, MEANS, strict=True))) / variance


def success_probability(abar):
    """a(x_t) = P(X_0 > 0 | x_t) on the grid."""
    variance = abar * STD**2 + 1 - abar
    modes = zip(WEIGHTS, MEANS, strict=True)
    parts = [w * stats.norm.pdf(GRID, math.sqrt(abar) * m, math.sqrt(variance)) for w, m in modes]
    gain = math.sqrt(abar) * STD**2 / variance
    spread = STD * math.sqrt((1 - abar) / variance)
    above = [stats.norm.cdf((m + gain * (GRID - math.sqrt(abar) * m)) / spread) for m in MEANS]
    return sum(p * q for p, q in zip(parts, above, strict=True)) / sum(parts)


@pytest.fixture(scope="module")
def base_trajectories():
    """30,000 points drawn by the exact model with η = 1, and their states at four levels."""
    generator = torch.Generator().manual_seed(0)
    noise = lambda _: torch.randn(30_000, generator=generator, dtype=torch.float64)  # noqa: E731
    levels = {abar: int((ABAR - abar).abs().argmin()) for abar in SWITCHES}
    x0, states = graft.trajectory(exact_eps, noise(0), torch.arange(999, -1, -1), ABAR, levels.values(), 1.0, noise)
    return x0, {abar: states[t] for abar, t in levels.items()}


def resume(x, t, seed):
    generator = torch.Generator().manual_seed(seed)
    for k in range(t, -1, -1):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = schedule.ddim_step(x, exact_eps(x, k), ABAR[k], ABAR[k - 1] if k else ABAR[0], 1.0, noise)
    return x


@pytest.mark.parametrize("abar", SWITCHES)
def test_p_graft_success_is_the_mean_of_a_squared_over_that_of_a(base_trajectories, abar):
    """The accepted states, finished by the stochastic base; a shuffled reward gains nothing."""
    x0, states = base_trajectories
    x_t, t = states[abar]
    assert t == (ABAR - abar).abs().argmin()
    a, p = success_probability(ABAR[t].item()), density(GRID, ABAR[t].item())
    ideal = (a**2 * p).sum() / (a * p).sum()
    assert ideal == pytest.approx(SWITCHES[abar], abs=0.003)
    kept = x0 > 0
    assert kept.double().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (resume(x_t[kept], t, 1) > 0).double().mean().item() == pytest.approx(ideal, abs=0.02)  # 6,000 points: .006
    shuffled = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]
    assert (resume(x_t[shuffled], t, 1) > 0).double().mean().item() == pytest.approx(0.2, abs=0.02)


def test_graft_lemma_4_3_the_variance_of_the_reward_grows_with_noise():
    variances = []
    for abar in SWITCHES:
        a, p = success_probability(abar), density(GRID, abar)
        variances.append((a * (1 - a) * p).sum() / p.sum())
    assert variances == pytest.approx([0.0003, 0.0210, 0.0848, 0.1392], abs=1e-4)
    assert variances == sorted(variances)


# --- 5: the target of realisation A -----------------------------------------------------------------------------------


def test_p_graft_realisation_a_as_printed():
    """ρ = √(ᾱ_s/ᾱ_t), σ² = (1−ᾱ_s) − ρ²(1−ᾱ_t), target √((1−ᾱ_s)/σ²)·ε, weight σ²/(1−ᾱ_s)."""
    x_t, eps, abar_t = torch.randn(3, 4, 2, 5, dtype=torch.float64), torch.randn(3, 4, 2, 5, dtype=torch.float64), 0.6
    abar_s = torch.tensor([0.2, 0.5, 0.01], dtype=torch.float64)
    x_s, target, weight = graft.renoise(x_t, torch.tensor(abar_t, dtype=torch.float64), abar_s, eps)
    for b, s in enumerate(abar_s.tolist()):
        rho = math.sqrt(s / abar_t)
        sig2 = (1 - s) - rho**2 * (1 - abar_t)
        torch.testing.assert_close(x_s[b], rho * x_t[b] + math.sqrt(sig2) * eps[b], **EXACT)
        torch.testing.assert_close(target[b], math.sqrt((1 - s) / sig2) * eps[b], **EXACT)
        assert weight[b].item() == pytest.approx(sig2 / (1 - s), rel=1e-12)


def test_p_graft_realisation_a_is_the_score_in_the_mean():
    """E[target | x_s] = −√(1−ᾱ_s)·∇log p_s(x_s) at ᾱ_t = .6, ᾱ_s = .2, over all x_t by quadrature; plain ε is not."""
    abar_t, abar_s = (torch.tensor(a, dtype=torch.float64) for a in (0.6, 0.2))
    x_t, rho, sigma = torch.from_numpy(GRID), math.sqrt(0.2 / 0.6), math.sqrt(0.8 - 0.2 / 0.6 * 0.4)
    for x, expected in ((-1.0, -0.167), (0.0, 0.565), (0.8, 0.703)):
        eps = (x - rho * x_t) / sigma  # the noise that leads from x_t to x
        x_s, target, _ = graft.renoise(x_t, abar_t, abar_s, eps)
        torch.testing.assert_close(x_s, torch.full_like(x_s, x), **EXACT)
        likely = torch.from_numpy(density(GRID, 0.6)) * torch.exp(-(eps**2) / 2)
        mean, plain = ((likely * value).sum().item() / likely.sum().item() for value in (target, eps))
        h = 1e-4
        score = (math.log(density(x + h, 0.2)) - math.log(density(x - h, 0.2))) / (2 * h)
        assert mean == pytest.approx(-math.sqrt(0.8) * score, rel=1e-6)
        assert mean == pytest.approx(expected, abs=0.001)
        assert plain == pytest.approx(mean * math.sqrt(sigma**2 / 0.8), rel=1e-6)


# --- 6: routing -------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x, t, context):
        self.times.append(int(t[0]))
        return x


@pytest.fixture(scope="module")
def base():
    return StableDiffusion.load("tiny")


@pytest.fixture(scope="module")
def finetuned():
    sd = StableDiffusion.load("tiny")
    with torch.no_grad():
        sd.unet.conv_out.weight.mul_(0.8)
    return sd


def test_the_switch_sends_each_time_to_its_model():
    ours, theirs, x = Counting(), Counting(), torch.ones(2, 4, 8, 8)
    for switch in (0, 250, 251, 500, 999):
        ours.times, theirs.times = [], []
        both = graft.Switched(ours, theirs, switch)
        for t in schedule.timesteps(20).tolist():
            both(x, torch.tensor([t, t]), None)
        assert ours.times == [t for t in range(951, 0, -50) if t > switch]
        assert theirs.times == [t for t in range(951, 0, -50) if t <= switch]
    with pytest.raises(ValueError, match="times 200..800 lie on both sides of the switch 500"):
        graft.Switched(ours, theirs, 500)(x, torch.tensor([200, 800]), None)


def drawn(sd, unet):
    pictures = dataclasses.replace(sd, unet=unet).generate(["a red dog", "a cat"], steps=4, seed=3, progress=False)
    return [picture.tobytes() for picture in pictures]


def test_a_switch_at_the_top_is_the_base_and_at_0_the_fine_tuned_model(base, finetuned):
    switched = [drawn(base, graft.Switched(finetuned.unet, base.unet, switch)) for switch in (999, 500, 0)]
    assert switched[0] == drawn(base, base.unet) and switched[2] == drawn(base, finetuned.unet)
    assert switched[1] not in (switched[0], switched[2])


def test_below_the_switch_a_bases_unconditional_changes_nothing(base, finetuned):
    """Both predictions come from the base there: guidance with the base's unconditional is plain guidance."""
    switched = dataclasses.replace(base, unet=graft.Switched(finetuned.unet, base.unet, 500))
    predict = guidance.one_condition(switched, guidance.unconditional_of(base, switched))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context, empty = (base.encode_prompts([prompt]) for prompt in ("a dog", ""))
    with torch.no_grad():
        plain = [switched.guided_eps(x, t, context, empty, 3.0) for t in (401, 601)]
        moved = [predict(x, t, context, None, 3.0) - own for t, own in zip((401, 601), plain, strict=True)]
    low, high = (difference.abs().max() / own.abs().max() for difference, own in zip(moved, plain, strict=True))
    assert low < 1e-5 < 1e-2 < high


def test_the_trajectory_keeps_the_state_at_the_first_time_not_above_the_switch():
    seen = {}

    def model(x, t):
        seen[t] = x
        return 0.1 * x

    x = torch.randn(2, 4, 3, 3)
    x0, states = graft.trajectory(model, x, schedule.timesteps(10), schedule.alphas_cumprod(), [999, 501, 450, 0])
    assert {switch: t for switch, (_, t) in states.items()} == {999: 901, 501: 501, 450: 401, 0: 0}
    assert all(torch.equal(state, seen[t]) for state, t in states.values() if t)
    assert torch.equal(states[0][0], x0) and torch.equal(states[999][0], x)


# --- 7: copies --------------------------------------------------------------------------------------------------------


def test_deduplication_keeps_one_copy_of_a_heavy_atom():
    rng = np.random.default_rng(0)
    copies, chosen = 0, []
    for i in range(50):
        x = np.where(rng.random(64) < 0.5, 0.0, rng.normal(size=64))
        kept = torch.from_numpy(rng.random(64) < 0.8)
        unique = rejection.deduplicate(kept, x.tolist(), torch.Generator().manual_seed(i))
        assert not (unique & ~kept).any() and (x[unique] == 0).sum() <= 1
        assert set(x[unique]) == set(x[kept])
        copies += (x[kept] == 0).mean() / 50
        chosen.append(np.flatnonzero(unique & torch.from_numpy(x == 0))[0])
    assert copies == pytest.approx(0.5, abs=0.05)
    assert 20 < np.mean(chosen) < 44  # any copy, not always the first


def test_pictures_that_look_alike_have_the_same_key():
    scene = world.Scene("dog", "red", "grass")
    picture = world.draw(scene)
    speck = picture.copy()
    speck.putpixel((3, 3), (255, 0, 0))
    assert graft.picture_key(picture) == graft.picture_key(speck)
    assert graft.picture_key(picture) != graft.picture_key(world.draw(dataclasses.replace(scene, colour="blue")))


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_the_worlds_reward_is_exact_on_its_drawings():
    rng = np.random.default_rng(3)
    scenes = [world.random_scene(rng) for _ in range(300)]
    scenes = [dataclasses.replace(s, background="grass") if i % 3 == 0 else s for i, s in enumerate(scenes)]
    scenes = [dataclasses.replace(s, colour="red") if i % 2 == 0 else s for i, s in enumerate(scenes)]
    truth = [float(s.colour == "red" and s.background == "grass") for s in scenes]
    pictures = [world.draw(s) for s in scenes]
    assert rewards.red_thing_on_grass(pictures, [""] * 300) == truth and 40 < sum(truth) < 80
    red = np.array(rewards.redness(pictures, [""] * 300))
    assert min(r for r, s in zip(red, scenes, strict=True) if s.colour == "red") > 0.04


def test_a_reward_of_ones_own(tmp_path):
    function = "def bright(pictures, prompts):\n    return [np.asarray(p).max() for p in pictures]\n"
    (tmp_path / "mine.py").write_text(f"import numpy as np\n\n{function}")
    reward = rewards.load_reward(f"{tmp_path / 'mine.py'}:bright")
    pictures = [Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 200)]
    assert rewards.rewards_of(reward, pictures, ["a", "b"]).tolist() == [10, 200]


@pytest.mark.parametrize(
    ("name", "message"),
    [("beauty", "--reward beauty is not one of red_thing_on_grass, redness"), ("load_reward", "is not one of"),
     ("nowhere.py:f", "no file nowhere.py"), ("{}/mine.py:other", "there is no function other in"),
     ("{}/broken.py:f", "broken.py fails: ZeroDivisionError"), ("{}/mine.txt:f", "there is no function f in")],
)
def test_rewards_that_cannot_be_loaded(name, message, tmp_path):
    (tmp_path / "mine.py").write_text("other = 3\n")
    (tmp_path / "mine.txt").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=message):
        rewards.load_reward(name.format(tmp_path))


@pytest.mark.parametrize(
    ("reward", "message"),
    [(lambda p, q: [0.0, math.nan], "is nan for 1 of 2 pictures, first for 'b'"),
     (lambda p, q: [1.0], r"shape \(1,\) for 2"),
     (lambda p, q: p[5], "IndexError"), (lambda p, q: torch.tensor([math.inf, 0.0]), "is inf for 1 of 2")],
)
def test_rewards_that_fail(reward, message):
    with pytest.raises(UserError, match=message):
        rewards.rewards_of(reward, ["x", "y"], ["a", "b"])


# --- the command ------------------------------------------------------------------------------------------------------

FAST = ["--candidates", "2", "--groups", "1", "--sample-steps", "4", "--steps", "3", "--evaluate", "2"]


def graft_options(*words):
    keep = [] if "--rule" in words else ["--keep", "1"]
    words = ["--reward", "redness", "--prompt", "a car", "a dog", *FAST, *keep, *words]
    return parse(GraftOptions, "minibnn graft", words)


def fingerprint(network):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in network.parameters())).hexdigest()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graft") / "run"
    graft_run.graft(graft_options("--switch", "400", "--out", str(folder)))
    return folder


def test_a_run_is_a_model_that_hands_over_to_its_base(run_folder, base, tmp_path):
    """P-GRAFT from the command line: the fine-tuned UNet moved, the base did not, and sampling routes by itself."""
    assert {p.name for p in run_folder.iterdir()} == {
        "graft.json", "samples.png", "model_index.json", "recipe.json", "unet", "vae", "text_encoder", "tokenizer",
        "scheduler",
    }
    assert [p.name for p in run_folder.parent.iterdir()] == ["run"]  # no temporary folder
    record = json.loads((run_folder / "graft.json").read_text())
    assert (record["base"], record["switch"], record["kept"], record["samples"]) == ("tiny", 400, 2, 4)
    sd = graft_run.open_graft_run(run_folder)
    assert fingerprint(sd.unet.base) == fingerprint(base.unet) != fingerprint(sd.unet.finetuned)
    assert (sd.recipe["guidance"], sd.recipe["sample_steps"]) == (1.0, 4)
    with pytest.raises(UserError, match="nowhere"):  # it is not passed over
        sample(SampleOptions(prompt="a", model=str(run_folder), tokenizer="nowhere", out=str(tmp_path / "a.png")))
    words = {"prompt": ["a car"], "steps": 4, "seed": 1, "dtype": "float32"}
    [got] = sample(SampleOptions(**words, model=str(run_folder), out=str(tmp_path / "a.png")))
    [switched] = sd.generate(["a car"], steps=4, seed=1, progress=False)
    [alone] = StableDiffusion.load(run_folder).generate(["a car"], steps=4, seed=1, progress=False)
    assert got.tobytes() == switched.tobytes() != alone.tobytes()


def test_the_same_seed_gives_the_same_run(run_folder, tmp_path):
    graft_run.graft(graft_options("--switch", "400", "--out", str(tmp_path / "again")))
    a, b = (StableDiffusion.load(f).unet.state_dict() for f in (run_folder, tmp_path / "again"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    a, b = (json.loads((f / "graft.json").read_text()) for f in (run_folder, tmp_path / "again"))
    assert {k: v for k, v in a.items() if k != "options"} == {k: v for k, v in b.items() if k != "options"}


@pytest.mark.parametrize(("switch", "lowest"), [(400, 252), (0, 0)])
def test_training_sees_only_times_above_the_state(switch, lowest):
    """Of a sampler of four steps, 751 501 251 1, the state at switch 400 is that at 251."""
    sd = StableDiffusion.load("tiny")
    options = graft_run.settle(graft_options("--switch", str(switch), "--batch-size", "64"), sd)
    options = dataclasses.replace(options, steps=4, lr=1e-6)
    x0, states = graft.draw_latents(sd, ["a car"] * 2, options, 0, [switch])
    seen = []
    sd.unet.forward = lambda x, t, context: (seen.append(t), x * sd.unet.conv_out.bias.sum())[1]
    graft.train_on_accepted(sd, sd.encode_prompts(["a car"] * 2), x0, states[switch][1], options)
    times = torch.cat(seen)
    assert len(times) == 256 and times.min() >= lowest and times.min() < lowest + 60 and times.max() > 950
    assert not sd.unet.training


def test_the_recipe_for_a_subject_leaves_graft_its_own_training():
    """Bug: the moving average and the teacher of tiny-v2's recipe were taken over, which GRAFT has no options for."""
    sd = StableDiffusion.load("tiny-v2")
    asked = parse(GraftOptions, "x", ["--reward", "redness", "--model", "tiny-v2", "--out", "x"])
    settled = graft.training_options(graft_run.settle(asked, sd), sd.recipe)
    assert (settled.ema, settled.prior_weight, settled.prior_target) == (0.0, 0.0, "noise")


def test_training_raises_the_likelihood_of_what_was_kept(base):
    """Eight steps on one picture: its denoising loss falls."""
    sd = StableDiffusion.load("tiny")
    options = dataclasses.replace(graft_run.settle(graft_options(), sd), steps=8, batch_size=2)
    x0 = sd.encode_pictures(to_tensor([world.draw(world.Scene("dog", "blue", "grass", spotted=True))]))
    context = sd.encode_prompts(["a dog"])
    t = torch.arange(20, 1000, 120)
    eps = torch.randn(len(t), 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def loss():
        with torch.no_grad():
            x_t = schedule.q_sample(x0, eps, sd.alphas_cumprod[t])
            return (sd.predict_eps(x_t, t, context.expand(len(t), -1, -1)) - eps).square().mean().item()

    before = loss()
    graft.train_on_accepted(sd, context, x0, 0, options)
    assert loss() < 0.9 * before, (loss(), before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--switch", "751"], "--switch 751 leaves nothing to the fine-tuned model: the sampler starts at 751"),
        (["--keep", "3"], "--keep 3 of --candidates 2 is impossible"),
        (["--rank", "2"], "--rank belongs to --method lora"),
        (["--method", "lora", "--layers", "to_x"], "--layers: no linear layer is called to_x"),
        (["--rule", "threshold", "--keep", "1"], "--keep belongs to --rule top-k, not to threshold"),
        (["--rule", "tilt", "--minimum", "0.2"], "--minimum belongs to --rule threshold, not to tilt"),
        (["--alpha", "0.1"], "--alpha belongs to --rule tilt, not to top-k"),
        (["--guidance", "nan"], "guidance = nan is not a finite number"),
        (["--eta", "2"], "eta = 2.0 is outside 0..1"),
        (["--sample-steps", "1000"], "--sample-steps 1000 is outside 1..999"),
        (["--prompts-from", "nowhere.txt"], "--prompts-from nowhere.txt: "),
        (["--resolution", "60"], "--resolution 60 is not a multiple of 8"),
        (["--reward", "ugly"], "--reward ugly is not one of"),
    ],
)
def test_refusals_leave_nothing(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        graft_run.graft(graft_options("--out", str(tmp_path / "run"), *words))
    assert not list(tmp_path.iterdir())


# --- going on ---------------------------------------------------------------------------------------------------------


def weights(folder):
    return StableDiffusion.load(folder).unet.state_dict()


def command(*words):
    """The command as from the command line, where --resume brings the options of the run that was begun."""
    return graft_run.graft(parse(GraftOptions, "minibnn graft", [*map(str, words)]))


def stopping(monkeypatch, function, after):
    """Let a function of candidates.py raise KeyboardInterrupt when it is called the `after`-th time."""
    calls, real = [], getattr(candidates, function)

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(candidates, function, stopped)
    return calls


def test_a_stopped_run_draws_no_candidate_twice_and_ends_alike(run_folder, tmp_path, monkeypatch):
    """Stopped while drawing, then while training: the same weights to the last bit as without."""
    out = tmp_path / "run"
    words = ["--switch", "400", "--batch-size", "3", "--out", str(out)]
    with monkeypatch.context() as context:
        stopping(context, "pictures_of", 2)
        with pytest.raises(KeyboardInterrupt, match=f"to go on: python -m minibnn graft --resume --out {out}"):
            graft_run.graft(graft_options(*words))
    work = tmp_path / "run.unfinished"
    assert sorted(p.name for p in work.iterdir()) == ["candidates-000000.safetensors", "options.json"]
    assert not out.exists()
    with pytest.raises(UserError, match="--resume continues it, --overwrite discards it"):
        graft_run.graft(graft_options(*words))
    with pytest.raises(UserError, match="--seed is not what .*run.unfinished began with"):
        command("--resume", "--out", out, "--seed", "3")

    with monkeypatch.context() as context:
        drawn = stopping(context, "pictures_of", 10)
        context.setattr(CtrlC, "__enter__", lambda self: (vars(self).update(asked=True, before={}), self)[1])
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1, saved in .*checkpoint; to go on: .* graft"):
            command("--resume", "--out", out)
        assert len(drawn) == 1  # the second file of candidates
    with pytest.raises(UserError, match="--lr is not what .*run.unfinished began with"):
        command("--resume", "--out", out, "--lr", "1e-3")
    with monkeypatch.context() as context:
        stopping(context, "pictures_of", 1)  # nothing is drawn any more
        command("--resume", "--out", out, "--evaluate", "0")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    graft_run.graft(graft_options(*words[:-1], str(tmp_path / "whole")))
    a, b = weights(out), weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_checkpoints_on_the_way_hold_the_optimiser_and_the_last_does_not(base, monkeypatch, tmp_path):
    saved, sd = [], StableDiffusion.load("tiny")
    monkeypatch.setattr(observers, "save_checkpoint", lambda out, training, keep: saved.append((training.step, keep)))
    options = graft_run.settle(graft_options("--checkpoint-every", "2", "--batch-size", "1"), sd)
    graft.train_on_accepted(sd, base.encode_prompts(["a car"]), torch.zeros(1, 4, 8, 8), 0, options, tmp_path, "again")
    assert saved == [(2, True), (3, False)]  # after it no step can follow


def test_candidates_outlive_a_rule_that_accepts_none(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="--rule threshold accepts none of 4 samples, .*without drawing again"):
        graft_run.graft(graft_options("--rule", "threshold", "--minimum", "2", "--out", str(out)))
    stopping(monkeypatch, "pictures_of", 1)
    words = ["--resume", "--out", out, "--evaluate", "0"]
    with pytest.raises(UserError, match="accepts none of 4 samples"):  # with LoRA's own rate and rank
        command(*words, "--method", "lora", "--minimum", "3")
    kept = json.loads((tmp_path / "run.unfinished" / "options.json").read_text())["options"]
    assert (kept["method"], kept["rank"], kept["minimum"]) == ("lora", 4, 3.0)
    record = command(*words, "--method", "dreambooth", "--rule", "tilt")  # neither rank nor minimum stands in the way
    assert record["samples"] == 4 and record["kept"] >= 1 and record["options"]["rank"] is None
    with pytest.raises(SystemExit):
        command("--resume", "--out", out)


def test_candidates_have_noise_of_their_own(base):
    """Two batches of the same prompt begin with other noise, and the same batch always with the same."""
    options = graft_run.settle(graft_options("--batch-size", "1"), base)
    one = lambda pictures, prompts: [0.0] * len(pictures)  # noqa: E731
    drawn = [candidates.rewarded(base, one, ["a car"], options, i)["x0"] for i in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2]) and (drawn[0] - drawn[1]).abs().max() > 0.1


def test_damaged_candidates_are_named(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="accepts none"):
        graft_run.graft(graft_options("--rule", "threshold", "--minimum", "2", "--out", str(out)))
    path = tmp_path / "run.unfinished" / "candidates-000000.safetensors"
    write_tensors(path, {"x0": torch.zeros(3, 4, 8, 8)})
    with pytest.raises(UserError, match="candidates-000000.safetensors does not hold 4 candidates: delete it"):
        command("--resume", "--out", out, "--minimum", "-1")


# --- in Stable Diffusion's layout, with small random networks ---------------------------------------------------------


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """GRAFT of a LoRA on a model in SD v1's layout, with guidance, in bfloat16, with gradient checkpointing."""
    folder = tmp_path_factory.mktemp("sd")
    small_sd.make(folder / "sd", layers=1)
    (folder / "mine.py").write_text(  # bug: fresh samples were rewarded in bfloat16
        "import torch\n\ndef bright(pictures, _):\n    assert not torch.is_autocast_enabled('cpu')\n"
        "    return [p.getpixel((9, 9))[0] for p in pictures]\n")
    seen = {"forwards": 0, "autocast": [], "checkpointing": set()}

    def look(unet, args):
        seen["forwards"] += 1
        seen["autocast"].append(torch.is_autocast_enabled("cpu"))
        seen["checkpointing"].add((torch.is_grad_enabled(), unet.gradient_checkpointing))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: look(module, args) if type(module) is UNet else None)
    words = ["--reward", f"{folder / 'mine.py'}:bright", "--model", str(folder / "sd"), "--guidance", "3",
             "--method", "lora", "--rank", "2", "--dtype", "bfloat16", "--gradient-checkpointing", "--lr", "1e-2",
             "--switch", "400", "--out", str(folder / "run")]
    try:
        graft_run.graft(graft_options(*words))
    finally:
        handle.remove()
    return folder, seen


def test_graft_of_a_lora_at_the_layout_of_sd(lora_run):
    """The run is a small file; it opens as a model, as P-GRAFT with its base below the switch, and as a LoRA."""
    folder, seen = lora_run
    run = folder / "run"
    assert {p.name for p in run.iterdir()} == {
        "graft.json", "config.json", "samples.png", "pytorch_lora_weights.safetensors"}
    assert (run / "pytorch_lora_weights.safetensors").stat().st_size < 10**5
    assert all(seen["autocast"]) and seen["forwards"] == 4 + 3 + 4  # candidates, training, fresh samples: of one batch
    assert (True, True) in seen["checkpointing"] and (True, False) not in seen["checkpointing"]
    base, both = StableDiffusion.load(folder / "sd"), graft_run.open_graft_run(run)
    assert fingerprint(both.unet.base) == fingerprint(base.unet) != fingerprint(both.unet.finetuned)
    assert both.unet.base.conv_in.weight is both.unet.finetuned.conv_in.weight  # only what differs is there twice
    assert (both.recipe["guidance"], both.recipe["sample_steps"], both.recipe["resolution"]) == (3.0, 4, 64)
    merged = base.merge_adapter(run / "pytorch_lora_weights.safetensors")
    assert fingerprint(merged.unet) == fingerprint(both.unet.finetuned) == fingerprint(StableDiffusion.load(run).unet)


def test_a_run_of_graft_is_sampled_exported_and_opened_by_diffusers(lora_run, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    folder, _ = lora_run
    run = folder / "run"
    words = {"prompt": ["a car"], "seed": 1, "dtype": "float32", "model": str(run)}
    [picture] = sample(SampleOptions(**words, out=str(tmp_path / "a.png")))
    assert picture.size == (64, 64)
    export(ExportOptions(run=str(run), to="kohya", out=str(tmp_path / "kohya.safetensors")))
    assert "the fine-tuned half of P-GRAFT, made for times above 400" in capsys.readouterr().out
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder / "sd", local_files_only=True)
    theirs.load_lora_weights(run)
    theirs.fuse_lora()
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    context = torch.randn(1, 77, 32)
    with torch.no_grad():
        expected = theirs.unet(x, t, context).sample
        torch.testing.assert_close(StableDiffusion.load(run).unet(x, t, context), expected, atol=1e-5, rtol=1e-4)
        assert (StableDiffusion.load(folder / "sd").unet(x, t, context) - expected).abs().max() > 1e-3
    with pytest.raises(UserError, match="was trained on no folder of pictures; pass --images"):
        runs.images_of(run)


def test_train_goes_on_with_no_run_of_graft_but_takes_its_options_and_its_folder(lora_run, capsys):
    """Bugs of an earlier version: "images = [] is not a text", and a run that --overwrite made was still drawn as one
    of GRAFT."""
    run = lora_run[0] / "run"
    with pytest.raises(SystemExit):
        parse(TrainOptions, "train", ["--resume", "--out", str(run)])
    assert f"trained on no folder of pictures, and is finished: begin another with --model {run}" in (
        capsys.readouterr().err)
    options = parse(TrainOptions, "train", ["--config", str(run), "--images", "dog"])
    assert (options.images, options.rank, options.prompt) == (["dog"], 2, ["a car", "a dog"])
    assert {path.name for path in ownership.own_files(run)} == {path.name for path in run.iterdir()}


@pytest.mark.parametrize("words", [["threshold"], ["threshold", "--minimum", "0.1"], ["tilt", "--alpha", "2"]])
def test_keep_counts_for_top_k_alone(words, base):
    """Its default of 2 does not forbid groups of one."""
    options = graft_run.settle(graft_options("--rule", *words, "--candidates", "1"), base)
    assert (options.rule, options.candidates) == (words[0], 1)


def test_a_folder_is_replaced_only_on_request_and_only_if_it_is_a_run(run_folder, tmp_path):
    with pytest.raises(UserError, match="exists: name another or pass --overwrite"):
        graft_run.graft(graft_options("--out", str(run_folder)))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="it is not a run of this command"):
        graft_run.graft(graft_options("--out", str(tmp_path / "mine"), "--overwrite"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "graft.json").write_text("{}")
    with pytest.raises(ZeroDivisionError), folders.new_folder(tmp_path / "run") as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("made")
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["graft.json"]
    with folders.new_folder(tmp_path / "run") as temporary:
        temporary.mkdir()
        (temporary / "whole").write_text("made")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["whole"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "run"]


def test_a_run_is_not_its_own_base(run_folder, tmp_path, monkeypatch):
    """Equal folders under two names, the model inside --out, --out inside the model: all refused before any drawing."""
    before = sorted(p.name for p in run_folder.iterdir())
    monkeypatch.chdir(run_folder)
    words = ["--overwrite", "--switch", "400", "--out"]
    for model, out, message in (
        (str(run_folder), ".", "--out . would replace --model"),
        ("unet", str(run_folder), "would replace --model unet"),
        (".", str(run_folder / "new"), "lies inside --model ."),
    ):
        with pytest.raises(UserError, match=message):
            graft_run.graft(graft_options("--model", model, *words, out))
    with pytest.raises(UserError, match="would replace --prompts-from graft.json"):
        graft_run.graft(graft_options("--prompts-from", "graft.json", *words, str(run_folder)))
    with pytest.raises(UserError, match="--out .: name the folder by its own name, from outside of it"):
        graft_run.graft(graft_options(*words, "."))  # bug of an earlier version: a traceback
    assert sorted(p.name for p in run_folder.iterdir()) == before


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("kept")
    replace = folders.os.replace

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", failing)
    with pytest.raises(OSError, match="disk full"), folders.new_folder(tmp_path / "run") as temporary:
        temporary.mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["run", "run/old"]


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_path_kl_is_the_kl_between_two_ddim_steps():
    """The Gaussians that DDIM eq. 12 with η = 1 draws from, for two predictions; torch.distributions is the oracle."""
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    abar_t, abar_prev = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = [schedule.ddim_step(x, eps, abar_t, abar_prev, 1.0, torch.zeros_like(x)) for eps in (a, b)]
    sigma = schedule.ddim_sigma(abar_t, abar_prev, 1.0)
    steps = [torch.distributions.Normal(mean, sigma) for mean in means]
    expected = torch.distributions.kl_divergence(*steps).sum(dim=(1, 2, 3))
    torch.testing.assert_close(path_kl(abar_t, abar_prev, a - b), expected, **EXACT)


def test_diversity_compares_pictures_of_the_same_prompt_only():
    grey = [Image.new("RGB", (4, 4), (v, v, v)) for v in (0, 51, 255, 255)]
    assert diversity(grey, ["a", "a", "b", "b"]) == pytest.approx((0.2 + 0.0) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fresh": 1}, "--fresh 1: diversity compares"), ({"groups": 1, "sample_steps": 1}, "0 of .* earn the reward")],
)
def test_the_experiment_refuses_what_has_no_figures(changes, message, tmp_path):
    """Bugs of an earlier version: NaN in its file, which it then refused, and a traceback."""
    with pytest.raises(UserError, match=message):
        experiment(GraftExperimentOptions(seeds=[0], out=str(tmp_path), **changes))
    assert not list(tmp_path.glob("*.json"))


def test_two_of_one_prompt_are_enough():
    check_enough(torch.tensor([True, False, True, True]), ["a", "a", "b", "b"])
    with pytest.raises(UserError, match="2 of 4 candidates earn the reward, but no two of one prompt"):
        check_enough(torch.tensor([True, False, True, False]), ["a", "a", "b", "b"])


def test_the_experiment_loses_no_seeds_to_other_settings(tmp_path):
    path = tmp_path / "graft.json"
    assert kept_seeds(path, {"steps": 60}) == {}
    path.write_text(json.dumps({"settings": {"steps": 60}, "seeds": {"0": {}}}))
    assert kept_seeds(path, {"steps": 60}) == {"0": {}}
    with pytest.raises(UserError, match="graft.json was made with steps = 60, not 50; name another --out"):
        kept_seeds(path, {"steps": 50})
