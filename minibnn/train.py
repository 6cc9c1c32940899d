"""Fine-tune on a few pictures: `python -m minibnn.train --images ./dog`.

Follows: DreamBooth (Ruiz et al. 2023) as in diffusers' `train_dreambooth.py`, which the paper uses (App. H.1), and the
paper's Algorithm 1. Methods differ in *what is trainable*; this one loop serves them all.

    pictures → VAE → x_0;   t, ε → x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε;   θ = μ + σ∘ε_θ
    L = ‖ε_θ(x_t, t, c) − ε‖² + w·‖… on a class picture‖² + λ·KL(Q_W(θ) ‖ P(θ))     →  AdamW on μ and σ

But: the text encoder and the VAE are not trained; one device.
"""

from .options.commands import TrainOptions
from .options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(TrainOptions, "minibnn.train")
    answer_ctrl_c_while_importing()

import contextlib
import dataclasses
import importlib.util
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import data, runs, schedule
from .devices import choose_device, half_dtype, make_deterministic
from .errors import UserError
from .files.store import write_whole
from .finetune import bayes, methods
from .lab import monitor
from .networks.vae import sample_latents
from .pictures import grid
from .pipeline import StableDiffusion


def train(options, observe=None):
    """Run one training from its options (TrainOptions); leaves the run's folder. Raises UserError, KeyboardInterrupt.

    observe(step, sd), if given, is called before the first step and after each; `at_the_mean` lets it draw pictures.
    """
    out = Path(options.out or Path("runs") / Path(options.images).resolve().name)
    options = dataclasses.replace(options, out=str(out))
    runs.check_folder(options)
    files = data.list_pictures(options.images)
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd, len(files))
    sd.recipe |= {name: getattr(options, name) for name in ("prompt", "class_prompt", "resolution")}
    images = data.load_pictures(files, options.resolution)
    if options.prior_weight:  # before the folder is made: own class pictures may be broken
        data.check_class_pictures(options.class_images, class_record(options))
        for path in data.own_class_pictures(options.class_images)[: options.class_count]:
            data.load_picture(path, options.resolution)
    if options.resume:
        runs.check_same_run(options, files)
    runs.start(options, files)

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cuda":
        make_deterministic()
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    sd.to(device)
    batches = Batches(options, sd, images, autocast)
    unet = sd.unet.train()
    unet.gradient_checkpointing = options.gradient_checkpointing
    draw = methods.make_trainable(unet, options)
    prior = {name: mu.detach().clone() for name, (mu, _) in bayes.sigmas(unet).items()} if options.lambda_kl else {}
    optimiser = make_optimiser(unet, options.lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    abar = sd.alphas_cumprod.to(device)
    first = runs.load_checkpoint(out, unet, optimiser, scaler) if options.resume else 0
    log, saved = runs.Log(out, first), first
    print(describe(options, unet, len(files)))
    observers = [observe] if observe else []
    if options.monitor:
        observers.append(monitor.Monitor(options, sd, images))
    for look in observers:
        look(first, sd)

    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, desc="training")
    with runs.CtrlC() as stop:
        for step in bar:
            generator = torch.Generator().manual_seed((options.seed * 1_000_003 + step) % 2**63)
            losses = {"diffusion": 0.0, "prior": 0.0, "kl": 0.0}
            for micro in range(options.accumulate):
                x0, context = batches(step * options.accumulate + micro, generator)
                t = torch.randint(0, schedule.TRAIN_STEPS, (len(x0),), generator=generator).to(device)
                eps = torch.randn(x0.shape, generator=generator).to(device)
                x_t = schedule.q_sample(x0, eps, abar[t])
                target = schedule.velocity(x0, eps, abar[t]) if sd.v_prediction else eps
                draw.renew(generator, device)
                with autocast:
                    predicted = unet(x_t, t, context)
                errors = F.mse_loss(predicted.float(), target, reduction="none").split(options.batch_size)
                loss = errors[0].mean()
                losses["diffusion"] += loss.item() / options.accumulate
                if len(errors) > 1:
                    losses["prior"] += errors[1].mean().item() / options.accumulate
                    loss = loss + options.prior_weight * errors[1].mean()
                if options.lambda_kl:
                    divergence = bayes.kl(unet, prior, options.prior_sigma, options.kl)
                    losses["kl"] += divergence.item() / options.accumulate
                    loss = loss + options.lambda_kl * divergence
                stop_if_not_finite(loss, "loss", step, saved, bar)
                scaler.scale(loss / options.accumulate).backward()
            scaler.unscale_(optimiser)
            norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            if not scaler.is_enabled():  # with loss scaling an overflow is expected, and the step is skipped
                stop_if_not_finite(norm, "norm of the gradient", step, saved, bar)
            for group in optimiser.param_groups:
                group["lr"] = options.lr * min(1, (step + 1) / (options.lr_warmup_steps or 1))
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
            methods.constrain(unet, options)

            done = step + 1
            log.write({"step": done, **losses, "sigma": mean_sigma(unet)})
            bar.set_postfix(loss=f"{losses['diffusion']:.3f}", refresh=False)
            if options.sample_every and done % options.sample_every == 0:
                save_samples(sd, options, autocast, out / f"samples-{done:06d}.png")
            for look in observers:
                look(done, sd)
            due = options.checkpoint_every and done % options.checkpoint_every == 0
            if due or stop.asked or done == options.steps:
                runs.save_checkpoint(out, done, unet, optimiser, scaler)
                saved = done
            if stop.asked and done < options.steps:
                bar.close()
                raise KeyboardInterrupt(f"stopped after step {done}, saved in {out / runs.STATE.parent}: the same command with --resume goes on")  # fmt: skip
    del optimiser, batches  # their memory is wanted for drawing
    finish(sd, options, autocast, out)
    if options.monitor:
        print(observers[-1].advice())


