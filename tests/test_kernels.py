"""The Triton kernels against float64 autograd with the same ε, on a GPU or else in Triton's interpreter."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.checkpoint import checkpoint

triton = pytest.importorskip("triton")
from minibnn_kernels import bayes_linear as kernels  # noqa: E402
from minibnn_kernels import reference  # noqa: E402
from minibnn_kernels.bayes_linear import bayes_linear  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = torch.tensor([987654321987], device=DEVICE)
PATHS = ("fused", "mixed", "sample", "reference")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the largest value; measured a third


class PoisonedTorch:
    """torch, but `empty` gives memory that holds NaN, as does the memory around it."""

    AROUND = 4096  # elements

    def __init__(self):
        self.memories = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, **kwargs):
        size = torch.empty(*shape, device="meta").shape
        memory = torch.empty(size.numel() + 2 * self.AROUND, **kwargs).fill_(float("nan"))
        self.memories.append(memory)
        return memory[self.AROUND : self.AROUND + size.numel()].view(size)


@pytest.fixture
def poisoned(monkeypatch):
    """What a kernel forgets to write, and what it writes beside its result, shows."""
    monkeypatch.setattr(kernels, "torch", PoisonedTorch())
    yield
    around = PoisonedTorch.AROUND
    for memory in kernels.torch.memories:
        assert memory[:around].isnan().all() and memory[-around:].isnan().all(), "written outside"


def test_a_kernel_starts_on_the_gpu_of_its_tensors(monkeypatch):
    """Triton takes the current device, which may be another one: each launch must happen within `device_of`."""
    inside, launched = [], []

    @contextlib.contextmanager
    def device_of(tensor):
        inside.append(tensor)
        yield
        inside.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **_: launched.append((len(inside), inside[-1] is arguments[1]))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setitem(kernels.TILES, kernel := Kernel(), (0, 32, 64, 4))
    kernels._launch(kernel, torch.float16, {"BN": 5, "BK": 7}, None, torch.zeros(5, 7), SEED)
    assert launched == [(1, True)] and not inside
    kernels._launch(kernel, torch.float16, {"BN": 0, "BK": 7}, None, torch.zeros(0, 7), SEED)
    assert len(launched) == 1


# --- the random stream ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers for philox4x32-10 (kat_vectors)
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert reference.philox(counter, key) == words


def test_box_muller_against_float64():
    words = torch.arange(0, 2**32, 2**32 // 40000)
    angle = words.flip(0)
    a, b = reference.box_muller(words, angle)
    u = ((words >> 9).double() + 0.5) * 2.0**-23
    phi = (angle >> 30).double() * np.pi / 2 + ((((angle >> 7) & 0x7FFFFF).double() + 0.5) * 2.0**-23 - 0.5) * np.pi / 2
    r = torch.sqrt(-2 * u.log())
    assert (a - r * phi.cos()).abs().max() < 1.5e-6 and (b - r * phi.sin()).abs().max() < 1.5e-6


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("shape", "domain"),
    [((1, 1), "weight"), ((33, 70), "weight"), ((64, 128), "weight"), ((7, 3), "weight"), ((9, 5, 3, 3), "weight"),
     ((37,), "bias")],
)
def test_theta_equals_the_reference_to_the_last_bit(dtype, shape, domain):
    mu, sigma = torch.randn(shape, device=DEVICE), torch.rand(shape, device=DEVICE)
    theta = kernels.sample_weights(mu, sigma, SEED, 3, dtype, domain)
    assert torch.equal(theta.cpu(), reference.sample_weights(mu.cpu(), sigma.cpu(), SEED, 3, domain).to(dtype))
    noise = kernels.sample_weights(None, sigma, SEED, 3, torch.float32, domain).cpu()  # as dσ is made
    eps = reference.epsilon(SEED, 3, shape[0], noise[0].numel(), domain).reshape(shape)
    assert torch.equal(noise, sigma.cpu() * eps)


def screen(eps):
    """Smallest p-value of tests of normality and independence of an (n, k) matrix of supposed standard normals."""
    flat, n = eps.flatten(), eps.size
    moments = [flat.mean() * n**0.5, (np.mean(flat**2) - 1) * (n / 2) ** 0.5, np.mean(flat**3) * (n / 15) ** 0.5,
               (np.mean(flat**4) - 3) * (n / 96) ** 0.5]
    lags = [np.mean(flat[lag:] * flat[:-lag]) * n**0.5 for lag in (1, 2, 3, 4, 5, 8, 16, eps.shape[1])]
    squares = [np.mean((flat[lag:] ** 2 - 1) * (flat[:-lag] ** 2 - 1)) / 2 * n**0.5 for lag in (1, 2, 3, 4)]
    sums = [stats.kstest(eps.sum(axis) / eps.shape[axis] ** 0.5, "norm").pvalue for axis in (0, 1)]
    z = np.array([*moments, *lags, *squares])
    return min(*(2 * stats.norm.sf(np.abs(z))), *sums, stats.kstest(flat, "norm").pvalue)


def test_epsilon_passes_screening():
    sources = ((0, 0), (1, 0), (2**40, 7))
    matrices = [reference.epsilon(seed, stream, 200, 512).double().numpy() for seed, stream in sources]
    values = [screen(m) for m in matrices]
    for other in matrices[1:]:  # seeds and streams are independent
        values.append(screen((matrices[0] + other) / 2**0.5))
    values.append(screen(np.stack([reference.epsilon(s, 0, 1, 512)[0].numpy() for s in range(200)]).astype(float)))
    assert min(values) > 1e-3 / 20


@pytest.mark.parametrize(
    "spoil",
    [lambda e: e * 1.02, lambda e: np.repeat(e[:, ::2], 2, axis=1), lambda e: e + 0.05 * np.roll(e, 1, 1), np.tanh],
    ids=["scale", "doubled columns", "correlation", "light tails"],
)
def test_screening_sees_faults(spoil):
    """The negative control."""
    assert screen(spoil(reference.epsilon(0, 0, 400, 512).double().numpy())) < 1e-6


def test_domains_streams_rows_and_seeds_differ():
    base = reference.epsilon(5, 1, 8, 8)
    for other in (reference.epsilon(5, 2, 8, 8), reference.epsilon(6, 1, 8, 8), reference.epsilon(5, 1, 8, 8, "bias"),
                  reference.epsilon(5 + 2**32, 1, 8, 8)):
        assert not torch.isclose(base, other).any()
    assert torch.equal(base[:3, :5], reference.epsilon(5, 1, 3, 5))  # an element does not depend on the shape


# --- forward and gradients --------------------------------------------------------------------------------------------


def inputs(m, n, k, dtype, bias=True):
    generator = torch.Generator().manual_seed(m + n + k)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, mu, sigma = draw(m, k).to(dtype), draw(n, k) / k**0.5, draw(n, k).abs() * 0.1
    parts = (x, mu, sigma, draw(n), draw(n).abs()) if bias else (x, mu, sigma)
    return [p.to(DEVICE).requires_grad_() for p in parts]


def exact(parts, dy, stream=5):
    """y and all gradients in float64."""
    x, mu, sigma, *bias = (p.detach().double().cpu().requires_grad_() for p in parts)
    y = x @ (mu + sigma * reference.epsilon(SEED, stream, *mu.shape).double()).T
    if bias:
        y = y + bias[0] + bias[1] * reference.epsilon(SEED, stream, len(mu), 1, "bias")[:, 0].double()
    return [y, *torch.autograd.grad(y, (x, mu, sigma, *bias), dy.double().cpu())]


def computed(parts, dy, **settings):
    y = bayes_linear(*parts, seed=SEED, stream=5, **settings)
    return [y, *torch.autograd.grad(y, parts, dy.to(y.dtype))]


def errors(got, expected):
    """Largest deviation of each, of the largest value. A NaN would hide from max() and <: nothing may be one."""
    assert all(torch.isfinite(a).all() for a in got), "not all of the result was written"
    return [((a.double().cpu() - b).abs().max() / b.abs().max()).item() for a, b in zip(got, expected, strict=True)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*itertools.product([(5, 33, 70), (1, 1, 1), (70, 65, 36)], TOLERANCE), ((3, 130, 5), torch.float32)],
)
def test_forward_and_every_gradient(path, dtype, shape):
    parts = inputs(*shape, dtype)
    dy = torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)
    worst = errors(computed(parts, dy, path=path), exact(parts, dy))
    assert max(worst) < TOLERANCE[dtype], worst


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("path", PATHS)
def test_without_bias(path):
    parts, dy = inputs(6, 10, 20, torch.float32, bias=False), torch.randn(6, 10, device=DEVICE)
    assert max(errors(computed(parts, dy, path=path), exact(parts, dy))) < 2e-6


@pytest.mark.usefixtures("poisoned")
def test_the_result_does_not_depend_on_tiles(monkeypatch):
    parts, dy = inputs(20, 40, 24, torch.float32), torch.randn(20, 40, device=DEVICE)
    before = computed(parts, dy, path="fused")
    small = {kernel: (16, 32, 16, 4) if bm else (0, 16, 16, 4) for kernel, (bm, *_) in kernels.TILES.items()}
    monkeypatch.setattr(kernels, "TILES_FLOAT32", small)
    after = computed(parts, dy, path="fused")
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("path", ["fused", "sample"])
def test_the_same_inputs_give_the_same_bits_and_another_seed_others(path):
    parts, dy = inputs(20, 30, 40, torch.float32), torch.randn(20, 30, device=DEVICE)
    a, b = computed(parts, dy, path=path), computed(parts, dy, path=path)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    other = bayes_linear(*parts, seed=SEED + 1, stream=5, path=path)
    assert not torch.isclose(a[0], other).all()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("path", PATHS)
def test_leading_dimensions_empty_and_strided_inputs(path):
    _, mu, sigma, *bias = inputs(1, 12, 8, torch.float32)
    settings = {"seed": SEED, "stream": 5, "path": path}
    x = torch.randn(3, 8, 5, device=DEVICE).transpose(1, 2)  # (3, 5, 8), not contiguous
    y = bayes_linear(x, mu, sigma, *bias, **settings)
    assert y.shape == (3, 5, 12)
    torch.testing.assert_close(y[2, 3], bayes_linear(x[2, 3], mu, sigma, *bias, **settings), rtol=1e-5, atol=1e-6)
    strided = [torch.stack([p, -p], -1)[..., 0] for p in (mu, sigma, *bias)]
    torch.testing.assert_close(y, bayes_linear(x, *strided, **settings), rtol=0, atol=0)
    empty = torch.zeros(0, 8, device=DEVICE, requires_grad=True)
    out = bayes_linear(empty, mu, sigma, *bias, **settings)
    assert out.shape == (0, 12)
    gradients = torch.autograd.grad(out.sum(), (empty, mu, sigma, *bias))
    assert gradients[0].shape == (0, 8) and all((g == 0).all() for g in gradients[1:])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(4, 3, 0), (4, 0, 3), (0, 0, 0)])
def test_layers_without_inputs_or_outputs(path, shape):
    """As nn.Linear(0, 3), which returns its bias, and nn.Linear(3, 0)."""
    parts, dy = inputs(*shape, torch.float32), torch.randn(shape[0], shape[1], device=DEVICE)
    for got, wanted in zip(computed(parts, dy, path=path), exact(parts, dy), strict=True):
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=1e-5, atol=1e-5)


# --- the mistakes that must not pass ----------------------------------------------------------------------------------

MISTAKES = {
    "ε not regenerated identically": lambda y, dx, dmu, ds, e: (y, dx, dmu, dmu * e.roll(1, 1)),
    "transposed σ": lambda y, dx, dmu, ds, e: (y, dx, dmu, ds.mT.reshape(ds.shape)),
    "dσ without ε": lambda y, dx, dmu, ds, e: (y, dx, dmu, dmu),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tolerances_see(mistake):
    parts, dy = inputs(20, 24, 16, torch.bfloat16, bias=False), torch.randn(20, 24, device=DEVICE).bfloat16()
    got = computed(parts, dy, path="reference")
    wrong = MISTAKES[mistake](*got, reference.epsilon(SEED, 5, 24, 16, device=DEVICE))
    assert max(errors(wrong, exact(parts, dy))) > 10 * TOLERANCE[torch.bfloat16]


def test_tolerances_see_one_bias_noise_for_all_outputs(monkeypatch):
    parts, dy = inputs(20, 24, 16, torch.float32), torch.randn(20, 24, device=DEVICE)
    expected, original = exact(parts, dy), reference.epsilon

    def wrong(seed, stream, n, k, domain="weight", device="cpu"):
        rows = 1 if domain == "bias" else n
        return original(seed, stream, rows, k, domain, device).expand(n, k)

    monkeypatch.setattr(reference, "epsilon", wrong)
    assert max(errors(computed(parts, dy, path="reference"), expected)) > 0.01


def test_tolerances_see_a_wrong_tail_mask():
    """Columns beyond K would be read from the next row."""
    parts, dy = inputs(20, 24, 18, torch.float32, bias=False), torch.randn(20, 24, device=DEVICE)
    x, mu, sigma = (torch.cat([p.detach(), p.detach().roll(-1, 0)[:, :2]], 1) for p in parts)
    y = x @ (mu + sigma * reference.epsilon(SEED, 5, 24, 20, device=DEVICE)).T
    assert errors([y], exact(parts, dy)[:1])[0] > 0.01


# --- in PyTorch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_opcheck(path):
    x, mu, sigma, bias_mu, bias_sigma = inputs(5, 6, 8, torch.float32)
    arguments = (x, mu, sigma, bias_mu, bias_sigma, SEED, 2, path)
    torch.library.opcheck(torch.ops.minibnn.bayes_linear.default, arguments)


def test_compiles_into_one_graph():
    parts = inputs(5, 6, 8, torch.float32)

    def squared(*parameters):
        return bayes_linear(*parameters, seed=SEED, stream=5, path="sample").square()

    compiled = torch.compile(squared, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*parts), squared(*parts))
    compiled(*parts).sum().backward()
    assert parts[2].grad.abs().sum() > 0


def test_autocast_chooses_the_compute_dtype_and_masters_stay_float32():
    parts = inputs(5, 6, 8, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = bayes_linear(*parts, seed=SEED, stream=5)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in parts)


@pytest.mark.parametrize("path", PATHS)
def test_an_explicit_compute_dtype_holds_under_autocast(path):
    parts = inputs(5, 6, 8, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = bayes_linear(*parts, seed=SEED, stream=5, compute_dtype=torch.float32, path=path)
        gradients = torch.autograd.grad(y.square().sum(), parts)  # autocast is on around backward, too
    plain = bayes_linear(*parts, seed=SEED, stream=5, path=path)
    assert torch.equal(y, plain) and y.dtype == torch.float32
    for a, b in zip(gradients, torch.autograd.grad(plain.square().sum(), parts), strict=True):
        assert torch.equal(a, b)


def test_auto_multiplies_float32_in_the_library():
    """tl.dot in full float32 has no tensor cores."""
    for capability in ((8, 0), (9, 0)):
        assert kernels.choose_path(64, 1280, 1280, capability, torch.float32) == "sample"
        assert kernels.choose_path(64, 1280, 1280, capability, torch.bfloat16) == "mixed"
    assert kernels.choose_path(64, 1280, 0, (9, 0)) == "reference"


def test_checkpointing_sees_the_same_epsilon():
    parts, gradients = inputs(5, 6, 8, torch.float32), []
    for recompute in (False, True):
        def layer(*p):
            return bayes_linear(*p, seed=SEED, stream=5, path="sample").square()

        out = checkpoint(layer, *parts, use_reentrant=False) if recompute else layer(*parts)
        gradients.append(torch.autograd.grad(out.sum(), parts))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_of_the_weights_size_is_saved_but_mu_and_sigma(path):
    parts, saved = inputs(3, 40, 50, torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        bayes_linear(*parts, seed=SEED, path=path)
    large = [t.data_ptr() for t in saved if t.numel() >= 2000]
    assert sorted(large) == sorted(p.data_ptr() for p in parts[1:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 9)}, r"with x \(2, 9\): mu must be \(6, 9\) .*, not \(6, 8\)"),
        ({"sigma": torch.zeros(8, 6)}, r"sigma must be \(6, 8\) .*, not \(8, 6\)"),
        ({"bias_mu": torch.zeros(5)}, r"bias_mu must be \(6,\) .*, not \(5,\)"),
        ({"bias_mu": None}, "both bias_mu and bias_sigma, or neither"),
        ({"mu": torch.zeros(6, 8).half()}, r"mu must be .* torch.float32 .*, not .* torch.float16"),
        ({"mu": torch.zeros(6, 8, device="meta")}, r"mu must be .* on (cpu|cuda:0), not .* on meta"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, r"seed must be \(1,\) torch.int64 .*, not \(2,\)"),
        ({"seed": torch.zeros(1)}, "seed must be .* torch.int64 .*, not .* torch.float32"),
        ({"compute_dtype": torch.float64}, "compute_dtype torch.float64 must be one of"),
        ({"path": "fast"}, "path 'fast' one of .*'auto', 'fused'"),
    ],
)
def test_mistakes_are_named(change, message):
    x, mu, sigma, bias_mu, bias_sigma = inputs(2, 6, 8, torch.float32)
    arguments = {"x": x, "mu": mu, "sigma": sigma, "bias_mu": bias_mu, "bias_sigma": bias_sigma, "seed": SEED}
    for key, value in change.items():
        here = torch.is_tensor(value) and value.device.type != "meta"
        arguments[key] = value.to(DEVICE) if here else value
    with pytest.raises(ValueError, match=message):
        bayes_linear(**arguments)
