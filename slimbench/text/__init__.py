"""Text towers: frozen encoders of reports and prompts. A built-in is listed here and nowhere else."""

BUILT_INS = {
    "hf": "slimbench.text.hf:HuggingFaceText",
    "tfidf": "slimbench.text.tfidf:TfidfText",
}

WEIGHTS = {"hf": "slimbench.text.hf:weights"}
