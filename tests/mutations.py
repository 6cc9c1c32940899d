"""Do the tests see a bug? `python tests/mutations.py [NAME …]` puts known bugs in, one at a time; `--list` names them.

The working tree is copied into a temporary folder. There the selected tests must pass as they are; then each mutation
changes one place in one file, and at least one of its tests must fail ("killed"). A mutation that no test sees has
SURVIVED: a test is missing. Mutations with a reason in `equivalent` cannot be seen, and do not count. The exit code is
1 if another one survives, if the unchanged copy fails, or if a mutation's old text is not in its file exactly once.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 600  # seconds for the tests of one mutation; a test that hangs has seen the bug


@dataclass(frozen=True)
class Mutation:
    """A bug: in `file`, `old` (which stands there once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # files below tests/ or tests in them, "test_x.py::test_y", separated by spaces
    bug: str
    equivalent: str = ""


SCHEDULE, TRAIN, SAMPLE, PIPELINE = (f"minibnn/{name}.py" for name in ("schedule", "train", "sample", "pipeline"))
UNET, TRANSFORMER, TOKENIZER = (f"minibnn/networks/{name}.py" for name in ("unet", "transformer", "tokenizer"))
BAYES, LORA, OFT, ADAPTERS = (f"minibnn/finetune/{name}.py" for name in ("bayes", "lora", "oft", "adapter_files"))
NOISE, AT_ONCE = "minibnn/finetune/weight_noise.py", "minibnn/finetune/all_at_once.py"
ADAMW = "minibnn/finetune/adamw_bf16.py"
SETTINGS, READING, SINGLE = (f"minibnn/{name}.py" for name in (
    "finetune/adapter_settings", "finetune/adapter_reading", "files/single_file"))
LAYOUTS, STORE, WEIGHTS = (f"minibnn/files/{name}.py" for name in ("layouts", "store", "weights"))
RUNS = "minibnn/runs.py"
OWNERSHIP, LOCKS = "minibnn/ownership.py", "minibnn/files/locks.py"
GUIDANCE, PICTURES, DATA = "minibnn/neighbours/guidance.py", "minibnn/pictures.py", "minibnn/data.py"
GAINS, LAW, ADVICE = (f"minibnn/lab/{name}.py" for name in ("gains", "gain_law", "gain_advice"))
SD_GAINS, RECIPE = (f"minibnn/experiments/{name}/trainings.py" for name in ("sd_gains", "recipe"))
CANDIDATES, GRAFT = "minibnn/neighbours/candidates.py", "minibnn/neighbours/graft.py"
FITTED, EDGES = "minibnn/neighbours/fitted_noise.py", "minibnn/neighbours/edges.py"
DISTRIBUTED = "minibnn/distributed.py"
REFERENCE, PHILOX, KERNEL = "kernels/reference.py", "kernels/philox.py", "kernels/bayes_linear.py"
NETWORK = "kernels/network.py"

DREAMBOOTH = "test_train_oracle.py::test_three_steps_of_dreambooth"
BATCHES = "test_train_oracle.py::test_batches_are_draws_of_diffusers_vae_in_a_new_order_each_epoch"
THETA = "test_kernels.py::test_theta_equals_the_reference_to_the_last_bit"
FOREIGN = "test_foreign_adapters.py"

MUTATIONS = (
    # --- the noise schedule and the samplers
    Mutation("schedule-velocity", SCHEDULE, "abar_t.sqrt() * eps - (1 - abar_t).sqrt() * x0",
             "abar_t.sqrt() * eps + (1 - abar_t).sqrt() * x0", "test_schedule.py",
             "The target of v-models has the wrong sign before x_0."),
    Mutation("schedule-min-snr-of-v", SCHEDULE, "snr + 1 if v_prediction else snr", "snr", "test_schedule.py",
             "Min-SNR weighs v-prediction as ε-prediction."),
    Mutation("schedule-ddim-variance", SCHEDULE, "(1 - abar_prev - sigma**2).sqrt()", "(1 - abar_prev).sqrt()",
             "test_schedule.py", "With η > 0, DDIM adds noise without taking its variance from the direction to x_t."),
    Mutation("schedule-last-step", SCHEDULE, "abar[0])):\n        x = ddim_step",
             "abar.new_ones(()))):\n        x = ddim_step", "test_schedule.py",
             "DDIM's last step ends at ᾱ = 1 and not at SD's ᾱ_0."),
    Mutation("schedule-offset", SCHEDULE, "(TRAIN_STEPS // steps) + offset", "(TRAIN_STEPS // steps)",
             "test_schedule.py", "The times of a sampler lack SD's offset of 1."),
    Mutation("schedule-plms", SCHEDULE, "23 / 12", "22 / 12", "test_schedule.py",
             "PLMS combines three predictions with a wrong weight."),
    Mutation("corrector-of-another-flow", "minibnn/neighbours/rectified.py",
             'elif config["flow"] != beside.fingerprint(', 'elif None == beside.fingerprint(',
             "test_rectified.py::test_a_corrector_of_another_flow_of_the_same_size_is_refused",
             "A corrector trained for another flow of the same size is taken."),
    Mutation("options-reward-of-here", "minibnn/options/configs.py", 'get("metavar") != "REWARD":', 'get("metavar"):',
             "test_unfinished.py test_options.py",
             "The path of --reward is looked for in the folder of the second call."),
    Mutation("options-file-contradicts", "minibnn/options/configs.py", "if name not in in_vain(given)}", "}",
             "test_options.py::test_a_file_does_not_contradict_what_is_typed",
             "The sigma of a file is refused beside --no-bayes."),
    Mutation("threads-not-given-back", "minibnn/devices.py", "torch.set_num_threads(before)", "pass",
             "test_devices.py::test_a_command_gives_the_callers_threads_back",
             "After a training in a notebook everything has one thread."),
    Mutation("progress-looks", "minibnn/progress.py", "works = sum(self.step <= step <= self.total",
             "works = sum(self.step < step <= self.total", "test_progress.py",
             "The time to the end forgets the look that is about to begin."),
    Mutation("examples-incomplete", "minibnn/options/examples.py", "--pictures drawn --training photos/rex --dino",
             "--training photos/rex --dino", "test_commands.py",
             "An example of --help lacks an option that the command needs."),
    Mutation("aliases-meaning", "minibnn/options/parsing.py", "_option_string_actions} | others",
             "_option_string_actions}", "test_options.py",
             "`sample --max_train_steps 800` draws with 800 steps."),
    Mutation("config-unchecked", "minibnn/options/of_runs.py",
             'fitting(config, record(SCHEMA | {"options": record(fields_of(options_class))}), path)', "pass",
             "test_options.py", "A run's config.json is believed whatever it holds."),
    Mutation("config-method", "minibnn/options/configs.py", "*(OF_METHOD if other else ()), ", "",
             "test_options.py", "--config RUN --method lora brings the rate and the layers of DreamBooth along."),
    Mutation("options-one-prompt", "minibnn/options/kinds.py", "value = [value]", "value = list(value)",
             "test_options.py", "A prompt from Python is taken letter by letter."),
    Mutation("save-config-paths", "minibnn/options/configs.py", "beside(values, options_class, Path.cwd())", "values",
             "test_options.py", "--save-config writes paths that mean something else in the file's folder."),
    Mutation("unfinished-elsewhere", "minibnn/options/unfinished.py", "partial(moved, config=found)",
             'partial(moved, config={})', "test_unfinished.py",
             "bps --resume looks for the pairs beside another working folder."),
    Mutation("plain-run-with-sigma", "minibnn/cli/settle.py", '"sigma": recipe["sigma"], ', "",
             "test_train.py::test_what_a_plain_run_was_settled_for_can_be_asked_for",
             "The command that a plain run's report prints is refused."),
    Mutation("ema-of-live-weights", "minibnn/cli/train.py", "    ema.take_over(sd.unet)\n", "", "test_ema.py",
             "A run with --ema is made of the weights of its last step."),
    Mutation("ema-warm-up", "minibnn/finetune/ema.py", "k / (k + 9)", "(k + 1) / (k + 10)", "test_ema.py",
             "The decay of the average runs a step ahead of diffusers'."),
    # --- pages
    Mutation("page-attributes", "minibnn/page/html.py", """{key}="{escape(value)}\"""", """{key}="{value}\"""",
             "test_page.py", "A prompt with quotation marks ends an attribute, and the rest of it is obeyed."),
    Mutation("page-narrow-tables", "minibnn/page/style.css", " width: max-content;", "", "test_page.py",
             "Tables shrink to a phone and break names before they scroll."),
    Mutation("photographs-advised", "minibnn/lab/monitor.py", "if self.photographs:\n            return NOTHING_KNOWN",
             "if False:\n            return NOTHING_KNOWN", "test_report.py",
             "The monitor advises a step for photographs, by measures that know drawings alone."),
    Mutation("photographs-unknown", "minibnn/runs.py", '"photographs": of_photographs(options, pictures)',
             '"photographs": False', "test_report.py", "A run's folder does not tell that it learned photographs."),
    Mutation("textured-places", "minibnn/world/captions.py", 'if model == "textured":', 'if model == "other":',
             "test_subjects.py", "The textured model is asked for places, of which it knows none."),
    Mutation("page-stale-looks", "minibnn/page/record.py", "if step in there]", "]", "test_report.py",
             "The page shows looks that a resumed run has forgotten."),
    Mutation("curves-level", "minibnn/lab/curves.py", 'rows[0]["noise"] + RISEN', 'rows[-1]["noise"] + RISEN',
             "test_report.py", "The level from which noise has risen is drawn above the last look, not the first."),
    # --- the networks
    Mutation("unet-no-checkpointing", UNET, "if self.gradient_checkpointing and torch.is_grad_enabled():", "if False:",
             "test_networks.py",
             "Gradient checkpointing never happens: the memory that it should save is used."),
    Mutation("unet-no-upcast", TRANSFORMER, "if not self.upcast:", "if True:", "test_networks.py",
             "SD v2.1's attention overflows in float16, because upcast_attention is ignored."),
    Mutation("unet-sin-first", UNET, "torch.cat([angle.cos(), angle.sin()]", "torch.cat([angle.sin(), angle.cos()]",
             "test_networks.py", "Sines and cosines of the time embedding are exchanged."),
    Mutation("unet-scale-shift", "minibnn/networks/layers.py", "self.norm2(h) * (1 + scale) + shift",
             "self.norm2(h) * scale + shift", "test_parity.py", "The time scales by s instead of 1 + s."),
    Mutation("unet-no-text-time", UNET, "time = time + self.add_embedding(context)", "time = time + 0",
             "test_parity.py", "The prompt never reaches the residual blocks."),
    Mutation("pixel-vae-one-sided", "minibnn/world/pixel_vae.py", "3:6, 1, 1] = torch.eye(3), -torch",
             "3:6, 1, 1] = torch.eye(3), 0 * torch", "test_textured.py",
             "The pixel VAE bends what it should pass, because SiLU is not made linear."),
    Mutation("noise-level-scale", "minibnn/world/measures.py", "math.sqrt(math.pi / 2) * response",
             "math.sqrt(math.pi) * response", "test_textured.py", "The noise level is √2 too high."),
    Mutation("stage-equal-loss", "minibnn/experiments/stage/tables.py", "equal_loss(b, loss_late(a))",
             "equal_loss(b, loss_late(b))", "test_stage.py",
             "A cure is compared at equal steps where the table says at equal loss."),
    Mutation("stage-runs-as-seeds", "minibnn/experiments/stage/tables.py", "for (_, seed), value in values",
             "for seed, value in values", "test_stage.py",
             "Subjects of one seed, which share their random numbers, count as if they were independent."),
    Mutation("noise-offset", "minibnn/schedule.py", "torch.randn((*shape[:2], 1, 1)", "torch.randn((shape[0], 1, 1, 1)",
             "test_schedule.py", "The offset of the noise is the same for all channels."),
    Mutation("noise-spread", "minibnn/schedule.py", "torch.randn((shape[0], 1, 1, 1)", "torch.randn(shape",
             "test_schedule.py", "The strength of the noise varies from pixel to pixel."),
    Mutation("class-guidance", "minibnn/class_pictures.py", "guidance=made_for[\"guidance\"], ", "",
             "test_class_pictures.py", "Class pictures are drawn with the guidance of all others."),
    Mutation("sign-of-a-surplus", "minibnn/lab/gain_law.py", "math.prod(step_factor(float(g), *step[1:])",
             "math.prod(abs(step_factor(float(g), *step[1:]))",
             "test_gain_law.py", "A surplus that has turned adds up instead of cancelling."),
    Mutation("gain-of-a-part", "minibnn/lab/gains.py", "turned = noise - 2 * part(noise)", "turned = -noise",
             "test_gains.py", "The gain of one direction is measured by turning all of the noise."),
    Mutation("start-at-a-mean", "minibnn/schedule.py", "return noise - own + abar_t**0.5 * mean",
             "return noise + abar_t**0.5 * mean", "test_schedule.py", "The starting noise keeps its own mean colour."),
    Mutation("surplus-of-strength", "minibnn/experiments/stage/starts.py", "(np.asarray(strengths) - 1) * along",
             "np.asarray(strengths) * along", "test_stage.py", "All of the noise counts as a surplus."),
    Mutation("unet-norm-eps", TRANSFORMER, "channels, eps=1e-6)", "channels, eps=1e-5)", "test_networks.py",
             "The norm before the transformer has the ε of the other norms."),
    Mutation("unet-odd-sizes", UNET, "return self.upsamplers[0](x, size)", "return self.upsamplers[0](x)",
             "test_parity.py", "Upsampling doubles, also where the skip's size is odd."),
    Mutation("tokenizer-capitals", TOKENIZER, "piece)).lower()", "piece))", "test_tokenizer.py",
             "Capital letters are not lowered, and become other words."),
    Mutation("tokenizer-padding", TOKENIZER, '("tokenizer_config.json", "special_tokens_map.json")',
             '("special_tokens_map.json", "tokenizer_config.json")', "test_tokenizer.py",
             "SD v2's prompts are padded with the token of the wrong file."),
    Mutation("tokenizer-merges", TOKENIZER, "best = min(pairwise", "best = max(pairwise", "test_tokenizer.py",
             "Byte pairs are merged in the wrong order."),
    # --- the files of a model
    Mutation("layouts-surplus", LAYOUTS, "if missing or wrong or surplus:", "if missing or wrong:",
             "test_weights.py::test_each_kind_of_misfit_alone_is_refused",
             "A file with tensors that the network does not have is read without a word."),
    Mutation("layouts-shapes", LAYOUTS, "if without_ones(shape) != without_ones(wanted):", "if False:",
             "test_weights.py::test_each_kind_of_misfit_alone_is_refused",
             "The shapes of a file's tensors are not compared with the network's."),
    Mutation("layouts-thirds", LAYOUTS, "value.chunk(3)[third]", "value.chunk(3)[0]", "test_weights.py",
             "Query, key and value of SD v2's text encoder are all read from the query's part of the file."),
    Mutation("layouts-dtype", LAYOUTS, ".to(dtype or value.dtype)", ".to(dtype or torch.float32)", "test_weights.py",
             "A half-precision file takes twice its memory."),
    Mutation("store-not-whole", STORE, 'path.with_name(f".{path.name}.{os.getpid()}.tmp")', "path", "test_weights.py",
             "A write that fails leaves half a file in the place of the old one."),
    Mutation("weights-not-finite", WEIGHTS, "if not all(end.isfinite() for end in wide.aminmax()):",
             "if not wide.max().isfinite():", "test_checkpoints.py", "An infinite minimum is not seen."),
    Mutation("metadata-order", WEIGHTS, "dict(sorted(header[\"__metadata__\"].items()))", "header[\"__metadata__\"]",
             "test_weights.py::test_the_same_tensors_make_the_same_bytes", "The same run gives other bytes each time."),
    Mutation("checkpoint-shapes", "minibnn/checkpoints.py", "if there != needed:", "if False:", "test_checkpoints.py",
             "A checkpoint's tensors may have other shapes than the network's."),
    Mutation("compile-does-nothing", TRAIN, "compiled(unet) if options.compile else", "", "test_compile.py",
             "--compile compiles nothing in training."),
    Mutation("compile-keeps-prompts", TRANSFORMER, "if torch.compiler.is_compiling() or self.kept is None:",
             "if self.kept is None:", "test_compile.py", "A UNet is compiled again in the second step."),
    Mutation("checkpoint-stopped", "minibnn/observers.py", "self.keep or done < self.steps", "self.keep",
             "test_checkpoints.py", "A large run that is stopped early lacks its optimiser's state, and cannot go on."),
    Mutation("checkpoint-stays", "minibnn/cli/train.py", "        delete_checkpoint(out)", "        pass",
             "test_checkpoints.py", "A finished run is three times as large as its model."),
    Mutation("ownership-first-checkpoint", OWNERSHIP, "        begun.add(STATE.parent.name)", "        pass",
             "test_ownership.py::test_a_run_killed_before_its_first_checkpoint_has_a_way_on",
             "A run killed while its first checkpoint is written can neither resume nor start."),
    Mutation("locks-not-locked", LOCKS, "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
             "test_ownership.py::test_a_lock_is_taken_over_only_when_its_process_is_gone", "Two runs share a folder."),
    Mutation("schema-true-is-one", "minibnn/files/schema.py", "if type(value) is not int or not low",
             "if not isinstance(value, int) or not low", "test_schema.py", "A file may say true for a whole number."),
    Mutation("running-broken-pipe", "minibnn/options/running.py", "            if not _received:\n",
             "            if False:\n", "test_running.py", "Training goes on when nobody reads its output."),
    Mutation("weights-pickles", WEIGHTS, "if path.suffix in PICKLES:", "if False:", "test_weights.py",
             "A pickle, which can run code, is not refused by its name."),
    # --- Bayesian layers
    Mutation("bayes-sigma-min", BAYES, "SIGMA_MIN = 1e-7", "SIGMA_MIN = 5e-3", "test_bayes.py",
             "σ cannot become small, so that the posterior cannot become certain."),
    Mutation("bayes-256-seeds", NOISE, "torch.randint(2**62, (1,), generator", "torch.randint(2**8, (1,), generator",
             "test_bayes.py", "All of training sees 256 different samples of the weights."),
    Mutation("bayes-bias-noise", NOISE, '2 * stream + (domain == "bias") if', "2 * stream if", "test_bayes.py",
             "A layer's bias has the first numbers of its weight's noise."),
    Mutation("sample-first-prompt", TRANSFORMER, "if not self.kept or self.kept[0] is not context:",
             "if not self.kept:", "test_same_prompt.py",
             "A second prompt is drawn with the keys and values of the first."),
    Mutation("adamw-bf16-same-noise", ADAMW, "(seed * 1_000_003 + step)", "(seed * 1_000_003)",
             "test_adamw_bf16.py", "Each step rounds its moments with the same random bits."),
    Mutation("adamw-bf16-cut-off", ADAMW, "view(torch.int32) + noise)", "view(torch.int32))",
             "test_adamw_bf16.py", "Moments are always rounded towards zero."),
    Mutation("bayes-one-stream", NOISE, "0x9E3779B97F4A7C15 * (stream + 1)", "0x9E3779B97F4A7C15", "test_bayes.py",
             "All layers have the same noise."),
    Mutation("bayes-random-in-eval", BAYES, "if not self.training:", "if False:", "test_bayes.py",
             "Inference samples the weights instead of taking their means."),
    Mutation("bayes-gradient-of-sigma", NOISE, "return grad, _theta(None, grad, *ctx.saved_tensors, *ctx.source)",
             "return grad, grad", "test_bayes.py", "The gradient of σ lacks its ε."),
    Mutation("bayes-stale-checkpoint", NOISE, "if any(ref() is not None for ref in self._earlier):", "if False:",
             "test_weight_noise.py", "A checkpoint is silently computed again with the next draw of the weights."),
    Mutation("bayes-at-once-half-norms", AT_ONCE, "and not layer.FULL_PRECISION", "", "test_weight_noise.py",
             "Random weights of normalisation are rounded to 16 bits under autocast."),
    Mutation("bayes-kl-direction", BAYES, 'if direction == "q-p":', "if True:", "test_bayes.py",
             "--kl p-q computes the other divergence."),
    Mutation("bayes-kl-mean", BAYES, "terms.sum()", "terms.mean()", "test_bayes.py",
             "The KL of a tensor is a mean, so that λ means something else for each layer."),
    # --- LoRA, OFT and their files
    Mutation("lora-scale", LORA, "self.scale = alpha / rank", "self.scale = alpha", "test_adapters.py",
             "The correction is scaled by α instead of α/r."),
    Mutation("lora-start", LORA, 'device="cpu") / rank', 'device="cpu")', "test_adapters.py",
             "The down matrix starts with a standard deviation of 1 instead of 1/r."),
    Mutation("lora-random-in-eval", LORA, "if self.up_sigma is None or not self.training:", "if self.up_sigma is None:",
             "test_adapters.py", "Inference samples the up matrix instead of taking its mean."),
    Mutation("oft-transposed", OFT, '"onj,nij->oni"', '"onj,nji->oni"', "test_adapters.py",
             "The weight is rotated by R instead of Rᵀ."),
    Mutation("oft-ball", OFT, "(eps / len(q) ** 0.5 / norm", "(eps / norm", "test_adapters.py",
             "Constrained OFT allows each block the rotation of all."),
    Mutation("oft-autocast", OFT, "torch.autocast(q.device.type, enabled=False)", "torch.autocast(q.device.type)",
             "test_adapters.py", "R is computed in half precision and is not orthogonal."),
    Mutation("files-alpha-ignored", SETTINGS, 'settings.get("lora_alpha", rank)', "rank", FOREIGN,
             "The α that stands beside a LoRA is ignored: it is merged at another strength."),
    Mutation("files-no-patterns", SETTINGS, 'settings.get("alpha_pattern"), layer', "None, layer", FOREIGN,
             "The α of single layers is ignored."),
    Mutation("files-rank-stabilised", SETTINGS, 'math.sqrt(rank) if settings.get("use_rslora") else rank', "rank",
             FOREIGN, "A rank-stabilised LoRA is merged √r times too weak."),
    Mutation("files-kohya-alpha", READING, "alpha[0].item() / len(down) if alpha", "1.0 if alpha", FOREIGN,
             "The α of a kohya file is ignored."),
    Mutation("files-strength", READING, "strength * scale", "scale", FOREIGN, "--adapter-scale is ignored."),
    Mutation("files-scale-not-folded", ADAPTERS, "folded = up * (alpha / rank) if", "folded = up if",
             "test_methods.py::test_alpha_over_rank_is_in_the_file", "diffusers opens a LoRA of another strength."),
    Mutation("files-oft-sign", ADAPTERS, "= -triangles", "= triangles", FOREIGN,
             "An OFT file is read with the opposite rotation."),
    Mutation("files-foreign-lora", READING, "if strange or not wanted:", "if not wanted:", FOREIGN,
             "Tensors of a LoRA that belong to no layer are dropped without a word."),
    Mutation("files-v-marker", SINGLE, 'if "v_pred" in shapes else', "if False else", "test_loading.py",
             "ComfyUI's marker of v-prediction is ignored: the model is trained and drawn as if it predicted ε."),
    # --- the training loop
    Mutation("train-prior-weight", TRAIN, "options.prior_weight * terms", "1.0 * terms",
             DREAMBOOTH, "--prior-weight is ignored."),
    Mutation("train-prior-without-gradient", TRAIN, "of_class[0].mean()}", "of_class[0].mean().detach()}", DREAMBOOTH,
             "The loss on class pictures is logged, but not learned from."),
    Mutation("train-accumulate", TRAIN, "scale(loss / forwards)", "scale(loss)", DREAMBOOTH,
             "Gradients of --accumulate are added and not averaged."),
    Mutation("train-half-of-the-times", TRAIN, "schedule.TRAIN_STEPS, (len", "schedule.TRAIN_STEPS // 2, (len",
             "test_train_oracle.py", "Only the less noisy half of the times is trained."),
    Mutation("train-no-clipping", TRAIN, "(network.parameters(), training.max_norm)", "(network.parameters(), 1e9)",
             "test_train_oracle.py", "Gradients are not clipped."),
    Mutation("train-v-target", TRAIN, "if v_prediction else eps", "if False else eps", DREAMBOOTH,
             "A network that predicts v is trained to predict ε."),
    Mutation("train-weights-never-redrawn", TRAIN, "noise.renew(generator, sd.device)", "pass", DREAMBOOTH,
             "All steps see the same sample of the weights."),
    Mutation("train-one-time", TRAIN, "(len(x0),), generator=generator)", "(1,), generator=generator).expand(len(x0))",
             "test_train_oracle.py", "All pictures of a batch have the same time."),
    Mutation("train-sigma-decays", TRAIN, "0.0 if is_sigma else 0.01", "0.01", DREAMBOOTH,
             "Weight decay pulls σ to 0."),
    Mutation("train-no-warm-up", TRAIN, "min(1, (training.step + 1) / (options.lr_warmup_steps or 1))", "1", DREAMBOOTH,
             "--lr-warmup-steps is ignored."),
    Mutation("train-null-dropout-always-the-same", TRAIN, "-1 - i)", "-1)", "test_train.py",
             "Null dropout drops the prompts of the same places of the batch at each step, or of none."),
    Mutation("gains-guidance", GAINS, "- (guidance - 1) * u", "- guidance * u", "test_gains.py",
             "The guided gain takes away the unconditional one once too often."),
    Mutation("law-fresh-noise", LAW, "+ schedule.ddim_sigma(abar_t, abar_prev, eta) ** 2", "", "test_gain_law.py",
             "Ancestral sampling adds no noise."),
    Mutation("law-interpolates-in-t", LAW, "places[times], places[known[0]]", "times, known[0]", "test_gain_law.py",
             "Between measured times the gain is taken linear in t."),
    Mutation("advice-any-remedy", ADVICE, "if reading.added(guidance, eta=1.0) <= visible else []", "", "test_gains.py",
             "η = 1 is advised where the law says that it does not help."),
    Mutation("advice-random-weights", ADVICE, 'else [f"--null-dropout {NULL_DROPOUT}"]',
             'else [f"--null-dropout {NULL_DROPOUT}", "--bayes"]', "test_gains.py::test_what_training_may_still_do",
             "Random weights, which add noise, are advised against noise."),
    Mutation("recipe-seeds", "minibnn/experiments/recipe/trainings.py", '{line["seed"] for line in own}',
             '{line["seed"] for each in ran.values() for line in each}',
             "test_recipe.py::test_page_names_the_command_of_each_set_of_seeds",
             "The page says of every setting that it ran with all seeds."),
    Mutation("inverse-noise-mixed", "minibnn/experiments/inverse_noise/trainings.py",
             'names = ("euler_steps", "inverted", "tests", "corrector_training")', 'names = ("euler_steps",)',
             "test_kept_results.py::test_inverse_noise_averages_only_seeds_of_the_same_settings",
             "Rows of correctors that were trained longer are averaged with the others."),
    Mutation("teacher-of-the-mean", TRAIN, "copy.deepcopy(unet).requires_grad_(False) if copied else unet", "unet",
             "test_train_oracle.py::test_three_steps_of_dreambooth",
             "The class is taught by the network that is being trained."),
    Mutation("teacher-with-its-adapters", TRAIN, ", adapters.switched_off(unet):", ":",
             "test_train_oracle.py::test_three_steps_of_lora_as_peft", "The class is taught by the LoRA in training."),
    Mutation("teacher-copied-for-adapters", TRAIN, 'copied = options.method == "dreambooth"', "copied = True",
             "test_memory_bench.py", "A LoRA, too, keeps a second UNet to teach the class."),
    Mutation("teacher-draws", "minibnn/finetune/adapters.py", "network.eval()  # else", "# else",
             "test_adapters.py::test_switched_off_the_network_is_the_base_and_draws_nothing",
             "All random weights are drawn for the teacher, which has none."),
    Mutation("teacher-ends-noise", "minibnn/finetune/adapters.py", "        network.train(training)\n", "",
             "test_adapters.py::test_switched_off_the_network_is_the_base_and_draws_nothing",
             "After the teacher's first answer a LoRA with random weights is trained without them."),
    Mutation("earlier-runs-taught", "minibnn/options/of_runs.py", 'options["prior_target"] = "noise"',
             'options["prior_target"] = "pretrained"',
             "test_train.py::test_a_run_of_an_earlier_version_resumes_as_it_began",
             "A run of an earlier version goes on with another target than it began with."),
    Mutation("bps-experiment-part", "minibnn/experiments/bps/pairs.py", "results = before.get(key, {})",
             "results = {}", "test_bps.py::TestTheExperiment::test_it_reports_every_run_that_is_there",
             "A part of the runs replaces all that bps.json holds."),
    Mutation("bps-places-test", "minibnn/experiments/bps/places.py",
             "options.seeds, tests)", "options.seeds, validation)",
             "test_bps.py::TestTheExperiment::test_each_set_of_places_enters_at_its_best",
             "The places are compared on the sketches on which they were tuned."),
    Mutation("bold-above-alone", "minibnn/lab/intervals.py", "if low > 0 or high < 0 else text", "if low > 0 else text",
             "test_experiments.py::test_an_interval_in_words", "A difference that is surely below 0 is not bold."),
    Mutation("rows-without-end", "minibnn/files/rows.py", '"".join(json.dumps(row) + "\\n" for row in rows)',
             '"\\n".join(json.dumps(row) for row in rows)', "test_rows.py",
             "The last row of a file has no end, so that the next one is written onto the same line."),
    Mutation("json-infinite", "minibnn/files/store.py", "not math.isfinite(value)", "math.isnan(value)",
             "test_schema.py::test_what_is_written_is_json_that_is_read_again",
             "An infinite number is written as JSON, and cannot be read."),
    Mutation("sd-gains-repeats", SD_GAINS, "and training.step not in {row[\"step\"] for row in self.rows}", "",
             "test_sd_gains.py", "A resumed experiment measures again what it has measured."),
    Mutation("gains-one-sided", GAINS, "(plus - minus) / 2", "plus", "test_gains.py",
             "A gain carries the chance overlap of the noise with the remembered picture."),
    Mutation("train-latents-at-the-mean", TRAIN, "sample_latents(*moments, generator)",
             "next(moments)", BATCHES,
             "Latents are the VAE's means and not its samples."),
    Mutation("train-latents-unscaled", TRAIN, "generator) * self.scale", "generator)",
             BATCHES,
             "Latents lack SD's factor 0.18215."),
    Mutation("kl-gradient-of-sigma", "minibnn/finetune/kl_gradient.py", "sigma / prior_sigma**2 - 1 / sigma",
             "sigma / prior_sigma**2", "test_step.py", "The KL in closed form pulls σ to 0."),
    Mutation("train-waits", TRAIN, "training.check_figures(previous)", "training.check()", "test_step.py",
             "The host waits for the figures of the step at hand, and the GPU then has nothing to do."),
    Mutation("distributed-same-noise", DISTRIBUTED, "* world() + rank()", "* world()", "test_distributed.py",
             "All processes draw the same pictures, times and weights."),
    Mutation("distributed-mean-of-sums", TRAIN, "options.accumulate * distributed.world()", "options.accumulate",
             "test_distributed.py", "Gradients of several processes are added but not averaged."),
    Mutation("adapters-merged-and-drawn", "minibnn/finetune/adapters.py", "    draw_no_more(network)\n", "",
             "test_adapters.py::test_after_merging_nothing_is_drawn",
             "After merging, noise is drawn for adapters that are gone."),
    Mutation("schedule-last-at-abar-0", SCHEDULE, "for t in times[1:]), final]", "for t in times[1:]), abar[0]]",
             "test_schedule.py::test_an_exact_model_draws_its_one_picture_exactly", "The last step leaves noise."),
    Mutation("adapters-finite-in-float32", "minibnn/finetune/adapter_reading.py",
             "weights.append(weight.to(layer.weight.dtype))", "weights.append(weight)", "test_foreign_adapters.py",
             "A LoRA that is too large for float16 becomes infinite."),
    Mutation("distributed-lost-process", DISTRIBUTED, ' and "/gloo/" not in str(error)', "",
             "test_distributed.py::test_the_others_say_in_one_line_that_one_was_killed",
             "When one process is killed the others end with a traceback."),
    Mutation("data-one-order", DATA, "generator_of(seed, epoch)", "generator_of(seed, 0)", "test_data.py",
             "Pictures come in the same order in each epoch."),
    # --- the command line
    Mutation("options-empty-value", "minibnn/options/parsing.py", "        refuse_empty(given, options_class)\n", "",
             "test_options.py", 'An unset variable in --out "$FOLDER" means the present folder.'),
    Mutation("outputs-untried", "minibnn/options/outputs.py",
             "    with tempfile.TemporaryFile(dir=folder):\n        pass\n", "",
             "test_outputs.py", "Only the kind of a place is looked at, and not whether it can be written."),
    Mutation("outputs-not-asked", "minibnn/options/running.py", "check_outputs(arguments[-1])", "pass",
             "test_outputs.py", "After hours of work a command finds that it cannot write its result."),
    Mutation("running-signal-at-the-end", "minibnn/options/running.py",
             "answer_while_ending([number for number in STOPPING if number != signal.SIGINT])", "pass",
             "test_running.py::test_a_signal_while_python_ends_is_silent",
             "A signal while Python ends shows a traceback."),
    # --- a run's folder
    Mutation("runs-other-pictures", RUNS,
             'differences(config.get("pictures", {}), fingerprint(pictures, options.captions))', '""',
             "test_train.py::test_a_moved_run_resumes_but_not_with_other_pictures",
             "A run goes on with other pictures than it began with."),
    Mutation("runs-other-model", RUNS, "if model[part] != digest]", "if False]",
             "test_runs.py::test_a_run_does_not_go_on_with_another_model",
             "A run goes on with another model that lies where its own did."),
    Mutation("digests-unet-alone", "minibnn/files/digests.py", '("unet", "vae", "text_encoder")', '("unet",)',
             "test_runs.py::test_a_run_does_not_go_on_with_another_model",
             "A run goes on with another VAE or text encoder."),
    Mutation("runs-merged-digest", RUNS, "file_of(place) if adapted else None", "None",
             "test_runs.py::test_an_adapter_run_as_a_model_is_known_by_its_file",
             "A run on a LoRA's run cannot be resumed on another processor."),
    Mutation("runs-absolute-paths", RUNS, "of_runs.as_begun(values, read_config(options.out))", "(values, os.getcwd())",
             "test_runs.py::test_a_run_can_be_moved_after_it_went_on_from_elsewhere",
             "A run that went on from elsewhere cannot be moved with its project."),
    Mutation("class-behind-a-link", "minibnn/cli/class_source.py", "not own.is_symlink() and ", "",
             "test_train.py::test_class_pictures_behind_a_link_are_of_others",
             "--overwrite deletes class pictures that other runs share by a link."),
    Mutation("runs-project-moved", "minibnn/options/of_runs.py",
             "(not home.exists() and Path(value).exists())", "False",
             "test_runs.py::test_a_run_goes_on_in_a_project_that_has_moved",
             "A run of a project that has moved looks for its model where that was."),
    Mutation("runs-earlier-place", RUNS, "place = of_runs.moved(was, config) if", "place = was if",
             "test_runs.py::test_a_run_of_an_earlier_version_goes_on_from_elsewhere",
             "A run of an earlier version is resumed in the folder in which it began, and nowhere else."),
    Mutation("class-own-deleted", "minibnn/class_pictures.py", "if DRAWN.fullmatch(path.name):", "if True:",
             "test_train.py::test_class_pictures_of_an_earlier_run_do_not_stand_in_the_way",
             "--overwrite deletes the user's own class pictures."),
    Mutation("class-others-kept", "minibnn/cli/train.py", "        forget_others(classes, options)", "        pass",
             "test_train.py::test_class_pictures_of_an_earlier_run_do_not_stand_in_the_way",
             "A run is trained with class pictures that were drawn for another class."),
    Mutation("runs-overwrite-deletes", OWNERSHIP, 'and path != out / "class_images":', "and False:",
             "test_train.py::test_overwrite_never_deletes_what_it_is_given",
             "--overwrite deletes the pictures that it was given."),
    Mutation("log-twice", "minibnn/observers.py", "[: training.step] if", "if",
             "test_train.py::test_a_kill_leaves_the_last_checkpoint", "After a resume the log holds some steps twice."),
    Mutation("monitor-claims-fidelity", "minibnn/lab/monitor.py", 'measured = self.rows[-1]["fidelity"] is not None',
             "measured = True", "test_monitor.py::test_nothing_is_called_faithful_where_that_was_not_measured",
             "A step of photographs is called the most faithful, though fidelity was not measured."),
    Mutation("page-samples-twice", "minibnn/page/run.py", "list(by_step.items())", "record.samples",
             "test_report.py::test_a_training_leaves_its_page_complete_and_whole",
             "The page shows the last samples twice, as if they were of two steps."),
    # --- the paper by one command
    Mutation("claims-immortal", "minibnn/files/claims.py", 'return lives(who["process"])', "return True",
             "test_paper.py::test_the_claim_of_a_dead_process_is_taken_over_by_one_alone",
             "What a killed process had begun waits for minutes."),
    Mutation("hollow-initialised", "minibnn/files/hollow.py", 'torch.device("meta"), _WithoutInitialisation():',
             'torch.device("meta"):', "test_loading.py::test_drawing_starts_without_pytorchs_compiler",
             "Loading a model takes as long as importing PyTorch once more."),
    Mutation("claims-undead", LOCKS, 'return state not in (b"Z", b"X")', "return True",
             "test_paper.py::test_the_claim_of_a_dead_process_is_taken_over_by_one_alone",
             "A process that was killed, and that nobody has asked about, counts as alive for five minutes."),
    Mutation("claims-unsigned", "minibnn/files/claims.py", "return idle <= BEGINNING", "return True",
             "test_paper.py::test_of_another_machine_only_the_touch_is_seen",
             "The claim of a process that was killed before it had written who it is stands for five minutes."),
    Mutation("claims-needs", "minibnn/files/claims.py", "if finished.issuperset(task.needs) else None", "",
             "test_paper.py::test_tasks_are_done_once_by_many_and_after_what_they_need",
             "A run begins before its class pictures are there."),
    Mutation("claims-fails-for-ever", "minibnn/files/failures.py", "return self.own | tried", "return set()",
             "test_paper.py::test_a_process_in_which_everything_fails_ends",
             "A process does again and again what has just failed in it."),
    Mutation("claims-one-name", "minibnn/files/claims.py", "()} {boot} {os", "()} 0 {os",
             "test_paper.py::test_machines_of_one_name_are_told_apart",
             "A living process of another machine called localhost is taken for a dead one of this."),
    Mutation("oft-random-everywhere", "minibnn/finetune/adapters.py", "if name.startswith(inside) else", "if True else",
             "test_adapters.py::test_q_is_random_in_the_blocks_that_are_named",
             "--method oft --where up makes Q random in all blocks."),
    Mutation("paper-deviation", "minibnn/paper/tables.py", "statistics.stdev(means)", "statistics.pstdev(means)",
             "test_paper.py::test_means_deviations_and_intervals_are_those_of_numpy_and_scipy",
             "Standard deviations over few seeds are too small."),
    Mutation("paper-celeba-steps", "minibnn/paper/plan.py", "CELEBA = 1.25", "CELEBA = 1.0",
             "test_paper.py::test_the_runs_are_those_of_the_paper", "People are trained for 200 steps a picture."),
    # --- drawing
    Mutation("sample-noise-of-the-first-batch", SAMPLE, "later[k, p]", "later[k, : len(x)]",
             "test_sample_oracle.py", "With η > 0 all batches get the noise of the first one."),
    Mutation("sample-negative-prompt", SAMPLE, "sd.encode_prompts([negative_prompt])", 'sd.encode_prompts([""])',
             "test_sample_oracle.py", "--negative-prompt is ignored."),
    Mutation("sample-guidance", SAMPLE, "return eps_u + scale", "return eps_c + scale", "test_sample_oracle.py",
             "Guidance starts from the wrong prediction: a scale of s draws s + 1."),
    Mutation("pictures-truncated", PICTURES, "* 255).round()", "* 255)", "test_sample_oracle.py",
             "Grey levels are truncated: pictures are darker by half a level."),
    Mutation("pipeline-v-as-eps", PIPELINE, "if self.v_prediction:\n", "if False:\n",
             "test_pipeline.py::test_velocity_prediction", "A v-prediction is taken for ε."),
    Mutation("guidance-negative-prompt", GUIDANCE, "predictor(base, prompt)", 'predictor(base, "")',
             "test_guidance_oracle.py", "The base ignores the negative prompt."),
    Mutation("flow-conditions", "minibnn/neighbours/flow.py", "condition(active))",
             "condition(torch.arange(len(active))))",
             "test_rectified.py::test_each_sample_is_inverted_under_its_own_condition",
             "Once a sample is inverted, the others have its prompt."),
    Mutation("flow-device", "minibnn/neighbours/flow.py", "<= tolerance).cpu()]", "<= tolerance)]",
             "test_rectified.py::test_the_inversion_computes_where_the_pictures_are",
             "On a GPU no picture can be inverted."),
    Mutation("rectified-batches", "minibnn/neighbours/rectified.py", "            i += n",
             "            i += options.batch_size",
             "test_rectified.py::test_inversions_go_on_in_batches_of_another_size",
             "With another --batch-size pictures are inverted twice, or not at all."),
    Mutation("beside-order", "minibnn/neighbours/beside.py", "    path.unlink(missing_ok=True)", "    pass",
             "test_rectified.py::test_a_corrector_of_another_model_or_a_damaged_one_is_refused",
             "After a kill a new corrector has the settings of the old one."),
    Mutation("unfinished-others", "minibnn/options/unfinished.py", "    content(work / FILE, type(options))",
             "    pass", "test_unfinished.py", "--overwrite deletes what another command began."),
    Mutation("unfinished-empty", "minibnn/options/unfinished.py",
             "if [path.name for path in work.iterdir()] == [FILE]:", "if False:", "test_unfinished.py",
             "A command that failed before it did anything has to be told --resume or --overwrite."),
    Mutation("rectified-time", "minibnn/neighbours/rectified.py", "(1000 * (1 - s))", "(1000 * s)",
             "test_rectified.py::test_pictures_are_those_of_instaflows_loop_on_diffusers",
             "The UNet of a rectified flow is told that noise is data."),
    Mutation("bps-recomputed-without-hint", "minibnn/neighbours/bps_branch.py",
             '{"context_fn": lambda: (contextlib.nullcontext(), context())}', "{}",
             "test_bps.py::test_checkpointing_computes_each_block_twice_with_the_hint",
             "What gradient checkpointing computes again in backward is not steered: the hooks are gone by then."),
    Mutation("bps-branch-not-checkpointed", "minibnn/neighbours/bps_branch.py",
             "h = run(joined, block, h, skips.pop())", "h = joined(block, h, skips.pop())",
             "test_bps.py::test_checkpointing_computes_each_block_twice_with_the_hint",
             "The branch's decoder keeps all that it computed, though gradient checkpointing is asked for."),
    Mutation("aesthetic-unnormed", "minibnn/neighbours/rewards.py", "head(measures.clip_pictures(",
             "head(2 * measures.clip_pictures(",
             "test_photo_metrics.py::test_the_aesthetic_score_is_a_reward",
             "The aesthetic head gets features that are no unit vectors."),
    Mutation("guide-hint", "minibnn/neighbours/bps.py", "torch.cat([sd.unet(x_u, t_u, null), ",
             "torch.cat([steered(sd.unet, branch, x_u, t_u, null, y, inject), ",
             "test_bps.py::test_guidance_on_the_hint_starts_from_the_frozen_model",
             "Guidance on the hint does not leave the hint out."),
    Mutation("candidates-noise", CANDIDATES, "-1 - number)", "-1)",
             "test_graft.py::test_candidates_have_noise_of_their_own",
             "All batches of candidates are drawn from the same noise."),
    Mutation("candidates-float32", CANDIDATES, "with autocast(sd.device, getattr(torch, options.dtype)):",
             "with autocast(sd.device, torch.float32):", "test_graft.py::test_graft_of_a_lora_at_the_layout_of_sd",
             "Candidates are drawn in float32, whatever --dtype says."),
    Mutation("graft-first-time", GRAFT, "training.first_time = t + 1 if", "training.first_time = 0 if",
             "test_graft.py::test_training_sees_only_times_above_the_state", "P-GRAFT trains below its switch too."),
    Mutation("fitted-noise-transposed", FITTED, "flatten(1) @ factor.T)", "flatten(1) @ factor)",
             "test_fitted_noise.py", "The fitted noise has another covariance than the inverse noise."),
    Mutation("fitted-noise-unshrunk", FITTED, "(1 - share) * s, share", "s, share", "test_fitted_noise.py",
             "The sample covariance is not shrunk: with few samples its small directions are far too small."),
    Mutation("edges-one-direction", EDGES, "[across, across.T]", "[across, across]", "test_edges.py",
             "A sketch of a photo has vertical lines only."),
    Mutation("guidance-time-map", GUIDANCE, "eps(x, tau[t])", "eps(x, t)", "test_guidance.py",
             "A base of another schedule sees a wrong time."),
    # --- the kernels
    Mutation("reference-nine-rounds", REFERENCE, "for _ in range(10):", "for _ in range(9):", "test_kernels.py",
             "Philox has a round too few."),
    Mutation("reference-half-a-key", REFERENCE, "(seed & MASK, (seed >> 32) & MASK)", "(seed & MASK, 0)",
             "test_kernels.py", "Seeds that differ in the upper half alone give the same noise."),
    Mutation("reference-domains", REFERENCE, "stream, DOMAINS[domain])", "stream, 0)", "test_kernels.py",
             "The bias's noise is the first column of the weight's."),
    Mutation("philox-half-a-key", PHILOX, "zero + (key >> 32).to(tl.uint32)", "zero", THETA,
             "The kernel takes another key than the reference for a seed above 2³²."),
    Mutation("philox-rows", PHILOX, "rows = row0 + tl.arange", "rows = tl.arange", THETA,
             "All tiles of rows have the same noise."),
    Mutation("kernel-mask", KERNEL, "(rows < R) & (columns < C)", "(rows < R)", THETA,
             "A tile at the right border writes into the next row."),
    Mutation("network-padding", NETWORK, "if gap := end", "if gap := 0 * end", "test_kernel_network.py",
             "The gradients of all tensors after an odd one are read from a wrong place."),
    Mutation("check-copies", "tutorials/checks/__init__.py", "check(with_copies(fn))", "check(fn)",
             "test_tutorials.py::test_a_check_gives_copies_and_names_no_frame_of_its_own",
             "an answer in place changes what it is compared with"),
    Mutation("check-frames", "tutorials/checks/__init__.py", "            failure = in_words(error, fn)",
             "            failure = error", "test_tutorials.py::test_a_failed_check_shows_words_and_no_frame",
             "a failed check shows the answers"),
    Mutation("sample-strip", PICTURES, "min(pictures, max(4, math.ceil(math.sqrt(pictures))))", "pictures",
             "test_pipeline.py::test_many_pictures_make_a_grid_and_no_strip",
             "sixteen pictures of one prompt stand side by side in one row"),
    Mutation("check-ties", "tutorials/checks/graft.py", "(kept.sum(1) != 3).any()", "(kept.sum(1) < 3).any()",
             "test_tutorials.py::test_wrong_answers_fail_with_the_right_hint",
             "a threshold that keeps more than K of equal rewards passes the check of lesson 07"),
    Mutation("check-chance", "tutorials/checks/__init__.py", "not torch.equal(chance, torch.get_rng_state())", "False",
             "test_tutorials.py::test_an_answer_that_draws_its_own_noise_is_told_so",
             "an answer that draws noise of its own is not told so"),
    Mutation("check-digits", "tutorials/checks/__init__.py", "if equal(got, expected, 1e-5):", "if False:",
             "test_tutorials.py::test_compare_tells_wrong_answers_from_right_ones",
             "an answer in float32 is called wrong with two numbers that look alike"),
    Mutation("recipe-drift", RECIPE, "sum(value < DRIFTED for", "sum(value > DRIFTED for",
             "test_recipe.py", "the page counts the runs whose class prompt has not drifted"),
    Mutation("recipe-strip", RECIPE, "SIDE, GAP = 128, 4", "SIDE, GAP = 128, 2",
             "test_recipe.py", "a strip of pictures is cut where no picture begins"),
    Mutation("recipe-batch", "minibnn/cli/settle.py", 'options.batch_size or recipe["batch_size"]',
             "options.batch_size or 1", "test_train.py", "the recipe's batch size is ignored"),
    Mutation("held-out-colours", "minibnn/world/pretrain.py", "max(math.dist(main, world.TEAL), math.dist(accent,",
             "1e9 * max(math.dist(main, world.TEAL), math.dist(accent,", "test_pretrain.py",
             "the few-shot subjects' colours are not kept from the UNet"),
    Mutation("noisy-trust", "tutorials/05_the_cure.py", "max(0.0, trust - sigma**2)", "max(0.0, trust - 2 * sigma**2)",
             "test_tutorial_equations.py::test_noise_on_the_trust_is_a_soft_threshold",
             "a wrong law of noise on a product"),
)


def copy_of_the_tree(folder):
    """Copy what git would take, new files too, into a folder; kernels/ can be imported there as it is installed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "minibnn_kernels").symlink_to("kernels")


def run_tests(folder, tests, limit):
    """(do they pass?, the last lines that pytest printed), with minibnn from this folder."""
    settings = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    try:
        result = subprocess.run(
            [sys.executable, *words], cwd=folder, env=settings, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return False, f"no end within {limit} s"
    if result.returncode not in (0, 1):  # 1: tests failed; others: pytest could not run them, unless an import broke
        return False, f"pytest's exit code {result.returncode}: " + result.stdout[-600:]
    return result.returncode == 0, result.stdout[-3000:]


def check_the_copy(folder):
    """Exit unless the copy, and not the installed package, would be tested."""
    script = "import minibnn, minibnn_kernels.reference as r; print(minibnn.__file__, r.__file__)"
    settings = os.environ | {"PYTHONPATH": str(folder)}
    places = subprocess.run([sys.executable, "-c", script], cwd=folder, env=settings, capture_output=True, text=True)
    if any(not place.startswith(str(folder)) for place in places.stdout.split()) or places.returncode:
        raise SystemExit(f"another minibnn would be tested: {places.stdout}{places.stderr}")


def misplaced(mutation, folder):
    """What is wrong with a mutation's place, or None."""
    path = folder / mutation.file
    count = path.read_text(encoding="utf-8").count(mutation.old) if path.exists() else 0
    if count != 1:
        return f"{mutation.name}: {mutation.file} holds {mutation.old!r} {count} times, not once: bring it up to date"


def is_killed(mutation, folder):
    """Put the bug in, run its tests, take it out again: (whether one failed, how many were skipped)."""
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        passed, said = run_tests(folder, mutation.tests.split(), LIMIT)
    finally:
        path.write_text(text, encoding="utf-8")
    if said.startswith("pytest's exit code"):
        print(said)
    skipped = re.search(r"(\d+) skipped", said)
    return not passed, int(skipped[1]) if skipped else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations, or the beginnings of their names [all]")
    parser.add_argument("--list", action="store_true", help="name the mutations and run nothing")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.names or m.name.startswith(tuple(options.names))]
    if options.list or not chosen:
        for mutation in chosen or MUTATIONS:
            print(f"{mutation.name:40s}{mutation.bug}")
        raise SystemExit(not chosen)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_of_the_tree(folder)
        check_the_copy(folder)
        wrong = [words for words in (misplaced(mutation, folder) for mutation in chosen) if words]
        print(*wrong, sep="\n", end="\n" if wrong else "")
        chosen = [mutation for mutation in chosen if not misplaced(mutation, folder)]
        tests = sorted({test for mutation in chosen for test in mutation.tests.split()})
        start = time.perf_counter()
        passed, said = run_tests(folder, tests, LIMIT * 10)
        if not passed:
            raise SystemExit(f"the unchanged copy fails:\n{said}")
        print(f"the unchanged copy passes its tests in {time.perf_counter() - start:.0f} s; {len(chosen)} mutations")
        survivors = []
        for mutation in chosen:
            start = time.perf_counter()
            killed, skipped = is_killed(mutation, folder)
            excuse = f" (equivalent: {mutation.equivalent})" if mutation.equivalent and not killed else ""
            excuse = excuse or f" ({skipped} tests skipped: what they need is not here)" * (skipped and not killed)
            word = "killed" if killed else "SURVIVED"
            print(f"{mutation.name:40s}{word:9s}{time.perf_counter() - start:6.0f} s{excuse}", flush=True)
            if not killed and not mutation.equivalent:
                survivors.append(mutation)
    for mutation in survivors:
        print(f"survived: {mutation.name} ({mutation.tests}): {mutation.bug}")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed or equivalent")
    raise SystemExit(bool(survivors or wrong))


if __name__ == "__main__":
    main()
