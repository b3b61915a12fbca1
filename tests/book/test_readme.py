"""The pages' numbers are those of docs/results/, whatever they say; the words around them are left alone."""

import json
import os
import re
from html import unescape

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from dmsmil.book.best import MOST
from dmsmil.book.names import named, retold
from dmsmil.book.readme import BLOCKS, RESULTS, STUDY, collect, fill, main, pages, study_page
from dmsmil.book.results import WIDTH, purpose
from dmsmil.book.several import RATES
from dmsmil.jobs.files import ROOT, InputError, read_json, write_csv
from tests.conftest import assert_one_line

PAIRS = (("README.md", "README.zh-CN.md"), ("docs/guide.md", "docs/guide.zh-CN.md"))
WORDS = "# A study\n\nProse | with a bar, 0.123, <!-- a comment -->.\n{}\nAnd its end, without a newline"


def row(name, auc, method="", scales="", collapsed=0, acc=0.6):
    means = {"ACC": acc, "F1": 0.5, "AUC": auc}
    return {
        "name": name,
        "method": method,
        "scales": scales,
        **{f"{m}_mean": v for m, v in means.items()},
        **{f"{m}_std": 0.1 for m in means},
        **{f"{m}_low": 0.4 for m in means},
        **{f"{m}_high": 0.9 for m in means},
        "runs": 6,
        "collapsed": collapsed,
        "parameters": 636386 if method else 0,
    }


def compared(dmsmil=0.8, abmil=0.7, **more):
    return pd.DataFrame(
        [
            row("DMSMIL", dmsmil, "dmsmil", "10x+20x", **more),
            row("ABMIL 10x", abmil, "abmil", "10x"),
            row("six colour numbers", 0.65),
            row("always the majority", 0.5),
        ]
    )


@pytest.fixture
def home(tmp_path):
    """The folder of a made-up study of two methods, as `dmsmil run` leaves it."""
    home = tmp_path / "outputs/mine-2"
    (home / "tables").mkdir(parents=True)
    (home / "figures").mkdir()
    pd.DataFrame({"slide_id": ["s1", "s2", "s3"], "patient_id": ["p1", "p1", "p2"], "label": ["b", "b", "a"]}).to_csv(
        home / "cohort.csv", index=False
    )
    params = {"study": "mine-2", "folds": 3, "seeds": [0, 1], "epochs": 7, "k": 9, "encoder": "e", "paper": ""}
    (home / "params.yaml").write_text(json.dumps(params))
    (home / "environment.json").write_text(json.dumps({"cores": 2, "gpu": "none"}))
    pd.DataFrame({"notebook": ["03_train", "04_compare"], "first": [60.0, 1200.0], "latest": [3.0, 4.0]}).to_csv(
        home / "times.csv", index=False
    )
    compared().to_csv(home / "tables/04_compare.csv", index=False)
    paired(0.1, 0.01).to_csv(home / "tables/04_tests.csv", index=False)
    pd.DataFrame(
        {
            "claim": ["It leads"],
            "in the paper": ["Table 1"],
            "tested in": ["04_compare"],
            "verdict": ["not shown"],
            "number": ["ACC 0.600 against 0.600 of A|B. More."],
        }
    ).to_csv(home / "tables/09_claims.csv", index=False)
    Image.effect_noise((2400, 900), 60).save(home / "figures/cover.png")
    return home


def paired(difference, p, **more):
    return pd.DataFrame(
        [{"reference": "DMSMIL", "name": "ABMIL 10x", "AUC_difference": difference, "AUC_p_holm": p, **more}]
    )


def shown(home, what):
    """What a block says of the study, after it was collected anew."""
    results = home.parents[1] / RESULTS
    collect(home, results)
    return fill(f"<!-- begin: mine-2-{what} -->\n<!-- end: mine-2-{what} -->", results)


