"""The command `dmsmil`. What a verb needs is imported when it is asked for: help answers at once.

    dmsmil check params/mine.yaml     what is wrong, in seconds, before hours are spent
    dmsmil run params/mine.yaml       the whole study, into outputs/<study>/; start it again to continue
    dmsmil apply params/mine.yaml SLIDES      what its models say of slides that it has never seen
    dmsmil export params/mine.yaml OUT        its models as a folder that travels; dmsmil apply OUT SLIDES
    dmsmil export-bags params/mine.yaml OUT --for torchmil   its features, for those who train with another program
    dmsmil book params/mine.yaml      its book once more, from the notebooks as they were executed
    dmsmil choose params/planted.yaml ...   which reading of the paper is the default, by the rule of docs/readings.md
    dmsmil methods                    the methods there are
    dmsmil bench                      how fast the fast paths are, against the plain ones

Exit status: 0 all well; 1 something failed, and the rest is there: slides or runs in failures.csv, a problem that
`check` found, a promise that a method breaks; 2 it could not be done, for the reason given; 130 stopped by Ctrl-C,
or by the system (a shutdown, a closed terminal).
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dmsmil import __version__
from dmsmil.jobs.files import InputError
from dmsmil.study.params import read_params
from dmsmil.study.place import folder_of, shown
from dmsmil.study.terminal import say, silence

GOOD, FAILED, REFUSED, STOPPED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """The `dmsmil` command; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # λ in a terminal that has none
    try:
        with _stopped_as_by_ctrl_c():
            return _answer(_parser().parse_args(argv))
    except InputError as error:
        say(f"dmsmil: {error}", sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        say("dmsmil: stopped; what is done is kept, start the same command again to continue", sys.stderr)
        return STOPPED
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # of what argparse wrote: say sees to its own
                silence(stream)


@contextmanager
def _stopped_as_by_ctrl_c() -> Iterator[None]:
    """A shutdown, a scheduler's cancel and a closed terminal end a command as Ctrl-C does, unless they are ignored (by
    nohup) or this is no main thread."""
    kinds = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    mine = [kind for kind in kinds if here and signal.getsignal(kind) is signal.SIG_DFL]

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for kind in mine:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind in mine:
            signal.signal(kind, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dmsmil",
        description="DMSMIL as a reproducible study: see README.md",
        epilog=" ".join(__doc__.split("\n\n")[-1].split()),
    )
    parser.add_argument("--version", action="version", version=f"dmsmil {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="{run,check,apply,export,export-bags,book,choose,methods,bench}"
    )
    for verb, text in (
        ("run", "run a study; start it again to continue"),
        ("check", "say what would go wrong"),
        ("book", "build the book of a study that has run"),
    ):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("params", help="a YAML file of parameters, such as params/demo.yaml")
        sub.add_argument(
            "-p",
            nargs=2,
            action="append",
            default=[],
            metavar=("KEY", "VALUE"),
            help="set one parameter, as papermill does; results go to the folder of -p outputs FOLDER",
        )
        if verb == "run":
            sub.add_argument("--only", nargs="+", metavar="NN", help="only these notebooks, by number or name")
    applied = verbs.add_parser("apply", help="predict slides that a finished study has never seen")
    applied.add_argument("params", help="a params file of a study that has run, or a folder that export wrote")
    applied.add_argument("place", metavar="slides", help="a slide, a folder of slides, or a table of them")
    exported = verbs.add_parser("export", help="write the models of a finished study into a folder that travels")
    exported.add_argument("params", help="a params file of a study that has run")
    exported.add_argument("place", metavar="out", help="a new folder")
    for sub in (applied, exported):
        sub.add_argument("--method", help="of the study's methods this one, in place of the key method")
        sub.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="set one parameter")
    bags = verbs.add_parser("export-bags", help="write a study's features for those who train with another program")
    bags.add_argument("params", help="a params file of a study whose features are made")
    bags.add_argument("place", metavar="out", help="a new folder")
    bags.add_argument("--for", required=True, dest="kind", choices=("torchmil", "clam", "stamp"))
    bags.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="set one parameter")
    sub = verbs.add_parser("choose", help="which reading of the paper is the default, by the rule of docs/readings.md")
    sub.add_argument("params", nargs="+", help="the studies whose cohorts choose")
    sub.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="set one parameter in all of them"
    )
    sub = verbs.add_parser("methods", help="list the methods")
    sub.add_argument("--check", metavar="NAME", help="does this method keep the promises of the model contract?")
    sub = verbs.add_parser("bench", help="time the fast paths against the plain ones, interleaved")
    sub.add_argument("parts", nargs="*", help="slides, encoder, step, stacked, methods (default: all)")
    sub.add_argument("--quick", action="store_true", help="small sizes, a minute in all")
    return parser


