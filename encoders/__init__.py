"""Slide encoders, one file each, and the kernels they share. A built-in is listed here and nowhere else."""

BUILT_INS = {
    "gigapath": "slimbench.encoders.gigapath:GigaPath",
    "mean-pool": "slimbench.encoders.mean_pool:MeanPool",
    "slide-features": "slimbench.encoders.slide_features:SlideFeatures",
    "slim-base": "slimbench.encoders.slim:slim_base",
    "slim-tiny": "slimbench.encoders.slim:slim_tiny",
    "slim": "slimbench.encoders.slim:Slim",
    "text-only": "slimbench.encoders.text_only:TextOnly",
    "torchscale-longnet": "slimbench.encoders.torchscale_longnet:TorchscaleLongNet",
    "vit": "slimbench.encoders.vit:ViT",
    "vit-tiny": "slimbench.encoders.vit:vit_tiny",
}

WEIGHTS = {
    "gigapath": "slimbench.encoders.gigapath_checkpoint:weights",
    "slide-features": "slimbench.encoders.slide_feature_files:contents",
}

WITHOUT_PATCHES = ("slide-features", "text-only")  # no reducer can stand in them

KERNELS = (
    "attention_backends",
    "attention_rows",
    "blocks",
    "dilated_attention",
    "gigapath_checkpoint",
    "longnet",
    "reachability",
    "rope",
    "sincos",
    "slide_feature_files",
)
