# %% [markdown]
# # 10 · The kernel: sample the weights, then multiply
#
# **Question.** A Bayesian layer needs as many random numbers as it has weights, in every forward pass. Written in
# PyTorch, this moves more memory than the multiplication itself. Can the noise be made where it is used, never stored,
# and still be the *same* noise when the gradient needs it?
#
# ![Left: predicted time of one layer against rows; making the noise again for every tile of rows grows fastest.
# Right: predicted time of all layers against batch size; unfused is slowest, θ written once lies below, with the fused
# gradient lower still, and no noise lowest.](figures/10_cost.png)
#
# *What a cost model expects of SD v1.5's 96 random layers on an H200 (a prediction: it has not been measured). You will
# write the kernels behind three of the curves.*
#
# **Afterwards you can** read a Triton kernel, make random numbers that are a function of their place, test a kernel
# without a GPU, and say which mistakes a test must see.
#
# You need: tutorial 04, matrix multiplication by blocks. No GPU: Triton's *interpreter* runs kernels on a CPU, slowly.
# About 80 minutes, 60 of them for the exercises. Symbols: [NOTATION.md](NOTATION.md).

# %%
import os

import matplotlib.pyplot as plt
import torch

from minibnn import __version__

# %%
os.environ["TRITON_INTERPRET"] = "1"  # must stand before triton is imported

import triton
import triton.language as tl
from checks import show
from checks.the_kernel import (
    check_box_muller,
    check_forward_kernel,
    check_gradient_kernel,
    check_philox_round,
    check_theta_kernel,
)
from minibnn_kernels import reference
from minibnn_kernels.bayes_linear import choose_path
from minibnn_kernels.philox import normal_tile

print("minibnn", __version__, "· torch", torch.__version__, "· triton", triton.__version__)

# %% [markdown]
# ## The idea
#
# The layer of tutorial 04, and its gradients for $\partial L/\partial y$ given as `dy`:
#
# $$\theta=\mu+\sigma\circ\epsilon,\qquad y=x\,\theta^\top,\qquad
# d\mu=dy^\top x,\qquad d\sigma=d\mu\circ\epsilon,\qquad dx=dy\,\theta$$
#
# PyTorch runs this as a chain of operations, each of which reads its inputs from the GPU's memory and writes its result
# back: the noise is written, read, multiplied, written, read, added, written, read. That is about 40 bytes for every
# weight, at a time when the multiplication proper needs 2. And $\epsilon$ and $\theta$ are kept until the backward
# pass.
#
# A **kernel** of our own does the whole chain in one pass: it loads a tile of $\mu$ and $\sigma$, makes the tile's
# $\epsilon$ *in registers*, multiplies, and forgets both. For the backward pass nobody kept $\epsilon$, so it must be
# made again, bit by bit the same, by another kernel that cuts the matrix into other tiles. An ordinary generator cannot
# do that: its numbers come one after another, and the thousandth needs the 999 before it. We need a **counter-based**
# generator, a function
#
# $$\epsilon[n,k]=f(\text{seed},\ \text{layer},\ n,\ k)$$
#
# ## From a loop over rows to tiles
#
# A matrix product is a loop over rows and columns. A GPU wants it in blocks: each *program* owns one tile of the result
# and walks over the inner dimension, so that a loaded number is used many times.

# %%
def multiply_by_tiles(x, theta, block=16):
    """x θᵀ, tile by tile; x (M, K), θ (N, K). A slice ends at the border by itself; a kernel needs a mask."""
    y = torch.zeros(len(x), len(theta))
    for m0 in range(0, len(x), block):
        for n0 in range(0, len(theta), block):  # on a GPU, one program for each (m0, n0), all at the same time
            for k0 in range(0, x.shape[1], block):  # the loop inside the program
                tile = x[m0 : m0 + block, k0 : k0 + block] @ theta[n0 : n0 + block, k0 : k0 + block].T
                y[m0 : m0 + block, n0 : n0 + block] += tile
    return y


