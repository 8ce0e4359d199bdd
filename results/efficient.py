"""The README's tables on few poisons: strategies of selection compared seed by seed, and what an attacker who controls training can do.

    python results/efficient.py                        # everything; a second call continues
    python results/efficient.py pilot                  # where does a random choice succeed half to nine times in ten?
    python results/efficient.py "random" "rd-global"   # the primary contrast

The trigger is a yellow square of 5x5 pixels, lower right; the target class 1. Writes results/efficient.json and .md, and the paired differences: see study.py.
The pilot's seeds are not the comparison's.
"""
import json
import statistics
import sys

import study
from study import Row

CIFAR = "--dataset cifar10 --model cnn --epochs 10 --attack badnets --trigger yellow --trigger-size 5 --target-class 1"
RATE = 0.0011
PAIRS = 10
T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, by number of pairs

PILOT = {f"pilot {rate}": Row(f"{CIFAR} --poison-rate {rate} --selection-seed 10{{seed}}", 2) for rate in (0.0011, 0.002, 0.004, 0.008)}
TABLE = PILOT | {name: Row(f"{CIFAR} --poison-rate {RATE} --selection {name}", pairs)
                 for name, pairs in {"random": PAIRS, "rd-global": PAIRS, "rd-low": 3, "rd": 3}.items()}


def paired(name, other, results):
    """Mean, standard deviation and 95% interval of the difference in attack success over the seeds that both have."""
    success = [{run["seed"]: run["attack_success_rate"] for run in results[row]["runs"]} for row in (name, other)]
    differences = [success[0][seed] - success[1][seed] for seed in success[0].keys() & success[1].keys()]
    mean, n = statistics.mean(differences), len(differences)
    half = T975[n] * statistics.stdev(differences) / n**0.5
    return {"of": name, "minus": other, "n": n, "mean": mean, "sd": statistics.stdev(differences), "interval": [mean - half, mean + half]}


if __name__ == "__main__":
    asked = [*PILOT] if sys.argv[1:] == ["pilot"] else sys.argv[1:]
    this = study.Study("efficient", TABLE)
    this.run(asked)
    done = json.loads(this.path.read_text())
    pairs = [paired(name, "random", done) for name in ("rd-global", "rd-low", "rd") if name in done and "random" in done]
    this.path.with_name("efficient-paired.json").write_text(json.dumps(pairs, indent=1) + "\n")
    for row in pairs:
        print(f"{row['of']} - {row['minus']}: {row['mean']:+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}), n = {row['n']}")
