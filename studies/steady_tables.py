"""The tables of results/steady.md, from the records of studies/steady.py and studies/audits.py.

Every function of TABLES takes the record, a dict, and returns the lines of a Markdown table.
"""

import statistics

import torch

from defences import PUBLISHED_THRESHOLD, anomaly_index, neuroninspect
from metrics import auroc
from studies.record import RESULTS, read
from studies.tables import header, line, note
from studies.zoo import CLASSES, KINDS

# Of masks' norms, float64 [K], how small each is beside the others: high is small.
STATISTICS = {
    "published": anomaly_index,
    "before": lambda norms: anomaly_index(norms.log()),
    "next": lambda norms: norms.sort().values[1] / norms,
    "now": lambda norms: norms.quantile(0.5) / norms,
}
STATISTICS_SHOWN = {
    "published": "published: robust deviations of norms",
    "before": "before: the same of their logarithms",
    "next": "next smallest / norm",
    "now": "now: median / norm",
}
NORMS = "|mask|_1"  # where a run has its masks' norms
SHOWN = {"disguised": "README's first model", "clean": "a clean model"}
DISGUISES = [kind for kind in KINDS if kind.startswith("disguise, ") and " and " not in kind]


# ---------------------------------------------------------------- what was measured


def norms_of(run):
    """The norms of a run's masks, float64 [K], in pixels; every class was reached."""
    if not all(run["qualified"]):
        raise ValueError("a class was not reached by a patch")
    return torch.tensor(run[NORMS], dtype=torch.float64)


def recorded(data="shapes"):
    """{kind: {seed: run}} of results/audits.json, runs as in the record of studies/steady.py.

    Of the norms only their shares of the median are recorded there. No statistic asks for more.
    """
    result = {}
    for kind, runs in read(RESULTS / "audits.json")["zoo"][data].items():
        result[kind] = {}
        for seed, run in runs.items():
            index = run["neural_cleanse"]["index"]
            shares = [1 / index[str(k)] for k in range(len(index))]
            kept = {NORMS: shares, "qualified": [1.0] * len(shares), "target": run["target"]}
            result[kind][seed] = kept
    return result


def tops(runs, statistic):
    """The largest value of each of some runs: float64 [N]."""
    return torch.stack([statistic(norms_of(run)).max() for run in runs])


def limit_of(statistic):
    """The largest value of the ten recorded clean models of shapes."""
    return float(tops(recorded()["none"].values(), statistic).max())


def target_first(runs):
    """Of how many runs the smallest mask is the target's."""
    return sum(int(norms_of(run).argmin()) == run["target"] for run in runs)


# ---------------------------------------------------------------- the same model, again and again


def repeat(record):
    """How often the same model stands out, by the index before and by the one now."""
    titles = ["model", "images in a round", "searches", "target's mask the smallest", "its pixels"]
    for when in ("before", "now"):
        titles += [f"largest index, {when}", f"above {limit_of(STATISTICS[when]):.2f}"]
    lines = header(titles)
    every = []
    for name, shown in SHOWN.items():
        for count, trials in record["repeat"].get(name, {}).items():
            runs = list(trials.values())
            every += runs
            cells = [shown, count, len(runs)]
            cells += ["", ""] if name == "clean" else [target_first(runs), range_of_target(runs)]
            for when in ("before", "now"):
                values = tops(runs, STATISTICS[when])
                cells.append(f"{values.min():.2f} to {values.max():.2f}")
                cells.append(int((values > limit_of(STATISTICS[when])).sum()))
            lines.append(line(cells))
    about = "the limits are the largest of the ten recorded clean models, of one beginning"
    return [*lines, "", note(about, *origin_of(every))]


def range_of_target(runs):
    """The smallest and the largest norm of the target's mask, in words."""
    norms = [float(norms_of(run)[run["target"]]) for run in runs]
    return f"{min(norms):.1f} to {max(norms):.1f}"


def beginnings(record):
    """The target's mask of README's first model under ten seeds, by so many beginnings."""
    lines = header(["images in a round", "beginnings", "L1 of the target's mask, smallest first"])
    for count, trials in record["beginnings"].items():
        for restarts in list(trials.values())[0]:
            norms = sorted(trial[restarts] for trial in trials.values())
            lines.append(line([count, restarts, ", ".join(f"{norm:.1f}" for norm in norms)]))
    return lines


# ---------------------------------------------------------------- many models


def chosen(record):
    """AUROC of every statistic on the recorded models: those it was chosen by, and the others."""
    kinds = [("shapes", kind) for kind in ("badnets", *DISGUISES)]
    kinds += [("mnist", "badnets"), ("gtsrb", "badnets")]
    zoos = {data: recorded(data) for data in ("shapes", "mnist", "gtsrb")}
    lines = header(["statistic", "seeds", *(f"{data}, {kind}" for data, kind in kinds), "mean"])
    for name, statistic in STATISTICS.items():
        for half, odd in (("odd", 1), ("even", 0)):
            areas = [area(of_seeds(zoos[data], odd), kind, statistic) for data, kind in kinds]
            shown = [f"{value:.2f}" for value in (*areas, statistics.mean(areas))]
            lines.append(line([STATISTICS_SHOWN[name], half, *shown]))
    return lines


