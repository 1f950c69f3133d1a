"""Tasks, one file each. A built-in is listed here and nowhere else."""

BUILT_INS = {
    "efficiency": "slimbench.tasks.efficiency:Efficiency",
    "linear-probe": "slimbench.tasks.linear_probe:LinearProbe",
    "retrieval": "slimbench.tasks.retrieval:Retrieval",
    "saliency": "slimbench.tasks.saliency:Saliency",
    "zero-shot": "slimbench.tasks.zero_shot:ZeroShot",
}
