"""Make small versions of the figures of docs/physics.md: a river valley, an MLP and a convolution net.

Run it: python examples/thermodynamic_laws.py [--steps 300] [--out runs/thermodynamic_laws] [--seeds 3]
"""

import argparse
from pathlib import Path

# needs thermoopt[bench]; python -m thermoopt.benchmarks.laws makes the full figures, with language models
from thermoopt.benchmarks.laws.command import complete
from thermoopt.benchmarks.laws.figures import draw
from thermoopt.benchmarks.laws.fits import over_seeds, predicted, released, toy_points
from thermoopt.benchmarks.laws.report import groups, report
from thermoopt.benchmarks.laws.runs import FACTORS, SHAPES, Held, Scheduled
from thermoopt.benchmarks.laws.toy import LAWS, Toy


def main() -> None:
    """Run what is missing, draw, and print how far the laws hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="steps of each network, at least 50")
    parser.add_argument("--out", type=Path, default=Path("runs/thermodynamic_laws"), help="folder")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--replicas", type=int, default=300, help="replicas of the toy; errors fall as 1/sqrt of them"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()

    seeds = range(args.seeds)
    cases = [
        *(Toy(law, seed, args.replicas) for seed in seeds for law in LAWS),
        *(Held(w, f, seed, args.steps) for seed in seeds for w in ("mlp", "cnn") for f in FACTORS),
        *(
            Scheduled("mlp", shape, f, seed, args.steps)
            for seed in seeds
            for f in FACTORS
            for shape in SHAPES
        ),
    ]
    rows = complete(cases, args.out, args.workers)
    (args.out / "laws.md").write_text(report(rows), encoding="utf-8")
    pictures = draw(rows, args.out)

    print(f"\n{'law of the toy, worst point':32} {'measured':>10} {'error':>10} {'expected':>10}")
    for law in LAWS:
        worst = max(toy_points(rows, law), key=lambda p: abs(p["measured"] - p["expected"]) / p["error"])
        print(f"{law:32} {worst['measured']:10.4f} {worst['error']:10.4f} {worst['expected']:10.4f}")

    held = [row for row in rows if row["experiment"] == "hold"]
    names = ("thermal_loss", "noise and curvature at rest")
    print("\nLoss that a quench of 100 steps releases, against what tells it beforehand, nats:")
    print(f"{'network at its rate':32} {'released':>10} {'thermal':>10} {'by modes':>10}")
    for (workload, _), some in groups(held).items():
        numbers = [over_seeds([released(row, 100) for row in some])]
        numbers += [over_seeds([predicted(row, name, 100) for row in some]) for name in names]
        label = f"{workload} at lr {some[0]['lr']:.2g},"
        print(f"{label:32} " + " ".join(f"{value.mean:10.4f}" for value in numbers))
    print("\nFigures: " + ", ".join(str(path) for path in pictures))


if __name__ == "__main__":
    main()