def names(text):
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("page", pages())
def test_a_page_says_what_the_files_say(page):
    """If this fails: python -m dmsmil.book.readme."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert fill(text, ROOT / RESULTS, page) == text


@pytest.mark.parametrize("names", PAIRS, ids=lambda names: names[0])
def test_a_chinese_page_is_true_to_the_english_one(names):
    """The same blocks, headings and rows, the same commands in the same order, the same files, keys and code."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in names)

    def both(pattern):
        return [re.findall(pattern, text, re.M) for text in (english, chinese)]

    for pattern in (r"^<!-- .* -->$", r"^#+(?= )", r"^ *(?:make|dmsmil|S-0\d+,)[^#\n]*?(?= *(?:#|$))", r"^\|(?= )"):
        assert both(pattern)[0] == both(pattern)[1], pattern
    files = [{link.partition("#")[0].replace(".zh-CN", "") for link in links} for links in both(r"\]\(([^)]+)\)")]
    assert files[0] == files[1]
    ticked = [set(found) for found in both(r"`([^`\n]+)`")]
    assert ticked[0] == ticked[1]


@pytest.mark.parametrize("page", PAIRS[0])
def test_the_first_page_is_read_in_three_minutes(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert re.findall(r"^<!-- begin: \S+-(best|table|words|claims)", text, re.M) == ["best", "words"]
    block = re.search(r"^<!-- begin: \S+-best.*?<!-- end", text, re.M | re.S)[0]
    assert 4 <= len(names(block)) <= MOST == 10
    words = re.search(r"^<!-- begin: \S+-words.*?<!-- end", text, re.M | re.S)[0]
    assert len(re.findall("^- ", words, re.M)) <= 3


@pytest.mark.parametrize("page", pages())
def test_no_name_of_a_method_has_options_in_it(page):
    tables = re.findall(r"^\| method \|.*\n(?:\|.*\n)*", (ROOT / page).read_text(encoding="utf-8"), re.M)
    found = [name for table in tables for name in names(table)]
    assert not [name for name in found if re.search(r"[=\[,]|epochs", name)]
    assert found or page not in ("README.md", "docs/model_card.md", f"{RESULTS}/demo/README.md")


def test_every_study_in_docs_results_has_its_page_with_all_blocks():
    studies = [path.parent.name for path in (ROOT / RESULTS).glob("*/study.json")]
    listed = (ROOT / RESULTS / "README.md").read_text(encoding="utf-8")
    for study in studies:
        text = (ROOT / RESULTS / study / "README.md").read_text(encoding="utf-8")
        missing = {f"{study}-{what}" for what in BLOCKS} - set(re.findall(r"begin: (\S+)", text))
        assert missing - {f"{study}-held"} == {f"{study}-best"} and f"[{study}]({study}/README.md)" in listed


def test_the_readme_says_where_every_wing_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are\n")[2].partition("\n## ")[0]
    wings = {path.parent.name for path in (ROOT / "dmsmil").glob("*/__init__.py")}
    assert {wing for wing in wings if f"`{wing}/`" not in table} == set()


def test_the_committed_results_are_small():
    files = [path for path in (ROOT / RESULTS).rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 400_000 for path in files)


@pytest.mark.slow
def test_the_table_follows_the_numbers_and_the_best_stands_first(home):
    said = shown(home, "table")
    assert "| DMSMIL | 0.600 ± 0.100 [0.40, 0.90] | 0.500 ± 0.100 [0.40, 0.90] | 0.800 ± 0.100 [0.40, 0.90] |" in said
    assert names(said) == ["DMSMIL", "ABMIL 10x", "six colour numbers", "always the majority"]
    assert "3 slides of 2 patients (1 a, 2 b), 3 folds × 2 seeds; K = 9" in said and "7 epochs" in said
    params = json.loads((home / "params.yaml").read_text())
    (home / "params.yaml").write_text(json.dumps(params | {"repeats": 4}))
    assert "3 folds × 4 repeats × 2 seeds; K = 9" in shown(home, "table")
    compared(0.55, 0.9).to_csv(home / "tables/04_compare.csv", index=False)
    assert names(shown(home, "table")) == ["ABMIL 10x", "six colour numbers", "DMSMIL", "always the majority"]
    assert "note" not in said


@pytest.mark.slow
def test_a_collapse_stands_last_and_says_so(home):
    compared(0.99, collapsed=2).to_csv(home / "tables/04_compare.csv", index=False)
    said = shown(home, "table")
    assert names(said)[-1] == "DMSMIL" and "2 of 6 runs collapsed" in said
    assert "Collapsed, and so no result: DMSMIL." in shown(home, "findings")
    assert "DMSMIL has no result here: 2 of 6 runs collapsed. The highest AUC is ABMIL 10x with 0.700" in shown(
        home, "words"
    )


@pytest.mark.slow
def test_the_findings_turn_with_the_numbers(home):
    good = shown(home, "findings")
    assert "Highest AUC: **DMSMIL**, 0.800" in good and "DMSMIL is above *six colour numbers*" in good
    assert "better than ABMIL 10x, and worse than none." in good
    compared(0.55, 0.9).to_csv(home / "tables/04_compare.csv", index=False)
    paired(-0.35, 0.01).to_csv(home / "tables/04_tests.csv", index=False)
    bad = shown(home, "findings")
    assert "Highest AUC: **ABMIL 10x**, 0.900" in bad and "DMSMIL is not above *six colour numbers*" in bad
    assert "better than none, and worse than ABMIL 10x." in bad
    paired(-0.005, 0.2, AUC_p_equivalent_holm=0.01).to_csv(home / "tables/04_tests.csv", index=False)
    assert "better than none, and worse than none; equivalent to ABMIL 10x." in shown(home, "findings")
    paired(-0.35, 0.2).to_csv(home / "tables/04_tests.csv", index=False)
    assert "better than none, and worse than none." in shown(home, "findings")


@pytest.mark.slow
def test_claims_and_times_are_said_as_they_are(home):
    said = shown(home, "claims")
    assert r"| It leads | Table 1 | 04_compare | not shown | ACC 0.600 against 0.600 of A\|B |" in said
    assert "Of 1 claims: 0 held, 0 equivalent, 1 not shown, 0 not held, 0 not run." in said
    assert "On 2 cores and no GPU" in (took := shown(home, "time")) and "took 21 minutes" in took
    assert "20 of them for 04_compare" in took


@pytest.mark.slow
def test_the_picture_is_made_small(home):
    assert f"({RESULTS}/mine-2/figures/cover.png)" in shown(home, "picture")
    with Image.open(home.parents[1] / RESULTS / "mine-2/figures/cover.png") as image:
        assert image.width == WIDTH and image.mode == "P"


def test_every_block_can_be_filled_from_the_smoke_study(smoke, tmp_path):
    home, _ = smoke
    collect(home, tmp_path)
    there = {path.stem for path in tmp_path.rglob("*.*")}
    needs = {
        "ablation": "05_ablation",
        "lambda": "06_lambda",
        "cost": "08_cost",
        "claims": "09_claims",
        "held": "09_claims",
        "power": "04_power",
        "probes": "02_probes",
        "variants": "05_variants",
        "collapse": "05_collapse",
        "witness": "05_witness",
        "maps": "07_maps",
        "picture": "cover",
        "time": "times",
    }
    for what in [what for what in BLOCKS if needs.get(what, "04_compare") in there]:
        said = fill(f"<!-- begin: smoke-{what} -->\n<!-- end: smoke-{what} -->", tmp_path)
        assert len(said.splitlines()) > 2 and "nan" not in said.lower().split() and str(home.parent) not in said, what


@pytest.mark.slow
def test_what_a_study_was_asked_besides_stands_in_tables_of_its_page(home):
    rules = shown(home, "rules")
    assert "in AUC: six colour numbers 0.650 [0.40, 0.90]" in rules and "always the majority 0.500" in rules
    pulls = {"spread_relative": 0.02, "effective": 0.31, "gradient_ot": [0.0, 26.0], "gradient_ce": 6.1}
    marks = {"collapsed": False, "learned_nothing": [False, True], "gathered": False}
    names_ = {"placement": ["frozen features", "ReLU"], "lam": 1.0, "ce_relative": [0.01, 1.0]}
    grid = pd.DataFrame({**names_, **pulls, **marks})
    write_csv(grid, home / "tables/05_collapse.csv")
    said = shown(home, "collapse")
    assert "| ReLU | 1 | 26 | 6.1 | 1.00 | 0.02 | 31% | learned nothing |" in said
    assert "**ReLU**: no collapse." in said and "frozen features never, for L_ot has no gradient there" in said
    write_csv(grid[:0], home / "tables/05_collapse.csv")
    assert "Not asked for here: `collapse_lams` is empty." in shown(home, "collapse")
    two = compared().head(2).assign(slides=40, tiles=16, witnesses=8)
    gathered = two.assign(rate=0.1, gathered=[3, 0], runs=6)
    write_csv(pd.concat([two.assign(rate=0.5, gathered=0), gathered]), home / "tables/05_witness.csv")
    said = shown(home, "witness")
    assert "| method | 10 % of the tiles | 50 % of the tiles |" in said and "40 slides, 16 tiles of each." in said
    assert said.count("(gathered in 3 of 6 runs)") == 1 and len(names(said)) == 2
    write_csv(pd.read_csv(home / "tables/09_claims.csv").assign(verdict="held"), home / "tables/09_claims.csv")
    assert "#what-held-of-the-paper" in shown(home, "held") and "Held: It leads" in shown(home, "held")


@pytest.mark.slow
def test_what_a_study_no_longer_has_is_no_longer_shown(home):
    assert "It leads" in shown(home, "claims")
    (home / "tables/09_claims.csv").unlink()
    (home / "figures/cover.png").unlink()
    for what, name in (("claims", "09_claims.csv"), ("picture", "cover.png"), ("ablation", "05_ablation.csv")):
        with pytest.raises(InputError) as caught:
            shown(home, what)
        assert_one_line(caught, name)


@pytest.mark.slow
def test_twice_changes_nothing_and_the_rest_is_never_touched(home):
    root = home.parents[1]
    blocks = "\n".join(
        f"<!-- begin: mine-2-{what} -->\nold\n<!-- end: mine-2-{what} -->\n\nbetween" for what in ("table", "words")
    )
    (root / "README.md").write_text(WORDS.format(blocks))
    assert main([str(home)], root) == 0
    first = (root / "README.md").read_text()
    assert main([str(home)], root) == main([], root) == 0
    assert (root / "README.md").read_text() == first == fill(first, root / RESULTS)
    before, _, rest = first.partition("<!-- begin: mine-2-table -->")
    assert WORDS.startswith(before) and rest.endswith("\n\nbetween\nAnd its end, without a newline")
    assert first.count("between") == 2 and "old" not in first.split()
    assert fill(WORDS, root / RESULTS) == WORDS, "no block, no change"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- begin: mine-2-table -->\n", "begin: mine-2-table"),
        ("<!-- end: mine-2-table -->", "end: mine-2-table"),
        ("<!-- begin: mine-2-table -->\n<!-- end: mine-2-words -->", "alone"),
        (
            "<!-- begin: mine-2-table -->\n<!-- begin: mine-2-words -->\n<!-- end: mine-2-words -->\n"
            "<!-- end: mine-2-table -->",
            "alone",
        ),
        ("<!-- begin: mine-2-tabel -->\n<!-- end: mine-2-tabel -->", "'mine-2-tabel'"),
        ("<!-- begin: table -->\n<!-- end: table -->", "'table'"),
        ("<!-- begin: other-table -->\n<!-- end: other-table -->", "other"),
    ],
)
def test_a_wrong_block_is_one_clear_line_and_the_readme_stays(home, text, message, capsys):
    root = home.parents[1]
    (root / "README.md").write_text(WORDS.format(text))
    collect(home, root / RESULTS)
    with pytest.raises(InputError) as caught:
        fill(WORDS.format(text), root / RESULTS)
    assert_one_line(caught, message)
    assert main([], root) == 2 and message in capsys.readouterr().err
    assert (root / "README.md").read_text() == WORDS.format(text)