x, theta = torch.randn(20, 36), torch.randn(18, 36)
print("largest difference from x @ theta.T:", (multiply_by_tiles(x, theta) - x @ theta.T).abs().max().item())

# %% [markdown]
# ## Exercise 1 · one round of Philox (10 minutes, medium)
#
# Philox4x32-10 (Salmon et al. 2011) turns four 32-bit *counter* words under a key of two words into four random words.
# One round: with $(h_0,l_0)$ the high and low 32 bits of $c_0\cdot\mathtt{0xD2511F53}$ and $(h_1,l_1)$ those of
# $c_2\cdot\mathtt{0xCD9E8D57}$, the new words are
#
# $$(h_1\oplus c_1\oplus k_0,\quad l_1,\quad h_0\oplus c_3\oplus k_1,\quad l_0)$$
#
# Ten rounds, the key growing by a constant after each, pass all tests of randomness. Python's integers do not overflow:
# shift for the high half, `& 0xFFFFFFFF` for the low one, `^` for $\oplus$.

# %%
def philox_round(counter, key):
    """One round on Python integers: four words and two -> four words."""
    # --- exercise 1: two products, halves crosswise
    c0, c1, c2, c3 = counter
    p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
    return (p1 >> 32) ^ c1 ^ key[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ key[1], p0 & 0xFFFFFFFF
    # --- end


check_philox_round(philox_round)

# %%
words, key = (0, 0, 0, 0), (0, 0)
for _ in range(10):
    words = philox_round(words, key)
    key = (key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF
print("ten rounds on zeros:", [hex(word) for word in words], "· the inventors' known answer begins 0x6627e8d5")

# %% [markdown]
# ## Exercise 2 · from uniform to normal (5 minutes, easy)
#
# Box and Muller: for uniform $u, v$ in $(0,1)$, the point at radius $r=\sqrt{-2\ln u}$ and angle $2\pi v$ has two
# independent standard normal coordinates. (A pair of normals has a uniform angle, and half of its squared radius is
# exponentially distributed.)

# %%
def box_muller(u, v):
    """Two independent standard normals from two uniform numbers; tensors of one shape."""
    # --- exercise 2: radius and angle
    r = (-2 * u.log()).sqrt()
    return r * (2 * torch.pi * v).cos(), r * (2 * torch.pi * v).sin()
    # --- end


check_box_muller(box_muller)

# %% [markdown]
# With the counter $(\lfloor k/4\rfloor, n, \text{layer}, \text{weight or bias})$ and the seed as key, four words give
# the four $\epsilon$ of columns $4j,\dots,4j+3$ of row $n$: `kernels/reference.py:epsilon`. An element does not know
# how large its matrix is:

# %%
print("rows 2-3, columns 4-7 of a large matrix:\n", reference.epsilon(7, 0, 100, 100)[2:4, 4:8])
print("the same of a small one:\n", reference.epsilon(7, 0, 4, 8)[2:4, 4:8])

# %% [markdown]
# ## Exercise 3 · your first kernel: a tile of θ (15 minutes, medium)
#
# A kernel is a function that all programs run at the same time, each with its own `tl.program_id`. It gets *pointers*:
# `mu` is the address of $\mu[0,0]$, and since rows lie one after another, $\mu[n,k]$ lies at `mu + n * K + k`. With `n`
# a column of row numbers and `k` a row of column numbers, that expression is a whole tile of addresses, which `tl.load`
# fetches at once.
#
# The tail: tiles have fixed sizes (powers of 2), matrices do not. What lies outside must be **masked**, when loading
# (`other=0.0` takes its place) and when storing. Without the mask, column $K$ of row $n$ *is* column 0 of row $n+1$.
#
# `normal_tile(seed, 0, 0, n0, k0, BN, BK)` makes the tile of $\epsilon$ whose corner is `(n0, k0)`, for layer 0 and
# weights (0).

# %%
@triton.jit
def theta_kernel(mu, sigma, seed, theta, N, K, BN: tl.constexpr, BK: tl.constexpr):
    """θ = μ + σ∘ε for all matrices (N, K); program (i, j) writes the tile at row i·BN, column j·BK."""
    # --- exercise 3: addresses, mask, load, store
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = n0 + tl.arange(0, BN)[:, None], k0 + tl.arange(0, BK)[None, :]
    where, inside = n * K + k, (n < N) & (k < K)
    noise = tl.load(sigma + where, mask=inside, other=0.0) * normal_tile(seed, 0, 0, n0, k0, BN, BK)
    tl.store(theta + where, tl.load(mu + where, mask=inside, other=0.0) + noise, mask=inside)
    # --- end


check_theta_kernel(theta_kernel)

# %% [markdown]
# Does the result depend on the tiles? It must not, or the backward pass, which cuts differently, would see other
# weights.

# %%
mu, sigma, seed = torch.randn(50, 70), torch.rand(50, 70), torch.tensor([2024])
for block_n, block_k in ((16, 16), (32, 8), (8, 64)):
    theta = torch.empty(50, 70)
    grid = triton.cdiv(50, block_n), triton.cdiv(70, block_k)
    theta_kernel[grid](mu, sigma, seed, theta, 50, 70, block_n, block_k, enable_fp_fusion=False)
    same = torch.equal(theta, reference.sample_weights(mu, sigma, seed, 0))
    print(f"tiles {block_n:2} × {block_k:2}: equal to the reference in every bit: {same}")

# %% [markdown]
# ## Exercise 4 · forward (15 minutes, hard)
#
# Now the multiplication, as in `multiply_by_tiles`, with a θ that exists for one tile at a time. `load_tile` is what
# you wrote above. `tl.dot` multiplies two tiles (on a GPU, on the tensor cores), `tl.trans` transposes one. On a GPU
# the tensor cores would round float32 inputs to 10 bits of mantissa (TF32) before they multiply;
# `tl.dot(a, b, input_precision="ieee")` keeps all 23. The check compares to five digits, so ask for it.

# %%
@triton.jit
def load_tile(matrix, row0, column0, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of a matrix (R, C), 0 outside it."""
    r, c = row0 + tl.arange(0, ROWS)[:, None], column0 + tl.arange(0, COLUMNS)[None, :]
    return tl.load(matrix + r * C + c, mask=(r < R) & (c < C), other=0.0)


@triton.jit
def store_tile(matrix, tile, row0, column0, R, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write a tile, nothing outside the matrix."""
    r, c = row0 + tl.arange(0, ROWS)[:, None], column0 + tl.arange(0, COLUMNS)[None, :]
    tl.store(matrix + r * C + c, tile, mask=(r < R) & (c < C))


@triton.jit
def forward_kernel(x, mu, sigma, seed, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y = x (μ + σ∘ε)ᵀ; x (M, K), μ and σ (N, K); program (i, j) writes the tile of y at row i·BM, column j·BN."""
    m0, n0 = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    # --- exercise 4: walk over k; make a tile of θ, multiply, forget it
    for k0 in range(0, K, BK):
        eps = normal_tile(seed, 0, 0, n0, k0, BN, BK)
        theta = load_tile(mu, n0, k0, N, K, BN, BK) + load_tile(sigma, n0, k0, N, K, BN, BK) * eps
        acc += tl.dot(load_tile(x, m0, k0, M, K, BM, BK), tl.trans(theta), input_precision="ieee")
    # --- end
    store_tile(y, acc, m0, n0, M, N, BM, BN)


check_forward_kernel(forward_kernel)

# %% [markdown]
# ## Exercise 5 · backward (15 minutes, hard)
#
# $d\mu=dy^\top x$ is a matrix product over the rows $m$, and $d\sigma=d\mu\circ\epsilon$. The program that owns a tile
# of $d\mu$ has it in registers at the end of its loop: it makes the tile's $\epsilon$ once more, multiplies, and stores
# both. Each $\epsilon$ is made once.

# %%
@triton.jit
def gradient_kernel(dy, x, seed, dmu, dsigma, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """dμ and dσ (N, K) from dy (M, N) and x (M, K); program (i, j) writes the tiles at row i·BN, column j·BK."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    acc = tl.zeros((BN, BK), tl.float32)
    # --- exercise 5: walk over m, then ε again
    for m0 in range(0, M, BM):
        dy_tile, x_tile = load_tile(dy, m0, n0, M, N, BM, BN), load_tile(x, m0, k0, M, K, BM, BK)
        acc += tl.dot(tl.trans(dy_tile), x_tile, input_precision="ieee")
    store_tile(dmu, acc, n0, k0, N, K, BN, BK)
    store_tile(dsigma, acc * normal_tile(seed, 0, 0, n0, k0, BN, BK), n0, k0, N, K, BN, BK)
    # --- end


check_gradient_kernel(gradient_kernel)

# %% [markdown]
# ## The same in minibnn
#
# Your lines are `kernels/philox.py:philox`, `kernels/philox.py:box_muller`, `kernels/bayes_linear.py:sample_kernel`,
# `kernels/bayes_linear.py:forward_kernel` and `kernels/bayes_linear.py:wgrad_kernel`. There, logarithm, sine and cosine
# are polynomials in a fixed order of roundings, so that a CPU and a GPU make the same bits; 16-bit dtypes and biases
# are served; and the kernels stand behind one differentiable function, `kernels/bayes_linear.py:bayes_linear`, which
# `minibnn/finetune/bayes.py:BayesLinear` calls. Where memory allows, training draws the weights of all layers in *one*
# launch before the forward pass, `kernels/network.py:draw_kernel`: your exercise 3 with a table that tells each program
# which tile of which tensor is its own. To the last bit it is the same noise.

# %% [markdown]
# ## Experiment 1: what if backward had other noise?
#
# A fast kernel with a wrong $\epsilon$ in its backward pass runs without any error message. We draw
# $\theta=\mu+\sigma\circ\epsilon$, minimise $\frac12\Vert\theta-\theta^*\Vert^2$, and follow $\sigma$. The right
# gradient is $d\sigma=(\theta-\theta^*)\circ\epsilon$, on average $\sigma$: noise only does harm here, so $\sigma$
# should go to 0.

# %%
def sigma_over_time(backward_stream, steps=300, lr=0.02):
    """Mean σ after each step, when backward makes its ε from `backward_stream`; forward's is stream 0."""
    mu, sigma, target, means = torch.zeros(20, 20), torch.full((20, 20), 0.5), torch.ones(20, 20), []
    for step in range(steps):
        d_theta = mu + sigma * reference.epsilon(step, 0, 20, 20) - target
        d_sigma = d_theta * reference.epsilon(step, backward_stream, 20, 20) if backward_stream is not None else d_theta
        mu, sigma = mu - lr * d_theta, (sigma - lr * d_sigma).clamp(min=1e-7)
        means.append(sigma.mean().item())
    return means


figure, axis = plt.subplots(figsize=(6, 2.8))
for stream, label in ((0, "the same ε: right"), (1, "another ε in backward"), (None, "dσ without ε")):
    axis.plot(sigma_over_time(stream), label=label)
axis.set(xlabel="step", ylabel="mean σ")
axis.legend()
show(
    figure,
    "10_wrong_noise",
    "Mean sigma over 300 steps: with the same noise it falls to zero, with other noise it stays about where it was, "
    "without noise it rises.",
)

# %% [markdown]
# With another $\epsilon$ the gradient of $\sigma$ is zero on average: $\sigma$ wanders and learns nothing. Without
# $\epsilon$ it follows $\mu$'s gradient. $\mu$ is learned in all three, and so is the loss: **only a test that looks at
# $d\sigma$ itself sees it.** That is what `tests/test_kernels.py` does, against float64 autograd with the same
# $\epsilon$.
#
# ## Experiment 2: does fusing pay?
#
# The forward kernel makes the weights' noise again for *every* tile of rows. If $x$ has many rows, that is more work
# than writing $\theta$ once and multiplying with the library. A cost model says how much: each way is a list of GPU
# kernels, one after another. Each takes 2 µs to launch and the longest of three: its bytes over the memory's bandwidth,
# its multiplications over the matmul rate, its normal numbers over their rate. An operand passes once through memory.
# Our own kernels get only the share of the GPU that their programs fill: programs / multiprocessors, at most 1.

# %%
def cost(m, n, k, way):
    """Seconds of both passes of a layer, x (m, k) times a weight (n, k), in 16 bits; the parameters are float32."""
    bandwidth, matmul, processors = 4.3e12, 790e12, 132  # an H200's bytes and operations a second; its multiprocessors
    normal_rate = processors * 128 * 1.755e9 / 72  # lanes × clock / instructions for one bit-exact normal number
    w, xy, operations = n * k, 2 * m * (n + k), 2 * m * n * k  # weights, bytes of x and y, operations of one product
    rows, columns, depth = (-(-size // 64) for size in (m, n, k))  # tiles of 64
    # a kernel: (bytes, operations, normals, programs); those of the library fill the GPU
    cast, product = (6 * w, 0, 0, processors), (xy + 2 * w, operations, 0, processors)
    clamp, randn, two_inputs = (8 * w, 0, 0, processors), (4 * w, 0, w, processors), (12 * w, 0, 0, processors)
    write_theta, times_eps = (10 * w, 0, w, processors), (8 * w, 0, w, processors)  # ε made in registers
    forward, dx = ((xy + 8 * w, operations, rows * w, rows * tiles) for tiles in (columns, depth))
    gradient = (xy + 8 * w, operations, w, -(-n // 128) * depth)  # dμ and dσ, in tiles of 128 × 64
    kernels = {
        "plain": [cast, product] + [product, product, cast],
        "unfused": [clamp, randn, two_inputs, two_inputs, cast, product] + [product, product, cast, two_inputs],
        "sample": [write_theta, product] + [write_theta, product, product, cast, times_eps],
        "mixed": [write_theta, product] + [write_theta, product, gradient],
        "fused": [forward] + [dx, gradient],
    }[way]
    return sum(
        2e-6 + max(size / bandwidth, ops / matmul, normals / normal_rate) / min(1, programs / processors)
        for size, ops, normals, programs in kernels
    )


layers = []  # of SD v1.5's 16 attention blocks, by width and rows: m, n, k, how often
for c, tokens, blocks in ((320, 4096, 5), (640, 1024, 5), (1280, 256, 5), (1280, 64, 1)):
    layers += [(tokens, c, c, 4 * blocks), (tokens, 8 * c, c, blocks), (tokens, c, 4 * c, blocks)]

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
rows, batches = [64, 256, 1024, 4096, 16384], [1, 2, 4, 8]
names = {
    "unfused": "unfused (PyTorch)", "fused": "θ never written", "sample": "θ written once",
    "mixed": "… and fused gradient", "plain": "no noise at all",
}
for colour, (name, label) in enumerate(names.items()):
    axes[0].loglog(rows, [1e6 * cost(m, 10240, 1280, name) for m in rows], "o-", color=f"C{colour}", label=label)
    sums = [1e3 * sum(count * cost(b * m, n, k, name) for m, n, k, count in layers) for b in batches]
    print(f"{label:20}: all 96 layers at batch 1: {sums[0]:5.2f} ms, at batch 4: {sums[2]:5.2f} ms")
    if name != "fused":
        axes[1].plot(batches, sums, "o-", color=f"C{colour}")
axes[0].set(title="one layer, 1280 → 10240", xlabel="rows of x", ylabel="predicted µs, both passes")
axes[1].set(title="all 96 layers", xlabel="batch size", ylabel="predicted ms", ylim=(0, None))
axes[0].legend(fontsize=7)
figure.tight_layout()
show(
    figure,
    "10_cost",
    "Left: predicted time of one layer against rows; the fully fused way grows fastest. Right: predicted time of all "
    "layers against batch size; unfused is slowest, then theta written once, then with the fused gradient, then no "
    "noise.",
)

for b in (1, 4):
    best = sum(count * cost(b * m, n, k, choose_path(b * m, n, k, (9, 0))) for m, n, k, count in layers)
    print(f"choose_path's choice for each layer, batch {b}: {1e3 * best:.2f} ms")

# %% [markdown]
# The fully fused way is beautiful and, by this model, loses: a program owns 64 rows of $x$, and 64 rows are too few to
# hide the 72 instructions of a normal number, which every 64 rows make again. With few rows there are too few programs
# to fill the GPU. Writing $\theta$ once in 16 bits is cheap, and the fused *gradient*, which makes each $\epsilon$ once
# anyway, pays wherever the weight is large enough for many programs. `kernels/bayes_linear.py:choose_path` follows the
# model. The model may be wrong: it counts no latency, trusts the cache, and takes our own products for as fast as the
# library's. `python benchmarks/kernel.py` measures on your GPU; `kernels/RESULTS.md` says what is known.
#
# ## What fails, and why
#
# - **The interpreter is not a GPU.** It runs programs one after another: a race between programs, a missing
#   synchronisation, a shared memory that is too small are not seen. minibnn also *compiles* its kernels for GPUs that
#   are not there, and reads the machine code for spilled registers (`tests/compile_kernels.py`).
# - **bfloat16** in the interpreter is truncated where a GPU rounds to nearest; `kernels/bayes_linear.py:rounded` works
#   around it.
# - **Fused multiply-add.** `a * b + c` may be rounded once or twice. Let the compiler choose, and $\epsilon$ differs in
#   its last bit between forward and backward; hence `enable_fp_fusion=False`.
# - **A bias is not one more column with the same noise:** all rows' first columns would share their noise with it. It
#   has a domain of its own.
#
# ## Questions
#
# 1. Two layers of the same shape get the same seed and the same stream by mistake. Which of the three gradients is then
#    wrong, which test of one layer alone would notice, and what would you see in training?
# 2. The counter holds $\lfloor k/4\rfloor$ in 32 bits. How large may a matrix be before two elements share a random
#    number, and which of its two dimensions meets the limit first?
# 3. $d\sigma=d\mu\circ\epsilon$ needs $d\mu$ to be complete, summed over all rows. If two programs each sum half of the
#    rows and add their results in memory, what may each of them multiply by $\epsilon$, and what may it not?
#
# **An open problem.** The forward kernel makes each tile of noise again for every 64 rows. A program could instead keep
# a tile of $\theta$ in shared memory and walk over *all* rows. For which shapes does that beat writing $\theta$ once,
# by the cost model above, and which assumption of the model would you measure first?
#
# ## Summary
#
# | what | where |
# |---|---|
# | $\theta=\mu+\sigma\circ\epsilon$ and its gradients | the paper, App. C, eq. 14; tutorial 04 |
# | Philox4x32-10 | Salmon et al. 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*; `kernels/reference.py:philox` |
# | two uniforms to two normals | Box & Muller 1958; `kernels/reference.py:box_muller` |
# | tiles, masks, `tl.dot` | Tillet et al. 2019, *Triton*; `kernels/bayes_linear.py` |
# | what it takes | `python benchmarks/kernel.py`, on a GPU |
#
# Next: 11, where the random matrices are thin.
