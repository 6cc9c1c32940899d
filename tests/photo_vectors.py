"""The oracle of the photo measures: `python tests/photo_vectors.py` writes tests/data/photo.json.

It was made with lpips 0.1.4, piq 0.8.0, torchvision 0.28.0 and torch 2.13.0 on a CPU. The tests need none of the first
three, because they make weights and pictures by the same rule. piq's own function fetches RN50; here its network is
built from tensors of our own.
"""

import json
from pathlib import Path

import numpy as np
import torch
from fill_rule import fill, normal
from PIL import Image

PATH = Path(__file__).parent / "data" / "photo.json"
SIZES = ((64, 64), (93, 70), (130, 257))  # width × height; each twice
BLOCKS, WIDTH, OUT, TEXT, LAYERS = (1, 2, 1, 1), 8, 24, 128, 2  # of the small CLIP ResNet and its text encoder
IDS = ((49406, 886, 1125, 269, 49407), (49406, 2103, 1125, 269, 49407))  # "Good photo." and "Bad photo."


def pictures():
    """Six PIL pictures of odd sizes, with smooth colours and some noise."""
    made = []
    for i, (width, height) in enumerate(SIZES * 2):
        coarse = Image.fromarray((128 + 60 * normal(f"coarse {i}", (5, 4, 3))).clip(0, 255).astype(np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        noise = (5 + 5 * i) * normal(f"noise {i}", (height, width, 3))
        made.append(Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)))
    return made


def tensor(name, shape):
    """`fill`, but positive where it must be: for variances and for the weights of Lpips' linear layers."""
    values = torch.from_numpy(fill(name, shape))
    if name.endswith("running_var"):
        return 1 + values.abs()
    return values.abs() if name.startswith("lin") else values


def alexnet_tensors():
    """({torchvision's name: tensor}, {lpips' name of a linear layer: tensor})."""
    convolutions = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    trunk, linear = {}, {}
    for i, (out, channels, side) in convolutions.items():
        trunk |= {f"features.{i}.weight": (out, channels, side, side), f"features.{i}.bias": (out,)}
        linear[f"lin{len(linear)}.model.1.weight"] = (1, out, 1, 1)
    return tuple({name: tensor(name, shape) for name, shape in shapes.items()} for shapes in (trunk, linear))


def clip_tensors():
    """A small CLIP ResNet and its text encoder, under OpenAI's names, rounded to half precision as by piq."""
    shapes = {"logit_scale": (), "text_projection": (TEXT, OUT), "positional_embedding": (77, TEXT)}
    shapes |= {"token_embedding.weight": (49408, TEXT), "ln_final.weight": (TEXT,), "ln_final.bias": (TEXT,)}
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}."
        shapes |= {block + "attn.in_proj_weight": (3 * TEXT, TEXT), block + "attn.in_proj_bias": (3 * TEXT,)}
        for name, (a, b) in {"attn.out_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}.items():
            shapes |= {f"{block}{name}.weight": (a * TEXT, b * TEXT), f"{block}{name}.bias": (a * TEXT,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}{name}.weight": (TEXT,), f"{block}{name}.bias": (TEXT,)}

    def convolution(name, norm, out, channels, side):
        leaves = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (out,))
        leaves = {f"visual.{norm}.{leaf}": shape for leaf, shape in leaves.items()}
        return {f"visual.{name}.weight": (out, channels, side, side), **leaves}

    stem = ((WIDTH // 2, 3), (WIDTH // 2, WIDTH // 2), (WIDTH, WIDTH // 2))
    for i, (out, channels) in enumerate(stem, 1):
        shapes |= convolution(f"conv{i}", f"bn{i}", out, channels, 3)
    channels = WIDTH
    for level, count in enumerate(BLOCKS):
        planes = WIDTH * 2**level
        for i in range(count):
            block = f"layer{level + 1}.{i}."
            shapes |= convolution(block + "conv1", block + "bn1", planes, channels, 1)
            shapes |= convolution(block + "conv2", block + "bn2", planes, planes, 3)
            shapes |= convolution(block + "conv3", block + "bn3", 4 * planes, planes, 1)
            if i == 0:
                shapes |= convolution(block + "downsample.0", block + "downsample.1", 4 * planes, channels, 1)
            channels = 4 * planes
    shapes["visual.attnpool.positional_embedding"] = (5, channels)  # of 64 × 64 pixels; Clip-IQA leaves it out
    for name, out in {"q_proj": channels, "k_proj": channels, "v_proj": channels, "c_proj": OUT}.items():
        shapes |= {f"visual.attnpool.{name}.weight": (out, channels), f"visual.attnpool.{name}.bias": (out,)}
    tensors = {name: tensor(name, shape).half().float() for name, shape in shapes.items()}
    return tensors | {"logit_scale": torch.tensor(3.0)}


def main():
    import lpips
    from piq.feature_extractors import clip
    from torchvision import transforms

    trunk, linear = alexnet_tensors()
    distance = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    renamed = {}
    for piece, i in enumerate((0, 3, 6, 8, 10), 1):  # lpips cuts AlexNet into slices, but keeps the numbers
        renamed |= {f"net.slice{piece}.{i}.{leaf}": trunk[f"features.{i}.{leaf}"] for leaf in ("weight", "bias")}
    missing = distance.load_state_dict(renamed | linear, strict=False).missing_keys
    assert not [name for name in missing if not name.startswith(("scaling_layer", "lins."))], missing
    steps = (transforms.Resize((512, 512)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3))
    prepare = transforms.Compose(steps)
    inputs = [prepare(picture)[None] for picture in pictures()]

    model = clip.build_model(clip_tensors()).float().eval()
    with torch.no_grad():
        table = [[distance(a, b).item() for b in inputs] for a in inputs]
        ids = torch.zeros(2, 77, dtype=torch.long)
        ids[:, :5] = torch.tensor(IDS)
        anchors = torch.nn.functional.normalize(model.encode_text(ids), dim=-1)
        mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
        std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
        features, quality = [], []
        for picture in pictures():  # as piq.CLIPIQA's forward
            feature = model.encode_image((transforms.ToTensor()(picture)[None] - mean) / std, pos_embedding=False)
            features.append(torch.nn.functional.normalize(feature, dim=-1))
            quality.append((model.logit_scale.exp() * features[-1] @ anchors.T).softmax(-1)[0, 0].item())
    features = torch.cat(features).tolist()
    vectors = {"lpips": table, "anchors": anchors.tolist(), "features": features, "quality": quality}
    PATH.write_text(json.dumps(vectors) + "\n")
    print(np.round(table, 4), np.round(quality, 4), (anchors[0] @ anchors[1]).item())


if __name__ == "__main__":
    main()
