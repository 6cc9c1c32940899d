"""Two examples of each command, for the end of its --help."""

TRAIN = "python -m minibnn train"
SAMPLE = "python -m minibnn sample"

EXAMPLES = {
    "train": (
        f"{TRAIN} --images tutorials/dog",
        f'{TRAIN} --images photos/rex --model SD_FOLDER --prompt "a photo of a sks dog" '
        "--method lora --out runs/rex",
        f"{TRAIN} --resume --out runs/dog --steps 2000",
    ),
    "sample": (
        f'{SAMPLE} --prompt "a red car on the beach" --out car.png',
        f'{SAMPLE} --model runs/dog --prompt "a photo of a sks dog in the snow" --count 4 --seed 7 --out dog.png',
    ),
    "export": (
        "python -m minibnn export runs/rex --to single-file --dtype float16",
        "python -m minibnn export runs/rex --to kohya --out rex.safetensors",
    ),
    "report": (
        "python -m minibnn report runs/dog",
        "python -m minibnn report runs/dog --out dog.html",
    ),
    "photo-measures": (
        "python -m minibnn photo-measures --pictures drawn --training photos/rex --dino nets/dino",
        "python -m minibnn photo-measures --pictures drawn --training photos/rex --prompts prompts.txt "
        "--clip nets/clip",
    ),
    "world": (
        "python -m minibnn world --out world.png",
        "python -m minibnn world --pairs pairs --count 12 --hint mask",
    ),
    "pretrain": (
        "python -m minibnn pretrain",
        "python -m minibnn pretrain --work runs/pretrain --out runs/tiny --processes 4",
    ),
    "pretrain-textured": (
        "python -m minibnn pretrain-textured",
        "python -m minibnn pretrain-textured --out runs/textured",
    ),
    "evaluate": (
        "python -m minibnn evaluate --captions 100",
        "python -m minibnn evaluate --model runs/tiny --out runs/evaluate-tiny",
    ),
    "world-measures": (
        "python -m minibnn world-measures",
        "python -m minibnn world-measures --out clean.json",
    ),
    "world-eye": (
        "python -m minibnn world-eye --out fidelity.safetensors",
        "python -m minibnn world-eye --out fidelity.safetensors --steps 3000",
    ),
    "eq2": (
        "python -m minibnn eq2 --images tutorials/dog",
        "python -m minibnn eq2 --images tutorials/dog --sigma1 0 0.5 2 --out runs/eq2.png",
    ),
    "sigma1": (
        "python -m minibnn sigma1 --model runs/dog",
        "python -m minibnn sigma1 --model tiny --images tutorials/dog --draws 8 --out runs/sigma1.png",
    ),
    "probe-zero": (
        "python -m minibnn probe-zero --model runs/dog",
        "python -m minibnn probe-zero --model runs/dog --picture 2 --out runs/zero.png",
    ),
    "probe-local": (
        "python -m minibnn probe-local --model runs/dog",
        "python -m minibnn probe-local --model runs/dog --t 300 --out runs/local.png",
    ),
    "probe-scaled": (
        "python -m minibnn probe-scaled --model runs/dog",
        "python -m minibnn probe-scaled --model runs/dog --t 300 --out runs/scaled.png",
    ),
    "probe-blank": (
        "python -m minibnn probe-blank --model runs/dog",
        "python -m minibnn probe-blank --model runs/dog --draws 8 --out runs/blank.png",
    ),
    "gains": (
        "python -m minibnn gains --model runs/dog",
        "python -m minibnn gains --model runs/dog --guidance 1 3 7.5 --unconditional-from tiny-v2 --draws 8",
    ),
    "graft": (
        "python -m minibnn graft --reward red_thing_on_grass",
        'python -m minibnn graft --reward rewards.py:roundness --prompt "a ball on the grass" --rule threshold '
        "--minimum 0.7 --out runs/round",
        "python -m minibnn graft --model SD_FOLDER --reward clip:nets/clip --prompts-from prompts.txt --guidance 7.5 "
        "--method lora --out runs/graft",
    ),
    "flow": (
        "python -m minibnn flow --out flow.png",
        "python -m minibnn flow --train --pictures 2000 --out runs/flow",
    ),
    "rectified": (
        'python -m minibnn rectified --model FLOW_FOLDER --prompt "a cat in the snow" --out cat.png',
        "python -m minibnn rectified --model FLOW_FOLDER --train --images photos --euler-steps 10 --out runs/corrector",
    ),
    "bps": (
        "python -m minibnn bps --hints pairs --out runs/bps",
        "python -m minibnn bps --hints sketches --branch runs/bps --out runs/bps-drawn",
        "python -m minibnn bps --hints photos --edges --model stable-diffusion-v1-5/ --out runs/edges",
    ),
    "paper": (
        "python -m minibnn paper --model tiny-v2 --only table1 --seeds 0 1 2",
        "python -m minibnn paper --model SD_FOLDER --data dreambooth/dataset --networks nets --out paper --plan",
    ),
    "experiment corruption": (
        "python -m minibnn experiment corruption --plan",
        "python -m minibnn experiment corruption --settings main --pictures 1 4 --seeds 0 --processes 2",
    ),
    "experiment report": (
        "python -m minibnn experiment report",
        "python -m minibnn experiment report --runs runs/corruption --out runs/report",
    ),
    "experiment stage": (
        "python -m minibnn experiment stage --settings plain null --images tutorials/subjects/cat --seeds 0 1",
        "python -m minibnn experiment stage --plan",
    ),
    "experiment stage-report": (
        "python -m minibnn experiment stage-report",
        "python -m minibnn experiment stage-report --runs runs/stage --out runs/stage-report",
    ),
    "experiment stage-views": (
        "python -m minibnn experiment stage-views",
        "python -m minibnn experiment stage-views --weights runs/stage/plain-cat-textured-1.safetensors --seed 3",
    ),
    "experiment stage-starts": (
        "python -m minibnn experiment stage-starts",
        "python -m minibnn experiment stage-starts --weights runs/stage/offset-cat-textured-0.safetensors --count 64",
    ),
    "experiment recipe": (
        "python -m minibnn experiment recipe --plan",
        "python -m minibnn experiment recipe --settings four-captions no-bayes --seeds 0 --out runs/recipe",
    ),
    "experiment guidance": (
        "python -m minibnn experiment guidance",
        "python -m minibnn experiment guidance --subjects dog --seeds 0 --method lora --out runs/guidance-lora",
    ),
    "experiment sd-gains": (
        "python -m minibnn experiment sd-gains --model SD_FOLDER --images photos/rex --dino nets/dino",
        "python -m minibnn experiment sd-gains --model SD_FOLDER --gradient-checkpointing --arms plain bnn --plan",
        'python -m minibnn experiment sd-gains --model SD_FOLDER --arms plain prior --class-prompt "a photo of a dog"',
    ),
    "experiment graft": (
        "python -m minibnn experiment graft",
        "python -m minibnn experiment graft --seeds 0 --fresh 8 --out runs/graft-one-seed",
    ),
    "experiment inverse-noise": (
        "python -m minibnn experiment inverse-noise --parts plane",
        "python -m minibnn experiment inverse-noise --seeds 0 --tests 100 --out runs/inverse-noise-one-seed",
    ),
    "experiment bps": (
        "python -m minibnn experiment bps",
        "python -m minibnn experiment bps --seeds 0 --variants base bps --out runs/bps-one-seed",
    ),
}
