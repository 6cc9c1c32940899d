"""The photo measures against lpips, piq (both recorded by photo_vectors.py) and transformers, on small networks."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from photo_vectors import pictures
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from small_photo import CLIP_MEAN, CLIP_STD, make

from minibnn.errors import UserError
from minibnn.files.store import ASSETS
from minibnn.neighbours import rewards
from minibnn.options.results import PhotoOptions
from minibnn.options.training import TrainOptions
from minibnn.photo import measures as photo
from minibnn.photo.loading import load_clip, load_clip_iqa, load_dino, load_lpips
from minibnn.photo.networks import Lpips
from minibnn.pictures import to_pil, to_tensor
from minibnn.world.captions import PLACES

transformers = pytest.importorskip("transformers")
RECORDED = json.loads((DATA / "photo.json").read_text())
HEAD = "sac+logos+ava1-l14-linearMSE.safetensors"
PROMPTS = ["a photo of a sks dog", "Two cats, on 3 mats!"] * 3


@pytest.fixture(scope="session")
def folders(tmp_path_factory, clip_folder):
    """The four folders as a user fetches them, but with small random networks."""
    return make(tmp_path_factory.mktemp("networks"), clip_folder)


QUALITY = 1e-3  # of Clip-IQA, whose logits are 100 cosines: below 2e-4 on an AMD EPYC, 2.5e-4 on an Intel Xeon


def worst(got, wanted):
    """The largest deviation, relative to the standard deviation of the wanted values."""
    got, wanted = torch.as_tensor(got), torch.as_tensor(wanted)
    return ((got - wanted).abs().max() / wanted.std(0).max()).item()


# --- Lpips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [["a", "b", "a", "a", "b", "a"], ["a", "b", "b", "a", "a", "b"]])
def test_lpips_equals_lpips(folders, prompts):
    """It is the mean of lpips' own distances to the others of the prompt; in equal groups the mean over all pairs."""
    table = torch.tensor(RECORDED["lpips"])
    got = photo.lpips_diversity(pictures(), prompts, load_lpips(folders / "lpips"))
    same = torch.tensor([[a == b for b in prompts] for a in prompts])
    assert worst(got, (table * same).sum(1) / (same.sum(1) - 1)) < 1e-5  # the diagonal is 0
    if prompts.count("a") == 3:
        assert got.mean().item() == pytest.approx(table[same & ~torch.eye(6, dtype=bool)].mean().item(), rel=1e-5)


def test_lpips_eq1_as_printed():
    """d(x, x0) = Σ_l 1/(H_l W_l) Σ_hw ‖w_l ⊙ (ŷ_hw − ŷ0_hw)‖², in float64; the file holds w²."""
    torch.manual_seed(0)
    network = Lpips().double()
    for i in range(5):
        getattr(network, f"lin{i}").data.uniform_(0, 1)
    x, y = torch.rand(2, 2, 3, 67, 81, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        got = network.distance(network(x), network(y))
        for b in range(2):
            total = 0
            for i, (one, other) in enumerate(zip(network(x[b : b + 1]), network(y[b : b + 1]), strict=True)):
                w = getattr(network, f"lin{i}").sqrt()
                height, width = one.shape[2:]
                for r, c in itertools.product(range(height), range(width)):
                    total += (w * (one[0, :, r, c] - other[0, :, r, c])).norm() ** 2 / (height * width)
            assert got[b].item() == pytest.approx(total.item(), rel=1e-12)
        assert network.distance(network(x), network(x)).tolist() == [0, 0]


# --- Clip-IQA ---------------------------------------------------------------------------------------------------------


def test_clip_iqa_equals_piq(folders):
    network = load_clip_iqa(folders / "clip_iqa")
    assert worst(network.anchors, RECORDED["anchors"]) < 1e-5
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    with torch.no_grad():
        features = [network.visual(((to_tensor([p]) + 1) / 2 - mean) / std)[0] for p in pictures()]
    assert worst(F.normalize(torch.stack(features), dim=-1), RECORDED["features"]) < 5e-5
    assert worst(photo.clip_iqa_quality(pictures(), network), RECORDED["quality"]) < QUALITY


# --- CLIP and DINO ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def theirs(folders):
    """transformers' CLIP with its own tokenizer and processor: its output for pictures() and PROMPTS, and the model."""
    folder = folders / "clip"
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    texts = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))(
        PROMPTS, padding=True, return_tensors="pt"
    )
    images = transformers.AutoImageProcessor.from_pretrained(folder)(pictures(), return_tensors="pt")
    with torch.no_grad():
        return model(**texts, **images), model


