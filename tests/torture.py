"""What a bad day does to minibnn: `python tests/torture.py [SECTION …] [--share X] [--seed N]`. Not a part of CI.

    inputs     300 bad values of options, over all commands
    fuzz     2,000 damaged safetensors and JSON files, over all loaders, in a process of little memory
    kills       50 kills, half of them inside a write and half at random moments, over every method; then resumed
    disk       a full disk at every write of a run; then resumed
    signals     24 times Ctrl-C, SIGTERM and SIGHUP, once and twice; then resumed
    together    12 times two commands at once in one folder
    laboratory  Ctrl-C and a kill of `experiment corruption`, which works in processes of its own
    memory      10,000 tiny steps, whose memory must not grow

Prints a table of what was tried and what held; what did not is listed below it, and the exit code is then 1. A command
holds if it ends with a right exit code and no traceback, if a refusal is one line, if a run that is resumed ends with
the bits of one that was never stopped, and if nothing is left of killed writes. --share 0.1 does a tenth of each.
Commands run in forks of this process (`forked.py`): Linux, and a few minutes on an idle core.
"""

import argparse
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import forked
import torch
from conftest import make_micro

from minibnn import StableDiffusion, class_pictures, posterior, runs
from minibnn.__main__ import COMMANDS
from minibnn.checkpoints import load_checkpoint
from minibnn.cli.train import fine_tune
from minibnn.files import store, weights
from minibnn.files.configs import check_scheduler
from minibnn.files.rows import read_rows
from minibnn.lab.drawn_by_eq2 import measured_sigma1
from minibnn.neighbours import beside, bps, flow, graft_run
from minibnn.networks.text_encoder import TextEncoder
from minibnn.networks.tokenizer import Tokenizer
from minibnn.networks.unet import UNet
from minibnn.networks.vae import VAE
from minibnn.options import lab
from minibnn.options.configs import is_path
from minibnn.options.experiments import PaperOptions
from minibnn.options.outputs import OUTPUTS
from minibnn.options.parsing import is_word, parse, spelled
from minibnn.options.running import explain
from minibnn.options.training import TrainOptions
from minibnn.train import fine_tuning

DOG = Path(__file__).parents[1] / "tutorials" / "dog"
QUICK = ["--samples", "0", "--no-monitor", "--prior-weight", "0"]
METHODS = {
    "LoRA + BNN": ["--method", "lora"], "LoRA": ["--method", "lora", "--no-bayes"], "OFT + BNN": ["--method", "oft"],
    "OFT": ["--method", "oft", "--no-bayes"], "DreamBooth + BNN": [], "DreamBooth": ["--no-bayes"],
    "norms": ["--where", "norm", "--keep-posterior"],
}
STEPS = 6


class Place:
    """A temporary folder with the small model, and how often each section was tried and held."""

    def __init__(self, folder, share, seed):
        self.folder, self.share, self.random = Path(folder), share, random.Random(seed)
        self.model = self.folder / "model"
        make_micro(self.model)
        self.tried, self.failed, self.number = Counter(), {}, 0

    def count(self, times):
        return max(1, round(times * self.share))

    def new(self):
        """A path where nothing is yet, in a folder of its own."""
        self.number += 1
        path = self.folder / f"{self.number:05d}" / "run"
        path.parent.mkdir()
        return path

    def note(self, section, what, fault):
        """Count a case; fault: what is wrong, or "" if it held."""
        self.tried[section] += 1
        if fault:
            self.failed.setdefault(section, []).append(f"{what}: {fault}")
        print(f"\r{section}: {self.tried[section]}, failed {len(self.failed.get(section, []))}  ", end="", flush=True,
              file=sys.stderr)

    def train(self, out, *words, **settings):
        """Start a training of STEPS steps that saves after each second."""
        words = ["train", "--images", DOG, "--model", self.model, "--out", out, *QUICK, "--checkpoint-every", "2",
                 "--steps", STEPS, *words]
        return forked.start(words, **settings)


def fault_of(result, codes):
    """What is wrong with how a command ended, or "". result: (code, stdout, stderr); codes: those that are right."""
    code, _, errors = result
    if "Traceback" in errors:
        return errors.strip().splitlines()[-1]
    if code not in codes:
        return f"exit code {code} {errors.strip()[-200:]}"
    complaints = [line for line in errors.splitlines() if line.startswith("error:")]
    return "" if code != 2 or len(complaints) == 1 else f"{len(complaints)} lines of complaint"


