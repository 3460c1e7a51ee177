"""Small disturbed runs: what happens, when, and to which parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["SCENES", "STEPS", "Scene", "Stage", "undisturbed"]

STEPS = 400
"""Length of every run in optimizer steps."""

BATCH, FEW, MANY = 64, 8, 512
"""Batch sizes: of the undisturbed run, an eighth and eight times of it."""

PRODUCT_NOISE = 0.5
"""Standard deviation of the noise in the regression's labels."""

LORA_LAYERS = (0, 2, 4)


@dataclass(frozen=True)
class Scene:
    """A run and its disturbance.

    Attributes:
        name, about: for tables.
        task: ``"product"`` (regression on a product of two of ten normal features, MLP of 2 x 64) or
            ``"digits"`` (scikit-learn's, MLP of 2 x 128).
        when: step at which it happens, as a share of the run; None if it holds from the start.
        batch: its size from then on.
        label_noise: share of labels drawn at random from then on.
        shuffled: whether inputs come with their features in another order from then on.
        frozen: ``"unfreeze"``: all but the last layer take no gradient before ``when``; ``"add"``: they are
            not in the optimizer before.
        readout: standard deviation of the last matrix at the start; None for torch's.
        factor: on all initial parameters.
        lora: whether only adapters of rank 4 with B = 0 are trained, on a network trained for another target.
        told: length that schedules and controllers are told, as a multiple of the true one.
        schedule: whether a OneCycleLR is left in place beside a controller.
        decay: weight decay.
        resumed: whether optimizer and model go through a checkpoint at ``when``.
    """

    name: str
    about: str
    task: str = "product"
    when: float | None = None
    batch: int = BATCH
    label_noise: float = 0.0
    shuffled: bool = False
    frozen: str = ""
    readout: float | None = None
    factor: float = 1.0
    lora: bool = False
    told: float = 1.0
    schedule: bool = False
    decay: float = 0.01
    resumed: bool = False

    @property
    def step(self) -> int:
        """The step before which it happens; 0 from the start."""
        return 0 if self.when is None else round(self.when * STEPS)


SCENES = (
    Scene("batch / 8", "the batch size falls from 64 to 8 half way through the run", when=0.5, batch=FEW),
    Scene("batch x 8", "the batch size rises from 64 to 512 half way through the run", when=0.5, batch=MANY),
    Scene("label noise", "40 % of the labels are random from half way on", "digits", 0.5, label_noise=0.4),
    Scene("other data", "the features come in another order from half way on", "digits", 0.5, shuffled=True),
    Scene(
        "unfreezing",
        "all but the last layer are frozen for the first 40 % of the run",
        when=0.4,
        frozen="unfreeze",
    ),
    Scene(
        "added group",
        "all but the last layer join the optimizer after 40 % of the run",
        when=0.4,
        frozen="add",
    ),
    Scene("near-zero start", "the last layer starts with a standard deviation of 1e-4", readout=1e-4),
    Scene("init x 10", "all parameters start 10 times too large", factor=10.0),
    Scene(
        "LoRA, B = 0",
        "adapters of rank 4 on a network trained for another target are all that is trained",
        lora=True,
    ),
    Scene("T told / 4", "schedules are given a quarter of the true length", told=0.25),
    Scene("T told x 4", "schedules are given four times the true length", told=4.0),
    Scene("outside schedule", "a OneCycleLR scheduler is left in place", schedule=True),
    Scene("decay x 30", "weight decay is 0.3", decay=0.3),
    Scene(
        "resume, batch / 8",
        "the run is saved and resumed half way, then with a batch size of 8",
        when=0.5,
        batch=FEW,
        resumed=True,
    ),
)


def undisturbed(scene: Scene) -> Scene:
    """Return the same task without a disturbance."""
    return Scene(f"undisturbed {scene.task}", "nothing happens", scene.task)


