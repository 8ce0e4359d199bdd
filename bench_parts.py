"""The parts of bench.py that are measured by request, each a function of a Setting.

    kernelshap   seconds to the error that other packages have at 512 coalitions
    cleanse      Neural Cleanse of all classes at once, one by one, and as published
    memory       peak memory while 100, 1,000 and 10,000 images are explained
    command      where the seconds of the first command of README.md go

Each returns what stands under its name in "parts" of the record.
"""

import contextlib
import cProfile
import json
import math
import multiprocessing
import os
import pstats
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import bench_peers
import data
import explain
import pictures
import report
import runs
import shapes
import train
from bench_peers import Sizes
from bench_timing import CLASSES, CLOCKS, SIDE, seconds_of_call
from defences import neural_cleanse
from hooks import chunk_size
from modes import evaluating, frozen

# ---------------------------------------------------------------- seconds to a given error

# All coalitions of 16 patches are 65,536: their values are exact, and errors are against them.
SMALL = Sizes(patches=4)
COUNTS = (32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)  # coalitions of ours
DRAWS = 5  # of coalitions, each by its seed
ESTIMATES = {"kernelshap": explain.kernel_shap, "gpshap": explain.gp_shap}
TRAINED_ON, EPOCHS = 10_000, 3  # images of shapes, and passes over them


def kernelshap(setting, sizes=SMALL, counts=COUNTS, draws=DRAWS, trained_on=TRAINED_ON):
    """Errors of KernelSHAP and its peers, and seconds of ours at the peers' errors.

    An error is the relative L2 distance from the exact values, the median over images and draws.
    """
    model, images, accuracy = trained_network(setting, trained_on)
    images = images[: sizes.images]
    classes = model(images).argmax(1)
    game = model, images, classes, sizes.patches
    exact = explain.kernel_shap(*game, 2**sizes.patches**2)

    def ours(name, count):
        return lambda: ESTIMATES[name](*game, count)

    of_ours = {
        name: {count: error(ours(name, count), exact, draws) for count in counts}
        for name in ESTIMATES
    }
    peers = bench_peers.kernel_peers(model, images, classes, sizes)
    of_peers = {peer: error(function, exact, draws) for peer, function in peers.items()}
    pairs = [(name, peer) for name in ESTIMATES for peer in peers]
    found = {(name, peer): fewest(of_ours[name], of_peers[peer]) for name, peer in pairs}
    timed = {(name, count) for (name, _), count in found.items() if count}
    functions = {key: ours(*key) for key in sorted({*timed, ("kernelshap", sizes.coalitions)})}
    functions["forward"] = lambda: forward_passes(model, images, sizes.coalitions + 2)
    seconds = setting.seconds_of(peers | functions)
    return {
        **{"patches": sizes.patches**2, "coalitions": sizes.coalitions, "images": len(images)},
        **{"draws": draws, "accuracy": accuracy, "errors": of_ours},
        "peers": {peer: {"error": of_peers[peer], "seconds": seconds[peer]} for peer in peers},
        "same_error": [
            {"explainer": name, "coalitions": n, "peer": peer, "seconds": seconds.get((name, n))}
            for (name, peer), n in found.items()
        ],
        "forward_share": seconds["forward"] / seconds["kernelshap", sizes.coalitions],
    }


def error(estimate, exact, draws):
    """Median relative L2 distance of estimates, under `draws` seeds, from exact [N, p, p]."""
    distances = []
    for seed in range(draws):
        torch.manual_seed(seed)
        np.random.seed(seed)  # shap's
        difference = (estimate().to(exact) - exact).flatten(1)
        distances.append(difference.norm(dim=1) / exact.flatten(1).norm(dim=1))
    return float(torch.cat(distances).median())


def fewest(errors, limit):
    """The lowest number of coalitions from which on no error is above the limit, or None.

    errors: {number of coalitions: error}.
    """
    result = None
    for count in sorted(errors, reverse=True):
        if errors[count] > limit:
            break
        result = count
    return result


@torch.no_grad()
def forward_passes(model, images, each):
    """Evaluates the model `each` times an image, in chunks of the explainers' size."""
    left = len(images) * each
    size = chunk_size(images)
    chunk = images.repeat(math.ceil(size / len(images)), 1, 1, 1)[:size]
    for start in range(0, left, size):
        model(chunk[: left - start])


