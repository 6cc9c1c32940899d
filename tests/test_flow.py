"""Flow matching, the sampler's inverse and inverse noise correction: against closed forms, in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minibnn import StableDiffusion
from minibnn.errors import UserError
from minibnn.experiments.inverse_noise import report as inverse_noise_report
from minibnn.experiments.inverse_noise import trainings as inverse_noise_trainings
from minibnn.neighbours import flow
from minibnn.options.neighbours import FlowOptions
from minibnn.world import scenes as world


def affine(x, s):
    """v = −0.4 x + 1, whose sampler is T(z) = A z + B in closed form."""
    return -0.4 * x + 1


def turning(x, s):
    """v = (−0.4 + sin 3s) x + 1, which depends on the time: the inverse must ask at the times that T asked."""
    return (-0.4 + torch.sin(3 * s))[:, None] * x + 1


def affine_map(steps):
    """A and B of T for `affine`: A = (1 − 0.4 h)^n, B = Σ h (1 − 0.4 h)^k."""
    a = 1 - 0.4 / steps
    return a**steps, sum(a**k for k in range(steps)) / steps


def normal(n, dimension=1, seed=0):
    return torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_liu_eq1_flow_loss_as_printed():
    """min E‖(X_1 − X_0) − v(X_t, t)‖², X_t = t X_1 + (1 − t) X_0; here a mean over values, in the paper a sum."""
    x0, x1 = normal(5, 3, 1), normal(5, 3, 2)
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)

    def v(x, s):
        return x.sin() * (1 + s[:, None])

    printed = 0
    for i in range(5):
        x_t = t[i] * x1[i] + (1 - t[i]) * x0[i]
        printed += ((x1[i] - x0[i]) - x_t.sin() * (1 + t[i])).square().sum() / 15
    assert flow.flow_loss(v, x1, x0, t).item() == pytest.approx(printed.item(), rel=1e-12)


def test_flow_loss_is_least_at_the_true_velocity():
    """Data N(m, s²): the mean of x_1 − x_0 given x_t is m + (t s² − (1 − t)) / (t² s² + (1 − t)²) · (x − t m)."""
    m, sd = 1.5, 0.3
    x1, x0 = m + sd * normal(200_000, 1, 3), normal(200_000, 1, 4)
    t = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def best(x, s, slope=1.0):
        s = s[:, None]
        return m + slope * (s * sd**2 - (1 - s)) / (s**2 * sd**2 + (1 - s) ** 2) * (x - s * m)

    least = flow.flow_loss(best, x1, x0, t)
    for slope in (0.95, 1.05):
        assert flow.flow_loss(lambda x, s, slope=slope: best(x, s, slope), x1, x0, t) > least


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_euler_against_its_closed_form(steps):
    a, b = affine_map(steps)
    z = normal(7, 2)
    torch.testing.assert_close(flow.euler(affine, z, steps), a * z + b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("velocity", [affine, turning])
def test_3e8_round_trip(velocity):
    """T(T⁻¹(x)) = x, and the stronger T⁻¹(T(z)) = z for known z."""
    x = 3 * normal(50, 2)
    z, residual = flow.invert(velocity, x, 20, tolerance=1e-15)
    assert (flow.euler(velocity, z, 20) - x).abs().max() < 5e-15  # measured 1.8e-15, 2.7e-15
    assert residual.shape == (50,) and residual.max() <= 1e-15
    known = normal(50, 2, 1)
    back, _ = flow.invert(velocity, flow.euler(velocity, known, 20), 20, tolerance=1e-15)
    assert (back - known).abs().max() < 5e-15


def test_3e8_other_inverses_are_far_off():
    """The round trip rules out Euler run backwards explicitly (0.020 here), and the times of the right ends (0.038)."""
    x = torch.linspace(0, 3, 61, dtype=torch.float64)[:, None]

    def round_trip(z, velocity):
        return (flow.euler(velocity, z, 20) - x).abs().max().item()

    z = x
    for _ in range(20):
        z = z - affine(z, None) / 20
    assert 0.01 < round_trip(z, affine) < 0.03
    z = x
    for j in reversed(range(20)):
        z, _ = flow.inverse_step(turning, z, (j + 1) / 20, 1 / 20, 40, 1e-15)
    assert 0.03 < round_trip(z, turning) < 0.05


def test_3e9_inverse_noise_has_the_closed_form():
    """Data N(1.5, 0.3²): T gives N(0.831, 0.667²); the inverse noise is N(1.002, 0.449²) = N((m − B)/A, (s/A)²)."""
    a, b = affine_map(20)
    assert (round(b, 3), round(a, 4)) == (0.831, 0.6676)
    assert ((1.5 - b) / a, 0.3 / a) == pytest.approx((1.002, 0.449), abs=5e-4)
    x = 1.5 + 0.3 * normal(20_000)
    z, _ = flow.inverse_noise(affine, x, 20, tolerance=1e-12)
    torch.testing.assert_close(z, (x - b) / a, rtol=0, atol=1e-11)


def test_3e9_the_corrector_mends_mean_and_spread():
    """Without 0.831 and 0.667; with a trained corrector 1.50 and 0.30 up to its fit (measured 1.495, 0.293)."""
    z, _ = flow.inverse_noise(affine, 1.5 + 0.3 * normal(4000), 20, tolerance=1e-12)
    torch.manual_seed(0)
    corrector = flow.VectorFlow(1, 32, 2)
    flow.fit(corrector, z.float(), 500, 2e-2, 256, 0)
    e = normal(20_000, 1, 9).float()
    plain, mended = flow.sample(affine, e, 20), flow.sample(affine, e, 20, corrector, 100)
    assert (plain.mean().item(), plain.std().item()) == pytest.approx((0.831, 0.667), abs=0.02)
    assert mended.mean().item() == pytest.approx(1.5, abs=0.02)
    assert mended.std().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("steps", "mean", "spread"), [(20, 1.5, 0.3), (10, 1.5042, 0.2988), (5, 1.5128, 0.2962)])
def test_3e9_a_corrector_belongs_to_its_number_of_steps(steps, mean, spread):
    """Of T_n′(T_20⁻¹(data)) the means and, for exactly N(1.5, 0.3²), the spreads; round trips only for n′ = 20."""
    a, b = affine_map(20)
    a_other, b_other = affine_map(steps)
    assert a_other * (1.5 - b) / a + b_other == pytest.approx(mean, abs=5e-5)
    assert a_other * 0.3 / a == pytest.approx(spread, abs=5e-5)
    x = 1.5 + 0.3 * normal(500)
    z, _ = flow.inverse_noise(affine, x, 20, tolerance=1e-12)
    error = (flow.euler(affine, z, steps) - x).abs().max().item()
    assert error < 1e-10 if steps == 20 else error > 0.004


def test_3e10_contraction():
    """v = L x, 40 iterations from x = 2.4: residual 1e-12 at h·L = 0.5; at 1.5 it grows to 4e7, and that is refused."""
    x = torch.full((3, 1), 2.4, dtype=torch.float64)
    y, residual = flow.inverse_step(lambda y, s: 0.5 * y, x, 0.0, 1.0, 41, 0.0)
    assert 1e-13 < residual.max() < 1e-11
    torch.testing.assert_close(y, x / 1.5, rtol=1e-11, atol=0)
    _, residual = flow.inverse_step(lambda y, s: 1.5 * y, x, 0.0, 1.0, 41, 0.0)
    assert 3e7 < residual.max() < 5e7
    with pytest.raises(UserError, match=r"does not contract at Euler step 1 of 1: .* 3 of 3 .*more Euler steps"):
        flow.invert(lambda y, s: 1.5 * y, x, 1)
    z, _ = flow.invert(lambda y, s: 1.5 * y, x, 3)  # with h = 1/3 it contracts
    torch.testing.assert_close(flow.euler(lambda y, s: 1.5 * y, z, 3), x, rtol=1e-4, atol=0)


def test_one_sample_that_does_not_contract_is_enough_to_refuse():
    x = torch.tensor([[0.1], [0.2], [5.0]], dtype=torch.float64)
    with pytest.raises(UserError, match="1 of 3 residuals"):
        flow.invert(lambda y, s: y**2, x, 1)
    with pytest.raises(UserError, match="does not contract"):
        flow.invert(lambda y, s: y * math.nan, x, 1)


def test_a_share_may_be_lost_but_is_never_kept():
    x = torch.tensor([[0.1], [0.2], [5.0]], dtype=torch.float64)
    z, residual = flow.inverse_noise(lambda y, s: y**2, x, 1, lost=0.4)
    assert len(z) == len(residual) == 2 and residual.max() <= 1e-4
    torch.testing.assert_close(z + z**2, x[:2], rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="1 of 3"):
        flow.inverse_noise(lambda y, s: y**2, x, 1, lost=0.3)
    with pytest.raises(UserError):
        flow.inverse_noise(lambda y, s: y * math.nan, x, 1, lost=0.5)


def gaussian_kl(m0, c0, m1, c1):
    """KL(N(m0, c0) ‖ N(m1, c1)) in nats, written out."""
    d = m1 - m0
    logs = torch.logdet(c1) - torch.logdet(c0)
    return 0.5 * (torch.trace(torch.linalg.solve(c1, c0)) + d @ torch.linalg.solve(c1, d) - len(d) + logs)


def test_3e11_the_divergence_stays_what_it_is():
    """KL(P ‖ T#q) = KL(T⁻¹#P ‖ q) for the affine T of `euler` in two dimensions and Gaussian P and q."""
    matrix = torch.tensor([[-0.4, 0.7], [-0.2, 0.3]], dtype=torch.float64)

    def velocity(x, s):
        return x @ matrix.T + torch.tensor([1.0, -0.5], dtype=torch.float64)

    b = flow.euler(velocity, torch.zeros(1, 2, dtype=torch.float64), 12)[0]
    a = (flow.euler(velocity, torch.eye(2, dtype=torch.float64), 12) - b).T
    m, c = torch.tensor([1.5, -1.0]).double(), torch.tensor([[0.3, 0.1], [0.1, 0.2]]).double()
    m_q, c_q = torch.tensor([0.2, 0.1]).double(), torch.tensor([[1.1, -0.2], [-0.2, 0.9]]).double()
    inverse, _ = flow.invert(velocity, torch.stack([m, *(m + torch.eye(2).double())]), 12, tolerance=1e-15)
    a_back = (inverse[1:] - inverse[0]).T
    left = gaussian_kl(m, c, a @ m_q + b, a @ c_q @ a.T)
    right = gaussian_kl(inverse[0], a_back @ c @ a_back.T, m_q, c_q)
    assert left.item() == pytest.approx(right.item(), rel=1e-10)


def test_correction_leaves_the_flow_alone_and_counts():
    """n_c evaluations of the corrector, then n of the flow, at falling distance from the data and at left ends."""
    calls = []

    def count(name):
        def velocity(x, s):
            calls.append((name, round(s[0].item(), 4)))
            return torch.zeros_like(x)

        return velocity

    flow.sample(count("flow"), torch.zeros(2, 3), 4, count("corrector"), 2)
    assert calls == [("corrector", 0.0), ("corrector", 0.5)] + [("flow", s) for s in (0.0, 0.25, 0.5, 0.75)]


def test_fit_learns_a_two_dimensional_gaussian_and_repeats_itself():
    data = torch.tensor([1.0, -0.5]) + normal(2000, 2).float() * torch.tensor([0.5, 0.2])
    flows = []
    for _ in range(2):
        torch.manual_seed(0)
        flows.append(flow.VectorFlow(2, 32, 2))
        losses = flow.fit(flows[-1], data, 300, 1e-2, 256, 0)
    assert all(torch.equal(a, b) for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True))
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    out = flow.sample(flows[0], normal(4000, 2, 3).float(), 40)
    assert out.mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.06)
    assert out.std(0).tolist() == pytest.approx([0.5, 0.2], abs=0.06)


