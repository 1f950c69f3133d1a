"""Token reducers, one file each. A built-in is listed here and nowhere else."""

# Those of count class `fixed`: one row of a sweep, whatever its rates are.
FIXED = ("none", "tokenlearner")

BUILT_INS = {
    "ats": "slimbench.reducers.ats:ATS",
    "attn-topk": "slimbench.reducers.attn_topk:AttentionTopK",
    "cropr": "slimbench.reducers.cropr:Cropr",
    "dpc-knn": "slimbench.reducers.dpc_knn:DPCKNN",
    "evit": "slimbench.reducers.evit:EViT",
    "gated-topk": "slimbench.reducers.gated_topk:GatedTopK",
    "grid-pool": "slimbench.reducers.grid_pool:GridPool",
    "none": "slimbench.reducers.none:Nothing",
    "norm": "slimbench.reducers.norm:Norm",
    "oracle": "slimbench.reducers.oracle:Oracle",
    "pitome": "slimbench.reducers.pitome:PiToMe",
    "random": "slimbench.reducers.random:RandomPruning",
    "reverse": "slimbench.reducers.reverse:Reverse",
    "stride": "slimbench.reducers.stride:Stride",
    "tokenlearner": "slimbench.reducers.tokenlearner:TokenLearner",
    "tome": "slimbench.reducers.tome:ToMe",
    "tome-local": "slimbench.reducers.tome_local:ToMeLocal",
}
