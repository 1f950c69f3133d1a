"""Slide encoders, one file each, and the kernels they share. A built-in is listed here and nowhere else."""

BUILT_INS = {
    "mean-pool": "slimbench.encoders.mean_pool:MeanPool",
    "slim-base": "slimbench.encoders.slim:slim_base",
    "slim-tiny": "slimbench.encoders.slim:slim_tiny",
    "slim": "slimbench.encoders.slim:Slim",
}

KERNELS = ("attention_backends", "attention_rows", "blocks", "dilated_attention", "rope")
