"""Token reducers, one file each. A built-in is listed here and nowhere else."""

BUILT_INS = {
    "cropr": "slimbench.reducers.cropr:Cropr",
    "none": "slimbench.reducers.none:Nothing",
    "random": "slimbench.reducers.random:RandomPruning",
    "tome": "slimbench.reducers.tome:ToMe",
}