def stop_if_not_finite(value, what, step, saved, bar):
    """Raises UserError naming the step and the last good checkpoint."""
    if not torch.isfinite(value):
        bar.close()
        where = f"the last checkpoint, after {saved} steps, is good" if saved else "there is no checkpoint"
        raise UserError(f"the {what} is {value.item()} at step {step + 1}; {where}; try a smaller --lr")


def class_record(options):
    """What drawn class pictures depend on; kept beside them."""
    return {"prompt": options.class_prompt, "model": data.full_name(options.model), "resolution": options.resolution}


def settle(options, sd, pictures):
    """Fill in what the command line left open, from the model's recipe, and check the whole. Raises UserError."""
    options, recipe = methods.settle(options, sd.recipe)
    device = choose_device(options.device)
    own_prompt = options.prompt and options.prompt != recipe["prompt"]
    options = dataclasses.replace(
        options,
        prompt=options.prompt or recipe["prompt"],
        class_prompt=options.class_prompt or (None if own_prompt else recipe["class_prompt"]),
        class_images=options.class_images or str(Path(options.out) / "class_images"),
        class_count=options.class_count or recipe["class_pictures_per_picture"] * pictures,
        steps=options.steps or recipe["steps_per_picture"] * pictures,
        resolution=options.resolution or recipe["resolution"],
        device=device,
        dtype=options.dtype or (half_dtype(device) if device.startswith("cuda") else "float32"),
        kernel=options.kernel or default_kernel(device),
    )
    if not options.prompt:
        raise UserError('--prompt is required for this model, for instance --prompt "a photo of a sks dog"')
    if options.prior_weight and not options.class_prompt:
        raise UserError('--class-prompt is required, for instance "a photo of a dog"; or --prior-weight 0')
    multiple = sd.vae.factor
    if options.resolution % multiple:
        raise UserError(f"--resolution {options.resolution} is no multiple of {multiple}")
    methods.check(sd.unet, options)
    options = dataclasses.replace(options, monitor=monitor.settle(options))
    if options.kernel == "triton" and not (device.startswith("cuda") or os.environ.get("TRITON_INTERPRET") == "1"):
        raise UserError("--kernel triton needs a GPU; on a CPU --kernel reference draws the same weights")
    if not options.bayes and (options.lambda_kl or options.keep_posterior):
        raise UserError("--lambda-kl and --keep-posterior need --bayes")
    return options


def default_kernel(device):
    """"triton" on a GPU where it is installed and can compile (from a T4 on), else "torch"."""
    cuda = device.startswith("cuda") and importlib.util.find_spec("triton") is not None
    return "triton" if cuda and torch.cuda.get_device_capability(device) >= (7, 5) else "torch"


