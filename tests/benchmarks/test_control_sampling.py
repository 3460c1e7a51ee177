"""What samples make of a layer's sum: the whole on average, and the first as the probe takes it."""

import pytest
import torch

pytest.importorskip("sklearn")

from thermoopt.benchmarks.control.sampling import estimates
from thermoopt.tensors.sampling import sample, sample_scale


@pytest.mark.parametrize("shape", [(96, 30, 5, 5), (300, 200), (70_000,), (40,)])
def test_samples_give_the_sum_on_average_and_the_first_is_the_probes(shape):
    p = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for share in (17, 31):
        found = estimates(p.square(), p, share)
        assert len(found) == share
        own = sample_scale(p, share) * float(sample(p, share).square().sum())
        assert float(found[0]) == pytest.approx(own)
        # but for the end, of less than a block of each sample
        assert float(found.mean()) == pytest.approx(
            float(p.square().sum()), rel=0.05 if p.numel() > 99 else 0.4
        )