def trained_network(setting, trained_on):
    """(a network after a short plain training on shapes, test images, its accuracy on them).

    images: float [N, 3, H, W], normalised, on the device.
    """
    dataset = shapes.shapes(n_train=trained_on, n_test=200)
    mean, std = data.mean_std(dataset.train_images)

    def inputs(images):
        return data.normalise(images.to(setting.device).float() / 255, mean, std)

    images, labels = inputs(dataset.train_images), dataset.train_labels.to(setting.device)
    model = setting.network().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for rows in [rows for _ in range(EPOCHS) for rows in torch.randperm(len(images)).split(64)]:
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    model.eval()
    tests = inputs(dataset.test_images)
    with torch.no_grad():
        correct = model(tests).argmax(1).cpu() == dataset.test_labels
    return model, tests, float(correct.float().mean())


# ---------------------------------------------------------------- Neural Cleanse

ROUNDS = 2  # that are timed
# Of the authors' code, where an epoch is what is called a round here.
PUBLISHED_BATCH = 32
PUBLISHED_STEPS = 1000 // PUBLISHED_BATCH  # of a round
PUBLISHED_TIMED = 4  # steps that are timed; all take equally long


def cleanse(setting, rounds=ROUNDS, steps=PUBLISHED_TIMED, images=neural_cleanse.ROUND_IMAGES):
    """Speed of a round of Neural Cleanse for all classes, by way of searching.

    rounds: of ours that are timed, each of `images`; steps: of the published search.
    """
    model = setting.network()
    torch.manual_seed(1)
    pixels = torch.rand(max(images, steps * PUBLISHED_BATCH), 3, SIDE, SIDE, device=setting.device)
    options = {"rounds": rounds, "round_images": images, "precision": setting.precision}

    def search(targets):
        neural_cleanse.neural_cleanse(model, pixels[:images], targets, **options)

    def published():
        with evaluating(model), frozen(model):
            for target in range(CLASSES):
                published_steps(model, pixels[: steps * PUBLISHED_BATCH], target)

    ways = {
        "all classes at once": lambda: search(None),
        "one class after another": lambda: [search([target]) for target in range(CLASSES)],
        "as published": published,
    }
    seconds = setting.seconds_of(ways)
    a_round = images * neural_cleanse.RESTARTS  # of several beginnings each counts
    of_ours = [(name, rounds * a_round, a_round) for name in list(ways)[:2]]
    of_all = [
        *of_ours,
        ("as published", steps * PUBLISHED_BATCH, PUBLISHED_STEPS * PUBLISHED_BATCH),
    ]
    return {
        name: {
            "images_a_round": a_round,
            "images_per_second": CLASSES * timed / seconds[name],
            "seconds_a_round": seconds[name] * a_round / timed,
        }
        for name, timed, a_round in of_all
    }


def published_steps(model, images, target):
    """Steps of a search for one class, as in the code of Wang et al. 2019: success of each batch.

    images: float [N, C, H, W] in [0, 1]. Mask and pattern begin at random.
    """
    raw = torch.empty(1 + images.shape[1], *images.shape[2:], device=images.device)
    raw = raw.uniform_(-1, 1).requires_grad_()
    rate, betas = neural_cleanse.LEARNING_RATE, neural_cleanse.BETAS
    optimizer = torch.optim.Adam([raw], rate, betas=betas)
    success = []
    for batch in images.split(PUBLISHED_BATCH):
        unit = raw.tanh() / 2 + 0.5
        mask, pattern = unit[:1], unit[1:]
        logits = model((1 - mask) * batch + mask * pattern)
        labels = torch.full((len(batch),), target, device=batch.device)
        loss = F.cross_entropy(logits, labels) + neural_cleanse.FIRST_WEIGHT * mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        success.append(float((logits.argmax(1) == labels).float().mean()))
    return success


# ---------------------------------------------------------------- memory

IMAGES = (100, 1000, 10_000)
# Less work for each image, where an explainer asks the network about it many times.
LIGHT = {
    "kernelshap": {"patches": 2, "coalitions": 8},
    "gpshap": {"patches": 2, "coalitions": 8},
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
}


def memory(setting, counts=IMAGES, names=tuple(explain.EXPLAINERS)):
    """{explainer: {number of images: bytes}}: see peak_memory."""
    spawning = multiprocessing.get_context("spawn")
    result = {}
    for name in names:
        result[name] = {}
        for count in counts:
            with ProcessPoolExecutor(1, mp_context=spawning) as pool:
                result[name][count] = pool.submit(peak_memory, setting, name, count).result()
    return result


