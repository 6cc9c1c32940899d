"""Training with the kernels: reference and Triton give the same run, also on several ranks and in a CUDA graph."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("triton")
from minibnn_kernels import reference
from minibnn_kernels.bayes_linear import bayes_linear

from minibnn.finetune import bayes
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Net(nn.Module):
    """Three linear layers, all random; the middle one has no bias."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 20), nn.Linear(20, 20, bias=False), nn.Linear(20, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


def bayesian_net(kernel, device="cpu", sigma=0.1):
    torch.manual_seed(0)
    net = Net()
    noise = bayes.bayesianize(net, "all", sigma, kernel)
    return net.to(device), noise


def losses(kernel, dtype, steps=6):
    """Regression on a fixed batch, by Adam."""
    net, noise = bayesian_net(kernel, DEVICE)
    optimiser, generator = torch.optim.Adam(net.parameters(), 0.03), torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=generator).to(DEVICE)
    target, values = torch.stack([x.prod(1), x.sum(1), x[:, 0]], 1), []
    for _ in range(steps):
        noise.renew(generator, DEVICE)
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            y = net(x)
        loss = (y.float() - target).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        bayes.clamp_sigma(net)
        values.append(loss.item())
    return torch.tensor(values)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_reference_and_kernel_give_the_same_losses(dtype, tolerance):
    expected = losses("reference", dtype)
    torch.testing.assert_close(losses("triton", dtype), expected, rtol=tolerance, atol=0)
    assert expected[-3:].mean() < 0.8 * expected[:3].mean()  # it learns
    if dtype == torch.float32:  # other noise would be seen
        assert (losses("torch", dtype) / expected - 1).abs().max() > 10 * tolerance


# --- several processes ------------------------------------------------------------------------------------------------


def rank_main(rank, store, out):
    """One process of two: its own batch and its own seed; leaves what the test compares."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    net, noise = bayesian_net("triton")
    parallel = DistributedDataParallel(net)
    generator = torch.Generator().manual_seed(100 + rank)
    noise.renew(generator)
    x = torch.randn(4, 6, generator=generator)
    parallel(x).square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    torch.save({"seed": noise.seed, "x": x, "gradients": gradients}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_under_ddp_every_rank_draws_its_own_weights_and_gradients_agree(tmp_path):
    mp.spawn(rank_main, (tmp_path / "store", tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert ranks[0]["seed"] != ranks[1]["seed"]
    eps = [reference.epsilon(rank["seed"], 0, 20, 6) for rank in ranks]
    assert not torch.isclose(*eps).any()
    alone = []
    for rank in ranks:
        net, noise = bayesian_net("reference")
        noise.seed = rank["seed"]
        net(rank["x"]).square().sum().backward()
        alone.append({name: p.grad for name, p in net.named_parameters()})
    assert len(alone[0]) == 10
    for name in alone[0]:
        torch.testing.assert_close(ranks[0]["gradients"][name], ranks[1]["gradients"][name], rtol=0, atol=0)
        mean = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(ranks[0]["gradients"][name], mean, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(alone[0][name], mean, rtol=1e-2)  # the ranks did differ


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("path", ["fused", "sample"])
def test_in_a_cuda_graph_a_new_seed_draws_new_weights(path):
    """Captured once, replayed with another seed in the same memory: nothing in the step waits for the CPU."""
    generator = torch.Generator().manual_seed(0)
    shapes = (70, 48), (40, 48), (40, 48), (40,), (40,)
    parameters = [torch.randn(*shape, generator=generator).cuda().requires_grad_() for shape in shapes]

    def step(seed):
        y = bayes_linear(*parameters, seed=seed, stream=1, path=path)
        return [y, *torch.autograd.grad(y.square().sum(), parameters)]

    seed = torch.tensor([11], device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels and warms the library's memory up
        for _ in range(3):
            step(seed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(seed)
    first = None
    for value in (11, 12):
        seed.fill_(value)
        graph.replay()
        for a, b in zip(captured, step(torch.tensor([value], device="cuda")), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert first is None or not torch.isclose(captured[0], first).all()
        first = captured[0].clone()


@pytest.mark.gpu
@needs_gpu
def test_the_command_trains_alike_with_reference_and_kernel(tmp_path, dog):
    from minibnn.cli.train import fine_tune

    runs = {}
    for kernel in ("reference", "triton", None):
        out = tmp_path / str(kernel)
        words = ["--images", str(dog), "--out", str(out), "--steps", "5", "--samples", "0", "--prior-weight", "0",
                 "--dtype", "float32", "--device", "cuda", *(["--kernel", kernel] if kernel else [])]
        fine_tune(parse(TrainOptions, "minibnn.train", words))
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        runs[kernel] = torch.tensor([line["diffusion"] for line in lines])
        assert json.loads((out / "config.json").read_text())["options"]["kernel"] == (kernel or "triton")
    torch.testing.assert_close(runs["triton"], runs["reference"], rtol=1e-3, atol=0)
    assert torch.equal(runs["triton"], runs[None])
