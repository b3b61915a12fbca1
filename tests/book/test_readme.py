"""README's numbers are those of docs/results/, whatever they say; the words around them are left alone."""

import json
import re
from html import unescape

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from dmsmil.book.readme import BLOCKS, PAGES, RESULTS, WIDTH, collect, fill, main
from dmsmil.jobs.files import ROOT, InputError
from tests.conftest import assert_one_line

WORDS = "# A study\n\nProse | with a bar, 0.123, <!-- a comment -->.\n{}\nAnd its end, without a newline"


def row(name, auc, method="", scales="", collapsed=0, acc=0.6):
    means = {"ACC": acc, "F1": 0.5, "AUC": auc}
    return {"name": name, "method": method, "scales": scales, **{f"{m}_mean": v for m, v in means.items()},
            **{f"{m}_std": 0.1 for m in means}, **{f"{m}_low": 0.4 for m in means}, **{f"{m}_high": 0.9 for m in means},
            "runs": 6, "collapsed": collapsed, "parameters": 636386 if method else 0}


def compared(dmsmil=0.8, abmil=0.7, **more):
    return pd.DataFrame([row("DMSMIL", dmsmil, "dmsmil", "10x+20x", **more), row("ABMIL 10x", abmil, "abmil", "10x"),
                         row("six colour numbers", 0.65), row("always the majority", 0.5)])


@pytest.fixture
def home(tmp_path):
    """The folder of a made-up study of two methods, as `dmsmil run` leaves it."""
    home = tmp_path / "outputs/mine-2"
    (home / "tables").mkdir(parents=True)
    (home / "figures").mkdir()
    pd.DataFrame({"slide_id": ["s1", "s2", "s3"], "patient_id": ["p1", "p1", "p2"], "label": ["b", "b", "a"]}).to_csv(
        home / "cohort.csv", index=False)
    params = {"study": "mine-2", "folds": 3, "seeds": [0, 1], "epochs": 7, "k": 9, "encoder": "e", "paper": ""}
    (home / "params.yaml").write_text(json.dumps(params))
    (home / "environment.json").write_text(json.dumps({"cores": 2, "gpu": "none"}))
    pd.DataFrame({"notebook": ["03_train", "04_compare"], "first": [60.0, 1200.0], "latest": [3.0, 4.0]}).to_csv(
        home / "times.csv", index=False)
    compared().to_csv(home / "tables/04_compare.csv", index=False)
    paired(0.1, 0.01).to_csv(home / "tables/04_tests.csv", index=False)
    pd.DataFrame({"claim": ["It leads"], "in the paper": ["Table 1"], "tested in": ["04_compare"],
                  "verdict": ["not shown"], "number": ["ACC 0.600 against 0.600 of A|B. More."]}).to_csv(
                      home / "tables/09_claims.csv", index=False)
    Image.effect_noise((2400, 900), 60).save(home / "figures/cover.png")
    return home


def paired(difference, p, **more):
    return pd.DataFrame([{"reference": "DMSMIL", "name": "ABMIL 10x", "AUC_difference": difference, "AUC_p_holm": p,
                          **more}])


def shown(home, what):
    """What a block says of the study, after it was collected anew."""
    results = home.parents[1] / RESULTS
    collect(home, results)
    return fill(f"<!-- begin: mine-2-{what} -->\n<!-- end: mine-2-{what} -->", results)


def names(text):
    return [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][2:]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_the_files_say(page):
    """If this fails: python -m dmsmil.book.readme."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert fill(text, ROOT / RESULTS) == text


def test_the_chinese_readme_is_true_to_the_english_one():
    """The same commands in the same order, the same links and keys, but for what it leaves to the English page."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    commands = [re.findall(r"^ *(?:make|dmsmil|S-0\d+,)[^#\n]*?(?= *(?:#|$))", text, re.M)
                for text in (english, chinese)]
    assert commands[0] == commands[1]
    said = [set(re.findall(r"\]\(([^)]+)\)", text)) for text in (english, chinese)]
    assert said[1] - said[0] == {"README.md", "README.md#where-things-are"}
    keys = [set(re.findall(r"`(\w+)(?:: [^`]*)?`", text)) for text in (english, chinese)]
    assert keys[1] <= keys[0]