class Batches:
    """batches(i, generator) -> x_0 (B, 4, h, w) and context (B, 77, d) on the device.

    `batch_size` pictures of the subject come first, then as many class pictures, unless the prior weight is 0. VAE and
    text encoder run once, here, and leave the GPU afterwards.
    """

    def __init__(self, options, sd, images, autocast):
        self.size, self.seed, self.device = options.batch_size, options.seed, sd.device
        self.scale = sd.vae.config.scaling_factor
        self.sources = [(*data.latent_moments(sd.vae, images), sd.encode_prompts([options.prompt]))]
        if options.prior_weight:
            try:
                with autocast:
                    paths = data.class_pictures(sd, options.class_images, options.class_count, class_record(options))
            except KeyboardInterrupt:
                raise KeyboardInterrupt("stopped while drawing class pictures: the same command goes on") from None
            moments = [data.latent_moments(sd.vae, data.load_pictures([path], options.resolution)) for path in paths]
            mean, logvar = (torch.cat(m) for m in zip(*moments, strict=True))
            self.sources.append((mean, logvar, sd.encode_prompts([options.class_prompt])))
        sd.vae.cpu()
        sd.text_encoder.cpu()

    def __call__(self, i, generator):
        latents, contexts = [], []
        for mean, logvar, context in self.sources:
            picked = [data.epoch_order(len(mean), i * self.size + k, self.seed) for k in range(self.size)]
            latents.append(sample_latents(mean[picked], logvar[picked], generator) * self.scale)
            contexts.append(context.expand(self.size, -1, -1))
        return torch.cat(latents), torch.cat(contexts)


def make_optimiser(network, lr):
    """AdamW with the defaults of diffusers' script; σ takes no weight decay, which would pull it to 0."""
    groups = {False: [], True: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name.endswith("_sigma")].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[False], "weight_decay": 0.01}, {"params": groups[True], "weight_decay": 0.0}], lr, fused=True
    )


def mean_sigma(network):
    """Mean of σ over all random parameters; 0 without any."""
    sigmas = [sigma.detach() for _, sigma in bayes.sigmas(network).values()]
    count = sum(sigma.numel() for sigma in sigmas)
    return (sum(sigma.sum() for sigma in sigmas) / count).item() if count else 0.0


def sample_prompts(options):
    """The training prompt four times, the same with other places, the class, and so on."""
    places = ("on the beach", "in the snow", "on a wooden floor")
    eight = [options.prompt] * 4 + [f"{options.prompt} {place}" for place in places]
    eight.append(options.class_prompt or options.prompt)
    return [eight[i % 8] for i in range(options.samples)]


def save_samples(sd, options, autocast, path):
    """Draw the fixed prompts with fixed seeds at θ = μ, and save them as one picture."""
    if not options.samples:
        return
    with at_the_mean(sd), autocast:
        pictures = sd.generate(
            sample_prompts(options), seed=0, size=options.resolution, batch_size=4, progress=False
        )
    sheet = grid(pictures, 4, zoom=max(1, 192 // options.resolution))
    write_whole(path, lambda temporary: sheet.save(temporary, format="PNG"))


def describe(options, unet, pictures):
    """One line about what is about to happen."""
    what = methods.describe(unet, options)
    return f"{pictures} pictures, {options.steps} steps at lr {options.lr:g}, {options.dtype} on {options.device}; {what}"


def finish(sd, options, autocast, out):
    """Write the result at the posterior mean, then the samples, and say how to use it."""
    kind = methods.save_result(sd, options, out)
    if options.single_file:
        sd.save_single_file(out / "model.safetensors")
    save_samples(sd, options, autocast, out / "samples.png")
    shown = f"{out / 'samples.png'} shows it, " if options.samples else ""
    print(f"done: {shown}{out} is a {kind}. Draw with another prompt:")
    print(f'  python -m minibnn.sample --model {out} --prompt "{options.prompt} in the snow" --out picture.png')


@contextlib.contextmanager
def at_the_mean(sd, dtype=torch.float32):
    """Inside, a model in training can be used as it will be: all parts on its device, weights at θ = μ, under autocast."""
    sd.to(sd.device)
    sd.unet.eval()
    try:
        with torch.autocast(sd.device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        sd.unet.train()
        sd.vae.cpu()
        sd.text_encoder.cpu()


if __name__ == "__main__":
    run(train, OPTIONS)