@pytest.mark.slow
def test_a_folder_that_is_no_compared_study_is_named(home, tmp_path):
    (home / "tables/04_compare.csv").unlink()
    for folder, lost in ((home, "04_compare.csv"), (tmp_path, "cohort.csv")):
        with pytest.raises(InputError) as caught:
            collect(folder, tmp_path / "results")
        assert_one_line(caught, lost)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_odd_names_are_no_markup(home):
    """A class and a method that a user named read as they were written, in cells and in sentences."""
    odd = "Mine <b>|*x*"
    table = compared()
    table.loc[1, "name"] = odd
    table.to_csv(home / "tables/04_compare.csv", index=False)
    paired(0.1, 0.01).assign(name=odd).to_csv(home / "tables/04_tests.csv", index=False)
    cohort = pd.read_csv(home / "cohort.csv").replace({"label": {"b": "<i>b"}})
    cohort.to_csv(home / "cohort.csv", index=False)
    render = MarkdownIt("commonmark").enable("table").render
    cells = re.findall(r"<td>(.*?)</td>", render(shown(home, "table")))
    assert odd in map(unescape, cells) and "2 <i>b" in unescape(render(shown(home, "table")))
    for what in ("words", "findings"):
        assert f"better than {odd}, and" in unescape(render(shown(home, what)))


