"""Controllers that tests of optimizers share."""

import math

from thermoopt.controllers import Controller, Scales


class Stateless(Controller):
    """Carries nothing through a checkpoint; subclasses say what it does in a step."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def reset(self):
        pass


class Follow(Controller):
    """A rate that falls in every step and moves with every reading."""

    def __init__(self):
        self.scale, self.seen = 1.0, []

    def update(self, reading, step):
        if reading is not None:
            self.seen.append((step, reading.step))
            self.scale *= 1 + 0.1 * math.sin(1e3 * reading.total.sigma)
        return Scales(lr=self.scale * (1 - step / 1000))

    def state_dict(self):
        return {"scale": self.scale}

    def load_state_dict(self, state):
        self.scale = state["scale"]

    def reset(self):
        self.scale = 1.0