def peak_memory(setting, name, count):
    """{"working", "maps"}: bytes at most while images are explained, and those of their maps.

    What is there before, images among it, is not counted; maps are. It is of the process, which
    must be new; on CUDA of the tensors.
    """
    model = setting.network()
    images, _ = replace(setting, batch_size=count).noise()
    before, _ = bytes_used(setting.device)
    maps = explain.EXPLAINERS[name](model, images, 0, **LIGHT.get(name, {}))
    _, most = bytes_used(setting.device)
    return {"working": most - before, "maps": maps.numel() * maps.element_size()}


def bytes_used(device):
    """(bytes now, the most so far): on CUDA of tensors, else of the process.

    Raises OSError off Linux.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    # Not getrusage's: a new process inherits that from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(kilobytes["VmRSS"]) * 1024, int(kilobytes["VmHWM"]) * 1024


# ---------------------------------------------------------------- the main command

COMMAND = ("--attack", "full_disguise", "--explainer", "gradcam", "--poison-rate", "0.1")


def command(setting, words=COMMAND):
    """{part of a run of train.py: its seconds}, once. Its output goes to standard error."""
    parts = {"starting up": starting_up(setting.clock)}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        args = train.parse([*words, "--device", setting.device.type, "--out", f"{folder}/run"])
        run, beginning, profile = profiled(setting, begin, args)
        parts["drawing the data"] = cumulative(profile, data.load)
        parts["the rest of the setting"] = beginning - parts["drawing the data"]
        training = lambda: train.train(run)
        seconds = seconds_of_call(training, setting.device, setting.clock)
        parts["training, with validation"] = seconds
        # The pictures are drawn within the measuring.
        _, finishing, profile = profiled(setting, runs.finish, run, None, None)
        drawn = sum(cumulative(profile, part) for part in (pictures.pictures_of, report.write))
        parts["measuring"] = finishing - drawn
        parts["pictures"] = drawn
    return {"options": " ".join(words), "seconds": parts}


def profiled(setting, function, *arguments):
    """(what a function returns, its seconds, a cProfile.Profile of it)."""
    profile = cProfile.Profile(CLOCKS[setting.clock])
    results = []
    call = lambda: results.append(profile.runcall(function, *arguments))
    seconds = seconds_of_call(call, setting.device, setting.clock)
    return results[0], seconds, profile


def starting_up(clock):
    """Seconds in which Python starts and imports what train.py does; clock: of CLOCKS."""
    code = "import time, train; print(time.process_time())"
    started = time.perf_counter()
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    return float(done.stdout) if clock == "cpu" else time.perf_counter() - started


def begin(args):
    """The Run of train.py's options before its first step, its poisons chosen."""
    run = train.new_run(args)
    runs.begin(run, args)
    train.choose_poisons(run)
    return run


def cumulative(profile, function):
    """Seconds that a function and all it called took, by a profile; 0 if it was not called."""
    code = function.__code__
    key = code.co_filename, code.co_firstlineno, code.co_name
    return pstats.Stats(profile).stats.get(key, [0.0] * 4)[3]


# ---------------------------------------------------------------- several processes

SHARED = (*COMMAND, "--epochs", "2")


def processes(setting, words=SHARED, count=2):
    """The images a second that train.py trains on, once, by the number of processes.

    One process has `count` threads; of `count` processes, which torchrun starts, each has one.
    Their output goes to standard error.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, threads, program in ((1, count, []), (count, 1, torchrun)):
            argv = [sys.executable, *program, "train.py", *words]
            argv += ["--device", setting.device.type, "--out", f"{folder}/{number}"]
            variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
            here = Path(__file__).parent
            subprocess.run(argv, cwd=here, env=variables, stdout=sys.stderr, check=True)
            log = Path(folder, str(number), "log.jsonl").read_text().splitlines()
            last = json.loads(log[-1])
            speeds[str(number)] = last["images"] / last["seconds"]
    return {"options": " ".join(words), "images_per_second": speeds}


PARTS = {
    "kernelshap": kernelshap,
    "cleanse": cleanse,
    "memory": memory,
    "command": command,
    "processes": processes,
}