# ------------------------------------------------------------------------------------------------ names and options


LONG = "HAG-MIL 20x, hidden_dims=[128, 192, 64, 128], size=[64, 32], 8 epochs"


def test_options_stand_beside_a_name_not_in_it():
    table = pd.DataFrame(
        [
            row("DMSMIL", 0.8, "dmsmil", "10x+20x"),
            row(LONG, 0.7, "hagmil", "20x"),
            row("DMSMIL, ot_on=unit", 0.7, "dmsmil", "10x+20x"),
            row("DMSMIL, deformable=False, ot=none", 0.6, "dmsmil", "10x+20x"),
            row("Mine 10x, k=3", 0.6, "not_registered", "10x"),
            row("the site alone", 0.5),
        ]
    )
    found = named(table)
    assert list(found.said) == [
        "DMSMIL",
        "HAG-MIL 20x",
        "DMSMIL (2)",
        "DMSMIL without deformable attention and transport",
        "Mine 10x",
        "the site alone",
    ]
    assert list(found.short) == ["DMSMIL", "HAG-MIL 20x", "DMSMIL", "DMSMIL", "Mine 10x", "the site alone"]
    assert list(found.options) == ["", LONG.partition(", ")[2], "ot_on=unit", "", "k=3", ""]
    turned = named(table.iloc[::-1]).said
    pd.testing.assert_series_equal(turned.sort_index(), found.said, check_names=False)
    said = retold(f"Above it: {LONG}, DMSMIL, deformable=False, ot=none, DMSMIL.", table)
    assert said == "Above it: HAG-MIL 20x, DMSMIL without deformable attention and transport, DMSMIL."