def of_seeds(kinds, odd):
    """The runs of odd seeds (1) or even ones (0)."""
    return {
        kind: {seed: run for seed, run in runs.items() if int(seed) % 2 == odd}
        for kind, runs in kinds.items()
    }


def area(kinds, kind, statistic):
    """AUROC of the largest value, models of a kind against clean ones."""
    return auroc(tops(kinds[kind].values(), statistic), tops(kinds["none"].values(), statistic))


def zoo(record):
    """Every statistic on the new models, by the limits of the recorded ones."""
    kinds = record["zoo"]
    titles = ["statistic", "backdoor", "AUROC", "target first", "limit", "above it, target first"]
    lines = header([*titles, "another class", "clean models above it"])
    clean = list(kinds["none"].values())
    for name, statistic in STATISTICS.items():
        limit = limit_of(statistic)
        false_alarms = int((tops(clean, statistic) > limit).sum())
        for kind in [kind for kind in kinds if kind != "none"]:
            runs = list(kinds[kind].values())
            above = [run for run in runs if statistic(norms_of(run)).max() > limit]
            right = target_first(above)
            cells = [STATISTICS_SHOWN[name], kind, f"{area(kinds, kind, statistic):.2f}"]
            cells += [f"{target_first(runs)} of {len(runs)}", f"{limit:.2f}"]
            cells += [f"{right} of {len(runs)}", len(above) - right]
            lines.append(line([*cells, f"{false_alarms} of {len(clean)}"]))
    runs = [run for part in kinds.values() for run in part.values()]
    return [*lines, "", note(zoo_success(kinds), *origin_of(runs))]


def by_class(record):
    """The new models once more, each class beside the same class of the recorded clean models."""
    kinds = record["zoo"]
    known = logarithms(recorded()["none"].values())
    others = [torch.cat([known[:k], known[k + 1 :]]) for k in range(len(known))]
    pairs = zip(known.split(1), others)
    limit = max(float(largest_beside(one, rest)) for one, rest in pairs)
    found = {kind: largest_beside(logarithms(runs.values()), known) for kind, runs in kinds.items()}
    lines = header(["backdoor", "AUROC", "limit", "above it", "clean models above it"])
    clean = found["none"]
    alarms = f"{int((clean > limit).sum())} of {len(clean)}"
    for kind in [kind for kind in kinds if kind != "none"]:
        cells = [kind, f"{auroc(found[kind], clean):.2f}", f"{limit:.2f}"]
        cells += [f"{int((found[kind] > limit).sum())} of {len(found[kind])}", alarms]
        lines.append(line(cells))
    return lines


def logarithms(runs):
    """log(median / norm) of each class of some runs: float64 [N, K]."""
    return torch.stack([STATISTICS["now"](norms_of(run)).log() for run in runs])


def largest_beside(values, known):
    """The largest of each row of [N, K], in deviations of the same column of [M, K]: [N]."""
    return ((values - known.mean(0)) / known.std(0)).amax(1)


def zoo_success(kinds):
    """In words: the least success of the backdoors."""
    runs = [run for kind, part in kinds.items() if kind != "none" for run in part.values()]
    return (
        f"the backdoors' success is {min(run['attack_success_rate'] for run in runs):.3f} or more"
    )


# ---------------------------------------------------------------- NeuronInspect


def draws(record):
    """NeuronInspect's largest index of the same model on two draws of images, and on both."""
    titles = ["model", "noise", "images", "largest index", "its class"]
    lines = header([*titles, "largest sum of log ratios", "its class", "spread of the sums"])
    for name, shown in SHOWN.items():
        for k, level in enumerate(neuroninspect.NOISE):
            for draw, parts in record["features"][name].items():
                features = torch.tensor(parts[k], dtype=torch.float64)
                index = neuroninspect.index_of(features)
                sums = (features.quantile(0.5, dim=0) / features).log().sum(1)
                unit = 1.4826 * (sums - sums.quantile(0.5)).abs().quantile(0.5)
                cells = [shown, f"{level:g}", f"{draw} draw" if draw != "both" else "both"]
                cells += [f"{index.max():.2f}", int(index.argmax())]
                lines.append(line([*cells, f"{sums.max():.2f}", int(sums.argmax()), f"{unit:.2f}"]))
    return lines


def chance(record):
    """Of how many clean models NeuronInspect's index is above 2, and of features that are noise."""
    lines = header(
        ["data", "classes", "recorded clean models above 2", "of noise", "median", "90%"]
    )
    for data, kinds in read(RESULTS / "audits.json")["zoo"].items():
        found = [max(run["neuroninspect"]["index"].values()) for run in kinds["none"].values()]
        above = sum(value > PUBLISHED_THRESHOLD for value in found)
        noise = record["chance"][data]
        cells = [data, CLASSES[data], f"{above} of {len(found)}", f"{noise['above']:.2f}"]
        lines.append(line([*cells, f"{noise['median']:.1f}", f"{noise['ninth_decile']:.1f}"]))
    return lines


def origin_of(runs):
    """(hardware, commits) of runs."""
    return {run["hardware"] for run in runs}, {run["commit"] for run in runs}


TABLES = {
    "beginnings": beginnings,
    "repeat": repeat,
    "chosen": chosen,
    "draws": draws,
    "chance": chance,
    "zoo": zoo,
    "by_class": by_class,
}
