"""The EBRAINS benchmark: a linear probe over brain tumour diagnoses, 30 fine or 12 coarse.

    slimbench sweep --cohort ebrains.toml --task ebrains --task ebrains-coarse

The cohort file names PANTHER's tables with `label = "diagnosis"`: the diagnoses with at least 30 slides
(2,319 slides in all). The coarse classes are the groups of the WHO classification that they belong to.
"""

from __future__ import annotations

from slimbench.cohorts.cohort import Cohort
from slimbench.errors import CohortError
from slimbench.tasks.classification import LabelRule
from slimbench.tasks.linear_probe import LinearProbe

GROUPS = {
    "Adult-type diffuse gliomas": (
        "Anaplastic astrocytoma, IDH-mutant",
        "Anaplastic astrocytoma, IDH-wildtype",
        "Anaplastic oligodendroglioma, IDH-mutant and 1p/19q codeleted",
        "Glioblastoma, IDH-mutant",
        "Glioblastoma, IDH-wildtype",
        "Gliosarcoma",
        "Oligodendroglioma, IDH-mutant and 1p/19q codeleted",
    ),
    "Circumscribed astrocytic gliomas": ("Pilocytic astrocytoma",),
    "Cranial and paraspinal nerve tumours": ("Schwannoma",),
    "Embryonal Tumors": ("Medulloblastoma, non-WNT/non-SHH",),
    "Ependymal Tumours": ("Anaplastic ependymoma", "Ependymoma"),
    "Glioneuronal and neuronal tumours": ("Ganglioglioma",),
    "Haematolymphoid tumours involving the CNS": (
        "Diffuse large B-cell lymphoma of the CNS",
        "Langerhans cell histiocytosis",
    ),
    "Meningiomas": (
        "Anaplastic meningioma",
        "Angiomatous meningioma",
        "Atypical meningioma",
        "Fibrous meningioma",
        "Meningothelial meningioma",
        "Secretory meningioma",
        "Transitional meningioma",
    ),
    "Mesenchymal, non-meningothelial tumours involving the CNS": (
        "Haemangioblastoma",
        "Haemangioma",
        "Haemangiopericytoma",
        "Lipoma",
    ),
    "Metastatic tumours": ("Metastatic tumours",),
    "Paediatric-type diffuse low-grade gliomas": ("Diffuse astrocytoma, IDH-mutant",),
    "Tumours of the sellar region": ("Adamantinomatous craniopharyngioma", "Pituitary adenoma"),
}
DIAGNOSES = tuple(sorted(diagnosis for group in GROUPS.values() for diagnosis in group))


class Ebrains(LinearProbe):
    """LinearProbe over the 30 diagnoses; slides with another label are left out and counted."""

    def label_rule(self, cohort: Cohort) -> LabelRule:
        return _rule(cohort, DIAGNOSES, {name: name for name in DIAGNOSES})


class EbrainsCoarse(LinearProbe):
    """LinearProbe over the 12 groups, from labels that are diagnoses or the groups themselves."""

    def label_rule(self, cohort: Cohort) -> LabelRule:
        of = {diagnosis: group for group, members in GROUPS.items() for diagnosis in members}
        return _rule(cohort, tuple(sorted(GROUPS)), of | {group: group for group in GROUPS})


def _rule(cohort: Cohort, classes: tuple[str, ...], of: dict[str, str]) -> LabelRule:
    known = {
        label: of[label.strip()] for label in cohort.classes if label.strip() in of
    }  # as published: "gliomas "
    if not known:
        found = ", ".join(cohort.classes[:3]) or "none"
        raise CohortError(
            f"{cohort.name}: its labels ({found}, ...) are no EBRAINS diagnoses; name that column as "
            'label = "diagnosis" in [slides], or use linear-probe'
        )
    return LabelRule(classes, known)