@pytest.mark.slow
def test_options_have_a_column_and_are_in_no_sentence(home):
    table = compared()
    table.loc[1, ["name", "method", "scales", "AUC_mean"]] = [LONG, "hagmil", "20x", 0.85]
    table.to_csv(home / "tables/04_compare.csv", index=False)
    paired(-0.3, 0.01).assign(name=LONG).to_csv(home / "tables/04_tests.csv", index=False)
    claim = pd.read_csv(home / "tables/09_claims.csv").assign(number=f"ACC 0.6 against 0.6 of {LONG}, the best other")
    claim.to_csv(home / "tables/09_claims.csv", index=False)
    for what in ("table", "best"):
        said = shown(home, what)
        assert "| HAG-MIL 20x | hidden_dims=[128, 192, 64, 128], size=[64, 32], 8 epochs | 0.600" in said
        assert said.count("hidden_dims") == 1
    assert "worse than HAG-MIL 20x." in shown(home, "findings") and "to HAG-MIL 20x by 0.050" in shown(home, "words")
    assert "of HAG-MIL 20x, the best other |" in shown(home, "claims")
    for what in ("findings", "words", "claims"):
        assert "hidden_dims" not in shown(home, what) and "epochs" not in shown(home, what)


# ------------------------------------------------------------------------------------------------ the first page


OTHERS = ("abmil", "clam_sb", "clam_mb", "dtfd", "dsmil", "multiattn", "transmil", "lamil")
TITLES = ("ABMIL", "CLAM-SB", "CLAM-MB", "DTFD-MIL", "DSMIL", "MultiAttnMIL", "TransMIL", "LA-MIL")


def many(dmsmil=0.6):
    """A main table of 18 rows: eight other methods, the first of which are the best; DAMIL is better at 20x."""
    rows = [
        row("DMSMIL", dmsmil, "dmsmil", "10x+20x"),
        row("DAMIL 10x", 0.55, "damil", "10x"),
        row("DAMIL 20x", 0.57, "damil", "20x"),
        row("Mean pooling 10x", 0.99, "meanpool", "10x"),
        row("Mean pooling", 0.66, "meanpool", "10x+20x"),
    ]
    rows += [
        row(f"{title} 10x", 0.90 - place / 100, method, "10x")
        for place, (method, title) in enumerate(zip(OTHERS, TITLES))
    ]
    rows += [
        row("ABMIL 20x", 0.95, "abmil", "20x"),
        row("Top-k pooling", 0.98, "topk", "10x+20x", collapsed=1),
        row("six colour numbers", 0.52),
        row("the site alone", 0.51),
        row("always the majority", 0.5),
    ]
    return pd.DataFrame(rows)


