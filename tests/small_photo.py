"""The networks of the photo measures with random weights and small widths, in the layouts of the official files."""

import itertools
import json

import torch
from photo_vectors import alexnet_tensors, clip_tensors
from safetensors.torch import save_file

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def make(root, vocabulary):
    """Write clip/, dino/, lpips/ and clip_iqa/ into a folder, and return it.

    vocabulary: a folder with CLIP's vocab.json and merges.txt. The pretrained features are not there, but every step of
    the way is.
    """
    import transformers

    for name in ("clip", "dino", "lpips", "clip_iqa"):
        (root / name).mkdir(parents=True)
    for name, file in itertools.product(("clip", "clip_iqa"), ("vocab.json", "merges.txt")):
        (root / name / file).write_bytes((vocabulary / file).read_bytes())

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"eos_token_id": 49407, "bos_token_id": 49406}
    vision = shape | {"image_size": 32, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    vit = transformers.ViTModel(transformers.ViTConfig(**vision), add_pooling_layer=False)
    for network in (model, vit):  # the initial weights are so small that all pictures look alike
        for tensor in network.parameters():
            tensor.data += 0.1 * torch.randn_like(tensor)
    model.save_pretrained(root / "clip")
    vit.save_pretrained(root / "dino")
    config = {"do_resize": True, "do_normalize": True, "size": 32}
    clip = {"do_center_crop": True, "crop_size": 32, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    dino = {"resample": 2, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    for name, settings, kind in (("clip", clip, "CLIP"), ("dino", dino, "ViT")):  # like the official ones
        settings = config | settings | {"feature_extractor_type": f"{kind}FeatureExtractor"}
        (root / name / "preprocessor_config.json").write_text(json.dumps(settings))

    trunk, linear = alexnet_tensors()
    save_file(trunk, root / "lpips" / "alexnet-owt-7be5be79.safetensors")
    save_file(linear, root / "lpips" / "alex.safetensors")
    save_file(clip_tensors(), root / "clip_iqa" / "open_clip_model.safetensors")
    return root
