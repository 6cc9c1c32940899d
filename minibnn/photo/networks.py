"""Networks that judge pictures and that transformers lacks: Lpips' AlexNet, Clip-IQA's ResNet-50, an aesthetic head.

Follows: Lpips 0.1 (Zhang et al. 2018; richzhang/PerceptualSimilarity) on torchvision's AlexNet, and CLIP's RN50
(Radford et al. 2021, §2.4; openai/CLIP) without position embeddings, so that it takes pictures of any size (Clip-IQA,
Wang et al. 2023), and LAION's aesthetic predictor v2 (christophschuhmann/improved-aesthetic-predictor). Attribute names
are the names in the official files. The packages that hold these networks (lpips, piq, pyiqa) need torchvision, whose
wheel on PyPI cannot be imported beside a CPU build of PyTorch.

But: only for measuring; no other backbones, no learned prompts (Clip-IQA+).

Shapes: B pictures, C channels, H × W pixels, h × w positions, D features.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ..networks.layers import attention

# --- Lpips ------------------------------------------------------------------------------------------------------------


class Lpips(nn.Module):
    """`lpips.distance(lpips(x), lpips(y))` compares pictures (B, 3, H, W) in [-1, 1]; it is 0 for equal ones."""

    MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet, in [-1, 1]

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )
        for i, channels in enumerate((64, 192, 384, 256, 256)):
            self.register_parameter(f"lin{i}", nn.Parameter(torch.empty(channels)))

    def forward(self, x):
        """The activations of the five layers, as unit vectors at each position: a list of (B, C, h, w)."""
        mean, deviation = (torch.tensor(values).to(x)[:, None, None] for values in (self.MEAN, self.DEVIATION))
        x, layers = (x - mean) / deviation, []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                layers.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return layers

    def distance(self, a, b):
        """d = Σ_l 1/(h w) Σ_hw ‖w_l ⊙ (a_l − b_l)‖²: (B,).   (Zhang et al. 2018, Eq. 1; the file holds w_l²)"""
        weights = [getattr(self, f"lin{i}") for i in range(len(a))]
        terms = zip(weights, a, b, strict=True)
        return sum(torch.einsum("c,bchw->bhw", w, (x - y).square()).mean((1, 2)) for w, x, y in terms)


# --- CLIP's ResNet and Clip-IQA ---------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """(B, C, H, W) -> (B, 4·planes, H/stride, W/stride). Average pools take the place of strided convolutions."""

    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = None
        if stride > 1 or channels != 4 * planes:
            convolution = nn.Conv2d(channels, 4 * planes, 1, bias=False)
            layers = {"-1": nn.AvgPool2d(stride), "0": convolution, "1": nn.BatchNorm2d(4 * planes)}
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.pool(F.relu(self.bn2(self.conv2(h))))
        return F.relu(self.bn3(self.conv3(h)) + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """(B, C, h, w) -> (B, D): the mean over the positions attends to itself and to all of them."""

    def __init__(self, channels, out, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.c_proj = nn.Linear(channels, channels), nn.Linear(channels, out)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, hw, C)
        mean = x.mean(1, keepdim=True)
        x = torch.cat([mean, x], 1)
        return self.c_proj(attention(self.q_proj(mean), self.k_proj(x), self.v_proj(x), self.heads)).squeeze(1)


class ClipResNet(nn.Module):
    """Pictures (B, 3, H, W), normalised for CLIP -> (B, D). blocks: how many each of the four levels has."""

    def __init__(self, blocks=(3, 4, 6, 3), width=64, out=1024):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for level, count in enumerate(blocks):
            planes, layer = width * 2**level, []
            for i in range(count):
                layer.append(Bottleneck(channels, planes, 2 if level > 0 and i == 0 else 1))
                channels = 4 * planes
            setattr(self, f"layer{level + 1}", nn.Sequential(*layer))
        self.attnpool = AttentionPool(channels, out, channels // 64)

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class ClipIqa(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], at least 32 × 32 -> their quality (B,), the probability of "Good photo."."""

    MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP, in [0, 1]

    def __init__(self, visual, anchors, scale):
        """anchors: unit embeddings (2, D) of "Good photo." and "Bad photo."; scale: CLIP's inverse temperature, 100."""
        super().__init__()
        self.visual, self.scale = visual, scale
        self.register_buffer("anchors", anchors)

    def forward(self, x):
        mean, deviation = (torch.tensor(values).to(x)[:, None, None] for values in (self.MEAN, self.DEVIATION))
        embedding = F.normalize(self.visual(((x + 1) / 2 - mean) / deviation), dim=-1)
        return (self.scale * embedding @ self.anchors.T).softmax(-1)[:, 0]


# --- aesthetic predictor ----------------------------------------------------------------------------------------------


class AestheticHead(nn.Module):
    """How much people like a picture, about 1..10: unit vectors (n, 768) of CLIP ViT-L/14 -> (n,).

    Linear layers with nothing between them: the dropout that the published names leave room for is for training.
    """

    def __init__(self, width=768):
        super().__init__()
        sizes = ("0", width, 1024), ("2", 1024, 128), ("4", 128, 64), ("6", 64, 16), ("7", 16, 1)
        self.layers = nn.ModuleDict({name: nn.Linear(before, after) for name, before, after in sizes})

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x[:, 0]
