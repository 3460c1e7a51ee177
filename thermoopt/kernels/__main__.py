"""``python -m thermoopt.kernels``: print which kernels can run here, and why the others cannot."""

from thermoopt.kernels.doctor import report

print(report())