def _answer(args: argparse.Namespace) -> int:
    """Do what was asked for; returns the exit status."""
    if args.verb == "methods":
        return check_method(args.check) if args.check is not None else list_methods()
    if args.verb == "bench":
        from dmsmil.study import bench

        return bench.main(args.parts, args.quick)
    if args.verb == "choose":
        from dmsmil.study.choice import choose

        return choose([read_params(path, dict(args.p)) for path in args.params])
    if args.verb in ("apply", "export"):
        from dmsmil.study import applying

        overrides = dict(args.p) | ({"method": args.method} if args.method else {})
        if args.verb == "apply":
            return applying.apply(args.params, args.place, overrides)
        return applying.export(read_params(args.params, overrides), args.place)
    params = read_params(args.params, dict(args.p))
    if args.verb == "check":
        return check(params)
    if args.verb == "book":
        return make_book(params)
    if args.verb == "export-bags":
        return export_bags(params, args.kind, args.place)
    from dmsmil.study.run import run

    return run(params, args.only)


def check(params: dict) -> int:
    """Say what would go wrong with a study, in seconds: GOOD, or FAILED when something would."""
    from dmsmil.study.preflight import findings

    problems = 0
    for good, line in findings(params):
        problems += not good
        say(("ok       " if good else "PROBLEM  ") + line)
    say(
        f"{problems} problem{'s' if problems > 1 else ''} to mend first"
        if problems
        else "nothing stands in the way: dmsmil run"
    )
    return FAILED if problems else GOOD


def make_book(params: dict) -> int:
    """Build the book of a study that has run; InputError when there is nothing to build it from."""
    from dmsmil.book.build import build

    index = build(folder_of(params["study"], params["outputs"]), say)
    say(f"{shown(index)}   to read in any browser")
    return GOOD


def export_bags(params: dict, kind: str, place: str) -> int:
    """Write the features of a study into a new folder for another program; InputError when there are none."""
    from dmsmil.features.handing import hand_out
    from dmsmil.study.opening import open_study

    opened = open_study(*(params[name] for name in ("study", "outputs", "scales", "tile_px", "encoder")))
    names = hand_out(kind, opened.store, opened.cohort, opened.folds, place)
    say(f"{len(names)} of {len(opened.cohort)} slides in {place}, and README.txt, which says how {kind} loads them")
    return GOOD


def check_method(name: str) -> int:
    """Say which promises of the model contract a method keeps: GOOD when it keeps them all, else FAILED."""
    from dmsmil.models.contract import check_contract

    table = check_contract(name)
    for promise, row in table.iterrows():
        say(("kept     " if row.kept else "BROKEN   ") + promise + (f": {row['why not']}" if not row.kept else ""))
    return GOOD if table.kept.all() else FAILED


def list_methods() -> int:
    """Say name, scales, parameters at 2048-d with two classes, and reference of every method."""
    from dmsmil.models import METHODS, count_parameters, create

    say(f"{'name':<14}{'scales':<10}{'parameters':>12}  reference")
    for row in METHODS.values():
        scales = (10,) if row.takes == "one" else (10, 20)
        words = {"one": "one", "many": "all", "any": "one or all"}[row.takes]
        count = count_parameters(create(row.name, 2048, 2, scales))
        say(f"{row.name:<14}{words:<10}{count:>12,}  {row.title}: {row.reference}")
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
