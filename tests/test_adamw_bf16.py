"""AdamW with moments in bfloat16: its rounding, its step against torch's in float64, and a run that is resumed."""

import pytest
import torch

from minibnn import UserError, runs
from minibnn.cli.train import fine_tune
from minibnn.files.weights import read_tensors, write_tensors
from minibnn.finetune import adamw_bf16
from minibnn.finetune.adamw_bf16 import AdamWBfloat16, stochastic_bfloat16
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions

SHAPES = [(3, 5), (7,), (0, 4), (2, 3, 3, 3), (1,)]


def test_rounding_takes_one_of_two_neighbours_and_is_right_on_average():
    generator, draws = torch.Generator().manual_seed(0), 40_000
    values = torch.tensor([1.001, -1.001, 3e-9, -2.7e20, 0.3333, 1 + 2**-15])
    drawn = stochastic_bfloat16(values.repeat(draws, 1), generator)
    assert drawn.dtype == torch.bfloat16
    down = (values.view(torch.int32) & -(2**16)).view(torch.float32)
    step = ((values.view(torch.int32) & -(2**16)) + 2**16).view(torch.float32) - down
    share = (values - down) / step  # of the draws that go away from zero
    up = drawn.float() == (down + step)
    assert (up | (drawn.float() == down)).all() and up.any(0).all() and not up.all(0).any()
    error = (share * (1 - share) / draws).sqrt()
    assert ((up.float().mean(0) - share).abs() < 5 * error).all()


def test_what_needs_no_rounding_stays():
    values = torch.tensor([0.0, 1.0, -1.5, 2.0**-126, float("inf"), -float("inf")])
    drawn = stochastic_bfloat16(values.repeat(1000, 1), torch.Generator().manual_seed(0))
    assert torch.equal(drawn.float(), values.repeat(1000, 1))
    assert stochastic_bfloat16(torch.tensor([float("nan")]), torch.Generator().manual_seed(0)).isnan().all()


@pytest.mark.parametrize("chunk", [10, 2**24])
@pytest.mark.parametrize("before", [0, 6])
def test_a_step_is_torchs_but_for_the_rounding_of_what_is_kept(monkeypatch, chunk, before):
    """From the same state, in float64 there; two groups of another decay, and a parameter without a gradient."""
    monkeypatch.setattr(adamw_bf16, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in (*SHAPES, (4,))]
    theirs = [p.detach().double().requires_grad_() for p in ours]
    settings = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}

    def groups(parameters):
        first, second = parameters[:2], parameters[2:]
        return [{"params": first, "weight_decay": 0.1}, {"params": second, "weight_decay": 0.0}]

    a, b = AdamWBfloat16(groups(ours), seed=3, **settings), torch.optim.AdamW(groups(theirs), **settings)
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        mine.grad = torch.randn(mine.shape, generator=generator)
        other.grad = mine.grad.double()
        if before:
            mean = torch.randn(mine.shape, generator=generator).bfloat16()
            square = torch.rand(mine.shape, generator=generator).bfloat16()
            a.state[mine] = {"step": torch.tensor(float(before)), "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
            state = {"exp_avg": mean.double(), "exp_avg_sq": square.double()}
            b.state[other] = {"step": torch.tensor(float(before)), **state}
    a.step()
    b.step()
    for mine, other in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-6, atol=1e-7)
        for key in ("exp_avg", "exp_avg_sq"):
            kept, exact = a.state[mine][key], b.state[other][key]
            assert kept.dtype == torch.bfloat16
            assert ((kept.double() - exact).abs() <= 2**-7 * exact.abs() + 1e-12).all()
        assert a.state[mine]["step"] == before + 1
    assert not a.state[ours[-1]] and torch.equal(ours[-1].double(), theirs[-1])


@pytest.mark.parametrize("nearest", [False, True])
def test_the_second_moment_forgets_at_its_rate(monkeypatch, nearest):
    """Without gradients it falls by a thousandth a step: rounded to the nearest it would stand still."""
    if nearest:
        monkeypatch.setattr(adamw_bf16, "stochastic_bfloat16", lambda x, generator: x.bfloat16())
    p = torch.zeros(4000, requires_grad=True)
    optimiser = AdamWBfloat16([p], 0.0)
    p.grad = torch.zeros(4000)
    optimiser.step()
    optimiser.state[p]["exp_avg_sq"].fill_(1.0)
    for _ in range(300):
        optimiser.step()
    mean = optimiser.state[p]["exp_avg_sq"].float().mean().item()
    assert mean == pytest.approx(1.0 if nearest else 0.999**300, rel=0.01)


def options(dog, micro, out, *more):
    words = ["--images", str(dog), "--model", str(micro), "--out", str(out), "--samples", "0", "--prior-weight", "0"]
    return parse(TrainOptions, "train", [*words, "--optimiser", "adamw-bf16", "--lr", "0.01", *more])


def test_a_run_resumes_bit_for_bit(dog, micro, tmp_path):
    fine_tune(options(dog, micro, tmp_path / "whole", "--steps", "4"))
    fine_tune(options(dog, micro, tmp_path / "parts", "--steps", "2"))
    fine_tune(parse(TrainOptions, "train", ["--resume", "--out", str(tmp_path / "parts"), "--steps", "4"]))
    whole, parts = (read_tensors(tmp_path / name / runs.STATE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    kinds = {name.partition("/")[0]: tensor.dtype for name, tensor in whole.items()}
    narrow = torch.bfloat16
    assert kinds == {"weight": torch.float32, "step": torch.float32, "exp_avg": narrow, "exp_avg_sq": narrow}


def test_another_optimisers_state_is_refused(dog, micro, tmp_path):
    out = tmp_path / "run"
    fine_tune(options(dog, micro, out, "--steps", "1", "--method", "lora"))
    again = ["--resume", "--out", str(out), "--steps", "2"]
    with pytest.raises(UserError, match="--optimiser is 'adamw' but the run .* has 'adamw-bf16'"):
        fine_tune(parse(TrainOptions, "train", [*again, "--optimiser", "adamw"]))
    tensors = read_tensors(out / runs.STATE)
    header = {"completed_steps": "1", "scaler": "{}"}
    write_tensors(out / runs.STATE, {name: tensor.float() for name, tensor in tensors.items()}, header)
    with pytest.raises(UserError, match="exp_avg.* cannot be a state of the optimiser"):
        fine_tune(parse(TrainOptions, "train", again))