def test_latent_flow_is_float32_time_aware_and_starts_at_zero():
    torch.manual_seed(0)
    network = flow.LatentFlow((16, 32))
    x, s = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.5, 1.0])
    assert network(x, s).abs().max() == 0
    torch.nn.init.normal_(network.unet.conv_out.weight)
    assert (network(x, s) - network(x, 1 - s)).abs()[0].max() > 0.01
    assert network(x[:, :, :5, :7], s).shape == (3, 4, 5, 7)


def options(**changes):
    return FlowOptions(**changes)


class TestCommand:
    def train(self, folder, **changes):
        settings = {"pictures": 8, "inverted": 6, "steps": 3, "euler_steps": 4, "out": str(folder), "train": True}
        flow.train_or_draw(options(**settings | changes))

    def test_train_then_draw(self, tmp_path, capsys):
        self.train(tmp_path / "run", inverted=100)  # of 8
        names = ["corrector.safetensors", "flow.safetensors", "samples.png"]
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == names
        assert "8 of 8 drawings inverted: largest residual" in capsys.readouterr().out
        flow.train_or_draw(options(flow=str(tmp_path / "run"), out=str(tmp_path / "f.png")))
        assert "4 Euler steps" in capsys.readouterr().out
        with pytest.raises(UserError, match="exists: name another"):
            flow.train_or_draw(options(flow=str(tmp_path / "run"), out=str(tmp_path / "f.png")))

    def test_a_flow_that_does_not_contract_is_kept(self, tmp_path, monkeypatch, capsys):
        """The minutes of its training are not lost, and no corrector of another flow stays beside it."""
        run = tmp_path / "run"
        flow.save_flow(run / "corrector.safetensors", flow.LatentFlow((16, 32)), {})
        with monkeypatch.context() as patch:
            patch.setattr(flow, "inverse_step", lambda v, x, *rest: (x, torch.full((len(x),), torch.inf)))
            message = r"does not contract.*the flow is in .*run: --train --flow .* --overwrite goes on"
            with pytest.raises(UserError, match=message):
                self.train(run, overwrite=True)
        assert [p.name for p in run.iterdir()] == ["flow.safetensors"]
        kept = load_file(run / "flow.safetensors")
        self.train(run, flow=str(run), euler_steps=5, overwrite=True)
        again = load_file(run / "flow.safetensors")
        assert again.keys() == kept.keys() and all(torch.equal(again[name], kept[name]) for name in kept)
        assert "5 Euler steps" in capsys.readouterr().out and flow.bundled_or_own(run)[2] == 5

    def test_where_the_result_goes(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        flow.train_or_draw(options())
        self.train(tmp_path, out=None)
        assert (tmp_path / "flow.png").is_file() and (tmp_path / "runs" / "flow" / "flow.safetensors").is_file()

    def test_latents_are_those_of_the_drawings(self):
        """As pictures / 127.5 − 1, drawn from the seed in one stream."""
        sd, rng, generator = StableDiffusion.load("tiny"), np.random.default_rng(3), torch.Generator().manual_seed(3)
        pictures = np.stack([world.draw(world.random_scene(rng)) for _ in range(3)])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert torch.equal(flow.world_latents(sd, 3, 3), sd.encode_pictures(images, generator))

    def test_mistakes_are_told(self, tmp_path):
        with pytest.raises(UserError, match="no such file"):
            flow.train_or_draw(options(flow=str(tmp_path), out=str(tmp_path / "f.png")))
        with pytest.raises(UserError, match="must end with .png"):
            flow.train_or_draw(options(out=str(tmp_path / "f.jpg")))
        for name, value in {"pictures": 9, "inverted": 9, "euler_steps": 9, "steps": 9, "lr": 0.5}.items():
            with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is for training: leave it out, or add"):
                flow.train_or_draw(options(**{name: value}, out=str(tmp_path / "f.png")))
        flow.save_flow(tmp_path / "flow.safetensors", flow.LatentFlow((16, 32)), {})
        with pytest.raises(UserError, match="is not a flow with"):
            flow.train_or_draw(options(flow=str(tmp_path), out=str(tmp_path / "f.png")))


def test_the_bundled_flow_is_small_and_its_corrector_helps():
    """Energy distance to 128 fresh drawings' latents, from the same noise: 0.118 without, 0.079 with it."""
    assert sum(path.stat().st_size for path in flow.BUNDLED.iterdir()) <= 8e6
    main, corrector, steps = flow.bundled_or_own(None)
    real = flow.world_latents(StableDiffusion.load("tiny"), 128, 77).flatten(1)
    e = torch.randn(128, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    distances = []
    for z_of in (None, corrector):
        drawn = flow.sample(main, e, steps, z_of).flatten(1)
        within = [torch.cdist(x, x).sum() / (128 * 127) for x in (drawn, real)]
        distances.append((2 * torch.cdist(drawn, real).mean() - sum(within)).item())
    assert steps == 10 and distances[1] < 0.8 * distances[0]


def test_the_experiment_inverts_each_flow_for_itself(tmp_path):
    """Inverse noises of one flow are not another's."""
    files = []
    for content in (b"a", b"b", b"a"):
        (tmp_path / "flow").write_bytes(content)
        options = SimpleNamespace(flow=tmp_path / "flow", work=tmp_path, euler_steps=10, inverted=8, tests=4)
        files.append(inverse_noise_trainings.kept_noises(options))
    assert files[0] == files[2] != files[1]


def test_the_experiments_figure_is_made_of_its_table():
    """A panel for each data set; a distance that its deviation takes below 0 has no lower end on the log axis."""
    rows = [
        {"what": "flow", "n": n, "FLOPs": n * 1e6, "distance": 0.1 / n + seed, "seed": seed}
        for n in (5, 10) for seed in (0.0, 0.5)
    ]
    table = inverse_noise_report.table([*rows, {"what": "refused", "n": 5}, {"what": "real", "distance": 0.0}])
    described = [(row["what"], row["n"], row["seeds"]) for row in table]
    assert described == [("flow", 5, 2), ("flow", 10, 2), ("real", None, 1)]
    assert table[0]["distance"] == pytest.approx(0.27) and table[0]["±"] == pytest.approx(0.5 / 2**0.5)
    assert inverse_noise_report.curves({"ring": table, "world": table}).size == (880, 300)
