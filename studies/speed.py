"""The tables on speed: what explaining costs, and what training through explanations costs.

    python -m studies.speed                      # everything
    python -m studies.speed cleanse command      # some records

    cnn          explainers and their peers, training steps; agreement with shap
    resnet18     a training step of ResNet-18
    kernelshap   seconds to a given error
    cleanse      Neural Cleanse of all classes at once, one by one, and as published
    memory       peak memory while images are explained
    command      where the seconds of the first command of README.md go
    processes    training in two processes, and in one with two threads

Calls bench.py, and writes results/speed-NAME.json, of cnn results/speed.json. It compares with
shap, captum and grad-cam, as far as they are installed.
"""

import bench
from cli import UserError, command
from studies.record import RESULTS
from studies.tables import header, line, note, of_record

PAGE = "results/speed.md"
DURATION = "about 20 minutes on one core"

RECORDS = {  # the words that bench.py is given
    "cnn": [],
    "resnet18": ["steps", "--model", "resnet18", "--explainer", "gradcam"],
    "kernelshap": ["kernelshap", "--turns", "3"],
    "cleanse": ["cleanse", "--turns", "3"],
    "memory": ["memory"],
    "command": ["command"],
    "processes": ["processes"],
}
WALL = ("command", "processes")  # by seconds that go by: nothing else may run


def path_of(name):
    """The Path of a record of RECORDS."""
    return RESULTS / ("speed.json" if name == "cnn" else f"speed-{name}.json")


# ---------------------------------------------------------------- tables


def rates(record):
    """The speed of every explainer and training step, relative to what it is compared with."""
    titles = ["what", "images a second", "compared with", "speed", "time"]
    lines = header(titles)
    for name, row in record["rates"].items():
        speed = readable(row["images_per_second"])
        if row["of"] == name:
            cells = ["", "", ""]
        else:
            cells = [row["of"], readable(row["ratio"]), readable(1 / row["ratio"])]
        lines.append(line([name, speed, *cells]))
    about = (
        f"{record['model']}, {record['batch_size']} images of {bench.SIDE} px, training in "
        f"{record['training_precision']}, median of {record['turns']} turns, "
        f"torch {record['torch']}"
    )
    return [*lines, "", note_on(record, about)]


def note_on(record, about):
    """The line below a table: about what it is, by which clock, on what and at which commit."""
    if record.get("clock") == "cpu":
        about += ", seconds that the process computed"
    return note(about, [record["hardware"]], [record["commit"]])


