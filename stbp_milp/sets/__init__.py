"""Perturbation sets: the box in which every voxel may move, and the choice of the voxels that move."""

from stbp_milp.sets.blocks import Blocks
from stbp_milp.sets.choice import Choice, ChoiceProgram
from stbp_milp.sets.moving_patch import MovingPatch
from stbp_milp.sets.parts import divide
from stbp_milp.sets.patch import Patch
from stbp_milp.sets.perturbation import InputSet, PerturbationSet, VoxelBox, concatenate, inner, support
from stbp_milp.sets.specification import BoxSpecification, SetSpecification, parse_set

__all__ = [
    "Blocks",
    "BoxSpecification",
    "Choice",
    "ChoiceProgram",
    "InputSet",
    "MovingPatch",
    "Patch",
    "PerturbationSet",
    "SetSpecification",
    "VoxelBox",
    "concatenate",
    "divide",
    "inner",
    "parse_set",
    "support",
]