# --- inputs -----------------------------------------------------------------------------------------------------------


def bad_values(field):
    """Values that an option must refuse, by its type."""
    kind = field.metadata["argparse"].get("type", field.type)
    if field.metadata["argparse"].get("choices"):
        return ["wrong", ""]
    if kind in (str, list) or kind.__name__ == "words":
        return [] if kind is str else [" "]
    numbers = ["x", "", "nan", "inf", "1e999", "--"]
    outside = {"whole": "0", "positive": "0", "share": "1.5", "seed_number": str(2**32)}
    return numbers if kind is float else [*numbers, "-1", outside.get(kind.__name__, "-0.5")]


def bad_paths(field, options, folder):
    """Paths that an option of `options` must refuse: to be read, or to be written; [] if it is no path."""
    loop, notes, empty = (folder / name for name in ("loop", "notes.txt", "empty"))
    if field.name in OUTPUTS:
        metavar = field.metadata["argparse"]["metavar"]
        there = [notes] if metavar == "DIR" or hasattr(options, "overwrite") else []  # others replace a file of results
        ending = {"PNG": ".png", "JSON": ".json"}.get(metavar, "")
        paths = (*there, loop, loop / "new", notes / "new", "a" * 5000, "/proc/no/new")
        return ["", *(f"{path}{ending}" for path in paths)]
    if not is_path(field) or (options is PaperOptions and field.name == "tokenizer"):  # it is for single files alone
        return []
    if field.name == "class_images":  # a folder that is made if it is not there
        return ["", loop, notes, "a" * 5000]
    text = [] if "prompts" in field.name else [notes]  # of which each line is a prompt
    return ["", "/nowhere/at all", loop, *text, empty, "\udcff\udcfe", "a" * 5000, "\x1b[31m"]


def inputs(place):
    """Bad values of options, over all commands, and paths that are not what they should be."""
    ours = {"images": DOG, "model": place.model, "prompt": "a dog", "hints": DOG, "runs": "nowhere",
            "reward": "redness", "pictures": DOG, "out": "new.png", "to": "kohya"}
    without_a_run = {name: "images" for name, (_, options, *_) in COMMANDS.items()
                     if options in (lab.ProbeOptions, lab.GainsOptions)} | {"rectified": "prompt"}
    for kind in ("", ".png", ".json"):
        (place.folder / f"loop{kind}").symlink_to(place.folder / f"loop{kind}")
        (place.folder / f"notes.txt{kind}").write_text("no model")
    (place.folder / "empty").mkdir(exist_ok=True)
    cases = []
    for name, (_, options, *_) in COMMANDS.items():
        fields = dataclasses.fields(options)
        needed = {f: ([] if is_word(f) else [spelled(f)]) + [ours.get(f.name, "x")]
                  for f in fields if f.metadata["argparse"].get("required") or f.name == without_a_run.get(name)}
        all_needed = [word for words in needed.values() for word in words]
        for f in fields:
            others = [word for each, words in needed.items() if each is not f for word in words]
            if f.type is bool:
                cases.append((name, [*others, f"{spelled(f)}=1"]))
                continue
            cases += [(name, [*others, f"{spelled(f)}={value}"]) for value in bad_values(f)]
            cases += [(name, [*others, *([] if is_word(f) else [spelled(f)]), str(path)])
                      for path in bad_paths(f, options, place.folder)]
        for flag in ("--config", "--save-config"):
            cases += [(name, [*all_needed, flag, str(path)]) for path in (place.folder / "loop", "a" * 5000, "")]
        cases += [(name, [word, *all_needed]) for word in ("--nonsense", "--seed=1=2", "extra", "-", "--\x1b[2J")]
    for name, words in place.random.sample(cases, min(len(cases), place.count(300))):
        folder = place.new().parent
        (folder / "tutorials").mkdir()  # where the experiments look for pictures; their results stay out of the clone
        for each in ("dog", "subjects"):
            (folder / "tutorials" / each).symlink_to(DOG.parent / each)
        result = forked.start([*name.split(), *words], cwd=folder, memory=4 << 30).wait(60)
        place.note("inputs", f"{name} {' '.join(map(repr, words))[-120:]}", fault_of(result, (2,)))


# --- fuzz -------------------------------------------------------------------------------------------------------------