@pytest.mark.slow
def test_the_first_page_shows_ten_rows_the_best_first(home):
    many().to_csv(home / "tables/04_compare.csv", index=False)
    said = shown(home, "best")
    assert names(said) == [
        "ABMIL 20x",
        "CLAM-SB 10x",
        "CLAM-MB 10x",
        "DTFD-MIL 10x",
        "Mean pooling",
        "DMSMIL",
        "DAMIL 20x",
        "six colour numbers",
        "the site alone",
        "always the majority",
    ]
    rule = "DMSMIL, DAMIL, mean pooling and the rules that know no tissue, then the best others; all of them on"
    assert f"10 of 18 rows, {rule} [the page of the study]({RESULTS}/mine-2/README.md)" in said
    assert len(names(shown(home, "table"))) == 18
    table = many().drop(index=4)
    table.loc[0, "collapsed"] = 3
    table.to_csv(home / "tables/04_compare.csv", index=False)
    found = names(shown(home, "best"))
    assert "Mean pooling 10x" in found and found[-1] == "DMSMIL" and len(found) == 10


@pytest.mark.slow
def test_when_dmsmil_loses_is_one_sentence_of_numbers(home):
    many().to_csv(home / "tables/04_compare.csv", index=False)
    first, when, tested = shown(home, "words").splitlines()[1:-1]
    assert first == (
        "- DMSMIL reaches an AUC of 0.600 [0.40, 0.90]; the highest is Mean pooling 10x with 0.990 "
        "[0.40, 0.90]; mean pooling, which looks at all tiles alike, reaches 0.660."
    )
    assert when == (
        "- In AUC it loses to 10 of 12 rows of one scale and to 1 of 1 rows of several scales: "
        "to Mean pooling 10x by 0.390, ABMIL 20x by 0.350, ABMIL 10x by 0.300, CLAM-SB 10x by 0.290, "
        "CLAM-MB 10x by 0.280, DTFD-MIL 10x by 0.270 and 5 more."
    )
    assert tested == "- Tested fold by fold, it is shown to be better than ABMIL 10x, and worse than none."
    many(0.995).to_csv(home / "tables/04_compare.csv", index=False)
    paired(0.1, 0.2).to_csv(home / "tables/04_tests.csv", index=False)
    first, when, tested = shown(home, "words").splitlines()[1:-1]
    assert "0.995 [0.40, 0.90]; the highest of all; mean pooling" in first
    assert when == "- In AUC it loses to none of the 13 other trained rows."
    assert "better than none, and worse than none; against the 1 others no difference is shown" in tested
    many(0.515).to_csv(home / "tables/04_compare.csv", index=False)
    assert "It also loses to six colour numbers." in shown(home, "words")
    many().iloc[1:].to_csv(home / "tables/04_compare.csv", index=False)
    assert "DMSMIL was not run here. The highest AUC is Mean pooling 10x with 0.990" in shown(home, "words")


@pytest.mark.slow
def test_what_learned_nothing_neither_wins_nor_loses(home):
    """Where no run has learned anything an AUC is luck; where some have, the row is marked and counts."""
    table = many(0.999)
    table["learned_nothing"] = 6 * table.name.isin(["DMSMIL", "Mean pooling 10x"])
    table.to_csv(home / "tables/04_compare.csv", index=False)
    assert names(shown(home, "best"))[0] == "ABMIL 20x" and names(shown(home, "best"))[-1] == "DMSMIL"
    said = shown(home, "words")
    assert "DMSMIL has no result here: 6 of 6 runs learned nothing. The highest AUC is ABMIL 20x with 0.950" in said
    table = many().assign(learned_nothing=0)
    table.loc[table.name == "Mean pooling 10x", "learned_nothing"] = 6
    table.loc[table.name == "DMSMIL", "learned_nothing"] = 2
    table.to_csv(home / "tables/04_compare.csv", index=False)
    said = shown(home, "words")
    assert "an AUC of 0.600 [0.40, 0.90] (2 of 6 runs learned nothing); the highest is ABMIL 20x with 0.950" in said
    assert "loses to 9 of 11 rows of one scale" in said and "Mean pooling 10x by" not in said