def test_the_readme_says_where_every_wing_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are\n")[2].partition("\n## ")[0]
    wings = {path.parent.name for path in (ROOT / "dmsmil").glob("*/__init__.py")}
    assert {wing for wing in wings if f"`{wing}/`" not in table} == set()


def test_the_committed_results_are_small():
    files = [path for path in (ROOT / RESULTS).rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 400_000 for path in files)


def test_the_table_follows_the_numbers_and_the_best_stands_first(home):
    said = shown(home, "table")
    assert "| DMSMIL | 0.600 ± 0.100 [0.40, 0.90] | 0.500 ± 0.100 [0.40, 0.90] | 0.800 ± 0.100 [0.40, 0.90] |" in said
    assert names(said) == ["DMSMIL", "ABMIL 10x", "six colour numbers", "always the majority"]
    assert "3 slides of 2 patients (1 a, 2 b); 3 folds × 2 seeds, K = 9" in said and "7 epochs" in said
    params = json.loads((home / "params.yaml").read_text())
    (home / "params.yaml").write_text(json.dumps(params | {"repeats": 4}))
    assert "3 folds × 4 repeats × 2 seeds, K = 9" in shown(home, "table")
    compared(0.55, 0.9).to_csv(home / "tables/04_compare.csv", index=False)
    assert names(shown(home, "table")) == ["ABMIL 10x", "six colour numbers", "DMSMIL", "always the majority"]
    assert "note" not in said


def test_a_collapse_stands_last_and_says_so(home):
    compared(0.99, collapsed=2).to_csv(home / "tables/04_compare.csv", index=False)
    said = shown(home, "table")
    assert names(said)[-1] == "DMSMIL" and "2 of 6 runs collapsed" in said
    assert "Collapsed, and so no result: DMSMIL." in shown(home, "words")


def test_the_words_turn_with_the_numbers(home):
    good = shown(home, "words")
    assert "Highest AUC: **DMSMIL**, 0.800" in good and "DMSMIL is above *six colour numbers*" in good
    assert "better than ABMIL 10x, and worse than none." in good
    compared(0.55, 0.9).to_csv(home / "tables/04_compare.csv", index=False)
    paired(-0.35, 0.01).to_csv(home / "tables/04_tests.csv", index=False)
    bad = shown(home, "words")
    assert "Highest AUC: **ABMIL 10x**, 0.900" in bad and "DMSMIL is not above *six colour numbers*" in bad
    assert "better than none, and worse than ABMIL 10x." in bad
    paired(-0.005, 0.2, AUC_p_equivalent_holm=0.01).to_csv(home / "tables/04_tests.csv", index=False)
    assert "better than none, and worse than none; equivalent to ABMIL 10x." in shown(home, "words")
    paired(-0.35, 0.2).to_csv(home / "tables/04_tests.csv", index=False)
    assert "better than none, and worse than none." in shown(home, "words")


def test_claims_and_times_are_said_as_they_are(home):
    said = shown(home, "claims")
    assert r"| It leads | Table 1 | 04_compare | not shown | ACC 0.600 against 0.600 of A\|B |" in said
    assert "Of 1 claims: 0 held, 0 equivalent, 1 not shown, 0 not held, 0 not run." in said
    assert "On 2 cores and no GPU" in (took := shown(home, "time")) and "took 21 minutes" in took
    assert "20 of them for 04_compare" in took


def test_the_picture_is_made_small(home):
    assert f"({RESULTS}/mine-2/figures/cover.png)" in shown(home, "picture")
    with Image.open(home.parents[1] / RESULTS / "mine-2/figures/cover.png") as image:
        assert image.width == WIDTH and image.mode == "P"


