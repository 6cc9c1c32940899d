"""--compile: the same training and pictures as without it, from one graph; refused where there is no compiler."""

import pytest
import torch
from torch_versions import needs_one_order

from minibnn import StableDiffusion, UserError, devices, runs
from minibnn.cli.sample import sample
from minibnn.cli.train import fine_tune
from minibnn.files.layouts import check_config
from minibnn.files.weights import read_tensors
from minibnn.networks.unet import UNet, UNetConfig
from minibnn.options.parsing import parse
from minibnn.options.results import SampleOptions
from minibnn.options.running import explain
from minibnn.options.training import TrainOptions


class Counting:
    """A backend of torch.compile that traces the network and compiles nothing; it counts the graphs and their calls.

    name: "eager" calls the traced forward; "aot_eager" traces backward, too.
    """

    def __init__(self):
        self.name, self.graphs, self.called = "eager", 0, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        compiled = torch._dynamo.lookup_backend(self.name)(graph, inputs)

        def count(*tensors):
            self.called += 1
            return compiled(*tensors)

        return count


@pytest.fixture
def backend(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(devices, "COMPILER", counting := Counting())
    monkeypatch.setattr(devices, "check_compiler", lambda _: None)
    for module in ("settle", "sample"):
        monkeypatch.setattr(f"minibnn.cli.{module}.check_compiler", lambda _: None)
    yield counting
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model whose UNet has one level, so that it is quickly traced."""
    sd = StableDiffusion.load("tiny")
    sd.configs["unet"] |= {
        "block_out_channels": [16], "norm_num_groups": 8, "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
    }
    torch.manual_seed(0)
    sd.unet = UNet(check_config(UNetConfig, sd.configs["unet"], "UNet"))
    folder = tmp_path_factory.mktemp("small") / "model"
    sd.save(folder)
    return folder


@pytest.fixture
def train(dog, model, tmp_path):
    """train("--steps", 2, …, out="run") -> the tensors of the checkpoint of a training into tmp_path/run."""

    def run(*words, out="run"):
        common = ["--images", dog, "--model", model, "--samples", 0, "--prior-weight", 0, "--no-monitor"]
        words = map(str, [*common, "--lr", 1e-2, "--out", tmp_path / out, *words])
        fine_tune(parse(TrainOptions, "train", [*words]))
        return read_tensors(tmp_path / out / runs.STATE)

    return run


def assert_equal(states, others):
    assert states.keys() == others.keys()
    assert not [name for name in states if not torch.equal(states[name], others[name])]


@needs_one_order
def test_a_compiled_training_is_the_same_training(backend, train):
    """Without kernels of its own it computes the same bits, forward and backward, by one graph for all steps."""
    backend.name = "aot_eager"
    words = ("--steps", 3, "--ema", "0.9", "--dtype", "bfloat16", "--gradient-checkpointing")
    plain = train(*words)
    assert backend.graphs == 0
    compiled = train(*words, "--compile", out="compiled")
    assert (backend.graphs, backend.called) == (1, 3)
    assert_equal(compiled, plain)


def test_a_compiled_run_resumes_bit_for_bit_and_compiled_unless_the_options_say_otherwise(backend, train, tmp_path):
    words = ("--method", "oft", "--layers", "to_q")
    whole = train("--steps", 2, *words, out="whole")
    train("--steps", 1, *words, "--compile")
    resumed = ["--resume", "--out", str(tmp_path / "run"), "--steps"]
    fine_tune(parse(TrainOptions, "train", [*resumed, "2"]))
    assert backend.called == 2
    assert_equal(read_tensors(tmp_path / "run" / runs.STATE), whole)
    fine_tune(parse(TrainOptions, "train", [*resumed, "3", "--no-compile"]))
    assert backend.called == 2


@needs_one_order
def test_a_teacher_beneath_an_adapter_changes_nothing_in_the_graph(backend, train):
    """Between two calls of the graph the network has computed without its adapters, uncompiled."""
    backend.name = "aot_eager"
    words = ("--steps", 3, "--method", "lora", "--prior-weight", 1, "--prior-target", "pretrained", "--class-count", 2)
    plain = train(*words)
    compiled = train(*words, "--compile", out="compiled")
    assert (backend.graphs, backend.called) == (1, 3)
    assert_equal(compiled, plain)


def test_compiled_pictures_are_the_same(backend, model, tmp_path):
    def draw(*words):
        common = ["--model", str(model), "--prompt", "a red car", "--count", "2", "--steps", "3"]
        out = ["--out", str(tmp_path / "a.png"), "--overwrite"]
        return [picture.tobytes() for picture in sample(parse(SampleOptions, "sample", [*common, *out, *words]))]

    plain = draw()
    assert backend.graphs == 0 and len(set(plain)) == 2
    assert draw("--compile") == plain
    assert (backend.graphs, backend.called) == (1, 3)  # and not a graph for each step


def test_without_a_compiler_it_is_refused_in_one_line_and_leaves_no_folder(train, tmp_path, monkeypatch):
    torch._dynamo.reset()
    without = torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True})
    with without, pytest.raises(UserError, match="--compile: torch.compile does not work .*.*--no-compile") as e:
        train("--steps", 1, "--compile")
    torch._dynamo.reset()
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_several_processes_are_refused(train, tmp_path, monkeypatch):
    monkeypatch.setattr("minibnn.distributed.world", lambda: 2)
    with pytest.raises(UserError, match="--compile works in one process; with torchrun say --no-compile"):
        train("--steps", 1, "--compile")
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_compiled_is_one_line():
    def failing(graph, inputs):
        raise ValueError("no such kernel")

    torch._dynamo.reset()
    with pytest.raises(Exception, match="no such kernel") as caught:
        torch.compile(torch.sin, backend=failing)(torch.ones(3))
    assert explain(caught.value).startswith("torch.compile fails here (")
    assert explain(caught.value).endswith("go on with --no-compile")