HOSTILE = [None, True, -1, 0, 10**30, 1e308, "x", "", [], [[]], {}, [-1], "9" * 6000, 3, ["x"] * 3]


def damaged_json(text, chance):
    """A JSON text with a value exchanged somewhere, or with a few bytes changed."""
    if chance.random() < 0.3:
        return damaged_bytes(text.encode(), chance)
    value = json.loads(text)
    inner, way = value, []
    while isinstance(inner, (dict, list)) and inner and (not way or chance.random() < 0.6):
        key = chance.choice(list(inner)) if isinstance(inner, dict) else chance.randrange(len(inner))
        way.append((inner, key))
        inner = inner[key]
    if way:
        holder, key = way[-1]
        if chance.random() < 0.3:
            del holder[key]
        else:
            holder[key] = chance.choice(HOSTILE)
    return json.dumps(value).encode()


def damaged_bytes(data, chance):
    """Bytes cut, doubled, flipped or put in."""
    data, kind = bytearray(data), chance.randrange(5)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data) + 1)])
    if kind == 1:
        return bytes(data) + chance.randbytes(chance.randrange(1, 99))
    for _ in range(chance.randrange(1, 9)):
        i = chance.randrange(min(len(data), 4000 if kind == 2 else len(data)))
        data[i] = chance.randrange(256)
    if kind == 3:
        i = chance.randrange(len(data))
        data[i:i] = chance.choice([b"[" * 10_000, b"NaN", b"\xff\xfe", b"\x00" * 8, b"1e999"])
    return bytes(data)


def damaged_tensors(data, chance):
    """A safetensors file with another header (types, shapes, offsets, names), NaN in it, or other bytes."""
    if chance.random() < 0.35:
        return damaged_bytes(data, chance)
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    name = chance.choice([key for key in header if key != "__metadata__"])
    entry, kind = header[name], chance.randrange(7)
    if kind == 0:
        entry["dtype"] = chance.choice(["F16", "I64", "BOOL", "F8_E4M3", "U8", "X", 3])
    elif kind == 1:
        entry["shape"] = chance.choice([[], [0], [1, *entry["shape"]], entry["shape"][::-1], [10**12], [-1], "x"])
    elif kind == 2:
        entry["data_offsets"] = chance.choice([[0, 0], [0, 10**15], [5, 1], [], "x"])
    elif kind == 3:
        header[chance.choice(["", "a" * 5000, "x\x1b[0m", name + ".y"])] = header.pop(name)
    elif kind == 4:
        del header[name]
    elif kind == 5:
        start, end = entry["data_offsets"]
        body[start : start + 4] = struct.pack("<f", chance.choice([float("nan"), float("inf"), -1e38]))[: end - start]
    else:
        header["__metadata__"] = chance.choice([{}, {"scaler": "[" * 9000}, {"completed_steps": "-1"}, {"a": 3}, []])
    text = json.dumps(header).encode()
    return struct.pack("<Q", chance.choice([len(text)] * 8 + [2**60, 0])) + text + bytes(body)


