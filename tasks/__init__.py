"""Tasks, one file each. A built-in is listed here and nowhere else."""

BUILT_INS = {
    "ebrains": "slimbench.tasks.ebrains:Ebrains",
    "ebrains-coarse": "slimbench.tasks.ebrains:EbrainsCoarse",
    "efficiency": "slimbench.tasks.efficiency:Efficiency",
    "faithfulness": "slimbench.tasks.faithfulness:Faithfulness",
    "few-shot": "slimbench.tasks.few_shot:FewShot",
    "fidelity": "slimbench.tasks.fidelity:Fidelity",
    "knn": "slimbench.tasks.knn:NearestNeighbours",
    "linear-probe": "slimbench.tasks.linear_probe:LinearProbe",
    "reconstruction": "slimbench.tasks.reconstruction:Reconstruction",
    "retrieval": "slimbench.tasks.retrieval:Retrieval",
    "saliency": "slimbench.tasks.saliency:Saliency",
    "simpleshot": "slimbench.tasks.knn:SimpleShot",
    "tcga-oncotree": "slimbench.tasks.tcga_oncotree:TcgaOncotree",
    "zero-shot": "slimbench.tasks.zero_shot:ZeroShot",
}