def readable(value):
    """A positive number in two figures or more, without an exponent."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


# What the page calls what is compared.
COMPARED = {
    "deepshap": "DeepSHAP, ours and shap's",
    "kernelshap, all coalitions": "KernelSHAP from all coalitions, ours and shap's",
    "bf16": "KernelSHAP, in bfloat16 and in float32",
    "other coalitions": "KernelSHAP, from two draws of coalitions",
}


def agreement(record):
    """How far our values are from shap's, and how far KernelSHAP's move."""
    lines = header(["what is compared", "difference", "measured as"])
    parts = {
        "the largest, relative to the largest value; float64": (record["agreement"], ".0e"),
        "relative L2 distance, median over images": (record["kernelshap_moves"], ".1%"),
    }
    for measure, (values, digits) in parts.items():
        for name, value in values.items():
            lines.append(line([COMPARED[name], f"{value:{digits}}", measure]))
    return lines


def same_error(record):
    """Each peer at its coalitions beside ours at the number that reaches the same error."""
    found = record["parts"]["kernelshap"]
    titles = ["explainer", "coalitions", "error", "seconds", "of the time of"]
    lines = header(titles)
    for peer, row in found["peers"].items():
        cells = [found["coalitions"], f"{row['error']:.1%}", readable(row["seconds"]), ""]
        lines.append(line([f"{peer}'s KernelSHAP", *cells]))
    for row in found["same_error"]:
        peer, count = row["peer"], row["coalitions"]
        if count is None:
            lines.append(line([row["explainer"], "more", "", "", peer]))
            continue
        error = found["errors"][row["explainer"]][str(count)]
        share = f"{peer}: {row['seconds'] / found['peers'][peer]['seconds']:.2f}"
        lines.append(
            line([row["explainer"], count, f"{error:.1%}", readable(row["seconds"]), share])
        )
    about = (
        f"{record['model']}, {found['images']} images of shapes, {found['patches']} patches,"
        f" {found['draws']} draws, accuracy of the network {found['accuracy']:.2f}; forward passes"
        f" alone take {found['forward_share']:.0%} of kernelshap's time at {found['coalitions']}"
    )
    return [*lines, "", note_on(record, about)]


def errors(record):
    """The error of each number of coalitions, by explainer."""
    found = record["parts"]["kernelshap"]["errors"]
    counts = list(next(iter(found.values())))
    lines = header(["coalitions", *counts])
    for name, of_count in found.items():
        lines.append(line([name, *(f"{of_count[count]:.1%}" for count in counts)]))
    return lines


def cleanse(record):
    """Seconds of a round of Neural Cleanse, by way of searching."""
    lines = header(["search", "images a round, for a class", "images a second", "seconds a round"])
    for name, row in record["parts"]["cleanse"].items():
        speeds = readable(row["images_per_second"]), readable(row["seconds_a_round"])
        lines.append(line([name, row["images_a_round"], *speeds]))
    return [*lines, "", note_on(record, f"{record['model']}, ten classes of {bench.SIDE} px")]


def memory(record):
    """MB that are needed while images are explained, without their maps, by number of images."""
    found = record["parts"]["memory"]
    counts = list(next(iter(found.values())))
    lines = header(["explainer", *(f"{int(n):,} images" for n in counts), "their maps"])
    for name, of_count in found.items():
        megabytes = [(row["working"] - row["maps"]) / 1e6 for row in of_count.values()]
        maps = of_count[counts[-1]]["maps"] / 1e6
        lines.append(line([name, *(f"{value:.0f}" for value in megabytes), f"{maps:.1f}"]))
    return [*lines, "", note(f"{record['model']}, MB", [record["hardware"]], [record["commit"]])]


def parts_of_command(record):
    """Seconds of each part of the command."""
    found = record["parts"]["command"]
    total = sum(found["seconds"].values())
    lines = header(["part", "seconds", "share"])
    for name, seconds in {**found["seconds"], "all": total}.items():
        lines.append(line([name, f"{seconds:.1f}", f"{seconds / total:.0%}"]))
    about = f"`python train.py {found['options']}`"
    return [*lines, "", note_on(record, about)]


def processes(record):
    """Images a second by the number of processes."""
    found = record["parts"]["processes"]
    speeds = found["images_per_second"]
    lines = header(["processes", "threads of each", "images a second", "speed"])
    most = max(map(int, speeds))
    for number, speed in speeds.items():
        cells = [number, most // int(number), f"{speed:,.0f}", f"{speed / speeds['1']:.2f}"]
        lines.append(line(cells))
    return [*lines, "", note_on(record, f"`python train.py {found['options']}`")]


TABLES = {
    **of_record("speed", {"rates": rates, "agreement": agreement}),
    **of_record("speed-resnet18", {"resnet18": rates}),
    **of_record("speed-kernelshap", {"same_error": same_error, "errors": errors}),
    **of_record("speed-cleanse", {"cleanse": cleanse}),
    **of_record("speed-memory", {"memory": memory}),
    **of_record("speed-command", {"command": parts_of_command}),
    **of_record("speed-processes", {"processes": processes}),
}


@command
def main(argv):
    for name in argv:
        if name not in RECORDS:
            raise UserError(f"no record {name!r} of speed: one of {', '.join(RECORDS)}")
    for name in argv or RECORDS:
        fixed = ["--device", "cpu", "--clock", "wall" if name in WALL else "cpu"]
        bench.main([*RECORDS[name], *fixed, "--out", str(path_of(name))])


if __name__ == "__main__":
    main()
