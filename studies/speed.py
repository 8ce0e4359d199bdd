"""The table on speed: what explaining costs, and what training through explanations costs.

    python -m studies.speed

Calls bench.py on the small cnn, and writes results/speed.json. It compares with shap, captum and
grad-cam, as far as they are installed.
"""

import bench
from cli import UserError, command
from studies.record import RESULTS
from studies.tables import header, line, note, of_record

PAGE = "results/speed.md"
DURATION = "about 2 minutes on one core"

PATH = RESULTS / "speed.json"


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
    return [*lines, "", note(about, [record["hardware"]], [record["commit"]])]


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


TABLES = of_record("speed", {"rates": rates, "agreement": agreement})


@command
def main(argv):
    if argv:
        raise UserError(f"speed has no rows: {argv[0]!r} is none")
    bench.main(["--out", str(PATH)])


if __name__ == "__main__":
    main()
