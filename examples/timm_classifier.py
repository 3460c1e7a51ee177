"""Compare what an Observer reads of a timm model under timm's own optimizers and under ThermoAdamW.

Run it: python examples/timm_classifier.py [--steps 40] [--seed 0] [--out runs/timm]
"""

# The images are generated: bars of three directions under noise. Nothing is downloaded.

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from thermoopt import Observer, ThermoAdamW, autotune, diagnose

try:
    import timm
    import timm.optim
except ImportError as error:
    sys.exit(f"This example needs {error.name}, which is not installed: pip install timm")

SIZE, CLASSES = 32, 3


def images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bars across, down and aslant, with noise: ``[rows, 3, SIZE, SIZE]`` and their classes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (rows,), generator=g)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    waves = torch.stack([y, x, x + y]) * (2 * torch.pi / 8)
    phase = 2 * torch.pi * torch.rand(rows, 1, 1, generator=g)
    bars = torch.sin(waves[labels] + phase)[:, None].expand(-1, 3, -1, -1)
    return bars + 1.5 * torch.randn(rows, 3, SIZE, SIZE, generator=g), labels


def vit(seed: int) -> nn.Module:
    """A small vision transformer of timm's."""
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=4,
        num_classes=CLASSES,
    )


def main() -> None:
    """Train the same model in three ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/timm"))
    options = parser.parse_args()
    inputs, labels = images(256, seed=10_000)
    ways = {
        "timm's lamb": lambda m: timm.optim.create_optimizer_v2(m, opt="lamb", lr=5e-3, weight_decay=0.05),
        "timm's lion": lambda m: timm.optim.create_optimizer_v2(m, opt="lion", lr=3e-4, weight_decay=0.05),
        "ThermoAdamW, autotune": lambda m: ThermoAdamW(
            m.named_parameters(), controller=autotune(options.steps)
        ),
    }
    print(f"{'':22} {'loss':>6} {'accuracy':>9} {'sigma':>9} {'turn per step':>13}")
    for name, make in ways.items():
        model = vit(options.seed)
        optimizer = make(model)
        observer = Observer(model, optimizer, log_every=1)
        for step in range(options.steps):
            x, y = images(32, seed=options.seed + step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            observer.step(loss=loss)
        with torch.no_grad():
            right = (model.eval()(inputs).argmax(1) == labels).float().mean().item()
        total = observer.reading.total
        print(f"{name:22} {observer.loss:6.3f} {right:9.2f} {total.sigma:9.1e} {total.angular_step:13.1e}")
        folder = options.out / name.split()[-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diagnosis.txt").write_text(str(diagnose(observer)), encoding="utf-8")
    print(f"\nDiagnoses: {options.out}/*/diagnosis.txt")


if __name__ == "__main__":
    main()
