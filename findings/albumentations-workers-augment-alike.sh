#!/usr/bin/env bash
# albumentations 2.0.8: all workers of a DataLoader draw the same augmentations, and the same again in every epoch.
#
# torch gives each worker its own random numbers for `random`, numpy and torch, anew in every epoch, so one would guess that augmentations
# differ. Seen: a Compose has a generator of its own since 2.0, made with it, and every worker starts with a copy. With two workers two
# images each get the same brightness; as workers are started anew each epoch, image i gets in every epoch what it had in the first:
# augmentation that is drawn once. No seed was given; persistent_workers=True mends only the epochs. The seeds that one sets for random,
# numpy and torch do nothing, too. (set_random_seed in a worker_init_fn helps.)
#
# Exits non-zero if albumentations does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet --target "$tmp" torch==2.13.0 numpy
"$python" -m pip install --quiet --target "$tmp" albumentations==2.0.8 albucore==0.0.24 numpy==2.4.6
PYTHONPATH=$tmp NO_ALBUMENTATIONS_UPDATE=1 "$python" -W ignore - <<'PY'
import random

import albumentations
import numpy as np
import torch
from torch.utils.data import DataLoader

IMAGE = np.full((4, 4, 3), 100, np.uint8)


class Images:
    def __init__(self):
        self.augment = albumentations.Compose([albumentations.RandomBrightnessContrast(p=1)])

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return float(self.augment(image=IMAGE)["image"].mean())


def start(worker):
    torch.utils.data.get_worker_info().dataset.augment.set_random_seed(torch.initial_seed() % 2**32)


def epochs(**options):
    loader = DataLoader(Images(), batch_size=4, multiprocessing_context="fork" if options else None, **options)
    return [[round(value) for batch in loader for value in batch.tolist()] for _ in range(3)]


def seed_all():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)


print("albumentations", albumentations.__version__)
seen = {}
for name, options in (
    ("no workers", {}),
    ("2 workers", {"num_workers": 2}),
    ("2 that persist", {"num_workers": 2, "persistent_workers": True}),
    ("2, seeded", {"num_workers": 2, "worker_init_fn": start}),
):
    seed_all()
    seen[name] = epochs(**options)
    print(f"{name}: brightness of 8 images in epochs 1, 2, 3: {seen[name]}")
seed_all()
again = epochs()
print("no workers, the same seeds again:", again)
alone, two, persist, seeded = seen.values()
assert alone != again and len({tuple(e) for e in alone}) == 3
assert two[0] == two[1] == two[2] and two[0][:4] == two[0][4:]
assert all(e[:4] == e[4:] for e in persist) and persist[0] != persist[1]
assert seeded[0] != seeded[1] and seeded[0][:4] != seeded[0][4:]
PY