def test_clip_t_equals_the_logits_of_transformers(folders, theirs):
    clip, (out, model) = load_clip(folders / "clip"), theirs
    got = photo.clip_t(photo.clip_pictures(pictures(), clip), photo.clip_prompts(PROMPTS, clip))
    cosines = out.logits_per_image / model.logit_scale.exp()
    assert cosines.std() > 0.01
    assert worst(got, cosines.diag()) < 3e-5
    assert worst(photo.clip_prompts(PROMPTS[:3], clip), out.text_embeds[:3]) < 3e-5


def test_the_clip_score_is_a_reward(folders, theirs):
    """`graft --reward clip:FOLDER` rewards each picture for its own prompt, as transformers' logits do."""
    out, model = theirs
    reward = rewards.load_reward(f"clip:{folders / 'clip'}")
    got = rewards.rewards_of(reward, pictures(), PROMPTS)
    assert worst(got, (out.logits_per_image / model.logit_scale.exp()).diagonal()) < 3e-5
    with pytest.raises(UserError, match="--reward clip:.*nowhere: .*--clip"):
        rewards.load_reward(f"clip:{folders / 'nowhere'}")


# --- LAION's aesthetic predictor --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beauty(folders, tmp_path_factory):
    """A folder with a small CLIP of 768 features and a head of random weights; what transformers and PyTorch see in it.

    The head is that of the authors' code, with the dropout that gives its layers their numbers.
    """
    folder = tmp_path_factory.mktemp("beauty") / "clip"
    shutil.copytree(folders / "clip", folder)
    config = transformers.CLIPConfig.from_pretrained(folder)
    config.projection_dim = 768
    torch.manual_seed(0)
    clip = transformers.CLIPModel(config).eval()
    for tensor in clip.parameters():  # or all pictures would look alike
        tensor.data += 0.1 * torch.randn_like(tensor)
    clip.save_pretrained(folder)
    head = torch.nn.Sequential(
        torch.nn.Linear(768, 1024), torch.nn.Dropout(0.2), torch.nn.Linear(1024, 128), torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16), torch.nn.Linear(16, 1),
    ).eval()
    save_file({f"layers.{name}": tensor for name, tensor in head.state_dict().items()}, folder / HEAD)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = clip.visual_projection(clip.vision_model(pixels).pooler_output)
        return folder, head(features / features.norm(dim=1, keepdim=True))[:, 0]


def test_the_aesthetic_score_is_a_reward(beauty):
    folder, wanted = beauty
    got = rewards.rewards_of(rewards.load_reward(f"aesthetic:{folder}"), pictures(), PROMPTS)
    assert wanted.std() > 1e-4 * wanted.abs().max() and worst(got, wanted) < 1e-3


def test_an_aesthetic_head_that_is_not_there_or_does_not_fit(folders, beauty, tmp_path):
    """One line each: no head, the pickle, LAION's other head with ReLUs between, a CLIP of another size."""
    name = f"aesthetic:{folders / 'clip'}"
    with pytest.raises(UserError, match=f"--reward {name}: .*{re.escape(HEAD)} is missing; put in https"):
        rewards.load_reward(name)
    for path in (folders / "clip").iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / HEAD).with_suffix(".pth").touch()
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        rewards.load_reward(f"aesthetic:{tmp_path}")
    tensors = load_file(beauty[0] / HEAD)
    others = dict(zip("02467", ("0", "3", "6", "9", "11"), strict=True))
    renamed = {f"layers.{others[name[7]]}.{name[9:]}": tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / HEAD)
    with pytest.raises(UserError, match="holds another network: .* e.g. layers.2.weight"):
        rewards.load_reward(f"aesthetic:{tmp_path}")
    save_file(tensors, tmp_path / HEAD)
    with pytest.raises(UserError, match="holds a CLIP of another size than ViT-L/14"):
        rewards.load_reward(f"aesthetic:{tmp_path}")


