"""Sampling computes the prompt's keys and values once, and draws the same pictures as when each step computes them."""

import numpy as np
import pytest
import torch

from minibnn import StableDiffusion, sample, schedule
from minibnn.networks.transformer import TransformerBlock, same_prompt
from minibnn.pictures import to_pil


@pytest.fixture(scope="module")
def sd(micro):
    return StableDiffusion.load(micro)


@pytest.fixture
def counted(sd):
    """How often cross-attention has computed keys, as a list of one number for each layer."""
    calls, layers = [], [block.attn2 for block in sd.unet.modules() if isinstance(block, TransformerBlock)]
    handles = [layer.to_k.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    yield lambda: len(calls) / len(layers)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def by_steps(sd, prompts, guidance):
    """Pictures by the public `guided_eps`, each with its own keys and values in each step."""
    context, empty = sd.encode_prompts(prompts), sd.encode_prompts([""]).expand(len(prompts), -1, -1)
    x = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(3))
    latents = [
        schedule.sample_ddim(
            lambda x, t, i=i: sd.guided_eps(x, t, context[i : i + 1], empty[i : i + 1], guidance),
            x[i : i + 1], schedule.timesteps(3), sd.alphas_cumprod,
        )
        for i in range(len(prompts))
    ]
    return [picture for each in latents for picture in to_pil(sd.decode_latents(each))]


@pytest.mark.parametrize("guidance", [1, 3.0])
def test_each_group_of_pictures_computes_them_once(sd, counted, guidance):
    prompts = ["a red car on the beach", "a blue dog", "a house in the snow"]
    expected = by_steps(sd, prompts, guidance)
    assert counted() == 9
    pictures = sd.generate(prompts, steps=3, guidance=guidance, seed=3, batch_size=1, progress=False)
    assert counted() == 9 + 3, "once for each of three groups"
    for a, b in zip(pictures, expected, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert all(block.attn2.kept is None for block in sd.unet.modules() if isinstance(block, TransformerBlock))


def test_nothing_is_kept_after_an_error_or_outside(sd, counted):
    with pytest.raises(KeyboardInterrupt), same_prompt(sd.unet):
        raise KeyboardInterrupt
    context = sd.encode_prompts(["a dog"])
    with torch.no_grad():
        for _ in range(2):
            sample.guided_eps(sd, torch.zeros(1, 4, 8, 8), 7, context, context, 1)
    assert counted() == 2


@torch.no_grad()
def test_another_prompt_within_has_its_own(sd):
    x, t = torch.ones(1, 4, 8, 8), torch.tensor([7])
    first, second = (sd.encode_prompts([prompt]) for prompt in ("a red car on the beach", "a blue dog"))
    expected = sd.unet(x, t, second)
    with same_prompt(sd.unet):
        assert not torch.equal(sd.unet(x, t, first), expected)
        assert torch.equal(sd.unet(x, t, second), expected)
