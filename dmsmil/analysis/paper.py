"""What the paper prints, to stand beside what a study finds. Methods are named by their registry key.

Numbers are strings, exactly as printed; nothing is computed from them. In the rows of DMSMIL the text that this was
read from has lost most digits: what is lost stays lost (`NOT_LEGIBLE`), and only what the abstract or the running text
repeats is given.
"""

from __future__ import annotations

from dmsmil.jobs.files import InputError

NOT_LEGIBLE = "not legible"
COHORTS = {"brca": "TCGA-BRCA", "nsclc": "TCGA-NSCLC"}
LEADS = {10: "about 3 %", 20: "about 4 %"}  # ACC of DAMIL over the second best, by scale (section 3.2.1)

_LOST = {"F1": NOT_LEGIBLE, "AUC": NOT_LEGIBLE}
_RESULTS = {
    "brca": {  # Table 1
        "dsmil": {"ACC": "0.7967±0.0269", "F1": "0.8679±0.0319", "AUC": "0.7014±0.0254"},
        "multiattn": {"ACC": "0.8059±0.0382", "F1": "0.8763±0.0261", "AUC": "0.7011±0.0555"},
        "hifuse": {"ACC": "0.8098±0.0272", "F1": "0.8774±0.0229", "AUC": "0.7107±0.0225"},
        "amgcfn": {"ACC": "0.8108±0.0159", "F1": "0.8808±0.0108", "AUC": "0.7035±0.0169"},
        "dmsmil": {"ACC": "0.8539", **_LOST},  # ACC from the abstract, where it is 85.39 %
    },
    "nsclc": {  # Table 2
        "dsmil": {"ACC": "0.8568±0.0346", "F1": "0.8528±0.0464", "AUC": "0.8893±0.0354"},
        "multiattn": {"ACC": "0.8581±0.0429", "F1": "0.8546±0.0450", "AUC": "0.8472±0.0421"},
        "hifuse": {"ACC": "0.8599±0.0321", "F1": "0.8505±0.0442", "AUC": "0.8891±0.0243"},
        "amgcfn": {"ACC": "0.8572±0.0358", "F1": "0.8582±0.0489", "AUC": "0.8970±0.0179"},  # printed without its point
        "dmsmil": {"ACC": "0.9200", **_LOST},  # ACC from the abstract, where it is 92.00 %
    },
}
_ABLATION = {  # (fusion, ot, deformable) -> ACC; the last row is the abstract's
    "brca": {  # Table 4
        (False, False, False): "0.7985±0.0316",
        (False, False, True): "0.8051±0.0125",
        (True, False, False): "0.8056±0.0324",
        (True, True, False): "0.8153±0.0275",
        (True, False, True): "0.8451±0.0251",
        (True, True, True): "0.8539",
    },
    "nsclc": {  # Table 5
        (False, False, False): "0.8481±0.0208",
        (False, False, True): "0.8760±0.0346",
        (True, False, False): "0.8857±0.0210",
        (True, True, False): "0.8897±0.0194",
        (True, False, True): "0.9020±0.0185",
        (True, True, True): "0.9200",
    },
}
_COST = {  # Table 3; DMSMIL's two times are repeated in section 3.2.3, of its parameters three of six digits are left
    "dsmil": {"parameters": "1,894,072", "training": "13.72 s", "inference": "0.0141 s"},
    "multiattn": {"parameters": "854,789", "training": "9.68 s", "inference": "0.0096 s"},
    "hifuse": {"parameters": "3,596,964", "training": "27.16 s", "inference": "0.0298 s"},
    "amgcfn": {"parameters": "1,065,247", "training": "19.83 s", "inference": "0.0179 s"},
    "dmsmil": {"parameters": f"{NOT_LEGIBLE} but for 6···96", "training": "4.05 s", "inference": "0.0072 s"},
}


def _of(tables: dict[str, dict], paper: str) -> dict:
    if paper and paper not in COHORTS:
        raise InputError(
            f"paper is '{paper}': choose one of {', '.join(COHORTS)} to show the paper's printed values, "
            "or leave it empty"
        )
    return {key: dict(value) if isinstance(value, dict) else value for key, value in tables.get(paper, {}).items()}


def printed_results(paper: str) -> dict[str, dict[str, str]]:
    """Tables 1 and 2: method -> {ACC, F1, AUC}, mean ± deviation; nothing where `paper` is empty.

    paper: 'brca' or 'nsclc'. Raises InputError naming them on any other word. Figures 4 and 5 (one scale) are
    pictures: they print no number.
    """
    return _of(_RESULTS, paper)


def printed_ablation(paper: str) -> dict[tuple[bool, bool, bool], str]:
    """Tables 4 and 5: (fusion, ot, deformable) -> ACC; nothing where `paper` is empty. paper, errors: as above."""
    return _of(_ABLATION, paper)


def printed_cost() -> dict[str, dict[str, str]]:
    """Table 3: method -> {parameters, training (an epoch), inference (a slide)}, on one RTX 3060."""
    return {method: dict(row) for method, row in _COST.items()}


NEAR = 0.25  # a power of K up to 1 + NEAR is called linear, from 2 - NEAR on quadratic


def growth_as_claimed(deformable: float, full: float) -> str:
    """The paper's claim by the powers of K of both: it "holds", or in "direction" only, or "not"."""
    if deformable <= 1 + NEAR and full >= 2 - NEAR:
        return "holds"
    return "direction" if full > deformable + NEAR else "not"