@pytest.mark.slow
def test_an_auc_that_no_fold_has_is_the_pooled_one(home):
    table = compared().assign(AUC_mean=float("nan"), AUC_pooled=[0.6, 0.7, 0.5, 0.5])
    table.to_csv(home / "tables/04_compare.csv", index=False)
    assert names(shown(home, "best"))[:2] == ["ABMIL 10x", "DMSMIL"]
    assert "reaches a pooled AUC of 0.600" in (said := shown(home, "words"))
    assert "ABMIL 10x with 0.700 [0.40, 0.90], pooled" in said and "to ABMIL 10x by 0.100" in said
    several = compared().assign(classes=3)
    several.to_csv(home / "tables/04_compare.csv", index=False)
    said = shown(home, "words")
    assert "DMSMIL reaches a one-vs-rest AUC of 0.800" in said and "pooled" not in said
    table.drop(columns="AUC_pooled").to_csv(home / "tables/04_compare.csv", index=False)
    assert "AUC is not defined" in shown(home, "words")


# ------------------------------------------------------------------------------------------------ several studies


def planted(results, name, rate, table):
    """A folder of docs/results as `collect` leaves it."""
    (results / name / "tables").mkdir(parents=True)
    values = {
        "slides": 160,
        "patients": 160,
        "classes": {"a": 80, "b": 80},
        "seeds": [0],
        "folds": 5,
        "epochs": 9,
        "k": 150,
        "encoder": "e",
        "paper": "",
        "purpose": f"With {rate}. ",
        "date": "2026-11-28",
    }
    (results / name / "study.json").write_text(json.dumps(values | ({"witness_rate": rate} if rate else {})))
    table.to_csv(results / name / "tables/04_compare.csv", index=False)


def wide(what, results, page="README.md"):
    return fill(f"<!-- begin: {what} -->\n<!-- end: {what} -->", results, page)


def test_auc_by_the_share_of_tissue_with_the_signal(tmp_path):
    results = tmp_path / RESULTS
    low, high = many(0.5), many(0.97)
    low["learned_nothing"] = 2 * (low.name == "CLAM-SB 10x")
    planted(results, "planted_05", 0.05, low[low.name != "CLAM-MB 10x"])
    planted(results, "planted", 0.15, many())
    planted(results, "planted_40", 0.4, high)
    said = wide("rates", results)
    assert "| method | AUC, 5 % of the tissue | AUC, 15 % of the tissue | AUC, 40 % of the tissue |" in said
    assert names(said) == list(names(wide("planted-best", results)))
    dmsmil = "| DMSMIL | 0.500 ± 0.100 [0.40, 0.90] | 0.600 ± 0.100 [0.40, 0.90] | 0.970 ± 0.100 [0.40, 0.90] |"
    assert dmsmil in said and "| CLAM-MB 10x | not run | 0.880" in said
    assert "| CLAM-SB 10x | 0.890 ± 0.100 [0.40, 0.90] (learned nothing in 2 of 6 runs) |" in said
    when = wide("when", results)
    assert "loses in AUC: with 5 % to 12 of 12 rows (Mean pooling 10x, ABMIL 20x, ABMIL 10x and 9 more); " in when
    assert "with 15 % to 11 of 13 rows (Mean pooling 10x, ABMIL 20x, ABMIL 10x and 8 more); " in when
    assert when.splitlines()[1].endswith("with 40 % to 1 of 13 rows (Mean pooling 10x).")
    assert when.splitlines()[1] in said, "of all that was trained, not of the rows that are shown"
    assert f"[planted_05]({RESULTS}/planted_05/README.md)" in said
    assert "[planted_05](planted_05/README.md)" in wide("rates", results, f"{RESULTS}/README.md")


@pytest.mark.parametrize("absent", RATES)
def test_a_study_that_is_absent_is_one_clear_line(tmp_path, absent):
    results = tmp_path / RESULTS
    for name, rate in zip(RATES, (0.05, 0.15, 0.4)):
        if name != absent:
            planted(results, name, rate, many())
    for what in ("rates", "when"):
        with pytest.raises(InputError) as caught:
            wide(what, results)
        assert_one_line(caught, f"outputs/{absent}")
        assert f"*Not here: the study {absent} has no " in wide(what, results, f"{RESULTS}/README.md")
    planted(results, absent, 0, many())
    with pytest.raises(InputError) as caught:
        wide("rates", results)
    assert_one_line(caught, "witness_rate")


