"""Memory: does a training fit into 24 or 16 GB? The rest of the GPU's memory is taken away by one large tensor.

So the training sees how much there is, and chooses as on a smaller GPU. But: 0.5 GB is left to CUDA itself.
"""

import gc

import torch

from minibnn.finetune.kernel import room_at_once
from minibnn.train import fine_tuning, train

from . import models, timing

GB, CUDA_S = 10**9, 5 * 10**8
CHECKPOINTING = {"gradient_checkpointing": True}
NARROW = CHECKPOINTING | {"optimiser": "adamw-bf16"}
TRAININGS = (  # what is expected to fit, GB, options
    ("full fine-tuning with BNN, checkpointing", 24, CHECKPOINTING),
    ("full fine-tuning with BNN", 24, {}),
    ("LoRA with BNN", 16, {"method": "lora", "rank": 4, "alpha": 4.0, "layers": "to_q,to_k,to_v,to_out.0"}),
    ("full fine-tuning with BNN, checkpointing, adamw-bf16", 16, NARROW),
)


def run(section):
    for what, gigabytes, changes in TRAININGS[2:3] if section.tiny else TRAININGS:
        name = f"{what}, {gigabytes} GB"
        found = section.measure(name, fits, section, gigabytes, changes, needs=15)
        section.goal(f"{name}: it fits", found and found["fits"])
        gc.collect()
        if not section.tiny:
            torch.cuda.empty_cache()


def fits(section, gigabytes, changes):
    """{"fits", "peak": bytes of this training, "all at once": how the weights are drawn}; two steps."""
    taken = None
    if not section.tiny:
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(max(free - gigabytes * GB + CUDA_S, 0), dtype=torch.uint8, device=section.device)
    held = 0 if taken is None else taken.numel()
    options = models.training_options(section, steps=2, **changes)
    try:
        sd = models.model(section)
        sd.vae.cpu()
        sd.text_encoder.cpu()
        room = room_at_once(sd.unet)
        training = fine_tuning(sd, options)
        batches = models.batches(section, sd.unet.config)
        peak = timing.peak(lambda: train(training, options, batches))
    except torch.OutOfMemoryError as error:
        return {"fits": False, "reason": str(error)[:300]}
    return {"fits": True, "peak": peak - held, "all at once": bool(options.bayes and room)}
