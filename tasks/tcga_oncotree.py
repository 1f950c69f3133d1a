"""The TCGA-OT benchmark of TITAN: a linear probe over OncoTree codes.

    slimbench sweep --cohort tcga.toml --task tcga-oncotree

The cohort file names TITAN's tables (slide_id, case_id, OncoTreeCode and the published splits); the order
of the codes, on which weighted kappas depend, is alphabetical as in TITAN's label_dict.
"""

from __future__ import annotations

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError
from slimbench.tasks.classification import LabelRule
from slimbench.tasks.linear_probe import LinearProbe

# fmt: off
CODES = (
    "AASTR", "ACC", "AOAST", "ASTR", "BLCA", "CCRCC", "CESC", "CHRCC", "COAD", "DDLS",
    "DSTAD", "ESCA", "ESCC", "GBM", "HCC", "HGSOC", "HNSC", "IDC", "ILC", "LMS",
    "LUAD", "LUSC", "MACR", "MEL", "MFH", "MFS", "NSGCT", "OAST", "ODG", "PAAD",
    "PHC", "PLEMESO", "PRAD", "PRCC", "READ", "SEM", "SKCM", "STAD", "THFO", "THPA",
    "THYM", "TSTAD", "UCS", "UEC", "UM", "USC",
)
# fmt: on


class TcgaOncotree(LinearProbe):
    """LinearProbe over the 46 codes of TCGA-OT; slides with another label are left out and counted."""

    def label_rule(self, cohort: Cohort) -> LabelRule:
        if not set(cohort.classes) & set(CODES):
            found = ", ".join(cohort.classes[:3]) or "none"
            raise CohortError(
                f"{cohort.name}: its labels ({found}, ...) are no OncoTree codes of TCGA-OT; name that column as "
                'label = "OncoTreeCode" in [slides], or use linear-probe'
            )
        return LabelRule(CODES, {code: code for code in CODES})