def test_clip_i_is_the_mean_over_all_pairs(folders, theirs):
    clip, (out, _) = load_clip(folders / "clip"), theirs
    images, training = photo.clip_pictures(pictures()[:4], clip), photo.clip_pictures(pictures()[4:], clip)
    wanted = [(F.cosine_similarity(a, out.image_embeds[4:])).mean().item() for a in out.image_embeds[:4]]
    assert worst(photo.mean_similarity(images, training), wanted) < 3e-5


def test_pictures_are_resized_and_cropped_as_clip_wants(folders):
    """The shortest edge to 32 pixels (bicubic), the middle 32 × 32 of it, CLIP's mean and deviation; all by PIL."""
    clip, picture = load_clip(folders / "clip"), pictures()[1]
    small = picture.resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    pixels = ((to_tensor([small]) + 1) / 2 - mean) / std
    assert torch.allclose(clip.processor(images=[picture], return_tensors="pt")["pixel_values"], pixels, atol=1e-5)


def test_dino_is_the_class_token(folders):
    dino = load_dino(folders / "dino")
    model = transformers.ViTModel.from_pretrained(folders / "dino", add_pooling_layer=False).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    tokens = []
    with torch.no_grad():
        for picture in pictures():  # squeezed to a square, bilinear
            small = to_tensor([picture.resize((32, 32), Image.Resampling.BILINEAR)])
            tokens.append(model(((small + 1) / 2 - mean) / std).last_hidden_state[0, 0])
    wanted = [sum(F.cosine_similarity(a, b, dim=0).item() for b in tokens[4:]) / 2 for a in tokens[:4]]
    got = photo.mean_similarity(photo.dino_pictures(pictures()[:4], dino), photo.dino_pictures(pictures()[4:], dino))
    assert torch.tensor(wanted).std() > 0.01
    assert worst(got, wanted) < 3e-5


# --- best, average and worst case -------------------------------------------------------------------------------------


def test_cases_filter_by_both_and_choose_by_quality():
    """App. I on ten pictures: 0 has the best quality and the worst Clip-T, 1 the second best and the worst Dino."""
    quality = torch.tensor([0.99, 0.98, 0.9, 0.8, 0.7, 0.62, 0.5, 0.4, 0.3, 0.2])
    clip_t, dino = torch.linspace(0.3, 0.4, 10), torch.full((10,), 0.5)
    clip_t[0], dino[1] = 0.1, 0.1
    values = {"Clip-T": clip_t, "Dino": dino, "Clip-IQA": quality}
    assert photo.cases(values) == {"best": 2, "average": 6, "worst": 9}  # kept: 2 … 9, whose mean is 0.5525
    clip_t[9] = 0.0  # now 9 is left out instead of 0, but it remains the worst of all
    assert photo.cases(values) == {"best": 0, "average": 5, "worst": 9}  # kept: 0, 2 … 8, whose mean is 0.65125
    few = {name: numbers[:4] for name, numbers in values.items()}
    assert photo.cases(few) == {"best": 0, "average": 2, "worst": 3}  # 90 % of 4 is rounded up: nothing is filtered


def test_summary_reads_all_measures_at_the_cases():
    values = {"Clip-T": [0.1, 0.2], "Dino": [0.5, 0.7], "Clip-IQA": [0.25, 0.75]}
    values = {name: torch.tensor(numbers) for name, numbers in values.items()}
    rows = photo.summary(values)
    assert rows["mean"] == pytest.approx({"Clip-T": 0.15, "Dino": 0.6, "Clip-IQA": 0.5})
    assert rows["best"] == pytest.approx({"picture": 1, "Clip-T": 0.2, "Dino": 0.7, "Clip-IQA": 0.75})
    assert rows["worst"]["picture"] == 0
    assert photo.summary({"Dino": values["Dino"]}) == {"mean": {"Dino": pytest.approx(0.6)}}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture()
