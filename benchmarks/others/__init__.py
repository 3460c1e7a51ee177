"""Every available optimizer under Observer, diagnose and ThermoScheduler: does anything go wrong?

``python -m thermoopt.benchmarks.others`` runs them all and prints a count. The packages are pinned in
``benchmarks/others/requirements.txt``; what is not installed is left out and said so.
"""