def loaders(place):
    """[(a good file, what reads it)]; made once, with a run of each kind."""
    made = {name: place.new() for name in ("lora", "oft", "dreambooth")}
    for name, out in made.items():
        words = [*QUICK, "--steps", "1", "--method", name, "--keep-posterior", "--model", place.model, "--images", DOG]
        fine_tune(parse(TrainOptions, "train", [*map(str, words), "--out", str(out)]))
    sd, lora = StableDiffusion.load(place.model), made["lora"]
    other = place.new().parent
    beside.save(bps.Branch(sd.unet.config), other / "branch", "branch", {
        "model": "tiny", "hint_channels": 1, "factor": 8, "gains": "head-heavy"})
    store.write_json(other / "m.json", {"command": "sigma1", "found": {"it": {"t": [1, 9], "sigma1": [0.1, 0.2]}}})
    store.write_json(other / "class" / ".class.json", {"prompt": "a", "model": "tiny", "resolution": 64})
    store.write_text(other / "rows.jsonl", json.dumps({"step": 1, "run": "main-1-bnn-0"}))
    store.write_json(other / "graft.json", {
        "base": "tiny", "switch": 3, "options": {"tokenizer": None, "prediction_type": None}})
    options = parse(TrainOptions, "train", ["--images", str(DOG), "--method", "lora", "--dtype", "float32"])
    settled = dataclasses.replace(options, **store.read_json(lora / "config.json")["options"])
    training = fine_tuning(StableDiffusion.load(place.model), settled)

    def network(kind, part):
        return lambda path: kind.from_file(path, sd.configs[part])

    def config(kind, part):
        return lambda path: kind.from_file(next((place.model / part).glob("*.safetensors")), store.read_json(path))

    def run(path):
        runs.find_config(path.parent) and runs.base_of(path.parent)

    def row(path):
        from minibnn.files.schema import integer

        read_rows(path, {"step": integer(0)})

    return [
        *((next((place.model / part).glob("*.safetensors")), network(kind, part))
          for kind, part in ((UNet, "unet"), (VAE, "vae"), (TextEncoder, "text_encoder"))),
        *((place.model / part / "config.json", config(kind, part))
          for kind, part in ((UNet, "unet"), (VAE, "vae"), (TextEncoder, "text_encoder"))),
        (place.model / "scheduler" / "scheduler_config.json", lambda path: check_scheduler(store.read_json(path))),
        (place.model / "recipe.json", lambda path: StableDiffusion.load(path.parent)),
        *((place.model / "tokenizer" / name, lambda path: Tokenizer(path.parent)(["a dog"]))
          for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")),
        (lora / "pytorch_lora_weights.safetensors", lambda path: sd.merge_adapter(path)),
        (made["oft"] / "adapter_model.safetensors", lambda path: sd.merge_adapter(path.parent)),
        (made["oft"] / "adapter_config.json", lambda path: sd.merge_adapter(path.parent)),
        (lora / runs.STATE, lambda path: load_checkpoint(path.parents[1], training)),
        (lora / "config.json", run),
        (made["dreambooth"] / "posterior.safetensors", lambda path: posterior.open_run(path.parent)),
        (flow.BUNDLED / "corrector.safetensors", lambda path: flow.load_flow(path, flow.CORRECTOR)),
        (other / "branch" / "branch.safetensors", lambda path: bps.load_branch(path.parent, sd)),
        (other / "branch" / "config.json", lambda path: bps.load_branch(path.parent, sd)),
        (other / "m.json", measured_sigma1),
        (other / "graft.json", lambda path: store.read_json(path, graft_run.KIND)),
        (other / "class" / ".class.json", lambda path: class_pictures.check(path.parent, {"prompt": "a"})),
        (other / "rows.jsonl", row),
    ]


def fuzz(place):
    """Damaged files over all loaders. A crash of the process counts as a failure, and the rest goes on."""
    files, times, report = loaders(place), place.count(2000), place.folder / "fuzz.txt"
    good, salt = [path.read_bytes() for path, _ in files], place.random.random()
    flow_there = place.new().parent / "corrector.safetensors"  # not in the package
    flow_there.write_bytes((flow.BUNDLED / "corrector.safetensors").read_bytes())
    files = [(flow_there if path.parent == flow.BUNDLED else path, load) for path, load in files]

    def attack(i):
        chance = random.Random(f"{salt}-{i}")
        (path, load), data = files[i % len(files)], good[i % len(files)]
        damaged = {".safetensors": damaged_tensors, ".txt": damaged_bytes}.get(path.suffix)
        path.write_bytes(damaged(data, chance) if damaged else damaged_json(data.decode(), chance))
        try:
            load(path)
        except Exception as error:
            return "" if explain(error) else f"{type(error).__name__}: {error}"[:200]
        finally:
            path.write_bytes(data)
        return ""

    def batch(start):
        def work():
            forked.limit_memory(3 << 30)
            for i in range(start, times):
                with open(report, "a") as file:
                    file.write(f"{i}\t{attack(i)!r}\n")
            os._exit(0)

        return work

    report.write_text("")
    done = 0
    while done < times:
        forked.start([], before=batch(done)).wait(3600)
        lines = report.read_text().splitlines()
        for line in lines[done:]:
            i, fault = line.split("\t", 1)
            place.note("fuzz", f"file {i}, {files[int(i) % len(files)][0].name}", fault.strip("'\""))
        if len(lines) < times:
            place.note("fuzz", f"file {len(lines)}, {files[len(lines) % len(files)][0].name}", "the process crashed")
            with open(report, "a") as file:
                file.write(f"{len(lines)}\t''\n")
        done = len(report.read_text().splitlines())


# --- stopped runs -----------------------------------------------------------------------------------------------------


def state_of(out):
    """A hash of the weights, the optimiser's state and the log of a finished run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.read_tensors(out / runs.STATE).items()):
        digest.update(name.encode() + tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() + str((out / "log.jsonl").read_text().count("\n"))


def straight(place, method):
    """(state, seconds) of a run that nothing stops."""
    out, began = place.new(), time.monotonic()
    result = place.train(out, *METHODS[method]).wait()
    assert result[0] == 0, result
    return state_of(out), time.monotonic() - began


def fault_after(place, out, method, expected):
    """Go on with a stopped run as its messages say; what is wrong then, or ""."""
    more = ["--resume"] if (out / runs.STATE).exists() else []
    result = place.train(out, *METHODS[method], *more).wait()
    if result[0] == 2 and not more and "--overwrite" in result[2]:  # it kept something, but has no checkpoint
        result = place.train(out, *METHODS[method], "--overwrite").wait()
    if fault := fault_of(result, (0,)):
        return f"afterwards {fault}"
    left = [path.name for path in out.rglob(".*") if path.suffix == ".tmp" or path.name == ".lock"]
    if left:
        return f"left behind: {', '.join(left)}"
    return "" if state_of(out) == expected else "other bits than a run that was never stopped"


class Writes:
    """Counts the writes of a process; at write number `at` calls `what` at one of three moments of it."""

    def __init__(self, at, moment, what):
        self.at, self.moment, self.what, self.number = at, moment, what, 0

    def __call__(self):
        """Put it into the module that writes."""
        replace, fsync = os.replace, os.fsync

        def at(moment):
            if self.number == self.at and self.moment == moment:
                self.what()

        def flushed(descriptor):
            if self.moment == "half written" and self.number == self.at:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            at("half written")
            fsync(descriptor)

        def renamed(source, target):
            at("before the name")
            replace(source, target)
            at("after the name")
            self.number += 1

        os.fsync, os.replace = flushed, renamed


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def kills(place):
    """SIGKILL inside each kind of write, and at random moments; then the run goes on to the same bits."""
    times, known = place.count(50), {}
    for i in range(times):
        method = list(METHODS)[i % len(METHODS)]
        expected, seconds = known.setdefault(method, None) or straight(place, method)
        known[method] = expected, seconds
        out = place.new()
        if i % 2:
            moment = ("half written", "before the name", "after the name")[i // 2 % 3]
            at = place.random.randrange(7)
            what, process = f"{method}, write {at}, {moment}", None
            process = place.train(out, *METHODS[method], before=Writes(at, moment, die))
        else:
            pause = place.random.uniform(0, seconds)
            what, process = f"{method}, after {pause:.2f} s", place.train(out, *METHODS[method])
            time.sleep(pause)
            process.send(signal.SIGKILL)
        code, _, errors = process.wait()
        fault = "" if code in (0, -signal.SIGKILL) else f"exit code {code} {errors[-200:]}"
        if code == 0:  # it was quicker
            place.note("kills", what, fault)
            continue
        place.note("kills", what, fault or fault_after(place, out, method, expected))


def disk(place):
    """A disk that is full at write number n of a run, for all n; then there is room again, and the run goes on."""
    method = "LoRA + BNN"
    expected, _ = straight(place, method)
    for at in range(place.count(12)):
        for moment in ("half written", "before the name"):
            out = place.new()
            result = place.train(out, *METHODS[method], before=Writes(at, moment, full)).wait()
            fault = fault_of(result, (0, 2))
            if not fault and result[0] == 2 and "No space left" not in result[2]:
                fault = f"does not say so: {result[2][-200:]}"
            place.note("disk", f"write {at}, {moment}", fault or fault_after(place, out, method, expected))


def signals(place):
    """Ctrl-C, SIGTERM and SIGHUP at random moments, once and twice; then the run goes on to the same bits."""
    method, kinds = "LoRA", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    expected, seconds = straight(place, method)
    for i in range(place.count(24)):
        number, twice, out = kinds[i % 3], i // 3 % 2, place.new()
        process = place.train(out, *METHODS[method])
        pause = place.random.uniform(0.3, 1) * seconds
        time.sleep(pause)
        process.send(number)
        if twice:
            time.sleep(0.03)
            process.send(number)
        result = process.wait()
        fault = fault_of(result, (0, 128 + number))
        if not fault and result[0] and not result[2].strip():
            fault = "says nothing"
        what = f"{signal.Signals(number).name} {'twice' if twice else 'once'} after {pause:.2f} s"
        place.note("signals", what, fault or fault_after(place, out, method, expected))


def together(place):
    """Two commands at once in one folder: one does its work, the other is refused in one line, and nothing mixes."""
    method = "LoRA"
    expected, seconds = straight(place, method)
    for i in range(place.count(12)):
        out, words = place.new(), []
        if i % 3:
            first = place.train(out, *METHODS[method])
            if i % 3 == 1:  # two that resume
                time.sleep(0.7 * seconds)
                first.send(signal.SIGKILL)
            first.wait()
            words = ["--resume"] if i % 3 == 1 and (out / runs.STATE).exists() else ["--overwrite"] * (i % 3 == 2)
        pair = [place.train(out, *METHODS[method], *words) for _ in range(2)]
        results = [process.wait() for process in pair]
        fault = next(filter(None, (fault_of(result, (0, 2)) for result in results)), "")
        won = sum(code == 0 for code, *_ in results)
        refusals = [errors for code, _, errors in results if code == 2]
        if not fault and not all("in use by process" in text or "exists" in text for text in refusals):
            fault = f"refused otherwise: {refusals}"
        if not fault and (won < 1 or state_of(out) != expected):
            fault = f"{won} ended well, with other bits" if won else f"both were refused: {refusals}"
        place.note("together", " ".join(["two at once", *words]), fault)


def lives(group):
    """Whether a process of this group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def laboratory(place):
    """`experiment corruption`: Ctrl-C ends it and its workers; a kill loses nothing that was measured."""
    words = ["experiment", "corruption", "--images", DOG, "--pictures", "1", "2", "--seeds", "0", "--steps", "50"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[: place.count(3)]:
        out = place.new()
        process = forked.start([*words, "--out", out])
        end = time.monotonic() + 300
        while not list(out.glob("*.jsonl")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        os.kill(process.pid, number)  # the command alone, as `kill` does; its workers must end with it
        began = time.monotonic()
        code, _, errors = process.wait(60)
        fault = fault_of((code, "", errors), (-9 if number == signal.SIGKILL else 128 + number,))
        if not fault and time.monotonic() - began > 30:
            fault = "ends late"
        if number != signal.SIGKILL:
            while (alive := lives(process.pid)) and time.monotonic() - began < 30:
                time.sleep(0.1)  # the tracker of shared resources ends after the others
            fault = fault or ("its workers go on" if alive else "")
        process.send(signal.SIGKILL)
        place.note("laboratory", signal.Signals(number).name, fault)


def memory(place):
    """The memory of a training must not grow: its slope over all but the first fifth of many tiny steps."""
    steps, out = place.count(10_000), place.new()
    process = forked.start(["train", "--images", DOG, "--model", place.model, "--out", out, *QUICK,
                            "--method", "lora", "--steps", steps])
    seen = []
    while process.poll() is None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            done = (out / "log.jsonl").read_bytes().count(b"\n")
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            if done > steps / 5:
                seen.append((done, resident))
        time.sleep(max(0.05, steps / 50_000))
    fault = fault_of(process.wait(), (0,))
    xs, ys = (torch.tensor(column, dtype=torch.float64) for column in zip(*seen, strict=True))
    slope = ((xs - xs.mean()) * (ys - ys.mean())).sum() / (xs - xs.mean()).square().sum()
    print(f"\nmemory: {slope:+.0f} bytes a step over {len(seen)} looks at {steps} steps", file=sys.stderr)
    place.note("memory", f"{steps} steps", fault or (f"{slope:.0f} bytes a step" if slope > 500 else ""))


SECTIONS = {f.__name__: f for f in (inputs, fuzz, kills, disk, signals, together, laboratory, memory)}


def torture(names, share=1.0, seed=0):
    """Do sections; returns ({section: tried}, {section: faults})."""
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        torch.set_num_threads(1)
        place = Place(folder, share, seed)
        for name in names:
            SECTIONS[name](place)
    return place.tried, place.failed


def table(tried, failed):
    lines = ["| section | tried | held |", "|---|---|---|"]
    lines += [f"| {name} | {count} | {count - len(failed.get(name, []))} |" for name, count in tried.items()]
    return "\n".join(lines + [f"{name}: {fault}" for name, faults in failed.items() for fault in faults])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="SECTION")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases that are done [1]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tried, failed = torture(given.sections or SECTIONS, given.share, given.seed)
    print("\n" + table(tried, failed))
    raise SystemExit(bool(failed))