def job(tmp_path, folders):
    """Options that measure all: pictures 1, 2, 10 and 11 with two prompts in their PNGs, and two training pictures."""
    for name in ("pictures", "training"):
        (tmp_path / name).mkdir()
    for i, picture in zip((1, 2, 10, 11), pictures(), strict=False):
        info = PngImagePlugin.PngInfo()
        info.add_text("minibnn", json.dumps({"prompt": PROMPTS[i // 10]}))
        picture.save(tmp_path / "pictures" / f"{i}.png", pnginfo=info)
    for i, picture in enumerate(pictures()[4:]):
        picture.save(tmp_path / "training" / f"{i}.png")
    paths = {name: tmp_path / name for name in ("pictures", "training")} | {"out": tmp_path / "a" / "m.json"}
    paths |= {name: folders / name for name in ("clip", "dino", "lpips", "clip_iqa")}
    return PhotoOptions(**{name: str(path) for name, path in paths.items()}, device="cpu")


def test_the_command_measures_everything(job, folders, tmp_path, capsys):
    photo.measure_photos(job)
    result = json.loads((tmp_path / "a" / "m.json").read_text())
    printed = capsys.readouterr().out.splitlines()
    made, prompts = pictures(), [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert [row["file"] for row in result["pictures"]] == ["1.png", "2.png", "10.png", "11.png"]
    assert [row["prompt"] for row in result["pictures"]] == prompts
    clip = load_clip(folders / "clip")
    clip_t = photo.clip_t(photo.clip_pictures(made[:4], clip), photo.clip_prompts(prompts, clip))
    table = RECORDED["lpips"]
    lpips = [table[0][1], table[1][0], table[2][3], table[3][2]]
    for name, numbers in (("Clip-T", clip_t), ("Lpips", lpips), ("Clip-IQA", RECORDED["quality"][:4])):
        tolerance = QUALITY if name == "Clip-IQA" else 2e-4
        assert worst([row[name] for row in result["pictures"]], numbers) < tolerance, name
    assert printed[0].split() == ["Clip-T", "Clip-I", "Dino", "Lpips", "Clip-IQA"]
    assert [line.split()[0] for line in printed[1:5]] == ["mean", "best", "average", "worst"]
    best = max(result["pictures"], key=lambda row: row["Clip-IQA"])  # of four pictures none is left out
    assert result["summary"]["best"]["Dino"] == best["Dino"] and printed[2].split()[-1] == best["file"]


def test_prompts_from_a_file(job, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# a comment\na cat\n\n a dog \n", encoding="utf-8")  # as Windows' editor begins a file
    options = replace(job, prompts=str(path), dino=None, clip_iqa=None, lpips=None)
    photo.measure_photos(options)
    result = json.loads((tmp_path / "a" / "m.json").read_text())
    assert [row["prompt"] for row in result["pictures"]] == ["a cat"] * 2 + ["a dog"] * 2
    path.write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="3 prompts for 4 pictures"):
        photo.measure_photos(replace(options, overwrite=True))
    (tmp_path / "pictures" / "12.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="12.jpg: broken"):
        photo.measure_photos(replace(options, overwrite=True))
    pictures()[0].save(tmp_path / "pictures" / "12.jpg")
    with pytest.raises(UserError, match="12.jpg holds no prompt"):
        photo.measure_photos(replace(options, overwrite=True, prompts=None))
    with pytest.raises(UserError, match="m.json exists"):
        photo.measure_photos(options)


@pytest.mark.parametrize(
    "case",
    ["config.json", "model.safetensors", "preprocessor_config.json", "kind", "weights", "shape", "pickle", "damaged"],
)
def test_what_a_hub_folder_lacks_is_told_in_one_line(case, folders, tmp_path):
    folder = tmp_path / "dino"
    folder.mkdir()
    for file in (folders / "dino").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    words = f"hf download facebook/dino-vits16 --revision refs/pr/1 --local-dir {folder}"
    weights = folder / "model.safetensors"
    if case == "kind":
        (folder / "config.json").write_bytes((folders / "clip" / "config.json").read_bytes())
    elif case == "weights":
        tensors = load_file(weights)
        tensors.pop("layernorm.bias")
        save_file(tensors, weights, {"format": "pt"})
        words = "lacks 1 weights, e.g. layernorm.bias"
    elif case == "shape":
        save_file(load_file(weights) | {"layernorm.bias": torch.zeros(5)}, weights, {"format": "pt"})
    elif case == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif case == "damaged":
        weights.write_bytes(b"x" * 100)
    else:
        (folder / case).unlink()
    with pytest.raises(UserError, match=words) as error:
        load_dino(folder)
    assert "\n" not in str(error.value)


def test_a_missing_library_is_told_in_one_line(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"^--clip needs transformers: pip install transformers$"):
        load_clip(folders / "clip")
    load_lpips(folders / "lpips"), load_clip_iqa(folders / "clip_iqa")  # these two do not need it


def test_what_our_own_folders_lack_is_told_in_one_line(folders, tmp_path):
    with pytest.raises(UserError, match="alexnet-owt-7be5be79.safetensors is missing; put in https"):
        load_lpips(tmp_path)
    with pytest.raises(UserError, match="hf download timm/resnet50_clip.openai"):
        load_clip_iqa(tmp_path)
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"")
    with pytest.raises(UserError, match="alexnet-owt-7be5be79.pth is a pickle"):
        load_lpips(tmp_path)
    other = (folders / "lpips" / "alex.safetensors").read_bytes()
    for name in ("alexnet-owt-7be5be79", "alex", "open_clip_model"):
        (tmp_path / f"{name}.safetensors").write_bytes(other)
    with pytest.raises(UserError, match="10 tensors missing or of another shape, e.g. features.0.weight"):
        load_lpips(tmp_path)
    with pytest.raises(UserError, match="is not CLIP's RN50"):
        load_clip_iqa(tmp_path)


def test_transformers_is_imported_only_when_it_is_needed():
    script = "import sys, minibnn.photo.measures; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_clip_t_needs_no_training_pictures(job, capsys):
    """Bug of an earlier version: the words of the prompts could not be measured without pictures of the subject."""
    photo.measure_photos(replace(job, dino=None, lpips=None, clip_iqa=None))
    head, both = capsys.readouterr().out.splitlines()[:2]
    photo.measure_photos(replace(job, training=None, dino=None, lpips=None, clip_iqa=None, overwrite=True))
    assert head.split() == ["Clip-T", "Clip-I"]
    alone = capsys.readouterr().out.splitlines()
    assert alone[0].split() == ["Clip-T"] and alone[1].split() == both.split()[:2]


def test_networks_and_training_pictures_are_asked_for(job):
    with pytest.raises(UserError, match="no network is given: pass --clip"):
        photo.measure_photos(replace(job, clip=None, dino=None, lpips=None, clip_iqa=None))
    with pytest.raises(UserError, match="--training DIR is required with --dino"):
        photo.measure_photos(replace(job, training=None))
    with pytest.raises(UserError, match="--pictures nowhere: no such folder"):
        photo.measure_photos(replace(job, pictures="nowhere"))


def test_lpips_needs_two_pictures_of_a_prompt(job, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nb\na c\n")
    with pytest.raises(UserError, match="'a' has one"):
        photo.measure_photos(replace(job, prompts=str(prompts), clip="nowhere"))  # before the networks are read


# --- the monitor of a training on photographs -------------------------------------------------------------------------


def test_the_monitor_sees_photographs_as_dino_does(folders, tmp_path, dog, monkeypatch):
    from minibnn import StableDiffusion, data
    from minibnn.cli.train import fine_tune
    from minibnn.lab import monitor

    monkeypatch.setattr(monitor, "STEPS", 2)
    run, dino = tmp_path / "run", str(folders / "dino")  # with --monitor-dino, the monitor watches
    fine_tune(TrainOptions(images=str(dog), model=str(ASSETS / "tiny"), prior_weight=0.0, samples=0, steps=1, lr=1e-9,
                           bayes=False, out=str(run), monitor_dino=dino))
    rows = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]

    prompts = ["a photo of a sks dog"] * 3 + [f"a photo of a sks dog {place}" for place in PLACES]
    sd, eyes = StableDiffusion.load("tiny"), load_dino(dino)
    drawn = sd.generate(prompts, monitor.STEPS, seed=0, batch_size=1, progress=False)
    photos = to_pil(data.load_pictures(data.list_pictures(dog), 64))
    expected = photo.mean_similarity(photo.dino_pictures(drawn, eyes), photo.dino_pictures(photos, eyes)).mean().item()
    assert [row["fidelity"] for row in rows] == pytest.approx([expected] * 2, abs=1e-3)
