#!/usr/bin/env bash
# gymnasium 1.4.0: NormalizeReward lets its discounted return run on into the next episode.
#
# It divides rewards by the standard deviation of the discounted return. One would guess that a return begins again with an episode. Seen: an episode
# that ends by a time limit (truncated) does not end it at all, and one that is terminated clears it before the last reward rather than after: the
# last reward is counted without what came before it, and is carried into the next episode. With a reward of 1 a step and episodes of 10, the return
# goes to 100 instead of 9.6 where episodes are truncated. Random rewards in episodes of 2 steps are scaled down to 0.17 of what
# they would be by returns that begin again, and a time limit changes the rewards that the same policy gets.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --no-deps --target "$tmp" gymnasium==1.4.0 farama-notifications==0.0.6 cloudpickle==3.1.3 typing_extensions numpy==2.4.6
PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import gymnasium
import numpy as np
from gymnasium.wrappers import NormalizeReward


class Bandit(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length, kind, rewards):
        self.length, self.kind, self.rewards = length, kind, rewards

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(1, "float32"), {}

    def step(self, action):
        self.count += 1
        done = self.count == self.length
        return np.zeros(1, "float32"), self.rewards(), done and self.kind == "terminated", done and self.kind == "truncated", {}


def run(length, kind, rewards, episodes=2000):
    """The wrapper's returns and the ones that begin again."""
    env = NormalizeReward(Bandit(length, kind, rewards))
    own, right = [], []
    for _ in range(episodes):
        env.reset()
        total = 0.0
        for _ in range(length):
            before = float(env.discounted_reward[0])
            *_, terminated, _, _ = env.step(0)
            now = float(env.discounted_reward[0])
            reward = now - before * env.gamma * (1 - terminated)
            total = env.gamma * total + reward
            own.append(now)
            right.append(total)
    return np.array(own), np.array(right)


print("gymnasium", gymnasium.__version__)
own, right = run(10, "truncated", lambda: 1.0)
print(f"reward 1, episodes of 10, truncated: greatest return {own.max():.1f}, of an episode {right.max():.1f}")
assert 99 < own.max() <= 100.01 and abs(right.max() - 9.56) < 0.01
own, right = run(3, "terminated", lambda: 1.0)
print("reward 1, episodes of 3, terminated: returns", np.round(own[-3:], 2).tolist(), "of an episode", np.round(right[-3:], 2).tolist())
assert np.allclose(own[-3:], [1.99, 2.9701, 1]) and np.allclose(right[-3:], [1, 1.99, 2.9701])
for kind in ("terminated", "truncated"):
    random = np.random.default_rng(0)
    own, right = run(2, kind, lambda: random.normal())
    ratio = right.std() / own.std()
    print(f"random rewards, episodes of 2, {kind}: scaled to {ratio:.2f} of what returns that begin again would give")
    assert 0.9 < ratio < 1.1 if kind == "terminated" else 0.1 < ratio < 0.25
PY
