"""Four measures of an update's irreversibility, the emergent force, broken symmetries (arXiv 2605.21933)."""

from thermoopt.irreversibility.compare import Comparison, Fit, compare_irreversibility, compare_measures
from thermoopt.irreversibility.emergent_force import EmergentForce, emergent_force, sharpness
from thermoopt.irreversibility.fields import FlatField, UpdateField
from thermoopt.irreversibility.measures import Irreversibility, phi_de, phi_leading, phi_st, phi_ta, phi_tr
from thermoopt.irreversibility.model_fields import adam_field, momentum_field, sgd_field
from thermoopt.irreversibility.symmetries import (
    Symmetry,
    SymmetryBreaking,
    permutation,
    rescaling,
    rotation,
    symmetry_breaking,
)

__all__ = [
    "Comparison",
    "EmergentForce",
    "Fit",
    "FlatField",
    "Irreversibility",
    "Symmetry",
    "SymmetryBreaking",
    "UpdateField",
    "adam_field",
    "compare_irreversibility",
    "compare_measures",
    "emergent_force",
    "momentum_field",
    "permutation",
    "phi_de",
    "phi_leading",
    "phi_st",
    "phi_ta",
    "phi_tr",
    "rescaling",
    "rotation",
    "sgd_field",
    "sharpness",
    "symmetry_breaking",
]