@dataclass
class Stage:
    """A scene's model and data, drawn from a seed.

    Attributes:
        model: to be trained.
        first: names of the parameters that an optimizer is created with.
        later: names of those that are added to it at the scene's step.
    """

    scene: Scene
    seed: int
    model: nn.Module = field(init=False)
    first: list[str] = field(init=False)
    later: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Build the model and freeze what is trained later."""
        scene = self.scene
        torch.manual_seed(self.seed)
        self.model = _mlp(scene.task)
        last = self.model[4]
        assert isinstance(last, nn.Linear)
        if scene.readout is not None:
            nn.init.normal_(last.weight, std=scene.readout)
        with torch.no_grad():
            for p in self.model.parameters():
                p.mul_(scene.factor)
        if scene.lora:
            self.model = _adapted(self.seed)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        head = [name for name in names if name.startswith("4.")]
        body = [name for name in names if not name.startswith("4.")]
        self.first, self.later = (head, body) if scene.frozen == "add" else (names, [])
        if scene.frozen == "unfreeze":
            self._freeze(body, False)
        self._draws = torch.Generator().manual_seed(self.seed + 1)
        self._order = torch.randperm(
            _data(scene.task)[0].shape[1], generator=torch.Generator().manual_seed(9)
        )

    def _freeze(self, names: list[str], free: bool) -> None:
        params = dict(self.model.named_parameters())
        for name in names:
            params[name].requires_grad_(free)

    def begin(self, step: int) -> bool:
        """Apply the change of the model before a step (counted from 0); return whether there is one."""
        if self.scene.when is None or step != self.scene.step:
            return False
        if self.scene.frozen == "unfreeze":
            self._freeze([name for name, _ in self.model.named_parameters()], True)
        return True

    def loss(self, step: int) -> Tensor:
        """Training loss of a step's batch."""
        scene, on = self.scene, step >= self.scene.step
        x, y, _, _ = _data(scene.task)
        n = scene.batch if on else BATCH
        i = torch.randint(0, len(x), (n,), generator=self._draws)
        inputs, labels = x[i], self._labels(x[i], y[i])
        if on and scene.label_noise:
            lost = torch.rand(n, generator=self._draws) < scene.label_noise
            labels = torch.where(lost, torch.randint(0, 10, (n,), generator=self._draws), labels)
        if on and scene.shuffled:
            inputs = inputs[:, self._order]
        return _loss(scene.task)(self.model(inputs), labels)

    def _labels(self, x: Tensor, y: Tensor) -> Tensor:
        return y + 0.5 * x[:, 2:3] if self.scene.lora else y

    @torch.no_grad()
    def evaluate(self) -> float:
        """Loss on data that was not trained on, as the data are at the end of the run."""
        _, _, x, y = _data(self.scene.task)
        labels = self._labels(x, y)
        inputs = x[:, self._order] if self.scene.shuffled else x
        return float(_loss(self.scene.task)(self.model(inputs), labels))


def _mlp(task: str) -> nn.Sequential:
    if task == "digits":
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )
    return nn.Sequential(nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))


def _loss(task: str) -> Callable[[Tensor, Tensor], Tensor]:
    return nn.functional.cross_entropy if task == "digits" else nn.functional.mse_loss


@cache
def _data(task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels for training and for evaluation."""
    if task == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        order = np.random.default_rng(0).permutation(len(found.data))
        x = torch.tensor(found.data[order] / 16, dtype=torch.float32)
        y = torch.tensor(found.target[order])
        return x[:1200], y[:1200], x[1200:], y[1200:]
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(6144, 10, generator=rng)
    y = x[:, :1] * x[:, 1:2] + PRODUCT_NOISE * torch.randn(len(x), 1, generator=rng)
    return x[:4096], y[:4096], x[4096:], y[4096:]


class _Adapter(nn.Module):
    """A frozen linear layer and LoRA's product of rank 4, whose B starts at 0 (arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both."""
        return self.base(x) + 2 * (x @ self.a.T) @ self.b.T


@cache
def _pretrained() -> nn.Sequential:
    stage = Stage(replace(SCENES[0], when=None, batch=BATCH), 0)
    net = stage.model
    assert isinstance(net, nn.Sequential)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)
        optimizer.zero_grad()
        stage.loss(step).backward()
        optimizer.step()
    return net


def _adapted(seed: int) -> nn.Sequential:
    net = copy.deepcopy(_pretrained())
    torch.manual_seed(seed)
    for i in LORA_LAYERS:
        base = net[i]
        assert isinstance(base, nn.Linear)
        net[i] = _Adapter(base)
    return net