def test_every_block_can_be_filled_from_the_smoke_study(smoke, tmp_path):
    home, _ = smoke
    collect(home, tmp_path)
    there = {path.stem for path in tmp_path.rglob("*.*")}
    needs = {"ablation": "05_ablation", "lambda": "06_lambda", "cost": "08_cost", "claims": "09_claims",
             "picture": "cover", "time": "times"}
    for what in [what for what in BLOCKS if needs.get(what, "04_compare") in there]:
        said = fill(f"<!-- begin: smoke-{what} -->\n<!-- end: smoke-{what} -->", tmp_path)
        assert len(said.splitlines()) > 2 and "nan" not in said.lower().split() and str(home.parent) not in said, what


def test_what_a_study_no_longer_has_is_no_longer_shown(home):
    assert "It leads" in shown(home, "claims")
    (home / "tables/09_claims.csv").unlink()
    (home / "figures/cover.png").unlink()
    for what, name in (("claims", "09_claims.csv"), ("picture", "cover.png"), ("ablation", "05_ablation.csv")):
        with pytest.raises(InputError) as caught:
            shown(home, what)
        assert_one_line(caught, name)


def test_twice_changes_nothing_and_the_rest_is_never_touched(home):
    root = home.parents[1]
    blocks = "\n".join(f"<!-- begin: mine-2-{what} -->\nold\n<!-- end: mine-2-{what} -->\n\nbetween" for what in
                       ("table", "words"))
    (root / "README.md").write_text(WORDS.format(blocks))
    assert main([str(home)], root) == 0
    first = (root / "README.md").read_text()
    assert main([str(home)], root) == main([], root) == 0
    assert (root / "README.md").read_text() == first == fill(first, root / RESULTS)
    before, _, rest = first.partition("<!-- begin: mine-2-table -->")
    assert WORDS.startswith(before) and rest.endswith("\n\nbetween\nAnd its end, without a newline")
    assert first.count("between") == 2 and "old" not in first.split()
    assert fill(WORDS, root / RESULTS) == WORDS, "no block, no change"


@pytest.mark.parametrize("text, message", [
    ("<!-- begin: mine-2-table -->\n", "begin: mine-2-table"), ("<!-- end: mine-2-table -->", "end: mine-2-table"),
    ("<!-- begin: mine-2-table -->\n<!-- end: mine-2-words -->", "alone"),
    ("<!-- begin: mine-2-table -->\n<!-- begin: mine-2-words -->\n<!-- end: mine-2-words -->\n"
     "<!-- end: mine-2-table -->", "alone"),
    ("<!-- begin: mine-2-tabel -->\n<!-- end: mine-2-tabel -->", "'mine-2-tabel'"),
    ("<!-- begin: table -->\n<!-- end: table -->", "'table'"),
    ("<!-- begin: other-table -->\n<!-- end: other-table -->", "other")])
def test_a_wrong_block_is_one_clear_line_and_the_readme_stays(home, text, message, capsys):
    root = home.parents[1]
    (root / "README.md").write_text(WORDS.format(text))
    collect(home, root / RESULTS)
    with pytest.raises(InputError) as caught:
        fill(WORDS.format(text), root / RESULTS)
    assert_one_line(caught, message)
    assert main([], root) == 2 and message in capsys.readouterr().err
    assert (root / "README.md").read_text() == WORDS.format(text)


def test_a_folder_that_is_no_compared_study_is_named(home, tmp_path):
    (home / "tables/04_compare.csv").unlink()
    for folder, lost in ((home, "04_compare.csv"), (tmp_path, "cohort.csv")):
        with pytest.raises(InputError) as caught:
            collect(folder, tmp_path / "results")
        assert_one_line(caught, lost)
    assert not (tmp_path / "results").exists()


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
    assert f"better than {odd}, and" in unescape(render(shown(home, "words")))
