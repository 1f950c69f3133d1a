"""Feature files: one module a format. A format is listed here and nowhere else.

What a file is, is found out by looking into it, in the order below.
"""

FORMATS = {
    "packed": "slimbench.cohorts.readers.packed:PackedFile",
    "trident": "slimbench.cohorts.readers.trident:TridentFile",
    "stamp": "slimbench.cohorts.readers.stamp:StampFile",
    "clam": "slimbench.cohorts.readers.clam:ClamFile",
    "pt": "slimbench.cohorts.readers.pt:TorchFile",
    "npz": "slimbench.cohorts.readers.npz:NpzFile",
    "titan": "slimbench.cohorts.readers.titan:TitanFile",
    "slidechat": "slimbench.cohorts.readers.slidechat:SlideChatFile",
}