def test_the_list_of_studies(tmp_path):
    results = tmp_path / RESULTS
    planted(results, "planted", 0.15, many())
    planted(results, "a_b", 0, many())
    said = wide("studies", results, f"{RESULTS}/README.md")
    assert "| [planted](planted/README.md) | With 0.15. | 160 | 9 | 2026-11-28 |" in said
    assert [name.split("]")[0] for name in names(said)] == ["[a_b", "[planted"]


# ------------------------------------------------------------------------------------------------ a page a study


@pytest.mark.slow
def test_a_study_gets_its_page_once(home):
    root = home.parents[1]
    (root / "params").mkdir()
    (root / "params/mine-2.yaml").write_text("# Ours: *all* of it (et al. 2019), in one. And more.\n#\nstudy: mine-2\n")
    assert main([str(home)], root) == 0
    page = root / RESULTS / "mine-2/README.md"
    text = page.read_text()
    assert "Ours: \\*all\\* of it (et al. 2019), in one.\n" in text and "And more" not in text
    assert "](figures/cover.png)" in text and names(text)[:2] == ["DMSMIL", "ABMIL 10x"]
    for stem in ("05_ablation", "06_lambda", "08_cost"):
        assert f"*Not here: the study mine-2 has no tables/{stem}.csv.*" in text
    assert re.findall(r"begin: mine-2-(\w+)", text) == re.findall(r"^\[(\w+)\]$", STUDY, re.M)
    assert set(BLOCKS) - {"best", "held"} == set(re.findall(r"^\[(\w+)\]$", STUDY, re.M))
    page.write_text(text.replace("## Main table", "## The table, and a word of ours"))
    compared(0.55, 0.9).to_csv(home / "tables/04_compare.csv", index=False)
    assert main([str(home)], root) == 0
    again = page.read_text()
    assert "a word of ours" in again and "## Main table" not in again
    assert names(again)[0] == "ABMIL 10x" and f"{RESULTS}/mine-2/README.md" in pages(root)
    assert study_page("x").count("<!-- begin: x-") == len(BLOCKS) - 2


@pytest.mark.slow
def test_nothing_is_written_where_one_page_cannot_be(home):
    root = home.parents[1]
    (root / "README.md").write_text("<!-- begin: mine-2-table -->\nold\n<!-- end: mine-2-table -->\n")
    (root / "README.zh-CN.md").write_text("<!-- begin: mine-2-ablation -->\nold\n<!-- end: mine-2-ablation -->\n")
    assert main([str(home)], root) == 2
    assert "old" in (root / "README.md").read_text().split()


@pytest.mark.slow
def test_settings_say_what_was_run_where_and_when(home):
    params = json.loads((home / "params.yaml").read_text()) | {"cohort": "planted", "witness_rate": 0.05, "lr": 1e-4}
    (home / "params.yaml").write_text(json.dumps(params))
    os.utime(home / "tables/04_compare.csv", (1_000_000_000,) * 2)
    said = shown(home, "settings")
    for line in (
        "| date | 2001-09-09 |",
        "| classes | 1 a, 2 b |",
        "| witness_rate | 0.05 |",
        "| seeds | 0, 1 |",
        "| cores | 2 |",
        "| lr | 0.0001 |",
    ):
        assert line in said
    assert "paper" not in said
    (home / "params.yaml").write_text(json.dumps(params | {"cohort": "mine.csv"}))
    assert "witness_rate" not in shown(home, "settings")
    assert "witness_rate" not in read_json(home.parents[1] / RESULTS / "mine-2/study.json")


@pytest.mark.parametrize(
    "text, said",
    [
        ("# One line. Two.\nstudy: x\n", "One line."),
        ("# Over\n# two lines: yes. `make` it.\n", "Over two lines: yes."),
        ("# Of e.g. this, v. 2 of it\nstudy: x", ""),
        ("study: x\n# Late.\n", ""),
        ("# Ends.\n#\n# Other.\n", "Ends."),
    ],
)
def test_the_purpose_is_the_first_sentence_of_a_params_file(tmp_path, text, said):
    (tmp_path / "x.yaml").write_text(text)
    assert purpose(tmp_path / "x.yaml") == said and purpose(tmp_path / "none.yaml") == ""
